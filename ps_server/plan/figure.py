# SPDX-License-Identifier: Apache-2.0
"""The figures of a plan, one a line: what a run measured, and what the plan reckons from it.

Invariant: 1. a figure names the run that measured it, and the formula that reckoned it. Thread safety: pure
functions over immutable values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ps_server.disk.open_file import OWN_FILES, PROCESS_FILES, STORE_FILES
from ps_server.disk.store import BLOCK_BYTES
from ps_server.plan.constant import Run
from ps_server.plan.network import Network
from ps_server.plan.plan import Plan, TablePlan
from ps_server.plan.row_bytes import FILTER_BYTES, Constants
from ps_server.plan.scale import Scale

FILE_BYTES: Final = 64 << 20
"""Of a file of rows (store.py)."""

INDEX_ENTRY_BYTES: Final = 16
"""Of the index, for each block: what is left of its key, and where it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line.

    Attributes
    ----------
    name, unit
        What, in "B", "s", "rows/s" or a count ("").
    measured, run
        What a run measured, and which run; None and "" where none did.
    reckoned, formula
        The plan's figure, and where it comes from.
    """

    name: str
    unit: str
    measured: float | None = None
    run: str = ""
    reckoned: float
    formula: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What a plan was made of.

    Attributes
    ----------
    shards
        Shard processes.
    kinds
        "fp16, dim 16, sgd", by table: the runs of that kind measured its rows.
    constants
        At the rows of a shard.
    runs, scale
        Measured.
    network
        None: nobody said how many trainers there are.
    """

    shards: int
    kinds: Sequence[str]
    constants: Constants
    runs: Sequence[Run]
    scale: Scale
    network: Network | None


def figures(plan: Plan, basis: Basis) -> list[Figure]:
    """Every figure of a plan.

    Parameters
    ----------
    plan
        Made by make_plan.
    basis
        What it was made of.
    """
    rows = max(sum(table.rows for table in plan.tables) / basis.shards, 1.0)
    lines = [Figure(name="rows of a shard", unit="", reckoned=rows, formula="rows / shards")]
    for table, kind in zip(plan.tables, basis.kinds, strict=True):
        lines += _row_figures(table, kind, basis)
    lines += [
        Figure(
            name="disk of all machines", unit="B", reckoned=plan.disk_bytes, formula="sum of the purposes"
        ),
        Figure(
            name="memory of all machines", unit="B", reckoned=plan.memory_bytes, formula="sum of the purposes"
        ),
    ]
    lines += _shard_figures(plan, basis, rows)
    if basis.network is not None:
        lines += _network_figures(basis.network)
    return lines


def _row_figures(table: TablePlan, kind: str, basis: Basis) -> Iterator[Figure]:
    run = next((run for run in basis.runs if str(run.kind) == kind), None)
    of = f"{run.rows:,} rows" if run else ""
    yield Figure(
        name=f"table {table.name}: memory of a hot row", unit="B", measured=run.memory_bytes if run else None,
        run=of, reckoned=table.memory.total, formula="layout of a row + index of the runs",
    )  # fmt: skip
    yield Figure(
        name=f"table {table.name}: disk of a row, compacted", unit="B", run=of,
        measured=run.disk_bytes if run else None, reckoned=table.disk.total,
        formula="line through the runs, and what more rows change",
    )  # fmt: skip


def _shard_figures(plan: Plan, basis: Basis, rows: float) -> Iterator[Figure]:
    """Of one shard; all shards work at the same time."""

    def line(name: str, unit: str, of: str, otherwise: float, formula: str) -> Figure:
        run, at = basis.scale.nearest(of, rows), basis.scale.at(of, rows)
        return Figure(
            name=name, unit=unit, measured=getattr(run, of) if run else None,
            run=f"{run.rows:,} rows" if run else "", reckoned=otherwise if at is None else at,
            formula=formula if at is None else "line through the runs, at the rows of a shard",
        )  # fmt: skip

    disk_bytes = sum(table.disk_bytes for table in plan.tables) / basis.shards
    constants, files = basis.constants, min(disk_bytes / FILE_BYTES, STORE_FILES)
    yield line(
        "memory of a shard without hot rows", "B", "memory_bytes", constants.process_bytes,
        "median of the runs of plan.json",
    )  # fmt: skip
    yield line(
        "filters and index blocks of a shard", "B", "index_filter_bytes",
        FILTER_BYTES * rows + disk_bytes / BLOCK_BYTES * INDEX_ENTRY_BYTES,
        f"{FILTER_BYTES} B per row + {INDEX_ENTRY_BYTES} B per block of {BLOCK_BYTES} B",
    )  # fmt: skip
    connections = basis.network.shard_connections if basis.network else 0
    opened = line(
        "open files of a shard, without trainers", "", "open_files", files + OWN_FILES + PROCESS_FILES,
        f"files of 64 MiB, at most {STORE_FILES:,}, + {OWN_FILES + PROCESS_FILES}",
    )  # fmt: skip
    yield opened
    if connections:
        yield Figure(
            name="open files of a shard, with trainers", unit="", reckoned=opened.reckoned + connections,
            formula="the same + connections of a shard",
        )  # fmt: skip
    yield _timed("bulk load", "load_s", plan.load_s, basis, rows, "seconds per row × rows of a shard")
    yield _timed("start after a stop", "reopen_clean_s", constants.start_s, basis, rows, "as the runs")
    yield _timed(
        "start after a kill, log full", "reopen_crash_s", plan.recover_s, basis, rows,
        "start after a stop + rows of the log × seconds per row",
    )  # fmt: skip
    for what, kind in (("uniform", "cold, files in memory"), ("disk", "cold, from the disk"),
                       ("zipf", "Zipf")):  # fmt: skip
        name = f"pull_{what}_rows_per_s"
        if (rate := basis.scale.at(name, rows)) is not None:
            yield line(f"pulls of a shard, {kind}", "rows/s", name, rate, "")
            yield Figure(
                name=f"pulls of all shards, {kind}", unit="rows/s", reckoned=rate * basis.shards,
                formula="of a shard × shards",
            )  # fmt: skip


def _timed(name: str, of: str, planned_s: float, basis: Basis, rows: float, formula: str) -> Figure:
    run = basis.scale.nearest(of, rows)
    return Figure(
        name=name, unit="s", measured=getattr(run, of) if run else None,
        run=f"{run.rows:,} rows" if run else "", reckoned=planned_s, formula=formula,
    )  # fmt: skip


def _network_figures(network: Network) -> Iterator[Figure]:
    """A step is one of every trainer."""
    heads = "+ heads of messages"
    traffic = network.traffic
    for name, unit, reckoned, formula in (
        ("distinct ids of a trainer's step", "", network.distinct_ids,
         f"expected of {traffic.batch_ids:,} Zipf ids (exponent 1.05)"),
        ("a trainer's step: rows", "B", network.rows_bytes, f"distinct ids × dim × 4 B {heads}"),
        ("a trainer's step: sent", "B", network.ids_bytes + network.push_bytes,
         f"distinct ids × (8 B + 8 B + dim × 4 B: pull, push) {heads}"),
        ("a shard's step: gets", "B", network.shard_in_bytes, "what trainers send / shards"),
        ("a shard's step: gives", "B", network.shard_out_bytes, "what trainers pull / shards"),
        ("connections of a shard", "", network.shard_connections, "2 × trainers; 3 × where they prefetch"),
        ("connections in all", "", network.connections, "of a shard × shards"),
    ):  # fmt: skip
        yield Figure(name=name, unit=unit, reckoned=reckoned, formula=formula)
