# SPDX-License-Identifier: Apache-2.0
"""The commands of `psctl` that work on a stopped shard's directory: verify and load (export: export.py).

DIR is one shard's directory, or a data_dir with shard-0000, shard-0001, … in it. Exit codes: 0 done and
sound; 2 a wrong flag, table or file; 74 damage was found, or the directory cannot be opened or written.
Thread safety: a process's main thread.
"""

import argparse
import functools
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import (
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from rowhouse.error import CorruptionError, InvalidRequestError

from ps_server.bulk.export import EXPORT_ROWS
from ps_server.bulk.load import bulk_load
from ps_server.config.cluster import load_config, shard_directory
from ps_server.config.memory import check_memory
from ps_server.disk.data_dir import claim_data_dir, is_made
from ps_server.disk.directory import shard_directories
from ps_server.disk.verify import Damage, Report, TableReport, verify_directory
from ps_server.life.saved import copy_of
from ps_server.shard.shard import Shard

DAMAGE_SHOWN_MAX: Final = 100
"""Lines of damage printed for people; --json has all of them."""


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Carry out verify or load as psctl.py has parsed it; returns the exit code."""
    commands = {"verify": _verify, "load": _load}
    return commands[arguments.command](arguments, console)


class RateColumn(ProgressColumn):
    """Rows per second."""

    def render(self, task: Task) -> Text:
        """Nothing while it is not known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} rows/s")


@contextmanager
def progress_of(arguments: argparse.Namespace) -> Iterator[Progress]:
    """Progress on stderr, where a person watches it."""
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,} rows"),
        RateColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    quiet = arguments.json or not console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=quiet) as progress:
        yield progress


# ---------------------------------------------------------------- load
def _load(arguments: argparse.Namespace, console: Console) -> int:
    try:
        pq.ParquetFile(arguments.file).close()  # before a shard is opened or made
    except (OSError, pa.ArrowException) as error:
        raise InvalidRequestError(f"{arguments.file}: cannot be read as Parquet: {error}") from None
    reports = []
    with progress_of(arguments) as progress:
        for name, target in _load_targets(arguments):
            with target as place, pq.ParquetFile(arguments.file) as file:
                what = f"{name} {arguments.table}"
                reading = progress.add_task(f"{what}, reading", total=file.metadata.num_rows)
                task = progress.add_task(f"{what}, writing", total=None)
                report = bulk_load(
                    place, arguments.table, _read(file, progress, reading), skip_others=True,
                    skip_not_finite=arguments.skip_not_finite, reset=arguments.reset,
                    progress=functools.partial(_advance, progress, task), more_follow=arguments.more_follow,
                    compacting=functools.partial(
                        progress.update, task,
                        description=f"{what}, making its files one sorted run",
                    ),
                )  # fmt: skip
            reports.append({"shard": name, **asdict(report)})
    show_facts(reports, arguments, console)
    return 0


def _read(file: pq.ParquetFile, progress: Progress, task: TaskID) -> Iterator[pa.RecordBatch]:
    for batch in file.iter_batches(EXPORT_ROWS):
        yield batch
        progress.advance(task, batch.num_rows)


def _advance(progress: Progress, task: TaskID, rows: int) -> None:
    progress.update(task, completed=rows)


def _load_targets(
    arguments: argparse.Namespace,
) -> Iterator[tuple[str, AbstractContextManager[Path | Shard]]]:
    """(name, what to load into) of each shard: its directory, or with a config the shard itself."""
    if arguments.config is None:
        for directory in shard_directories(arguments.directory):
            yield directory.name, nullcontext(directory)
        return
    config = load_config(arguments.config, {"data_dir": str(arguments.directory)})
    check_memory(config)
    claim_data_dir(config.data_dir, config.shard_count, config.cluster_id)
    for index in range(config.shard_count):  # make what is not there: a failed load leaves a whole cluster
        if not is_made(shard_directory(config, index)):
            Shard.open(config, index, shard_directory(config, index)).close()
    for index in range(config.shard_count):
        directory = shard_directory(config, index)
        yield directory.name, closing(Shard.open(config, index, directory))


def directories_of(arguments: argparse.Namespace) -> list[Path]:
    """Those of the shards, or of their copies under a name."""
    directories = shard_directories(arguments.directory)
    return (
        directories if arguments.saved is None else [copy_of(path, arguments.saved) for path in directories]
    )


def show_facts(reports: list[dict[str, Any]], arguments: argparse.Namespace, console: Console) -> None:
    """Print what was done on each shard."""
    if arguments.json:
        print(json.dumps(reports, indent=2))
        return
    table = Table(*reports[0])
    for report in reports:
        table.add_row(*(_cell(value) for value in report.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else ", ".join(value) or "-"


# ---------------------------------------------------------------- verify
def _verify(arguments: argparse.Namespace, console: Console) -> int:
    with progress_of(arguments) as progress:
        reports = [_verify_one(path, progress) for path in directories_of(arguments)]
    if arguments.json:
        print(json.dumps([_facts(report) for report in reports], indent=2))
    else:
        _show(reports, console)
    return CorruptionError.exit_code if any(report.damage for report in reports) else 0


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
    columns = ("shard", "stopped", "checkpoint", "log records", "torn bytes", "table", "rows")
    read = Table(*columns, "not finite")
    damaged = Table("shard", "part", "table", "rows", "where", "damage", title="damage")
    for report in reports:
        stopped = "cleanly" if report.clean else "by a crash"
        shard = [report.directory.name, stopped, str(report.checkpoint_lsn), f"{report.log_records:,}"]
        shard.append(f"{report.torn_bytes:,}")
        tables: list[TableReport | None] = [*report.tables] or [None]
        for table in tables:
            counts = (table.rows, table.not_finite) if table else ()
            facts = [table.name, *(f"{count:,}" for count in counts)] if table else ["-"] * 3
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
    for report in reports:
        for lost in report.lost_log:
            console.print(f"{lost}: the machine went down under os; the next start cuts the log there")
    if damaged.row_count < count:
        console.print(f"{count - damaged.row_count} more are in the output of --json")
    spoiled = sum(table.not_finite for report in reports for table in report.tables)
    if spoiled:
        console.print(
            f"{spoiled:,} rows hold a NaN or an infinity: an earlier version wrote them; no damage on disk"
        )
