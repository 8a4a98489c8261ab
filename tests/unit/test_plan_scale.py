# SPDX-License-Identifier: Apache-2.0
"""Runs of many rows: read, written, interpolated, and what a plan makes of them."""

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rowhouse.error import ConfigError

from ps_server import psctl
from ps_server.command import check
from ps_server.command import measure_scale as scale_command
from ps_server.plan import scale as scale_module
from ps_server.plan.constant import SHIPPED, Kind, fit, read_runs
from ps_server.plan.row_bytes import disk_row
from ps_server.plan.scale import VALUE_BYTES, Scale, ScaleRun, at_scale, read_scale, this_machine, write_scale

RUNS = tuple(
    ScaleRun(
        rows=10**power, load_s=10.0**power * 4e-7, disk_bytes_per_row=43.5 - power / 10,
        disk_bytes_per_row_compacted=43.2 - power / 10, memory_bytes=2e8 + 10.0 ** (power - 2),
        index_filter_bytes=1.4 * 10**power, open_files=100 + 10.0 ** (power - 6), reopen_clean_s=0.2,
        reopen_crash_s=10.2, replayed_rows=5e6, pull_uniform_rows_per_s=4e5 / power,
        step_uniform_ms={"p50": 9.0, "p99": 30.0, "p999": 50.0},
    )
    for power in (6, 7, 8, 9)
)  # fmt: skip
SCALE = Scale(runs=RUNS, machine="here", time="2026-12-01T00:00:00Z")


def test_a_figure_lies_on_the_line_of_its_neighbours() -> None:
    assert SCALE.at("load_s", 1e8) == pytest.approx(40.0)
    assert SCALE.at("load_s", 3e8) == pytest.approx(120.0)
    assert SCALE.at("load_s", 1e10) == pytest.approx(4000.0)  # beyond them, the line of the last two
    assert SCALE.at("load_s", 1e5) == pytest.approx(0.04)
    one = Scale(runs=RUNS[1:2])
    assert one.at("load_s", 1e9) == pytest.approx(400.0) and one.at("reopen_clean_s", 1e9) == 0.2
    assert SCALE.at("pull_zipf_rows_per_s", 1e8) is None and Scale().at("load_s", 1e8) is None


def test_a_size_can_be_left_out_and_is_found_again_by_the_others() -> None:
    for run in RUNS[1:3]:
        others = SCALE.without(run.rows)
        assert run not in others.runs
        for name in ("load_s", "disk_bytes_per_row_compacted", "index_filter_bytes"):
            assert others.at(name, run.rows) == pytest.approx(getattr(run, name), rel=0.01)


def test_runs_read_back_and_a_bare_list_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scale.json"
    write_scale(path, SCALE)
    assert read_scale(path) == SCALE
    listed = [{**run.to_json(), "levels": [1, 2]} for run in reversed(RUNS)]  # a key of the benchmark's own
    path.write_text(json.dumps(listed), encoding="utf-8")
    assert read_scale(path).runs == RUNS


def test_without_a_shipped_file_there_are_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_module, "SHIPPED", tmp_path / "none.json")
    assert read_scale(None) == Scale()
    constants = fit(read_runs(SHIPPED))
    assert at_scale(constants, Scale(), 1e8, 1e6) == constants


@pytest.mark.parametrize(
    ("document", "message"),
    [({"format": 7, "runs": []}, "format is 7; this program reads 1"), ([{"load_s": 1}], "KeyError: 'rows'"),
     ([{"rows": 10, "load_s": "long"}], "load_s is 'long'; it must be a number of 0 or more"),
     ([{"rows": 10, "load_s": -1}], "load_s is -1"), ([{"rows": True}], "rows is True"),
     ([{"rows": 10}, {"rows": 10}], r"runs have \[10, 10\] rows; they must ascend"),
     ([{"rows": 0}], "rows is 0; it must be 1 or more"), ({"bars": []}, "KeyError"),
     ([{"rows": 1, "step_zipf_ms": 3}], "holds no runs of scale"), (3, "holds no runs of scale")],
)  # fmt: skip
def test_a_wrong_file_is_refused(document: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scale.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as refused:
        read_scale(path)
    assert str(refused.value).count("scale.json") == 1


def test_constants_at_scale_say_what_the_runs_say() -> None:
    known = fit(read_runs(SHIPPED))
    constants = at_scale(known, SCALE, 1e9, 1e6)
    layout = Kind(dtype="fp32", dim=16, optimizer="sgd").layout
    assert disk_row(layout, known).total - disk_row(layout, constants).total == pytest.approx(0.3)
    row_s = constants.load_row_s + constants.load_byte_s * VALUE_BYTES
    assert row_s == pytest.approx(4e-7)
    assert constants.start_s == 0.2 and constants.replay_row_s == pytest.approx(2e-6)
    assert constants.process_bytes == pytest.approx(2.1e8)


def planned(path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    words = ["plan", "--rows", "25e9", "--dtype", "fp16", "--optimizer", "sgd", "--share", "0.05", "--json"]
    assert psctl.main([*words, "--scale", str(path), "--shards", "64", *flags]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_twenty_five_billion_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scale.json"
    write_scale(path, SCALE)
    document = planned(path, capsys, "--trainers", "2000")
    figures = {figure["name"]: figure for figure in document["figures"]}
    load = figures["bulk load"]
    assert load["measured"] == pytest.approx(400.0) and load["run"] == "1,000,000,000 rows"
    assert load["reckoned"] == document["plan"]["load_s"] == pytest.approx(25e9 / 64 * 4e-7, rel=0.2)
    assert figures["connections in all"]["reckoned"] == 256_000
    assert figures["connections in all"]["measured"] is None
    opened = figures["open files of a shard, without trainers"]
    assert opened["reckoned"] == pytest.approx(SCALE.at("open_files", 25e9 / 64))
    assert figures["open files of a shard, with trainers"]["reckoned"] == opened["reckoned"] + 4000
    pulls = figures["pulls of all shards, cold, files in memory"]
    assert pulls["reckoned"] == pytest.approx(64 * (SCALE.at("pull_uniform_rows_per_s", 25e9 / 64) or 0))
    assert all(figure["formula"] or figure["run"] for figure in document["figures"])
    assert document["simulation"] is None


def test_a_plan_simulates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scale.json"
    write_scale(path, replace(SCALE, runs=()))
    document = planned(path, capsys, "--trainers", "4", "--shards", "4", "--simulate")
    found = document["simulation"]
    assert [(one["trainers"], one["shards"]) for one in found["grid"]][-1] == (4, 4)
    assert found["troubles"]["nothing"]["steps_per_s"] > 0
    words = ["plan", "--rows", "1e6", "--shards", "2", "--trainers", "4", "--simulate"]
    assert psctl.main(words) == 0
    text = capsys.readouterr().out
    for word in ("measured, and reckoned here", "connections in all", "what hurts", "steps/s"):
        assert word in text


@pytest.mark.parametrize(
    "flags", [["--simulate"], ["--trainers", "3"], ["--rows", "1e6", "--simulate"],
              ["--rows", "1e6", "--batch-ids", "5"]],
)  # fmt: skip
def test_flags_that_need_others_say_so(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert psctl.main(["plan", *flags]) == 2
    assert "need --trainers, and all three need rows" in capsys.readouterr().err


# ------------------------------------------------------------ the check
def test_a_check_of_many_rows_is_held_to_the_runs_of_other_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, saved = tmp_path / "scale.json", tmp_path / "saved.json"
    write_scale(path, replace(SCALE, machine=this_machine()))
    changes: dict[str, Any] = {}

    def measured(rows: int, _folder: Path, say: Any) -> ScaleRun:
        say("measuring")
        return replace(RUNS[2], rows=rows, **changes)

    monkeypatch.setattr(check, "measure_scale", measured)
    words = ["plan", "--check", "--check-rows", "1e8", "--scale", str(path), "--folder", str(tmp_path)]
    assert psctl.main([*words, "--json", "--save", str(saved)]) == 0
    document = json.loads(capsys.readouterr().out)
    lines = {line["place"]: line for line in document["errors"]}
    assert {place: line["bar"] for place, line in lines.items()} == {
        "disk of a row": 0.05, "memory of a shard without hot rows": 0.10, "load": 0.25,
        "start after a stop": 0.25, "start after a kill": 0.25,
    }  # fmt: skip
    assert lines["start after a stop"]["told"].startswith("told only: below 1 s")
    assert not lines["load"]["told"] and lines["load"]["error"] == pytest.approx(0, abs=0.01)
    assert [run.rows for run in read_scale(saved).runs] == [10**8] == [document["scale"]["rows"]]
    for change in ({"load_s": 60.0}, {"reopen_crash_s": 7.0}, {"memory_bytes": 2.5e8}):
        changes = change
        assert psctl.main(words) == 1
        assert "planned" in capsys.readouterr().out
    changes = {"load_s": 60.0, "reopen_crash_s": 7.0}  # times are those of a machine
    write_scale(path, replace(SCALE, machine="4 cores of another one"))
    assert psctl.main(words) == 0
    assert "told only: the plan's is of" in " ".join(capsys.readouterr().out.split())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["saved.json", "scale.json"]


def test_a_saved_run_joins_those_of_other_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scale.json"
    write_scale(path, SCALE)
    monkeypatch.setattr(check, "measure_scale", lambda rows, _folder, _say: ScaleRun(rows=rows, load_s=7.0))
    room = shutil.disk_usage(tmp_path)._replace(free=10**12)
    monkeypatch.setattr("ps_server.command.check.shutil.disk_usage", lambda _folder: room)
    words = ["plan", "--check", "--folder", str(tmp_path), "--save", str(path), "--json"]
    for rows in ("2e7", "1e9"):
        psctl.main([*words, "--check-rows", rows])
    runs = read_scale(path).runs
    assert [run.rows for run in runs] == [10**6, 10**7, 2 * 10**7, 10**8, 10**9]
    assert runs[-1].load_s == 7.0 and runs[-1].memory_bytes is None


@pytest.mark.parametrize(
    ("rows", "message"), [("many", "it must be a whole number"), ("0", "it must be"), ("1.5", "it must be"),
                          ("1e12", "that takes 60000 GB of disk")],
)  # fmt: skip
def test_a_check_of_wrong_rows_is_refused(
    rows: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--check", "--check-rows", rows, "--folder", str(tmp_path)]
    with suppress(SystemExit):
        assert psctl.main(words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_shard_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server, a real load, a real kill; few rows, so only that each figure is there and can be."""
    monkeypatch.setattr(scale_command, "PUSHES", 4)
    said: list[str] = []
    run = scale_command.measure_scale(150_000, tmp_path, said.append)
    assert run.rows == 150_000 and len(said) == 4
    assert run.disk_bytes_per_row == pytest.approx(44, rel=0.1)
    assert 50e6 < (run.memory_bytes or 0) < 1e9 and (run.open_files or 0) > 10
    assert (run.load_s or 0) > 0 and (run.reopen_clean_s or 0) > 0 and (run.reopen_crash_s or 0) > 0
    assert (run.replayed_rows or 0) > 4 * 5000
