# SPDX-License-Identifier: Apache-2.0
"""Where a table's rows are: hot in the arena, all of them in the store, and the traffic between.

It knows bytes and LSNs, not weights or optimizers (table.py).

Invariants: 1. a row that is not hot is in the store as it was last, or was never pushed, or was evicted
by policy; 2. `applied_lsn` is the newest record whose effects are in every row of this table: a row that
leaves memory carries it as its LSN; 3. before a row is written back the log up to `applied_lsn` is as
durable as the config promises (`barrier`); 4. `stored.hot` counts the hot rows that the store has too.
Thread safety: `lock` guards everything; methods say when the caller must hold it. A checkpoint copies rows
under `lock` and writes them under `_writing` alone, so that pulls and pushes go on; whoever makes rows leave
memory, or changes the store, takes `_writing` inside `lock` and so finds what was copied in the store.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.error import PoisonedError, PreconditionError
from rowhouse.mix import mix64

from ps_server.disk.row import RowLayout, get_lsn, put_lsn
from ps_server.disk.store import RowFamily
from ps_server.kernel import index, record
from ps_server.table.arena import Arena, Ids, Places
from ps_server.table.budget import Budget

ROWS_MIN: Final = 64
"""Rows that a table's floor of the budget must hold: less could not hold one small batch."""

COPY_BYTES: Final = 3 << 20
"""Rows copied out at a time to be written: a sector of 16,384 rows of dim 16, but not one of wide rows,
which would take hundreds of megabytes that no budget counts."""


@dataclass(slots=True)
class StoredCount:
    """Rows of the table that the store holds; `exact` is False while that number is not known, because an
    earlier version left the directory after a crash."""

    rows: int = 0
    hot: int = 0  # of them, those that are hot as well
    exact: bool = True

    @property
    def cold_possible(self) -> bool:
        """Whether a row that is not hot may be in the store: if not, a miss need not look there."""
        return not self.exact or self.rows > self.hot


@dataclass(kw_only=True, frozen=True)
class TierParts:
    """What a tier is made of.

    Attributes
    ----------
    name
        The table's.
    layout
        Layout of its records.
    rows
        Its family in the store.
    budget
        The shard's budget for hot rows.
    barrier
        Returns when the push log up to an LSN is as durable as the config promises.
    failpoint
        Called with the name of each point where a test may kill the process.
    """

    name: str
    layout: RowLayout
    rows: RowFamily
    budget: Budget
    barrier: Callable[[int], None]
    failpoint: Callable[[str], None]


class Tier:
    """Rows of one table, in memory and on disk."""

    def __init__(self, parts: TierParts) -> None:
        layout = parts.layout
        self.layout, self.rows = layout, parts.rows
        self._name, self._budget = parts.name, parts.budget
        self._barrier, self._failpoint = parts.barrier, parts.failpoint
        parts.budget.require_rows(parts.name, layout.cost_bytes, ROWS_MIN)
        self.rows_min = parts.budget.floor_bytes // (layout.cost_bytes + 8)
        rows_max = parts.budget.total_bytes // layout.cost_bytes
        self.arena = Arena(layout, rows_max, lambda n: parts.budget.grant(parts.name, n))
        self.lock = threading.Lock()
        self._writing = threading.Lock()
        self.applied_lsn = 0
        self.stored = StoredCount()
        self.departures = 0  # how often rows left memory; tells a reader that what it fetched may be old
        self.spilled_rows = self.written_back_rows = 0
        self._broken = False  # a change broke off: what is in memory must not reach the store

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock while a push changes rows. When it breaks off (also by Ctrl-C in embedded mode) no
        row of this table is written back any more: a checkpoint that runs meanwhile would store half a push
        under the LSN of the one before."""
        with self.lock:
            try:
                yield
            except BaseException:
                self._broken = True
                raise

    # ------------------------------------------------------------ coming
    def fetch(self, ids: Ids) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
        """present (n,) bool and the stored values of those; the lock may be held or not."""
        return self.rows.get(mix64(ids)) if ids.shape[0] else self._nothing(ids)

    def fetch_cold(self, ids: Ids) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
        """fetch, but without a look into the store when no cold row can be there; the caller holds the
        lock."""
        return self.fetch(ids) if self.stored.cold_possible else self._nothing(ids)

    def _nothing(self, ids: Ids) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
        return np.zeros(ids.shape[0], np.bool_), np.empty((0, self.layout.value_bytes), np.uint8)

    def load(self, ids: Ids, values: NDArray[np.uint8], places: Places, flags: int = 0) -> None:
        """Put stored values into free places and enter them; the caller holds the lock."""
        self._enter(ids, values, places, flags | index.STORED)
        if self.arena.row_lsn is not None:
            self.arena.row_lsn[places] = get_lsn(values)
        self.stored.hot += ids.shape[0]

    def create(self, ids: Ids, values: NDArray[np.uint8], places: Places) -> None:
        """Enter new rows, dirty, from their stored parts; the caller holds the lock."""
        self._enter(ids, values, places, index.DIRTY | index.REFERENCED)
        if self.arena.row_lsn is not None:
            self.arena.row_lsn[places] = 0

    def _enter(self, ids: Ids, values: NDArray[np.uint8], places: Places, flags: int) -> None:
        if not ids.shape[0]:
            return
        layout, values = self.layout, values.view()
        values.flags.writeable = False  # one compiled variant of the kernel, whatever the source
        self.arena.insert(ids, places, flags)
        record.copy_in(
            self.arena.records8, layout.stride, layout.weights_at, places, values, layout.stored_bytes
        )

    def promote(self, ids: Ids, values: NDArray[np.uint8], departures: int, flags: int = 0) -> None:
        """Make fetched rows hot, with `flags`, unless a row left memory since `departures`: then they may be
        old. Takes the lock."""
        ids, first = np.unique(ids, return_index=True)
        with self.lock:
            if self.departures != departures:
                return
            places, _ = self.arena.find(ids, 0)
            wanted = np.flatnonzero(places < 0)[: self.rows_min]
            free = self.make_room(wanted.shape[0])
            wanted = wanted[: free.shape[0]]
            self.arena.give_back(free[wanted.shape[0] :])
            self.load(ids[wanted], values[first[wanted]], free, flags)

    # ------------------------------------------------------------ going
    def make_room(self, wanted: int) -> Places:
        """`wanted` free places, spilling rows as needed; fewer only when all others are pinned. The
        caller holds the lock."""
        free = self.arena.free_places(wanted)
        while free.shape[0] < wanted:
            with self._writing:  # what a checkpoint has copied is in the store from here on, or it failed
                self._check_whole()
                places, flags = self.arena.sweep(wanted - free.shape[0])
                if not places.shape[0]:
                    break
                dirty = flags & index.DIRTY != 0
                self.departures += 1
                self._note_stored(flags[dirty])
                self._write_back(places[dirty], flags[dirty])
            self.stored.hot -= places.shape[0]  # all of them are in the store now
            self.spilled_rows += places.shape[0]
            self.arena.give_back(places)
            free = np.concatenate([free, self.arena.free_places(wanted - free.shape[0])])
        return free

    def _check_whole(self) -> None:
        """PoisonedError once a push or a write broke off: memory and store do not fit together any more."""
        if self._broken:
            raise PoisonedError(
                f"table {self._name!r}: a push or a write failed half way; its rows are not written any more"
            )

    def _note_stored(self, flags: NDArray[np.uint8]) -> None:
        """Count rows that are about to be written back; `flags` as they were. The caller holds the lock."""
        if flags.shape[0]:
            self._check_whole()
        fresh = int(_are_new(flags).sum())
        self.stored.rows += fresh
        self.stored.hot += fresh

    def _write_back(self, places: Places, flags: NDArray[np.uint8]) -> None:
        """Copy rows and write them, a part at a time; `flags` as they were. The caller holds both locks."""
        size = max(1, COPY_BYTES // self.layout.value_bytes)
        for start in range(0, places.shape[0], size):
            part = slice(start, start + size)
            self._write(*self.copy(places[part]), _are_new(flags[part]), self.applied_lsn)

    def copy(self, places: Places) -> tuple[Ids, NDArray[np.uint8]]:
        """Keys and values of hot rows as the store has them; the caller holds the lock."""
        layout = self.layout
        values = np.empty((places.shape[0], layout.value_bytes), np.uint8)
        record.copy_out(
            self.arena.records8, layout.stride, layout.weights_at, places, values, layout.stored_bytes
        )
        lsn: Any = self.applied_lsn
        if self.arena.row_lsn is not None:
            lsn = np.maximum(self.arena.row_lsn[places], np.uint64(self.applied_lsn))
        put_lsn(values, lsn)
        return mix64(self.arena.ids_of(places)), values

    def _write(self, keys: Ids, values: NDArray[np.uint8], new: NDArray[np.bool_], lsn: int) -> None:
        """Write what was copied at `lsn`, of which `new` is not in the store; the caller holds `_writing`."""
        try:
            self._barrier(lsn)
            self.rows.put(keys, values, new)
            self._failpoint("mid write-back")
        except BaseException:
            self._broken = True  # these rows count as clean: nobody may drop them for what the store has
            raise

    def write_back(self) -> int:
        """Write every dirty row to the store, some at a time; returns how many."""
        written = sector = 0
        while sector < self.arena.sectors:
            rows, sector = self.write_back_from(sector)
            self.written_back_rows += rows  # told while it goes on
            written += rows
        return written

    def write_back_from(self, sector: int) -> tuple[int, int]:
        """Write the dirty rows of an index sector to the store, and of those after it while they are few;
        returns how many, and the next sector. Takes the lock for the time of a copy (for that of the write
        where rows are wide), so that nobody waits long."""
        rows = COPY_BYTES // self.layout.value_bytes
        with ExitStack() as writing:
            with self.lock:
                places, flags, following = self.arena.take_dirty(sector, rows)
                if not places.shape[0]:
                    return 0, following
                self._note_stored(flags)
                writing.enter_context(self._writing)
                if places.shape[0] * self.layout.value_bytes > COPY_BYTES:
                    self._write_back(places, flags)
                    return int(places.shape[0]), following
                (keys, values), lsn = self.copy(places), self.applied_lsn
            self._write(keys, values, _are_new(flags), lsn)
        return int(places.shape[0]), following

    def remove(self, ids: Ids, lsn: int) -> int:
        """Evict rows by policy, as record `lsn` of the log says: out of memory and store. Nothing stays of
        them: the record is all that tells of it.

        Rows that carry `lsn` or a later one already (recovery) stay. Returns how many went. Takes the
        lock. A kill right after it is harmless: the log still has the record, and replaying it removes what
        an earlier record made again.
        """
        with self.lock, self._writing:
            self._check_whole()
            keys = mix64(ids)
            present, values = self.rows.get(keys)
            if self.arena.row_lsn is not None:
                gone = np.ones(ids.shape[0], np.bool_)
                gone[present] = get_lsn(values) < lsn
                ids, keys, present = ids[gone], keys[gone], present[gone]
            places, flags = self.arena.remove(ids)
            self.arena.give_back(places)
            self.departures += 1
            was_stored = flags & index.STORED != 0
            self.stored.hot -= int(was_stored.sum())
            self.stored.rows -= int(present.sum())
            self._barrier(lsn)
            self.rows.delete(keys[present])
            self.applied_lsn = lsn
            return int(present.sum()) + int((~was_stored).sum())

    def replace_stored(self, ingest: Callable[[], None], added: int, since_lsn: int) -> None:
        """Change rows in the store behind the arena's back, then drop the hot copies of all rows.

        `ingest` changes them in one step, to `added` rows more than before; what it writes carries
        `since_lsn`. PreconditionError, before anything changed, when a record above `since_lsn` touched
        this table. Takes the lock.
        """
        with self.lock, self._writing:
            self._check_whole()
            if self.applied_lsn > since_lsn:
                raise PreconditionError(
                    f"table {self._name!r} was pushed to or evicted from at LSN {self.applied_lsn} during a "
                    f"load that began at LSN {since_lsn}; freeze it for the load"
                )
            self._barrier(since_lsn)
            ingest()
            while len(self.arena):
                places, flags = self.arena.sweep(len(self.arena))
                assert not (flags & index.DIRTY).any(), "the caller wrote back, and nobody pushed since"
                self.stored.hot -= places.shape[0]
                self.arena.give_back(places)
            self.stored.rows += added
            self.departures += 1

    # ------------------------------------------------------------ recovery and counts
    def begin_recovery(self) -> None:
        """Keep each hot row's LSN while the log is replayed; nothing may be hot yet."""
        self.arena.begin_recovery()

    def end_recovery(self) -> None:
        """Give up the per-row LSNs that replay needed."""
        with self.lock:
            self._budget.release(self._name, self.arena.end_recovery())

    def live_rows(self) -> int:
        """Rows, hot or cold; a lower bound while `stored.exact` is False."""
        with self.lock:
            return max(0, self.stored.rows - self.stored.hot) + len(self.arena)

    def count_stored(self, chunk_rows: int, stopping: Callable[[], bool]) -> None:
        """Count the store's rows, where a directory of an earlier version does not tell it, while pulls and
        pushes go on."""
        with self.lock, self._writing:
            before = self.stored.rows
            scan = self.rows.scan(chunk_rows, with_values=False)
            first = next(scan, None)  # the iterator has its snapshot from here on
        counted = first[0].shape[0] if first else 0
        for keys, _ in scan:
            if stopping():
                return
            counted += keys.shape[0]
        with self.lock, self._writing:  # so that each row that counts as stored is in the store
            self._check_whole()
            self.stored.rows += counted - before
            self.stored.exact = True
            self.rows.count = self.stored.rows


def _are_new(flags: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which rows the store does not have, by their flags before they are written."""
    new: NDArray[np.bool_] = flags & index.STORED == 0
    return new
