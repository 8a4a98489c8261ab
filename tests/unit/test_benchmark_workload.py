# SPDX-License-Identifier: Apache-2.0
"""Small runs of the workloads that need more than a table in memory, and the parts they are made of."""

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rowhouse.error import RowhouseError

from benchmarks import cli, table_size
from benchmarks import embedded as embedded_module
from benchmarks.bar import Goal, Settings
from benchmarks.batch import BATCH_IDS, load_batches
from benchmarks.embedded import (
    ADAGRAD,
    TABLE,
    create_rows,
    embedded,
    embedded_scratch,
    table_config,
    write_log,
)
from benchmarks.peer_grpc import BareCalls
from benchmarks.server import serving
from benchmarks.table_disk import cold_batches, small_budget
from benchmarks.table_load import noise_rows
from benchmarks.table_size import exponent, sizes

SMALL = ["--quick", "--runs", "1", "--seconds", "0.01", "--warmup-batches", "1"]


def run_small(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str
) -> dict[str, dict[str, object]]:
    monkeypatch.setattr(cli, "BUILD", folder / "build")
    code = cli.main(["run", *flags, *SMALL, "--scratch", str(folder / "scratch"), "--json"])
    bars = json.loads(capsys.readouterr().out)
    assert code == 0, [bar["skipped"] for bar in bars]
    return {bar["id"]: bar for bar in bars}


def test_cold_batches_share_no_id() -> None:
    batches = cold_batches(7 * BATCH_IDS)
    together = np.concatenate([b.requested for b in batches])
    assert together.shape[0] == 7 * BATCH_IDS == np.unique(together).shape[0]
    with pytest.raises(ValueError, match="rows is 1000; cold batches that share no id need 159744"):
        cold_batches(1000)


def test_the_small_budget_holds_its_cache() -> None:
    budget, cache = small_budget(50_000_000)
    assert cache == 160 << 20 and budget // 4 == 320 << 20, "the store takes no more of any budget"


def test_noise_covers_every_rank_once() -> None:
    ids = np.concatenate([chunk[0] for chunk in noise_rows(300_001)])
    assert ids.shape[0] == np.unique(ids).shape[0] == 300_001


def test_the_bare_server_answers_as_many_bytes_as_asked(tmp_path: Path) -> None:
    (batch,) = load_batches("zipf", tmp_path, ids=500, batches=1)
    with serving(["-m", "benchmarks.peer_grpc"], tmp_path / "out.txt") as server:
        calls = BareCalls(server.endpoint())
        calls.step(batch)
        calls.close()
        with grpc.insecure_channel(server.endpoint()) as channel:
            call: Any = channel.unary_unary("/benchmark.Bare/Call")
            answer = call((1000).to_bytes(8, "little"))
        assert answer == bytes(1000)


def test_a_server_that_does_not_start_is_told(tmp_path: Path) -> None:
    with (
        serving(["-c", "print('no port'); raise SystemExit(3)"], tmp_path / "out.txt") as server,
        pytest.raises(RuntimeError, match="no port"),
    ):
        server.endpoint()


def test_the_disk_workloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["table.cold_pull", "table.bulk_load"]
    bars = run_small(tmp_path, monkeypatch, capsys, *names, "--rows", "300000")
    for name in names:
        assert float(str(bars[name]["ratio"])) > 0
    detail = bars["table.cold_pull"]["detail"]
    assert isinstance(detail, dict) and detail["share_hot"] < 0.5


def test_costs_against_sizes() -> None:
    assert sizes(100) == (100_000, 1_000_000)
    assert sizes(5_000_000)[-1] == 10_000_000 and sizes(50_000_000)[-1] == 50_000_000
    assert exponent([100, 1000, 10_000], [3.0, 30.0, 300.0]) == pytest.approx(1.0)
    assert exponent([100, 1000], [5.0, 5.0]) == pytest.approx(0.0)


def test_a_load_of_each_size_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table_size, "SIZES", (30_000, 60_000))
    settings = Settings(
        runs=1, seconds=0.01, warmup_batches=1, ids=1, rows=1, log_bytes=1, cache=tmp_path, scratch=tmp_path,
    )  # fmt: skip
    bars = {bar.id: bar for bar in table_size.measure(settings, "s", Goal("figure", "at most", 1.1))}
    assert bars["s.load"].detail["sizes"] == [30_000, 60_000]
    assert bars["s.load.60000"].figure == pytest.approx(bars["s.load"].detail["seconds"][1] / 60_000 * 1e6)
    assert {bars[f"s.{work}"].met for work in ("pull", "step")} == {None}
    assert bars["s.reopen"].met is not None


def test_many_clients_shards_and_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["wire.mixed", "wire.shards.zipf", "wire.click.zipf", "--ids", "30000"]
    bars = run_small(tmp_path, monkeypatch, capsys, *flags)
    for kind in ("step", "pull"):
        p50, p99 = (float(str(bars[f"wire.mixed.{kind}.{which}"]["figure"])) for which in ("p50", "p99"))
        assert 0 < p50 <= p99
    for name in ("wire.shards.zipf", "wire.click.zipf", "wire.click.zipf.staleness_1"):
        assert float(str(bars[name]["ratio"])) > 0


def test_reopening_and_the_wire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--rows", "50000", "--ids", "50000", "--log-bytes", "2000000"]
    bars = run_small(tmp_path, monkeypatch, capsys, "table.reopen.zipf", "wire.overhead.zipf", *flags)
    assert float(str(bars["table.reopen.zipf"]["figure"])) > 0
    assert float(str(bars["wire.overhead.zipf"]["peer_figure"])) > 0


@pytest.mark.parametrize("discard", [False, True])
def test_a_table_that_nobody_reads_again_is_closed_unless_it_is_discarded(
    tmp_path: Path, discard: bool
) -> None:
    settings = Settings(
        runs=1, seconds=0.01, warmup_batches=1, ids=1, rows=1, log_bytes=1, cache=tmp_path, scratch=tmp_path,
        discard=discard,
    )  # fmt: skip
    with embedded_scratch(settings, "table", table_config(ADAGRAD, durability="os")) as client:
        create_rows(client, 1000)
    if discard:
        assert client.stats()[0].tables[0].hot_rows == 1000
        client.close()
    with pytest.raises(RowhouseError):
        client.stats()


def test_a_run_has_a_checkpoint_before_it_only_where_the_log_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_module, "LOG_BYTES_PER_S", 1 << 20)
    batches = load_batches("uniform", tmp_path, 50_000, 2)
    with embedded(tmp_path / "table", table_config(ADAGRAD, durability="os")) as client:
        before_run = write_log(client, batches, 1.0)  # room for 2 MB
        assert client.stats()[0].log_bytes < 1 << 16
        before_run()
        client.push(TABLE, batches[1].distinct, batches[1].gradients)
        held = client.stats()[0].log_bytes
        assert held > 1 << 20
        before_run()  # another megabyte would not fit
        assert client.stats()[0].log_bytes < 1 << 16
