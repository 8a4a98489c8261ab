# SPDX-License-Identifier: Apache-2.0
"""What a cluster will take before anybody buys a machine: totals by purpose, machines, times.

Bytes of a row come from plan_row.py; `psctl plan --check` measures those again (plan_measure.py).

Invariants: 1. the purposes of a plan sum to its bytes; 2. nothing here reads a clock or a disk. Thread
safety: pure functions over immutable values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rowhouse.error import ConfigError

from ps_server.config.cluster import MEMORY_BUDGET_MIN_BYTES
from ps_server.disk.row import ID_BYTES
from ps_server.plan.row_bytes import FILTER_BYTES, Constants, RowBytes, disk_row, memory_row, raw_bytes
from ps_server.table.budget import least_budget, split
from ps_server.table.config import TableConfig

SPACE_AMPLIFICATION: Final = 1 / 9
"""Outdated rows in the levels above the last: at most 1/10 + 1/100 + … of it, for each level is a tenth of
the next (RocksDB's dynamic level sizes; Dong et al., CIDR 2017, section 3.1)."""

COMPACTION_BYTES: Final = 2 * 25 * (64 << 20)
"""Input and output of a compaction exist together for a moment: at most 25 files of 64 MiB each."""

LOGS: Final = 2
"""A checkpoint begins when the log is as long as configured; until it ends, the next one grows beside it."""

LOG_RECORD_BYTES: Final = 4
"""Framing of the push log, spread over the rows of a push."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One table and how many rows it will have.

    Attributes
    ----------
    table
        Its config.
    rows
        Rows of the whole cluster.
    """

    table: TableConfig
    rows: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where the rows go.

    Attributes
    ----------
    shards
        Shard processes, all machines together.
    share
        Share of the rows that is kept in memory, 0 to 1. None: what `memory_budget` holds; without one, all.
    memory_budget
        Of each shard; None: what `share` needs.
    machine_memory_bytes, machine_disk_bytes
        What one machine can give to shards.
    log_bytes
        checkpoint_log_bytes of the config.
    """

    shards: int
    share: float | None
    memory_budget: int | None = None
    machine_memory_bytes: float
    machine_disk_bytes: float
    log_bytes: int

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise ConfigError(f"shards is {self.shards}; it must be 1 or more")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ConfigError(f"share is {self.share:g}; it must be 0 to 1")
        for name in ("machine_memory_bytes", "machine_disk_bytes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name):g}; it must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlan:
    """One table of a plan; bytes of the whole cluster."""

    name: str
    rows: float
    raw_bytes: float
    memory: RowBytes
    disk: RowBytes
    memory_bytes: float
    disk_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A cluster.

    Attributes
    ----------
    tables
        By table.
    memory, disk
        Totals by purpose, in bytes, all machines together.
    share
        Share of the rows in memory.
    memory_budget_bytes
        `memory_budget` of each shard: the config's, or what holds that share of the rows.
    page_cache_bytes
        Filters and index blocks of all shards. They are read far more often than rows, so each machine should
        leave the operating system so much memory; where it cannot, a cold row costs up to three reads.
    machines_by_memory, machines_by_disk
        Machines that each asks for; as many as the larger of both are needed.
    load_s, recover_s
        A bulk load of all rows, all shards at once; and a start after a kill with a full log.
    notes
        What a reader should know beside the figures.
    """

    tables: tuple[TablePlan, ...]
    memory: Mapping[str, float]
    disk: Mapping[str, float]
    share: float
    memory_budget_bytes: int
    page_cache_bytes: float
    machines_by_memory: int
    machines_by_disk: int
    load_s: float
    recover_s: float
    notes: tuple[str, ...]

    @property
    def memory_bytes(self) -> float:
        """All memory."""
        return sum(self.memory.values())

    @property
    def disk_bytes(self) -> float:
        """All disk, headroom included."""
        return sum(self.disk.values())

    @property
    def machines(self) -> int:
        """Machines needed."""
        return max(self.machines_by_memory, self.machines_by_disk)


def make_plan(demands: Sequence[Demand], site: Site, constants: Constants) -> Plan:
    """Work out a cluster.

    Parameters
    ----------
    demands
        Tables and their rows.
    site
        Shards, share of rows in memory, machines.
    constants
        Measured.

    Returns
    -------
    Plan
        Bytes by purpose, machines and times.
    """
    tables, load_s, filter_bytes = [], 0.0, 0.0
    sketch_bytes = sum(d.table.admission.sketch_bytes for d in demands if d.table.admission)
    all_bytes = sum(d.table.layout.cost_bytes * d.rows for d in demands) / site.shards
    share = _share(site, all_bytes, sketch_bytes)
    memory: dict[str, float] = {}
    disk: dict[str, float] = {}
    for demand in demands:
        layout = demand.table.layout
        hot, cold = memory_row(layout, constants), disk_row(layout, constants)
        for total, row, rows in ((memory, hot, demand.rows * share), (disk, cold, demand.rows)):
            for purpose, bytes_ in row.parts.items():
                total[purpose] = total.get(purpose, 0.0) + bytes_ * rows
        tables.append(
            TablePlan(
                name=demand.table.name, rows=demand.rows, raw_bytes=raw_bytes(layout) * demand.rows,
                memory=hot, disk=cold, memory_bytes=hot.total * demand.rows * share,
                disk_bytes=cold.total * demand.rows,
            )
        )  # fmt: skip
        row_s = constants.load_row_s + constants.load_byte_s * layout.value_bytes
        load_s += demand.rows / site.shards * row_s
        filter_bytes += FILTER_BYTES * demand.rows / site.shards
    needed = max(least_budget(math.ceil(all_bytes * share) + sketch_bytes), MEMORY_BUDGET_MIN_BYTES)
    budget = needed if site.memory_budget is None or site.share is not None else site.memory_budget
    store_bytes = float(split(budget)[0])
    memory["admission sketches"] = float(sketch_bytes * site.shards)
    memory["RocksDB cache and memtables"] = store_bytes * site.shards
    memory["processes"] = constants.process_bytes * site.shards
    rows_bytes = sum(disk.values())
    disk["push log"] = float(LOGS * site.log_bytes * site.shards)
    disk["compaction headroom"] = SPACE_AMPLIFICATION * rows_bytes + COMPACTION_BYTES * site.shards
    return Plan(
        tables=tuple(tables), memory=memory, disk=disk, share=share, memory_budget_bytes=budget,
        page_cache_bytes=filter_bytes * site.shards,
        machines_by_memory=math.ceil(sum(memory.values()) / site.machine_memory_bytes),
        machines_by_disk=math.ceil(sum(disk.values()) / site.machine_disk_bytes),
        load_s=load_s, recover_s=constants.start_s + _log_rows(demands, site) * constants.replay_row_s,
        notes=_notes(demands, site, share, budget, constants),
    )  # fmt: skip


def _share(site: Site, all_bytes: float, sketch_bytes: int) -> float:
    """Share of the rows in memory: as given, or what the budget holds of a shard's `all_bytes`."""
    if site.share is not None or site.memory_budget is None:
        return 1.0 if site.share is None else site.share
    room = max(split(site.memory_budget)[1] - sketch_bytes, 0)
    return min(1.0, room / all_bytes) if all_bytes else 1.0


def _log_rows(demands: Sequence[Demand], site: Site) -> float:
    """Rows of a shard's log when a checkpoint begins: gradients are float32 whatever the dtype is."""
    rows = sum(d.rows for d in demands)
    if not rows:
        return 0.0
    bytes_ = sum(d.rows * (ID_BYTES + 4 * d.table.dim + LOG_RECORD_BYTES) for d in demands) / rows
    return site.log_bytes / bytes_


def _notes(
    demands: Sequence[Demand], site: Site, share: float, budget: int, constants: Constants
) -> tuple[str, ...]:
    notes = []
    if site.memory_budget is not None and site.memory_budget < budget:
        notes.append(
            f"memory_budget of the config, {site.memory_budget} bytes, is too small for a share of "
            f"{share:g}: each shard needs {budget}"
        )
    per_shard = sum(d.rows for d in demands) * share / site.shards
    if site.shards > 1:
        spread = 300 / math.sqrt(max(per_shard, 1))  # three standard deviations of a binomial count
        notes.append(f"rows are spread by hash: shards differ by up to {spread:.2g} %")
    for demand in demands:
        disk = disk_row(demand.table.layout, constants)
        if disk.low < disk.high:
            notes.append(
                f"table {demand.table.name!r}: it is not known whether RocksDB will compress its blocks; a "
                f"row takes {disk.low:.0f} to {disk.high:.0f} bytes of disk"
            )
        admission = demand.table.admission
        if admission is not None and admission.kind == "min_count":
            counters = 1 << admission.width_bits
            notes.append(
                f"table {demand.table.name!r}: {demand.rows / site.shards / counters:.2g} rows per counter "
                "of the admission sketch; above 0.06 more than 1 % of new ids are taken for known ones"
            )
    return tuple(notes)
