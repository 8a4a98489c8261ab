# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks` as a user meets it."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import cli, result
from benchmarks.bar import Bar, Settings
from benchmarks.catalog import WORKLOADS, Workload, select


def test_every_workload_has_its_function_and_a_unique_name() -> None:
    names = [w.name for w in WORKLOADS]
    assert len(set(names)) == len(names)
    for workload in WORKLOADS:
        module, _, function = workload.function.partition(":")
        assert callable(getattr(import_module(module), function)), workload.name


def test_names_prefixes_and_patterns_select() -> None:
    assert [w.name for w in select(["table.pull.zipf"])] == ["table.pull.zipf"]
    assert [w.name for w in select(["table.pull"])] == ["table.pull.zipf", "table.pull.uniform"]
    assert {w.name.split(".")[-1] for w in select(["*.zipf"])} == {"zipf"}
    assert {w.name for w in select(["*"])} - {w.name for w in select(["*"], quick=True)} == {
        "table.sgd",
        "table.adam",
    }
    assert [w.name for w in select(["table.sgd"], quick=True)] == ["table.sgd"]


def test_list_cuts_no_name_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(workload.name in printed for workload in WORKLOADS)
    assert max(len(line) for line in printed.splitlines()) <= 80 and "…" not in printed


def test_list_prints_goals(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert listed["table.adagrad.uniform"]["goal"] == "≥ 3×"


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "table.pul"]) == 2
    assert "'table.pul'" in capsys.readouterr().err


def test_a_small_run_gives_a_result_that_compare_and_report_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "BUILD", tmp_path / "build")
    output = tmp_path / "result.json"
    flags = ["--quick", "--runs", "2", "--seconds", "0.01", "--warmup-batches", "1", "--ids", "5000"]
    scratch = ["--scratch", str(tmp_path / "scratch"), "--output", str(output)]
    assert cli.main(["run", "table.pull.zipf", *flags, *scratch, "--json"]) == 0
    said = capsys.readouterr()
    (bar,) = json.loads(said.out)
    assert bar["detail"]["workload_s"] > 0 and "1 of 1 workloads, " in said.err
    assert "discard" not in json.loads(output.read_text(encoding="utf-8"))["settings"]
    assert bar["id"] == "table.pull.zipf"
    assert bar["figure"] > 0 and bar["peer_figure"] > 0 and bar["ratio"] > 0
    assert {"goal", "figure", "peer", "ratio", "met"} <= set(bar)
    assert list((tmp_path / "scratch").iterdir()) == []  # data is gone
    assert cli.main(["compare", str(output), str(output), "--json"]) == 0
    assert [c["verdict"] for c in json.loads(capsys.readouterr().out)] == ["same"]
    assert cli.main(["report", str(output)]) == 0
    assert "| table.pull.zipf |" in capsys.readouterr().out


def test_a_workload_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "BUILD", tmp_path / "build")
    (tmp_path / "scratch" / "table.pull.zipf" / "data").mkdir(parents=True)
    flags = ["--quick", "--runs", "1", "--ids", "1", "--warmup-batches", "1"]
    # a folder of batches that is a file: the worker cannot draw
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "batches").write_text("", encoding="utf-8")
    assert cli.main(["run", "table.pull.zipf", *flags, "--scratch", str(tmp_path / "scratch"), "--json"]) == 1
    (bar,) = json.loads(capsys.readouterr().out)
    assert bar["figure"] is None
    assert "FileExistsError" in bar["skipped"]


def test_another_file_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "r.json"
    wrong.write_text("{}", encoding="utf-8")
    assert cli.main(["report", str(wrong)]) == 2
    assert "not a result file" in capsys.readouterr().err


def test_a_run_keeps_what_other_workloads_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(workload: Workload, _settings: Settings) -> list[Bar]:
        return [Bar(id=f"{workload.name}.x", what="w", unit="s", figure=float(len(measurements)))]

    measurements: list[int] = []
    monkeypatch.setattr(cli, "BUILD", tmp_path / "build")
    monkeypatch.setattr(cli, "run_workload", measured)
    output = tmp_path / "result.json"
    for names in (["wire.mixed"], ["table.pull.zipf"], ["wire.mixed"]):
        assert cli.main(["run", *names, "--keep", "--output", str(output)]) == 0
        measurements.append(0)
    bars = result.load(output).bars
    assert [(bar.id, bar.figure) for bar in bars] == [("table.pull.zipf.x", 1.0), ("wire.mixed.x", 2.0)]
    assert all(bar.detail["commit"] == result.load(output).head["commit"] for bar in bars)
    assert cli.main(["run", "wire.mixed", "--output", str(output)]) == 0
    assert len(result.load(output).bars) == 1
    output.write_text("{}", encoding="utf-8")
    assert cli.main(["run", "wire.mixed", "--keep", "--output", str(output)]) == 2
    assert "not a result file" in capsys.readouterr().err
