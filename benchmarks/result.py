# SPDX-License-Identifier: Apache-2.0
"""The result file: bars, and the commit, machine and versions that they belong to.

    {"format": 1, "commit": …, "machine": {…}, "versions": {…}, "settings": {…}, "bars": [Bar, …]}

`compare` tells a change from noise by the runs themselves. Thread safety: immutable values.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.bar import Bar
from benchmarks.catalog import WORKLOADS, Workload

FORMAT: Final = 1
PACKAGES: Final = ("rowhouse", "numpy", "numba", "grpcio", "protobuf", "rocksdict", "torch")
NOISE_MIN: Final = 0.05
"""A change of less than 5 % is never flagged, however close together the runs were."""


@dataclass(frozen=True, slots=True)
class Result:
    """Bars, and where they come from."""

    head: Mapping[str, Any]
    bars: tuple[Bar, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**self.head, "bars": [bar.to_json() for bar in self.bars]}

    def save(self, path: Path) -> None:
        """Write the file; its folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Result:
    """Read a result file.

    Raises
    ------
    ValueError
        It is not one, or of another format.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"{path}: format is {document['format']!r}; this program reads {FORMAT}")
        bars = tuple(Bar.from_json(bar) for bar in document.pop("bars"))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a result file: {type(error).__name__}: {error}") from None
    return Result(document, bars)


def belongs_to(bar: Bar, workload: Workload) -> bool:
    """Whether a bar's id is the workload's, or below it."""
    return bar.id == workload.name or bar.id.startswith(f"{workload.name}.")


def without(bars: Sequence[Bar], workloads: Sequence[Workload]) -> list[Bar]:
    """The bars that belong to none of the workloads."""
    return [bar for bar in bars if not any(belongs_to(bar, workload) for workload in workloads)]


def in_catalog_order(bars: Sequence[Bar]) -> list[Bar]:
    """The bars by the place of their workloads in the catalog; unknown ones last."""

    def place(bar: Bar) -> int:
        return next((i for i, w in enumerate(WORKLOADS) if belongs_to(bar, w)), len(WORKLOADS))

    return sorted(bars, key=place)


def describe_run(settings: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Head of a result: format, time, commit, machine, versions, settings."""
    return {
        "format": FORMAT, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(root), "machine": _machine(), "versions": _versions(), "settings": dict(settings),
    }  # fmt: skip


def _commit(root: Path) -> str:
    """Commit of the checkout, with "+" where files differ from it; "unknown" outside a checkout."""
    try:
        named = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=root, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return named.stdout.strip()


def _machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    except OSError:
        pass  # not Linux
    return {
        "cpu": model, "cores": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }  # fmt: skip


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """One bar in two results; `change` is new / old - 1 of what its goal is about."""

    id: str
    old: float | None
    new: float | None
    change: float | None
    noise: float
    verdict: str


def _judged(bar: Bar) -> tuple[float | None, float]:
    """The ratio, else the figure, and its spread: half of (high - low) relative to the median."""
    value, low, high = (
        (bar.ratio, bar.ratio_low, bar.ratio_high)
        if bar.ratio is not None
        else (bar.figure, bar.low, bar.high)
    )
    if not value or low is None or high is None:
        return value, 0.0
    return value, (high - low) / 2 / abs(value)


def compare(old: Sequence[Bar], new: Sequence[Bar]) -> list[Change]:
    """What changed from one result to another, bar by bar.

    Parameters
    ----------
    old, new
        Bars of the two results.

    Returns
    -------
    list
        A Change per bar of either, its verdict "better", "worse", "same", "new" or "gone". A change
        counts when it is larger than both spreads together and than NOISE_MIN.
    """
    before, after = {b.id: b for b in old}, {b.id: b for b in new}
    changes = []
    for id_ in [*before, *(i for i in after if i not in before)]:
        a, b = before.get(id_), after.get(id_)
        was, was_noise = _judged(a) if a else (None, 0.0)
        now, now_noise = _judged(b) if b else (None, 0.0)
        noise = max(was_noise + now_noise, NOISE_MIN)
        if not was or not now or a is None or b is None:
            verdict = "gone" if not now else "new"
            changes.append(Change(id_, was, now, None, noise, verdict))
            continue
        change = now / was - 1
        better = (change < 0) == b.smaller_is_better
        verdict = "same" if abs(change) <= noise else "better" if better else "worse"
        changes.append(Change(id_, was, now, change, noise, verdict))
    return changes
