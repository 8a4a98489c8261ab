# SPDX-License-Identifier: Apache-2.0
"""psctl load and export: Parquet in, Parquet out, over one shard and over a data_dir of several."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.progress import Progress
from rowhouse.document import dump

from ps_server import psctl
from ps_server.command.offline import RateColumn
from ps_server.disk.data_dir import claim_data_dir
from ps_server.disk.verify import verify_directory
from tests.stopped import TABLES, fill, make_config, open_shard, pull, stopped


def test_a_data_dir_goes_to_parquet_and_into_one_with_more_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(tmp_path / "one", 3000)
    out = tmp_path / "user.parquet"
    assert psctl.main(["export", str(tmp_path / "one"), "user", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"shard": "shard-0000", "rows": 3000}]
    before = pq.read_table(out)
    assert before.num_rows == 3000 and before.schema.names == ["id", "weights", "state", "lsn"]

    config = make_config(tmp_path / "three", shards=3)
    for index in range(3):
        open_shard(config, index).close()
    assert psctl.main(["load", str(tmp_path / "three"), "user", str(out), "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [r["shard"] for r in reports] == ["shard-0000", "shard-0001", "shard-0002"]
    assert sum(r["rows"] for r in reports) == 3000 and all(r["rows"] > 800 for r in reports)
    assert psctl.main(["verify", str(tmp_path / "three")]) == 0
    again = tmp_path / "again.parquet"
    assert psctl.main(["export", str(tmp_path / "three"), "user", "--out", str(again)]) == 0
    assert pq.read_table(again).drop_columns(["lsn"]).equals(before.drop_columns(["lsn"]))
    assert "3 shards" not in capsys.readouterr().err


def test_a_load_leaves_out_rows_that_are_not_finite_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path / "two", shards=2)
    for index in range(2):
        open_shard(config, index).close()
    weights = np.arange(900, dtype=np.float32)
    weights[30] = np.inf
    lists = pa.FixedSizeListArray.from_arrays(pa.array(weights), 3)
    out = tmp_path / "item.parquet"
    pq.write_table(pa.table({"id": np.arange(300, dtype=np.uint64), "weights": lists}), out)
    command = ["load", str(tmp_path / "two"), "item", str(out), "--json"]
    assert psctl.main(command) == 2
    assert "id 10, column 0, is inf" in capsys.readouterr().err
    assert psctl.main([*command, "--skip-not-finite"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert sum(r["rows"] for r in reports) == 299 and sum(r["not_finite"] for r in reports) == 1


def test_a_config_makes_new_shards_and_their_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pretrained weights without optimizer state, into a data_dir that is not there yet."""
    ids = np.arange(500, dtype=np.uint64)
    weights = np.arange(2000, dtype=np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(weights), 4)
    pq.write_table(pa.table({"id": ids, "weights": lists}), tmp_path / "w.parquet")
    config = tmp_path / "cluster.yaml"
    keys = {"data_dir": "elsewhere", "tables": TABLES, "memory_budget": "16MiB", "shards": 2}
    config.write_text(dump(keys))
    command = ["load", str(tmp_path / "new"), "user", str(tmp_path / "w.parquet")]
    assert psctl.main(command) == 74
    assert "no shard's directory" in capsys.readouterr().err
    assert psctl.main([*command, "--config", str(config)]) == 2
    assert "which the input lacks: add the columns, or load with --reset state" in capsys.readouterr().err
    assert psctl.main([*command, "--config", str(config), "--reset", "state"]) == 0
    assert "shard-0001" in capsys.readouterr().out and not (tmp_path / "elsewhere").exists()
    rows = 0
    for index in range(2):
        shard = open_shard(make_config(tmp_path / "new", shards=2), index)
        own = ids[shard.partition_map.shards_of(ids) == index]
        assert np.array_equal(pull(shard, "user", own), weights.reshape(-1, 4)[own.astype(np.intp)])
        shard.close()
        rows += verify_directory(shard.directory).tables[1].rows
    assert rows == 500
    assert psctl.main([*command, "--reset", "state"]) == 2  # without the config the state is not known
    assert "first state: load with --config" in capsys.readouterr().err


def test_an_export_replaces_a_file_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, out = stopped(tmp_path, 10), tmp_path / "user.parquet"
    out.write_text("another's")
    command = ["export", str(directory), "user", "--out", str(out)]
    assert psctl.main(command) == 2
    assert f"--out: {out} is there already; name another, or --overwrite" in capsys.readouterr().err
    assert out.read_text() == "another's"
    assert psctl.main([*command, "--overwrite"]) == 0
    assert pq.read_metadata(out).num_rows == 10


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["export", "{dir}", "usr", "--out", "{tmp}/x"], 2, "table 'usr' is unknown"),
        (["export", "{dir}", "user", "--out", "{tmp}/none/x"], 74, "x"),
        (["load", "{dir}", "user", "{tmp}/none.parquet"], 2, "cannot be read as Parquet"),
        (["load", "{dir}", "user", "{dir}/log"], 2, "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_done_says_why(
    tmp_path: Path, arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = stopped(tmp_path, 10)
    assert psctl.main([a.format(dir=directory, tmp=tmp_path) for a in arguments]) == code
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.glob("x*"))


def test_a_running_shard_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = open_shard(make_config(tmp_path))
    fill(shard, 10)
    pq.write_table(pa.table({"id": [1], "weights": [[1.0] * 3]}), tmp_path / "w.parquet")
    assert psctl.main(["load", str(tmp_path), "item", str(tmp_path / "w.parquet")]) == 74
    assert psctl.main(["export", str(tmp_path), "item", "--out", str(tmp_path / "x")]) == 74
    assert capsys.readouterr().err.count("DirectoryInUseError") == 2
    shard.close()


def test_a_data_dir_that_lacks_a_shard_is_not_taken_for_a_whole_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the rows would be exported, verified or loaded, and nobody told."""
    config = make_config(tmp_path / "two", shards=2)
    claim_data_dir(config.data_dir, config.shard_count)
    for index in range(2):
        open_shard(config, index).close()
    shutil.move(tmp_path / "two" / "shard-0001", tmp_path / "kept")
    out = str(tmp_path / "user.parquet")
    pq.write_table(pa.table({"id": np.arange(1, dtype=np.uint64)}), tmp_path / "in.parquet")
    for command in (
        ["verify"],
        ["export", "user", "--out", out],
        ["load", "user", str(tmp_path / "in.parquet")],
    ):
        assert psctl.main([command[0], str(tmp_path / "two"), *command[1:]]) == 74
        assert "shard-0001 is missing, one of 2 shards" in capsys.readouterr().err
    assert psctl.main(["verify", str(tmp_path / "two" / "shard-0000")]) == 0
    shutil.move(tmp_path / "kept", tmp_path / "two" / "shard-0001")
    assert psctl.main(["verify", str(tmp_path / "two")]) == 0


def test_a_load_that_fails_leaves_all_shards_or_none(tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    keys = {"data_dir": "x", "tables": TABLES, "memory_budget": "16MiB", "shards": 2}
    config.write_text(dump(keys))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(6, np.float32)), 3)
    pq.write_table(pa.table({"id": np.arange(2, dtype=np.uint64), "weights": lists}), tmp_path / "w.parquet")
    command = ["load", str(tmp_path / "new"), "user", str(tmp_path / "w.parquet"), "--config", str(config)]
    assert psctl.main(command) == 2
    assert sorted(p.name for p in (tmp_path / "new").glob("shard-*")) == ["shard-0000", "shard-0001"]
    assert psctl.main(["verify", str(tmp_path / "new")]) == 0


def test_a_load_shows_rows_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, out = stopped(tmp_path / "one", 3000), tmp_path / "user.parquet"
    assert psctl.main(["export", str(directory), "user", "--out", str(out)]) == 0
    shown: list[Progress] = []

    class Noted(Progress):
        def __init__(self, *columns: Any, **options: Any) -> None:
            super().__init__(*columns, **options)
            shown.append(self)

    monkeypatch.setattr("ps_server.command.offline.Progress", Noted)
    assert psctl.main(["load", str(directory), "user", str(out)]) == 0
    reading, writing = shown[0].tasks
    assert (reading.completed, reading.total, writing.completed) == (3000, 3000, 3000)
    assert reading.description.endswith("user, reading") and "one sorted run" in writing.description


def test_a_rate_is_in_rows_per_second() -> None:
    now = [0.0]
    progress = Progress(get_time=lambda: now[0])
    task = progress.add_task("", total=9_000)
    assert RateColumn().render(progress.tasks[0]).plain == ""
    for now[0] in (1.0, 2.0):
        progress.advance(task, 4_000)
    assert RateColumn().render(progress.tasks[0]).plain == "4,000 rows/s"
