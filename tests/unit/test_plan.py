# SPDX-License-Identifier: Apache-2.0
"""`psctl plan`: bytes that sum, constants that fit, plans that hold what they promise, errors told."""

import json
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from rowhouse.error import ConfigError

from ps_server import psctl
from ps_server.command import check
from ps_server.command.check import errors_of
from ps_server.command.plan import parse_rows
from ps_server.config.cluster import MEMORY_BUDGET_MIN_BYTES
from ps_server.disk.row import RowLayout
from ps_server.plan.constant import SHIPPED, Kind, Run, fit, read_runs, write_runs
from ps_server.plan.measure import BASE_ROWS, CHECKED, KINDS, measure
from ps_server.plan.plan import Demand, Site, make_plan
from ps_server.plan.row_bytes import (
    EVICTION,
    Constants,
    arithmetic,
    disk_row,
    memory_row,
    raw_bytes,
    table_of,
)
from ps_server.psctl import EVICTION_KINDS
from ps_server.table.budget import split

CONSTANTS = Constants(
    index_bytes=12.0, process_bytes=2e8, plain_row=19.0, plain_byte=1.0, saved_row=15.0,
    saved_weight_byte=0.0, saved_bf16_byte=0.125, load_row_s=1e-6, load_byte_s=1e-8,
    replay_row_s=1e-5, start_s=0.5,
)  # fmt: skip
SITE = Site(
    shards=8, share=0.25, machine_memory_bytes=100e9, machine_disk_bytes=1e12, log_bytes=512 << 20,
)  # fmt: skip


def layout_of(dtype_name: str, dim: int, optimizer: str, eviction: Sequence[str] = ()) -> RowLayout:
    return table_of("t", dim=dim, dtype_name=dtype_name, optimizer=optimizer, eviction=eviction).layout


@pytest.mark.parametrize("dtype_name", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("dim", "optimizer"), [(1, "sgd"), (7, "adagrad"), (16, "adam"), (64, "ftrl")])
@pytest.mark.parametrize("eviction", [(), ("ttl",), ("show_click", "least_frequent")])
def test_the_purposes_are_the_layouts_bytes(
    dtype_name: str, dim: int, optimizer: str, eviction: Sequence[str]
) -> None:
    layout = layout_of(dtype_name, dim, optimizer, eviction)
    memory, disk = memory_row(layout, CONSTANTS), disk_row(layout, CONSTANTS)
    assert memory.total == layout.stride + CONSTANTS.index_bytes
    stored = sum(disk.parts[purpose] for purpose in ("weights", "state", "metadata", "padding", "LSN"))
    assert stored == layout.value_bytes
    assert disk.total == pytest.approx(sum(disk.parts.values()))
    assert min(memory.parts.values()) >= 0


def test_the_classic_figures() -> None:
    fp32, fp16 = layout_of("fp32", 16, "sgd"), layout_of("fp16", 16, "sgd")
    assert (raw_bytes(fp32), raw_bytes(fp16)) == (72, 40)
    first, second, *_ = arithmetic(CONSTANTS)
    assert first.rows_in(1e12, "raw") == pytest.approx(13.9e9, rel=0.01)
    assert second.rows_in(1e12, "raw") == 25e9
    assert first.rows_in(1e12, "memory") == pytest.approx(1e12 / 84)


def test_a_block_is_packed_only_where_that_saves_an_eighth() -> None:
    small, large = layout_of("fp32", 16, "sgd"), layout_of("fp32", 16, "adagrad")
    assert disk_row(small, CONSTANTS).total == 19 + 70 - 15  # 15 of 89
    assert disk_row(large, CONSTANTS).total == 19 + 134  # 15 of 153
    bf16 = layout_of("bf16", 64, "sgd")
    assert disk_row(bf16, CONSTANTS).total == 19 + 134 - 15 - 128 / 8  # its exponents repeat
    between = disk_row(layout_of("fp16", 46, "sgd"), CONSTANTS)  # 15 of 117 bytes, 12.8 %
    assert (between.low, between.high) == (19 + 98 - 15, 19 + 98)
    assert between.low < between.total < between.high


def test_a_plan_sums_and_its_budget_holds_the_rows() -> None:
    user = table_of("user", dim=16, dtype_name="fp32", optimizer="adagrad", admission_bits=20)
    item = table_of("item", dim=8, dtype_name="fp16", optimizer="sgd")
    plan = make_plan([Demand(table=user, rows=4e9), Demand(table=item, rows=1e9)], SITE, CONSTANTS)
    assert plan.disk_bytes == pytest.approx(sum(plan.disk.values()))
    rows = sum(table.disk_bytes for table in plan.tables)
    assert plan.disk["compaction headroom"] > rows / 9
    assert plan.machines_by_memory == math.ceil(plan.memory_bytes / 100e9)
    assert plan.machines_by_disk == math.ceil(plan.disk_bytes / 1e12)
    assert plan.machines == max(plan.machines_by_memory, plan.machines_by_disk)
    # recovery.py's split of that budget leaves room for the charged bytes of a shard's hot rows
    charged = (user.layout.cost_bytes * 4e9 + item.layout.cost_bytes * 1e9) * 0.25 / 8
    left = split(plan.memory_budget_bytes)[1] - (1 << 20)
    assert charged <= left <= charged * 1.001
    assert plan.load_s == pytest.approx(
        4e9 / 8 * (1e-6 + 1e-8 * user.layout.value_bytes) + 1e9 / 8 * (1e-6 + 1e-8 * item.layout.value_bytes)
    )
    assert "rows per counter" in " ".join(plan.notes)


def test_a_small_plans_budget_is_one_that_a_config_may_have() -> None:
    table = table_of("t", dim=16, dtype_name="fp32", optimizer="sgd")
    plan = make_plan([Demand(table=table, rows=100)], SITE, CONSTANTS)
    assert plan.memory_budget_bytes == MEMORY_BUDGET_MIN_BYTES


@pytest.mark.parametrize("hot_rows", [2e4, 1e6, 3e7, 1e8])
def test_a_budget_of_any_size_holds_its_rows(hot_rows: float) -> None:
    table = table_of("t", dim=16, dtype_name="fp32", optimizer="sgd")
    site = replace(SITE, shards=1, share=1.0)
    plan = make_plan([Demand(table=table, rows=hot_rows)], site, CONSTANTS)
    budget, needed = plan.memory_budget_bytes, table.layout.cost_bytes * hot_rows
    assert split(budget)[1] >= needed > split(budget - 8)[1]


def test_tens_of_terabytes() -> None:
    table = table_of("t", dim=16, dtype_name="fp32", optimizer="sgd")
    plan = make_plan([Demand(table=table, rows=5e11)], replace(SITE, shards=512), CONSTANTS)
    assert 40e12 < plan.disk_bytes < 45e12
    assert plan.machines_by_disk == 44


@pytest.mark.parametrize(
    ("change", "message"),
    [({"shards": 0}, "shards is 0; it must be 1 or more"), ({"share": 1.5}, "share is 1.5"),
     ({"machine_disk_bytes": 0.0}, "machine_disk_bytes is 0; it must be above 0")],
)  # fmt: skip
def test_a_site_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SITE, **change)


def run_of(kind: Kind, constants: Constants) -> Run:
    layout = kind.layout
    return Run(
        kind=kind, rows=1, memory_bytes=memory_row(layout, constants).total, process_bytes=2e8,
        disk_bytes=disk_row(layout, constants).total, replay_row_s=1e-5, start_s=0.5,
        load_row_s=1e-6 + 1e-8 * layout.value_bytes,
    )  # fmt: skip


def test_the_fit_finds_the_constants_that_made_the_runs() -> None:
    wanted = replace(CONSTANTS, saved_weight_byte=0.05)
    constants = fit([run_of(kind, wanted) for kind in KINDS])
    for field in fields(Constants):
        assert getattr(constants, field.name) == pytest.approx(getattr(wanted, field.name)), field.name


def test_the_check_holds_kinds_out_of_the_fit() -> None:
    assert len(set(CHECKED) - set(KINDS)) >= 4


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"1 runs have rows that are not compressed and 0 have compressed rows"
    ):
        fit([run_of(KINDS[4], CONSTANTS)])


def test_the_shipped_runs_are_explained_within_the_bars() -> None:
    runs = read_runs(SHIPPED)
    assert {run.kind for run in runs} == set(KINDS)
    assert all(run.rows >= 1_000_000 for run in runs)
    for error in errors_of(runs, runs):
        assert error.within, error


def test_an_error_is_counted_from_the_nearest_bound() -> None:
    error = check.Error("row", "disk", 100.0, 120.0, 110.0, 0.05)
    assert error.share == 0 and error.planned == "100.0–120.0 B"
    assert replace(error, measured=80.0).share == pytest.approx(0.25)
    assert replace(error, measured=125.0).share == pytest.approx(-0.04)
    assert not replace(error, measured=80.0).within
    assert replace(error, measured=80.0, told="told only").within
    shown = [error.shown(43.72), error.shown(202_932_224.0), replace(error, unit="s").shown(7.234)]
    assert shown == ["43.7 B", "202.9 MB", "7.23 s"]


def test_runs_read_back(tmp_path: Path) -> None:
    runs = read_runs(SHIPPED)
    write_runs(tmp_path / "runs.json", runs, {"time": "now"})
    assert read_runs(tmp_path / "runs.json") == runs
    (tmp_path / "other.json").write_text('{"format": 7}', encoding="utf-8")
    with pytest.raises(ConfigError, match="format is 7"):
        read_runs(tmp_path / "other.json")
    with pytest.raises(ConfigError, match="holds no measured runs"):
        read_runs(tmp_path / "none.json")


def test_a_measurement_is_near_the_plan(tmp_path: Path) -> None:
    """Small, so memory (huge pages) is not compared; the disk's error is the bar's twice."""
    run = measure(KINDS[0], BASE_ROWS + 40_000, tmp_path)
    planned = disk_row(run.kind.layout, fit(read_runs(SHIPPED))).total
    assert run.disk_bytes == pytest.approx(planned, rel=0.1)
    assert run.replay_row_s > 0 and run.load_row_s > 0 and run.process_bytes > 10e6
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------ the command
@pytest.mark.parametrize(
    ("text", "rows"), [("14e9", 14e9), ("14B", 14e9), ("2.5m", 2.5e6), ("1_000", 1000.0), ("3T", 3e12)]
)
def test_rows_are_parsed(text: str, rows: float) -> None:
    assert parse_rows(text) == rows


def test_flags_and_kinds_agree() -> None:
    assert tuple(EVICTION) == EVICTION_KINDS


def planned(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert psctl.main(["plan", *flags, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_without_rows_there_is_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert psctl.main(["plan"]) == 0
    text = capsys.readouterr().out
    assert "72 B" in text and "40 B" in text and "13.9 B rows" in text and "25.0 B rows" in text
    assert planned(capsys)["plan"] is None


def test_a_plan_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rows", "14B", "--optimizer", "adam", "--eviction", "ttl", "--share", "0.1", "--shards", "16"]
    assert psctl.main(["plan", *flags]) == 0
    text = capsys.readouterr().out
    for word in ("metadata", "compaction headroom", "machines: ", "memory_budget of each shard", "bulk load"):
        assert word in text


def test_a_plan_from_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "data_dir: data\nshards: 4\ncheckpoint_log_bytes: 1GiB\n"
        "tables: [{name: user, dim: 8}, {name: item, dim: 4}]\n",
        encoding="utf-8",
    )
    plan = planned(capsys, "--config", str(path), "--rows", "user=1e9,item=2M")["plan"]
    assert [(t["name"], t["rows"]) for t in plan["tables"]] == [("user", 1e9), ("item", 2e6)]
    assert plan["disk"]["push log"] == 2 * 4 * (1 << 30)
    assert psctl.main(["plan", "--config", str(path), "--rows", "users=1"]) == 2
    assert "NAME=ROWS, the names user, item" in capsys.readouterr().err


def test_a_configs_memory_budget_says_how_many_rows_are_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "{data_dir: d, shards: 2, memory_budget: 1GiB, tables: [{name: user, dim: 16}]}", encoding="utf-8"
    )
    flags = ["--config", str(path), "--rows"]
    small, large = planned(capsys, *flags, "user=1e6")["plan"], planned(capsys, *flags, "user=1e9")["plan"]
    assert small["memory_budget_bytes"] == large["memory_budget_bytes"] == 1 << 30
    assert small["share"] == 1.0 and 0 < large["share"] < 0.1
    cost_bytes = layout_of("fp32", 16, "adagrad").cost_bytes
    assert large["share"] == pytest.approx(split(1 << 30)[1] / (cost_bytes * 5e8), rel=0.1)
    asked = planned(capsys, *flags, "user=1e9", "--share", "0.5")["plan"]
    assert asked["share"] == 0.5 and asked["memory_budget_bytes"] > 10 << 30
    assert (
        "memory_budget of the config, 1073741824 bytes, is too small for a share of 0.5" in asked["notes"][0]
    )


def test_a_plan_from_an_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "estimate.json"
    document = {
        "format": "feature-cross-estimate", "version": 1,
        "row": {"dim": 16, "dtype": "fp16", "optimizer": "sgd", "state_words": 0, "metadata_bytes": 0},
        "groups": [{"name": "a", "rows": 1e6, "dim": 16}, {"name": "b", "rows": 5e6, "dim": 8}],
    }  # fmt: skip
    path.write_text(json.dumps(document), encoding="utf-8")
    plan = planned(capsys, "--estimate", str(path))["plan"]
    assert [t["raw_bytes"] for t in plan["tables"]] == [40e6, 24 * 5e6]
    other = planned(capsys, "--estimate", str(path), "--dtype", "fp32", "--dim", "4")["plan"]
    assert [t["raw_bytes"] for t in other["tables"]] == [24e6, 24 * 5e6]
    path.write_text('{"format": "something"}', encoding="utf-8")
    assert psctl.main(["plan", "--estimate", str(path)]) == 2
    assert "format is 'something'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--rows", "many"], "rows is 'many'"), (["--rows", "1e9", "--dim", "2000"], "dim is 2000"),
     (["--rows", "1", "--eviction", "old"], "eviction 'old' is unknown"),
     (["--rows", "1", "--share", "2"], "share is 2"),
     (["--rows", "1", "--estimate", "x"], "--rows and --estimate"),
     (["--config", "a", "--estimate", "b"], "--estimate and --config")],
)  # fmt: skip
def test_wrong_flags_are_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert psctl.main(["plan", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.2, 1)])
def test_a_check_tells_its_errors(
    factor: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    constants = fit(read_runs(SHIPPED))

    def measured(kind: Kind, rows: int, _folder: Path) -> Run:
        run = run_of(kind, constants)
        return replace(run, rows=rows, disk_bytes=run.disk_bytes * factor)

    monkeypatch.setattr(check, "measure", measured)
    saved = tmp_path / "runs.json"
    flags = ["plan", "--check", "--check-rows", "70000", "--folder", str(tmp_path), "--save", str(saved)]
    assert psctl.main([*flags, "--json"]) == code
    lines = json.loads(capsys.readouterr().out)["errors"]
    assert len(lines) == 4 * len({*KINDS, *CHECKED})  # memory, disk, two times
    assert all(line["within"] for line in lines if line["place"] != "disk")
    assert {run.rows for run in read_runs(saved)} == {70_000}
    assert [run.kind for run in read_runs(saved) if run.kind not in KINDS] == []
    assert psctl.main(flags[:-2]) == code
    assert "planned" in capsys.readouterr().out
