# SPDX-License-Identifier: Apache-2.0
"""`psctl plan --check`: measures rows here, and holds the plan to them.

Up to PUSHED_ROWS_MAX rows several kinds are pushed into a shard (plan/measure.py) and held to the constants
of plan.json. More rows are loaded, of one kind (measure_scale.py), and held to the runs of other sizes.

Bytes have bars everywhere. Times have theirs where the plan's were measured; on another machine, and below
JUDGED_S, they are told and do not fail. Thread safety: a process's main thread.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table
from rowhouse.distribution import DISTRIBUTION
from rowhouse.error import ConfigError

from ps_server.command.measure_scale import measure_scale
from ps_server.plan.constant import SHIPPED, Run, fit, measured_on, write_runs
from ps_server.plan.measure import AGAIN, CHECKED, KINDS, measure
from ps_server.plan.row_bytes import disk_row, memory_row
from ps_server.plan.scale import Scale, ScaleRun, read_scale, this_machine, write_scale

DISK_BAR: Final = 0.05
MEMORY_BAR: Final = 0.10
TIME_BAR: Final = 0.25
JUDGED_S: Final = 1.0
"""A shorter time is mostly noise."""

PUSHED_ROWS_MAX: Final = 4_000_000
ROW_BYTES: Final = 60
"""Of disk that a loaded row takes at most, its push log included."""

MEGABYTE: Final = 1e6

_PACKAGES: Final = (DISTRIBUTION, "numpy", "numba", "rocksdict")


@dataclass(frozen=True, slots=True)
class Error:
    """A plan's figure beside the measured one; `low` and `high` are the plan's where it could not tell."""

    what: str
    place: str
    low: float
    high: float
    measured: float
    bar: float
    unit: Literal["B", "s"] = "B"
    told: str = ""
    """Why it is told only, and cannot fail; empty: it can."""

    @property
    def share(self) -> float:
        """planned / measured - 1, by the bound that is nearest; 0 between them."""
        return min(max(self.measured, self.low), self.high) / self.measured - 1

    @property
    def planned(self) -> str:
        """The plan's figure, for people."""
        low, high = self.shown(self.low), self.shown(self.high)
        return low if self.low == self.high else f"{low.removesuffix(' B')}–{high}"

    def shown(self, value: float) -> str:
        """A figure of its unit, for people."""
        if self.unit == "s":
            return f"{value:,.2f} s"
        return f"{value:,.1f} B" if value < MEGABYTE else f"{value / MEGABYTE:,.1f} MB"

    @property
    def within(self) -> bool:
        """Whether it is inside its bar, or told only."""
        return bool(self.told) or abs(self.share) <= self.bar


def timed(what: str, place: str, planned_s: float, measured_s: float, machine: str) -> Error:
    """A time, which was planned by what `machine` took."""
    told = "" if machine == this_machine() else f"told only: the plan's is of {machine or 'another machine'}"
    if max(planned_s, measured_s) < JUDGED_S:
        told = f"told only: below {JUDGED_S:g} s"
    return Error(what, place, planned_s, planned_s, measured_s, TIME_BAR, "s", told)


def errors_of(runs: Sequence[Run], known: Sequence[Run], machine: str = "") -> list[Error]:
    """What the constants of `known`, measured on `machine`, say of each run, beside what it took."""
    constants = fit(known)
    errors = []
    for run_ in runs:
        layout, what = run_.kind.layout, str(run_.kind)
        memory, disk = memory_row(layout, constants), disk_row(layout, constants)
        errors.append(Error(what, "memory", memory.low, memory.high, run_.memory_bytes, MEMORY_BAR))
        errors.append(Error(what, "disk", disk.low, disk.high, run_.disk_bytes, DISK_BAR))
        replayed = run_.rows // AGAIN
        planned_s = constants.start_s + constants.replay_row_s * replayed
        took_s = run_.start_s + run_.replay_row_s * replayed
        errors.append(timed(what, "start after a kill", planned_s, took_s, machine))
        if run_.load_row_s:
            row_s = constants.load_row_s + constants.load_byte_s * layout.value_bytes
            errors.append(timed(what, "load", row_s * run_.rows, run_.load_row_s * run_.rows, machine))
    return errors


def scale_errors_of(found: ScaleRun, scale: Scale) -> list[Error]:
    """What the runs of other sizes say of this one, beside what it took; no line where they say nothing."""
    others, what = scale.without(found.rows), f"{found.rows:,} rows"
    errors = []
    for place, name, bar in (
        ("disk of a row", "disk_bytes_per_row", DISK_BAR),
        ("memory of a shard without hot rows", "memory_bytes", MEMORY_BAR),
    ):
        if (planned := others.at(name, found.rows)) is not None and (took := getattr(found, name)):
            errors.append(Error(what, place, planned, planned, took, bar))
    start_s, replay_s = others.at("reopen_clean_s", found.rows), others.at("replay_row_s", found.rows)
    crash_s = None
    if start_s is not None and replay_s is not None:
        crash_s = start_s + replay_s * (found.replayed_rows or 0.0)
    for place, planned, took in (
        ("load", others.at("load_s", found.rows), found.load_s),
        ("start after a stop", start_s, found.reopen_clean_s),
        ("start after a kill", crash_s, found.reopen_crash_s),
    ):
        if planned is not None and took:
            errors.append(timed(what, place, planned, took, scale.machine))
    return errors


def run(arguments: argparse.Namespace, known: Sequence[Run], console: Console) -> int:
    """Measure, compare, print; returns the exit code."""
    progress = Console(stderr=True, quiet=not sys.stderr.isatty())
    folder = Path(tempfile.mkdtemp(prefix="rowhouse-plan-", dir=arguments.folder))
    try:
        if arguments.check_rows > PUSHED_ROWS_MAX:
            errors, document = _check_scale(arguments, folder, progress.print)
        else:
            errors, document = _check_kinds(arguments, known, folder, progress.print)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        lines = [{**asdict(error), "error": error.share, "within": error.within} for error in errors]
        print(json.dumps({"errors": lines, **document}, indent=1))
    else:
        table = Table(
            "row", "place", "planned", "measured here", "error", "bar", title="plan and measurement"
        )
        for error in errors:
            cells = (error.planned, error.shown(error.measured), f"{error.share:+.1%}")
            bar = error.told or f"±{error.bar:.0%}"
            table.add_row(error.what, error.place, *cells, bar, style="" if error.within else "red")
        console.print(table)
    return 0 if all(error.within for error in errors) else 1


def _check_kinds(
    arguments: argparse.Namespace, known: Sequence[Run], folder: Path, say: Callable[[str], None]
) -> tuple[list[Error], dict[str, Any]]:
    """Kinds of rows, pushed."""
    kinds = list(dict.fromkeys([*CHECKED, *(KINDS if arguments.save else ())]))
    found = []
    for number, kind in enumerate(kinds):
        say(f"{number + 1} of {len(kinds)}: {arguments.check_rows:,} rows, {kind}")
        found.append(measure(kind, arguments.check_rows, folder))
    if arguments.save:
        head = {"time": _now(), "machine": this_machine(), "versions": {p: version(p) for p in _PACKAGES}}
        write_runs(arguments.save, [run_ for run_ in found if run_.kind in KINDS], head)
    machine = measured_on(arguments.constants or SHIPPED)
    return errors_of(found, known, machine), {"runs": [run_.to_json() for run_ in found]}


def _check_scale(
    arguments: argparse.Namespace, folder: Path, say: Callable[[str], None]
) -> tuple[list[Error], dict[str, Any]]:
    """Many rows, loaded."""
    rows, free = arguments.check_rows, shutil.disk_usage(folder).free
    if rows * ROW_BYTES > free:
        raise ConfigError(
            f"check-rows is {rows}: that takes {rows * ROW_BYTES / 1e9:.0f} GB of disk, and {free / 1e9:.0f} "
            "are free (--folder names another place)"
        )
    found = measure_scale(rows, folder, say)
    if arguments.save:
        kept = read_scale(arguments.save) if arguments.save.exists() else Scale()
        runs = sorted([*kept.without(rows).runs, found], key=lambda run_: run_.rows)
        write_scale(arguments.save, replace(kept, runs=tuple(runs), machine=this_machine(), time=_now()))
    return scale_errors_of(found, read_scale(arguments.scale)), {"scale": found.to_json()}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
