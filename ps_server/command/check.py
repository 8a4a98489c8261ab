# SPDX-License-Identifier: Apache-2.0
"""`psctl plan --check`: measures rows here, and holds the plan to them.

Bytes have bars everywhere. Times have one on the machine where the plan's were measured; on another one they
are told, and do not fail. Thread safety: a process's main thread.
"""

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rowhouse.distribution import DISTRIBUTION

from ps_server.plan.constant import Run, fit, write_runs
from ps_server.plan.measure import CHECKED, KINDS, measure
from ps_server.plan.row_bytes import disk_row, memory_row

DISK_BAR: Final = 0.05
MEMORY_BAR: Final = 0.10
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

    @property
    def share(self) -> float:
        """planned / measured - 1, by the bound that is nearest; 0 between them."""
        return min(max(self.measured, self.low), self.high) / self.measured - 1

    @property
    def planned(self) -> str:
        """The plan's figure, for people."""
        return f"{self.low:.1f} B" if self.low == self.high else f"{self.low:.1f}–{self.high:.1f} B"

    @property
    def within(self) -> bool:
        """Whether it is inside its bar."""
        return abs(self.share) <= self.bar


def errors_of(runs: Sequence[Run], known: Sequence[Run]) -> list[Error]:
    """What the constants of `known` say of each measured run, beside what it took."""
    constants = fit(known)
    errors = []
    for run_ in runs:
        layout, what = run_.kind.layout, str(run_.kind)
        memory, disk = memory_row(layout, constants), disk_row(layout, constants)
        errors.append(Error(what, "memory", memory.low, memory.high, run_.memory_bytes, MEMORY_BAR))
        errors.append(Error(what, "disk", disk.low, disk.high, run_.disk_bytes, DISK_BAR))
    return errors


def run(arguments: argparse.Namespace, known: Sequence[Run], console: Console) -> int:
    """Measure, compare, print; returns the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="rowhouse-plan-", dir=arguments.folder))
    progress = Console(stderr=True, quiet=not sys.stderr.isatty())
    kinds = list(dict.fromkeys([*CHECKED, *(KINDS if arguments.save else ())]))
    found = []
    try:
        for number, kind in enumerate(kinds):
            progress.print(f"{number + 1} of {len(kinds)}: {arguments.check_rows:,} rows, {kind}")
            found.append(measure(kind, arguments.check_rows, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.save:
        write_runs(arguments.save, [run_ for run_ in found if run_.kind in KINDS], _head())
    errors = errors_of(found, known)
    if arguments.json:
        lines = [{**asdict(error), "error": error.share, "within": error.within} for error in errors]
        print(json.dumps({"errors": lines, "runs": [run_.to_json() for run_ in found]}, indent=1))
    else:
        table = Table("row", "place", "planned", "measured here", "error", "bar", title="bytes per row")
        for error in errors:
            cells = (
                error.planned,
                f"{error.measured:.1f} B",
                f"{error.share:+.1%}",
                f"±{error.bar:.0%}",
            )
            table.add_row(error.what, error.place, *cells, style="" if error.within else "red")
        console.print(table)
    return 0 if all(error.within for error in errors) else 1


def _head() -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {package: version(package) for package in _PACKAGES},
    }
