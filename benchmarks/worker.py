# SPDX-License-Identifier: Apache-2.0
"""One workload in a process of its own: `python -m benchmarks.worker REQUEST.json ANSWER.json`.

The request holds the workload's name and the settings, the answer its bars. What a workload leaves in
the scratch folder is deleted by whoever started it.
"""

import json
import os
import subprocess
import sys
import traceback
from collections import deque
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, NoReturn

from benchmarks.bar import Bar, Settings
from benchmarks.catalog import Workload, select

ROOT: Final = Path(__file__).resolve().parents[1]
ERROR_LINES_MAX: Final = 5
PROGRESS: Final = "progress: "
"""Begins a line of a workload's standard error that tells how far it is; such lines are shown."""


def settings_json(settings: Settings) -> dict[str, Any]:
    """Settings as a JSON object."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}


def settings_from(value: dict[str, Any]) -> Settings:
    """The settings that `settings_json` gave."""
    paths = {key: Path(value[key]) for key in ("cache", "scratch", "folder") if value[key]}
    return Settings(**{**value, **paths, "peers": tuple(value["peers"])})


def run_workload(workload: Workload, settings: Settings) -> list[Bar]:
    """Bars of one workload, measured in a child process; a failure gives one bar that says why."""
    folder = settings.scratch
    folder.mkdir(parents=True, exist_ok=True)
    request, answer = folder / "request.json", folder / "answer.json"
    document = {"name": workload.name, "settings": settings_json(replace(settings, scratch=folder / "data"))}
    (folder / "data").mkdir(exist_ok=True)
    request.write_text(json.dumps(document), encoding="utf-8")
    last: deque[str] = deque(maxlen=ERROR_LINES_MAX)
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker", str(request), str(answer)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith(PROGRESS):
                print(line.removeprefix(PROGRESS), end="", file=sys.stderr, flush=True)
            else:
                last.append(line.rstrip())
    if child.returncode or not answer.exists():
        text = "\n".join(last).strip()
        return [_failed(workload, f"failed with exit code {child.returncode}: {text}")]
    return [Bar.from_json(bar) for bar in json.loads(answer.read_text(encoding="utf-8"))]


def _failed(workload: Workload, why: str) -> Bar:
    goal = str(workload.goal) if workload.goal else ""
    return Bar(id=workload.name, what=workload.summary, unit="", goal=goal, peer=workload.peer, skipped=why)


def main(request: Path, answer: Path, discard: bool = False) -> None:
    """Measure what the request names, in this process; `discard` as in Settings."""
    document = json.loads(request.read_text(encoding="utf-8"))
    workload = select([document["name"]])[0]
    try:
        bars = workload.measure(replace(settings_from(document["settings"]), discard=discard))
    except ModuleNotFoundError as missing:
        bars = [_failed(workload, f"skipped: {missing.name} is not installed")]
    answer.write_text(json.dumps([bar.to_json() for bar in bars]), encoding="utf-8")


def _end(code: int) -> NoReturn:
    """End at once: tables that were discarded have threads, which a plain exit would wait for."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), discard=True)
    except BaseException:
        traceback.print_exc()
        _end(1)
    _end(0)
