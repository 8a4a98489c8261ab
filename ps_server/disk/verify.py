# SPDX-License-Identifier: Apache-2.0
"""A walk over a stopped shard that reads every byte that matters and names what is damaged.

Nothing is changed, and the directory may be on a file system that is mounted read-only.
Damage does not end the walk: a table goes on behind a damaged block, the log with its next segment.

Invariants: 1. a report without damage means that each row was read, passed its block's checksum and can
be served; 2. a key range of the report covers every row that could not be read in it.
Thread safety: pure functions; other processes are kept out meanwhile (directory.held).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.error import ConfigError, CorruptionError, StoreError
from rowhouse.limit import PARTITIONS
from rowhouse.placement import PARTITION_SHIFT, PartitionMap

from ps_server.disk import checkpoint
from ps_server.disk.checkpoint import CheckpointState, Life
from ps_server.disk.directory import Descriptor, held, open_store, read_descriptor
from ps_server.disk.row import RowLayout, get_lsn
from ps_server.disk.segment import (
    KIND_EVICT,
    KIND_PUSH,
    Owner,
    complaints,
    find_end,
    header_of,
    list_segments,
    read_segment,
)
from ps_server.disk.store import Keys, RowFamily, Store, Values

CHUNK_ROWS: Final = 16_384
KEY_END: Final = 1 << 64
PARTITION_KEYS: Final = KEY_END // PARTITIONS


@dataclass(kw_only=True)
class Damage:
    """One damaged thing.

    Attributes
    ----------
    part
        store, descriptor, life, checkpoint, admission, log or rows.
    what
        What is wrong with it.
    table
        Whose, or None.
    first_key, last_key
        Range of mixed keys that it lies in, or None when it has none.
    rows
        Rows that were read and are wrong; None where they cannot be read, so cannot be counted.
    """

    part: str
    what: str
    table: str | None = None
    first_key: int | None = None
    last_key: int | None = None
    rows: int | None = None

    @property
    def partitions(self) -> tuple[int, int] | None:
        """First and last partition of the key range."""
        if self.first_key is None or self.last_key is None:
            return None
        return self.first_key // PARTITION_KEYS, self.last_key // PARTITION_KEYS


@dataclass(kw_only=True)
class TableReport:
    """What was read of one table.

    Attributes
    ----------
    name
        The table's.
    rows, disk_bytes
        Read, and bytes of its files.
    not_finite
        Rows with a NaN or an infinity among weights or state: an earlier version wrote them. They are as they
        were written, so no damage.
    """

    name: str
    rows: int = 0
    not_finite: int = 0
    disk_bytes: int = 0


@dataclass(kw_only=True)
class Report:
    """What a walk found.

    Attributes
    ----------
    directory
        The shard's.
    clean
        Whether it was stopped cleanly; after a crash the log has pushes that the rows do not.
    checkpoint_lsn
        Of the last checkpoint.
    log_segments, log_records
        Read.
    torn_bytes
        Bytes of a record cut off by a kill; never acknowledged, no damage.
    lost_log
        What the log lacks since the machine went down while it was not synced; the next start cuts it off
        there. No damage, because nothing else was promised.
    tables
        By name.
    damage
        Empty when the shard is sound.
    """

    directory: Path
    clean: bool = False
    checkpoint_lsn: int = 0
    log_segments: int = 0
    log_records: int = 0
    torn_bytes: int = 0
    lost_log: list[str] = field(default_factory=list)
    tables: list[TableReport] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)


def verify_directory(path: Path, progress: Callable[[str, int], None] = lambda _t, _n: None) -> Report:
    """Walk a stopped shard's directory.

    Parameters
    ----------
    path
        The directory of one shard.
    progress
        Called with a table's name and the rows read of it so far.

    Returns
    -------
    Report
        What was read, and all damage found.

    Raises
    ------
    DirectoryInUseError
        A shard runs there.
    StoreError
        The directory cannot be opened at all; damage is not raised but reported.
    """
    report = Report(directory=path)
    with held(path):
        _check_files(path, report)
        try:
            descriptor = read_descriptor(path, paranoid=False)
            store = open_store(path, descriptor.families(), paranoid=False)
        except (CorruptionError, ConfigError) as error:
            report.damage.append(Damage(part="store", what=str(error)))
            _walk_log(path / "log", None, report)
            return report
        try:
            life, state = _read_records(store, descriptor, report)
            _walk_log(path / "log", state.lsn if state else None, report)
            if life and life.lost_unsynced_log(checkpoint.boot_id()):
                report.lost_log = [damage.what for damage in report.damage if damage.part == "log"]
                report.damage = [damage for damage in report.damage if damage.part != "log"]
                open_lsn = 0
            else:
                open_lsn = life.open_lsn if life and not life.clean else 0
            _check_segments(path / "log", Owner(descriptor.cluster_id, descriptor.shard), open_lsn, report)
            for name, layout in descriptor.layouts.items():
                table = TableReport(name=name)
                report.tables.append(table)
                walk = _TableWalk(store, table, layout, descriptor, life, progress)
                report.damage += walk.run(state if life and life.clean else None)
        finally:
            store.close()
    return report


def _check_files(path: Path, report: Report) -> None:
    """RocksDB's own checks: a shard would not start with a file that is missing or cut short."""
    try:
        open_store(path, {}).close()
    except CorruptionError as error:
        report.damage.append(Damage(part="store", what=str(error)))


def _read_records(
    store: Store, descriptor: Descriptor, report: Report
) -> tuple[Life | None, CheckpointState | None]:
    """The shard's own records; None for one that is damaged."""
    life: Life | None = None
    state: CheckpointState | None = None
    try:
        life = checkpoint.read_life(store)
        report.clean = life.clean
    except (CorruptionError, TypeError, ValueError, KeyError) as error:
        report.damage.append(Damage(part="life", what=str(error)))
    try:
        state = checkpoint.read(store)
        report.checkpoint_lsn = state.lsn
    except (CorruptionError, TypeError, ValueError, KeyError) as error:
        report.damage.append(Damage(part="checkpoint", what=str(error)))
    for name in descriptor.layouts:
        try:
            checkpoint.read_sketch(store, name)
        except CorruptionError as error:
            report.damage.append(Damage(part="admission", what=str(error), table=name))
    return life, state


# ---------------------------------------------------------------- the log
def _check_segments(directory: Path, owner: Owner, open_lsn: int, report: Report) -> None:
    """A shard would not start with another's segments, or without the one that it wrote to last."""
    for complaint in complaints(directory, owner, open_lsn):
        report.damage.append(Damage(part="log", what=complaint))


def _walk_log(directory: Path, checkpoint_lsn: int | None, report: Report) -> None:
    """Every segment; a damaged one does not hide the next. `checkpoint_lsn` None: unknown."""
    segments = list_segments(directory)
    newest = checkpoint_lsn
    for i, path in enumerate(segments):
        last = i == len(segments) - 1
        report.log_segments += 1
        try:
            header = header_of(path)
            before = header.previous_lsn if header else None
            gap = (
                before is not None
                and newest is not None
                and (before > newest if i == 0 else before != newest)
            )
            newest = header.first_lsn - 1 if header else newest
            if gap:
                text = f"{path}: follows LSN {before}; the records between are missing"
                report.damage.append(Damage(part="log", what=text))
            for _, record in read_segment(path, last):
                newest = record.lsn
                report.log_records += 1
                if record.kind not in (KIND_PUSH, KIND_EVICT):
                    text = f"{path}: LSN {record.lsn} has kind {record.kind}, unknown to this version"
                    report.damage.append(Damage(part="log", what=text))
            if last:
                report.torn_bytes = find_end(path)[1]
        except CorruptionError as error:
            report.damage.append(Damage(part="log", what=str(error)))
            newest = None  # what the damaged segment held behind the damage is not known
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from error


# ---------------------------------------------------------------- the tables
class _TableWalk:
    """One table's rows."""

    def __init__(
        self,
        store: Store,
        report: TableReport,
        layout: RowLayout,
        descriptor: Descriptor,
        life: Life | None,
        progress: Callable[[str, int], None],
    ) -> None:
        self._store, self._report, self._layout = store, report, layout
        self._shard = descriptor.shard
        self._map: PartitionMap = descriptor.partition_map()
        self._lsn_max = np.uint64(life.lsn_reserved if life else 2**48 - 1)
        self._progress = progress
        self._damage: list[Damage] = []
        self._newest: dict[tuple[str, str], Damage] = {}

    def run(self, clean_state: CheckpointState | None) -> list[Damage]:
        """Walk the table; `clean_state` is the checkpoint of a clean stop, or None."""
        report = self._report
        rows = self._store.families.get(f"row.{report.name}")
        if rows is None:
            self._add(Damage(part="store", what="its column family is missing"))
            return self._damage
        report.disk_bytes = rows.disk_bytes()
        for keys, values in self._readable(rows):
            report.rows += keys.shape[0]
            self._check_placed(keys)
            self._check_lsn(keys, values)
            report.not_finite += self._count_not_finite(values)
            self._progress(report.name, report.rows)
        if not self._damage:
            self._check_count(rows, clean_state)
        return self._damage

    def _check_count(self, rows: RowFamily, clean_state: CheckpointState | None) -> None:
        try:
            counted, who = rows.recorded_count(), "the store"
        except CorruptionError as error:
            self._add(Damage(part="rows", what=str(error)))
            return
        if counted is None and clean_state is not None:
            counted, who = clean_state.rows.get(self._report.name), "the checkpoint"
        if counted is not None and counted != self._report.rows:
            text = f"{self._report.rows} rows are here; {who} counted {counted}"
            self._add(Damage(part="rows", what=text))

    def _readable(self, family: RowFamily) -> Iterator[tuple[Keys, Values]]:
        """Chunks of all rows that can be read; what lies between is reported as damage."""
        start: int | None = 0
        while start is not None:
            try:
                for keys, values in family.scan(CHUNK_ROWS, start):
                    start = min(int(keys[-1]) + 1, KEY_END - 1)
                    yield keys, values
                return
            except CorruptionError as error:
                resume = _first_readable(family, start)
                last = KEY_END - 1 if resume is None else resume - 1
                self._add(Damage(part="rows", what=str(error), first_key=start, last_key=last))
                start = resume

    def _add(self, damage: Damage) -> None:
        """Report it; the same kind of damage in neighbouring partitions is one range."""
        damage.table = self._report.name
        previous = self._newest.get((damage.part, damage.what))
        if previous and previous.rows and damage.rows and _are_near(previous, damage):
            previous.last_key = damage.last_key
            previous.rows += damage.rows
            return
        self._newest[damage.part, damage.what] = damage
        self._damage.append(damage)

    def _report_rows(self, keys: Keys, wrong: NDArray[np.bool_], what: str) -> None:
        if not wrong.any():
            return
        keys = keys[wrong]
        cuts = np.flatnonzero(np.diff(keys >> PARTITION_SHIFT)) + 1
        for run in np.split(keys, cuts):
            self._add(
                Damage(
                    part="rows", what=what, first_key=int(run[0]), last_key=int(run[-1]), rows=run.shape[0]
                )
            )

    def _check_placed(self, keys: Keys) -> None:
        owners = self._map.shards[(keys >> PARTITION_SHIFT).astype(np.intp)]
        wrong: NDArray[np.bool_] = owners != self._shard
        self._report_rows(keys, wrong, "belongs to another shard")

    def _check_lsn(self, keys: Keys, values: Values) -> None:
        what = f"LSN above {int(self._lsn_max)}, the highest one reserved"
        self._report_rows(keys, get_lsn(values) > self._lsn_max, what)

    def _count_not_finite(self, values: Values) -> int:
        layout = self._layout
        width = layout.dim * dtype.STORAGE[layout.dtype].itemsize
        packed = np.ascontiguousarray(values[:, :width]).view(dtype.STORAGE[layout.dtype])
        finite = np.logical_and.reduce(np.isfinite(dtype.widen(packed, layout.dtype)), axis=1)
        if layout.state_size:
            at = layout.state_at - layout.weights_at
            state = np.ascontiguousarray(values[:, at : at + 4 * layout.state_size]).view("<f4")
            finite &= np.logical_and.reduce(np.isfinite(state), axis=1)
        return int(np.count_nonzero(~finite))


def _are_near(before: Damage, after: Damage) -> bool:
    if before.partitions is None or after.partitions is None:
        return False
    return after.partitions[0] - before.partitions[1] <= 1


def _is_readable(family: RowFamily, start: int) -> bool:
    try:
        next(family.scan(1, start), None)
    except CorruptionError:
        return False
    return True


def _first_readable(family: RowFamily, damaged: int) -> int | None:
    """First key above `damaged` from which the family can be read on; None: to the end nothing can.

    Whole partitions are skipped until one begins readable, then the range is narrowed by bisection.
    """
    low, high = damaged, (damaged // PARTITION_KEYS + 1) * PARTITION_KEYS
    while high < KEY_END and not _is_readable(family, high):
        low, high = high, high + PARTITION_KEYS
    if high >= KEY_END and not _is_readable(family, KEY_END - 1):
        return None
    high = min(high, KEY_END - 1)
    while high - low > 1:
        middle = (low + high) // 2
        if _is_readable(family, middle):
            high = middle
        else:
            low = middle
    return high
