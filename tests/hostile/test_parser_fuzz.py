# SPDX-License-Identifier: Apache-2.0
"""The fuzzer of parser_fuzz.py, in short; `pytest -m soak` runs it for minutes (FUZZ_RUNS, FUZZ_SEED)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.parser_fault import FAULTS

pytest.importorskip("atheris", reason="atheris has no wheel for this Python or machine")

ROOT = Path(__file__).parents[2]


def fuzz(folder: Path, runs: int, seed: int, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the fuzzer; its words are in stderr."""
    command = [sys.executable, "-m", "tests.hostile.parser_fuzz", "--runs", str(runs), "--seed", str(seed)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}  # two tracers clash
    command += ["--corpus", str(folder / "corpus"), *more]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def assert_clean(run: subprocess.CompletedProcess[str], runs: int) -> None:
    assert run.returncode == 0, run.stderr[-4000:]
    assert f"Done {runs} in " in run.stderr, run.stderr[-4000:]
    reached = [int(count) for count in re.findall(r" cov: (\d+) ", run.stderr)]
    assert reached[-1] > reached[0], "no input reached code that the first ones had not: no feedback"


def test_no_parser_fails_on_foreign_bytes(tmp_path: Path) -> None:
    assert_clean(fuzz(tmp_path, 40_000, 1), 40_000)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_planted_fault_is_found_and_found_again_by_its_file(tmp_path: Path, fault: str) -> None:
    run = fuzz(tmp_path, 400_000, 1, "--fault", fault)
    assert run.returncode != 0, f"the fault {fault!r} was not found"
    (found,) = (tmp_path / "corpus").glob("crash-*")
    again = fuzz(tmp_path, 1, 1, "--fault", fault, "--replay", str(found))
    assert again.returncode != 0
    assert fuzz(tmp_path, 1, 1, "--replay", str(found)).returncode == 0


@pytest.mark.soak
def test_no_parser_fails_for_long(tmp_path: Path) -> None:
    runs, seed = int(os.environ.get("FUZZ_RUNS", "3000000")), int(os.environ.get("FUZZ_SEED", "2"))
    assert_clean(fuzz(tmp_path, runs, seed), runs)
