# SPDX-License-Identifier: Apache-2.0
"""The commands of `psctl` that work on a stopped shard's directory: verify.

DIR is one shard's directory, or a data_dir with shard-0000, shard-0001, … in it. Exit codes: 0 done and
sound; 1 damage found; 2 a wrong flag, table or file; 74 the directory cannot be opened or written.
Thread safety: a process's main thread.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rowhouse.error import RowhouseError

from ps_server.directory import shard_directories
from ps_server.verify import Damage, Report, TableReport, verify_directory

DAMAGE_SHOWN_MAX: Final = 100
"""Lines of damage printed for people; --json has all of them."""

COMMANDS: Final = {
    "verify": "read everything that a stopped shard has on disk, and name what is damaged",
}

EXAMPLES: Final = """\
examples, each on a stopped shard or data_dir:
  psctl verify data
  psctl verify data/shard-0000 --json
"""


def add_command(command: argparse.ArgumentParser, name: str) -> None:
    """Give the parser of one of COMMANDS its arguments."""
    command.add_argument("directory", metavar="DIR", type=Path, help="a shard's directory, or a data_dir")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Carry out one of COMMANDS; returns the exit code. Errors are printed, not raised."""
    try:
        return _verify(arguments, console)
    except RowhouseError as error:
        print(f"psctl: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code


@contextmanager
def _progress(arguments: argparse.Namespace) -> Iterator[Progress]:
    """Progress on stderr, where a person watches it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,} rows"))
    console = Console(stderr=True)
    quiet = arguments.json or not console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=quiet) as progress:
        yield progress


# ---------------------------------------------------------------- verify
def _verify(arguments: argparse.Namespace, console: Console) -> int:
    with _progress(arguments) as progress:
        reports = [_verify_one(path, progress) for path in shard_directories(arguments.directory)]
    if arguments.json:
        print(json.dumps([_facts(report) for report in reports], indent=2))
    else:
        _show(reports, console)
    return 1 if any(report.damage for report in reports) else 0


def _verify_one(directory: Path, progress: Progress) -> Report:
    tasks: dict[str, Any] = {}

    def show(table: str, rows: int) -> None:
        if table not in tasks:
            tasks[table] = progress.add_task(f"{directory.name} {table}", total=None)
        progress.update(tasks[table], completed=rows)

    return verify_directory(directory, show)


def _facts(report: Report) -> dict[str, Any]:
    facts = asdict(report)
    facts["directory"] = str(report.directory)
    for entry, damage in zip(facts["damage"], report.damage, strict=True):
        entry["first_key"], entry["last_key"] = _hex(damage.first_key), _hex(damage.last_key)
        entry["partitions"] = damage.partitions
    return facts


def _hex(key: int | None) -> str | None:
    return None if key is None else f"{key:#018x}"


def _where(damage: Damage) -> str:
    """Key range of a damage as text: partitions, then mixed keys."""
    if damage.partitions is None:
        return "-"
    first, last = damage.partitions
    partitions = f"partition {first:#05x}" if first == last else f"partitions {first:#05x} to {last:#05x}"
    return f"{partitions}, keys {_hex(damage.first_key)} to {_hex(damage.last_key)}"


def _show(reports: list[Report], console: Console) -> None:
    read = Table("shard", "stopped", "checkpoint", "log records", "torn bytes", "table", "rows", "tombstones")
    damaged = Table("shard", "part", "table", "rows", "where", "damage", title="damage")
    for report in reports:
        stopped = "cleanly" if report.clean else "by a crash"
        shard = [report.directory.name, stopped, str(report.checkpoint_lsn), f"{report.log_records:,}"]
        shard.append(f"{report.torn_bytes:,}")
        tables: list[TableReport | None] = [*report.tables] or [None]
        for table in tables:
            facts = [table.name, f"{table.rows:,}", f"{table.tombstones:,}"] if table else ["-"] * 3
            read.add_row(*shard, *facts)
            shard = [""] * len(shard)
        for damage in report.damage[:DAMAGE_SHOWN_MAX]:
            rows = "unreadable" if damage.rows is None else f"{damage.rows:,}"
            damaged.add_row(
                report.directory.name, damage.part, damage.table or "-", rows, _where(damage), damage.what
            )
    console.print(read)
    count = sum(len(report.damage) for report in reports)
    if damaged.row_count:
        console.print(damaged)
    console.print(f"{count} damaged things" if count else "no damage")
    if damaged.row_count < count:
        console.print(f"{count - damaged.row_count} more are in the output of --json")
