# SPDX-License-Identifier: Apache-2.0
"""The demo in a small form: its report, and that it leaves no process behind however it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from examples.demo import main

ROOT = Path(__file__).resolve().parents[2]


def command(out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "examples.demo", "--example", "click", "--out", str(out), *flags]


def family(out: Path) -> list[psutil.Process]:
    """Processes that have the demo's folder on their command line: demo, supervisor, shards, trainers."""
    return [
        p for p in psutil.process_iter(["cmdline"]) if any(str(out) in a for a in p.info["cmdline"] or ())
    ]


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 1_200.0) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.05)
    return found


@pytest.fixture
def training(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A demo that has just finished the first of four trainings."""
    out = tmp_path / "demo"
    flags = ["--rows", "40000", "--seeds", "2"]
    demo = subprocess.Popen(
        command(out, *flags), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert demo.stdout is not None and demo.stderr is not None
    try:
        for line in demo.stdout:
            if "without-0: AUC" in line:
                break
        else:
            pytest.fail(demo.stderr.read())
        yield demo, out
    finally:
        demo.kill()
        demo.communicate()


def test_the_report_has_every_figure_and_recovery_is_exact(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    flags = ["--rows", "12000", "--seeds", "1"]
    done = subprocess.run(
        command(out, *flags), cwd=ROOT, capture_output=True, text=True, timeout=5_400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert facts["auc_after_recovery"] == facts["auc_with_crosses"]
    assert facts["auc_by_run"] == facts["auc_after_recovery_by_run"]
    assert set(facts["auc_by_run"]) == {"without-0", "with-0"}
    assert facts["auc_with_crosses"] > facts["auc_without_crosses"] + 0.02  # the planted effects are strong
    assert facts["examples"] == {"train": 9600, "test": 2400}
    # one row for each distinct id of the training part, and none for those that only the test part has
    assert facts["rows"]["wide_weak.with-0"] == facts["distinct_ids"]["top_category_x_promotion"]
    assert facts["rows"]["wide_categorical.with-0"] == facts["distinct_ids"]["city_x_age"]
    assert facts["arithmetic_bytes_per_row"] == {"fp32": 72, "fp16": 40}
    assert facts["memory_bytes_per_row"] > 72 and facts["disk_bytes_per_row"] > 0
    assert facts["examples_per_s"] > 0
    log = (out / "cluster.log").read_text(encoding="utf-8")
    assert len(re.findall(r"shard \d ended with signal SIGKILL", log)) == 2
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3 and "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)  # nothing is loaded from elsewhere
    assert f"{facts['auc_with_crosses']:.4f}" in done.stdout
    assert not family(out)


def test_ctrl_c_in_mid_training_stops_everything(training: tuple[subprocess.Popen[str], Path]) -> None:
    demo, out = training
    assert len(family(out)) >= 6  # demo, supervisor, two shards, torchrun, two trainers
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=1_800)
    assert demo.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors
    assert not family(out)
    assert not (out / "report.json").exists()
    assert "all shards stopped" in (out / "cluster.log").read_text(encoding="utf-8")


def test_a_trainers_crash_is_an_error_and_leaves_nothing(
    training: tuple[subprocess.Popen[str], Path],
) -> None:
    demo, out = training
    trainer = next(p for p in family(out) if p.cmdline()[1:4] == ["-u", "-m", "examples.train"])
    os.kill(trainer.pid, signal.SIGKILL)
    _, errors = demo.communicate(timeout=1_800)
    assert demo.returncode == 1, errors
    assert "torchrun ended with exit code" in errors
    assert not family(out)
    assert not (out / "report.json").exists()


def test_a_killed_demo_takes_its_processes_along(training: tuple[subprocess.Popen[str], Path]) -> None:
    demo, out = training
    demo.kill()
    demo.wait()
    wait_until(lambda: not family(out), "the children of a killed demo to end", 60)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--example", "retail"], "needs --data"),
        (["--example", "dota2", "--data", "missing.parquet"], "missing.parquet"),
        (["--example", "click", "--data", "x.parquet"], "is generated"),
        (["--example", "click", "--rows", "2"], "rows is 2"),
    ],
)
def test_a_wrong_flag_is_named_before_anything_starts(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--out", str(tmp_path / "demo")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo" / "cluster.yaml").exists()
