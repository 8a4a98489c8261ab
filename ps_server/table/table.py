# SPDX-License-Identifier: Apache-2.0
"""One table of a shard: pulls, pushes, the optimizer and admission over the rows of tier.py.

It leaves ordering, the push log and exactly-once to shard.py.

Invariants: 1. a pull changes no row and creates none; 2. a push either applies whole or leaves its table
to be poisoned by the caller; 3. equal pushes at equal LSNs give equal bits, whatever was hot.
Thread safety: `pull`, `prefetch` and `stats` from any thread; `push` from one thread at a time (the
shard's push lock).
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.control import FREEZE_MODES
from rowhouse.error import LimitExceededError
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.kernel import index, record
from ps_server.kernel.step import STEP_HOT
from ps_server.table.admission import AdmissionFilter
from ps_server.table.arena import Ids, Places
from ps_server.table.config import TableConfig
from ps_server.table.edit import RowEdit
from ps_server.table.push import TablePush
from ps_server.table.score import ShowClick
from ps_server.table.tier import Tier, TierParts

PULL_BYTES: Final = 4 << 20
PULL_ID_BYTES: Final = 32
"""A pull is answered in parts of so many stored bytes, and of so many more for each id: rows that are cold
are in memory about five times while they are fetched. A usual batch is one part."""

DEFAULT_ROW_ID: Final = np.zeros(1, np.uint64)
"""The shared default row of ids that admission keeps out is the initial row of id 0."""


@dataclass(slots=True)
class TableCounters:
    """Events since the shard opened."""

    pulled_ids: int = 0
    hot_hits: int = 0
    pushed_ids: int = 0
    evicted_rows: int = 0
    refused_ids: int = 0


class Table:
    """One table of a shard.

    Parameters
    ----------
    config
        The table's.
    parts
        What its tier is made of.
    """

    def __init__(self, config: TableConfig, parts: TierParts) -> None:
        self.config, self.layout, self.name = config, parts.layout, config.name
        self.tier = Tier(parts)
        self.admission = AdmissionFilter(config.admission, config.seed) if config.admission else None
        self.counters = TableCounters()
        self.frozen: str = config.freeze
        self.initial_state = config.optimizer.initial_state(config.dim)

    # ------------------------------------------------------------ pull
    def pull(self, ids: Ids, *, promote: bool, code: int = dtype.FLOAT32) -> NDArray[Any]:
        """Weights of each id in the element type asked for.

        Parameters
        ----------
        ids
            (n,) uint64, duplicates allowed.
        promote
            Whether rows found in the store become hot.
        code
            Wire code of the element type (rowhouse.dtype).

        Returns
        -------
        ndarray
            New (n, dim) of dtype.STORAGE[code]; an unknown id has its initial value (or, where admission is
            on, the shared default row). InvalidRequestError for an element too large for that type.
        """
        out = np.empty((ids.shape[0], self.layout.dim), dtype.STORAGE[code])
        part = max(1, PULL_BYTES // (self.layout.value_bytes + PULL_ID_BYTES))
        for start in range(0, ids.shape[0], part):
            self._pull_part(ids[start : start + part], out[start : start + part], promote, code)
        return out

    def _pull_part(self, ids: Ids, out: NDArray[Any], promote: bool, code: int) -> None:
        """Some of the ids of a pull, into `out`."""
        as_stored = code == self.layout.dtype  # then rows need not be widened and narrowed again
        as_wanted = as_stored or code == dtype.FLOAT32
        rows = out if as_wanted else np.empty(out.shape, np.float32)
        with self.tier.lock:
            absent = self.tier.arena.gather(ids, index.REFERENCED if promote else 0, rows)
            departures, look = self.tier.departures, self.tier.stored.cold_possible
        self.counters.pulled_ids += ids.shape[0]
        self.counters.hot_hits += ids.shape[0] - absent.shape[0]
        if absent.shape[0]:
            wide = np.empty((absent.shape[0], self.layout.dim), np.float32)
            self._pull_cold(ids[absent], wide, look, departures if promote else None)
            rows[absent] = dtype.narrow(wide, code) if as_stored else wide
        if not as_wanted:
            out[:] = dtype.narrow(rows, code, f"table {self.name!r}: the rows")

    def _pull_cold(self, ids: Ids, out: NDArray[np.float32], look: bool, departures: int | None) -> None:
        """Rows of ids that are not hot into `out`, without the lock: from the store where `look`, else at
        their initial values. Found ones become hot unless `departures` is None."""
        new = np.ones(ids.shape[0], np.bool_)
        if look:
            present, values = self.tier.fetch(ids)
            out[present] = self.weights_of(values)
            if departures is not None and values.shape[0]:
                self.tier.promote(ids[present], values, departures)
            new = ~present
        if new.any():
            out[new] = self.initial_rows(ids[new], admitted=self.admission is None)

    def weights_of(self, values: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Weights of stored values, widened; `values` is (n, value_bytes) uint8, the answer (n, dim)."""
        storage = dtype.STORAGE[self.layout.dtype]
        width = self.layout.dim * storage.itemsize
        return dtype.widen(np.ascontiguousarray(values[:, :width]).view(storage), self.layout.dtype)

    def initial_rows(self, ids: Ids, *, admitted: bool = True) -> NDArray[np.float32]:
        """Initial weights of each id as a pull gives them (rounded to the table's dtype, widened), or the
        shared default row; (n, dim) float32."""
        wanted = ids if admitted else DEFAULT_ROW_ID
        rows = self.config.initializer.fill(self.config.seed, wanted, self.layout.dim)
        if self.layout.dtype != dtype.FLOAT32:
            rows = dtype.widen(dtype.narrow(rows, self.layout.dtype), self.layout.dtype)
        return rows if admitted else np.broadcast_to(rows, (ids.shape[0], self.layout.dim))

    def prefetch(self, ids: Ids) -> int:
        """Make the stored ones of `ids` ((n,) uint64) hot ahead of a pull; returns how many were read."""
        with self.tier.lock:
            places, _ = self.tier.arena.find(ids)
            departures, look = self.tier.departures, self.tier.stored.cold_possible
        wanted = ids[places < 0] if look else ids[:0]
        present, values = self.tier.fetch(wanted)
        self.tier.promote(wanted[present], values, departures, index.REFERENCED)
        return int(values.shape[0])

    # ------------------------------------------------------------ push
    def check_push(self, distinct_ids: int) -> None:
        """LimitExceededError when a push has more distinct ids than can be hot at once."""
        if distinct_ids > self.tier.rows_min:
            raise LimitExceededError(
                f"table {self.name!r}: a push of {distinct_ids} distinct ids; its share of memory_budget "
                f"holds {self.tier.rows_min} rows: raise the budget or push fewer ids at once"
            )

    def push(self, part: TablePush, lsn: int, time_s: int) -> None:
        """Apply one push's gradients; cannot fail but by the store.

        Parameters
        ----------
        part
            Distinct ids, their summed gradients, and what else the push says.
        lsn
            The push's log sequence number; seeds stochastic rounding.
        time_s
            The shard's clock when the push was logged, seconds.
        """
        ids = part.ids
        part = replace(part, gradients=self.config.optimizer.clipped(part.gradients))
        with self.tier.changing():
            admitted = self.admission.admit(ids, lsn) if self.admission else None
            row_lsn = self.tier.arena.row_lsn
            if row_lsn is None:
                places, missing = self._step(part, lsn, time_s)
            else:
                places, missing = self.tier.arena.find(ids)  # recovery: a row may hold this push already
            if missing or row_lsn is not None:
                left = places < 0 if row_lsn is None else np.ones(ids.shape[0], np.bool_)
                pinned = missing > 0 and self._bring_in(ids, places, admitted)
                left &= places >= 0
                if row_lsn is not None:
                    left &= row_lsn[places] < lsn  # -1 wraps to the last one and is masked anyway
                self._step(part if left.all() else part.only(left), lsn, time_s)
                if pinned:
                    self.tier.arena.clear_flags(ids, index.PINNED)
            self.tier.applied_lsn = lsn
        self.counters.pushed_ids += ids.shape[0]

    def _bring_in(self, ids: Ids, places: Places, admitted: NDArray[np.bool_] | None) -> bool:
        """Make hot the rows that are not, from the store or new. Fills `places`; those that admission
        refuses stay -1. Returns whether the rows of this push were pinned. The caller holds the lock."""
        absent = np.flatnonzero(places < 0)
        present, values = self.tier.fetch_cold(ids[absent])
        create = ~present
        if admitted is not None:
            self.counters.refused_ids += int((create & ~admitted[absent]).sum())
            create &= admitted[absent]
        loads, creates = absent[present], absent[create]
        free = self.tier.arena.free_places(loads.shape[0] + creates.shape[0])
        pinned = bool(free.shape[0] < loads.shape[0] + creates.shape[0])
        if pinned:
            self.tier.arena.find(ids, index.PINNED)
            more = self.tier.make_room(loads.shape[0] + creates.shape[0] - free.shape[0])
            free = np.concatenate([free, more])
            assert free.shape[0] == loads.shape[0] + creates.shape[0], "check_push bounds a push's rows"
        places[loads] = free[: loads.shape[0]]
        places[creates] = free[loads.shape[0] :]
        self.tier.load(ids[loads], values, places[loads], index.DIRTY | index.REFERENCED)
        self.tier.create(ids[creates], self._new_values(ids[creates]), places[creates])
        return pinned

    def _new_values(self, ids: Ids) -> NDArray[np.uint8]:
        """Stored parts of rows at their initial values; (n, stored_bytes) uint8."""
        values = np.zeros((ids.shape[0], self.layout.stored_bytes), np.uint8)
        rows = self.config.initializer.fill(self.config.seed, ids, self.layout.dim)
        packed = np.ascontiguousarray(dtype.narrow(rows, self.layout.dtype)).view(np.uint8)
        values[:, : packed.shape[1]] = packed
        state = self.initial_state.view(np.uint8)
        at = self.layout.state_at - self.layout.weights_at
        values[:, at : at + state.shape[0]] = state
        return values

    def _step(self, part: TablePush, lsn: int, time_s: int) -> tuple[Places, int]:
        """Run the optimizer on the hot rows of a push whose gradients are clipped. Places of all its rows, -1
        where they are not hot, and how many are not. The caller holds the lock."""
        optimizer = self.config.optimizer
        places, missing = self.tier.arena.step(
            STEP_HOT[optimizer.kind], part.ids, part.gradients, optimizer.hyper(part.learning_rate), lsn
        )
        here = places >= 0 if missing else slice(None)
        self._note_push(None if part.events is None else part.events[here], places[here], time_s)
        return places, missing

    def _note_push(
        self, events: NDArray[np.float32] | None, places: Places, time_s: int, pushes: int = 1
    ) -> None:
        """Bring the rows' metadata up to date, as far as the table's policies need it."""
        layout, words = self.layout, self.tier.arena.records32
        stride, time_word = layout.stride // 4, layout.push_time_at // 4
        score = next((p for p in self.config.eviction if isinstance(p, ShowClick)), None)
        if score is not None and events is not None:
            show_word = layout.show_click_at // 4
            rate, period = score.decay_rate, score.decay_period_s
            record.add_events(words, stride, time_word, show_word, places, events, rate, period, time_s)
        if layout.push_time:
            record.touch(words, stride, time_word, places, time_s)
        if layout.push_count and pushes:
            record.count_up(words, stride, layout.push_count_at // 4, places)

    # ------------------------------------------------------------ rows by hand
    def change(self, part: TablePush | RowEdit, lsn: int, time_s: int) -> None:
        """Apply what record `lsn` does to this table: `push` or `edit`."""
        if isinstance(part, RowEdit):
            self.edit(part, lsn, time_s)
        else:
            self.push(part, lsn, time_s)

    def edit(self, edit: RowEdit, lsn: int, time_s: int) -> None:
        """Assign or remove rows; cannot fail but by the store. Admission has no say.

        Parameters
        ----------
        edit
            Distinct ids, and what becomes of their rows.
        lsn
            The record's log sequence number. Rows that hold it already (recovery) stay as they are.
        time_s
            The shard's clock when the record was logged, seconds.
        """
        if edit.weights is None:
            self.tier.remove(edit.ids, lsn)
            return
        with self.tier.changing():
            places, missing = self.tier.arena.find(edit.ids, index.REFERENCED | index.DIRTY)
            pinned = missing > 0 and self._bring_in(edit.ids, places, None)
            row_lsn = self.tier.arena.row_lsn
            if row_lsn is None:
                self._assign(edit, places, time_s)
            else:
                left = row_lsn[places] < lsn
                self._assign(edit.only(left), places[left], time_s)
                row_lsn[places[left]] = lsn
            if pinned:
                self.tier.arena.clear_flags(edit.ids, index.PINNED)
            self.tier.applied_lsn = lsn

    def _assign(self, edit: RowEdit, places: Places, time_s: int) -> None:
        """Write an edit's rows into the records at `places`; the caller holds the lock."""
        layout, count = self.layout, places.shape[0]
        self._note_push(np.zeros((count, 2), np.float32), places, time_s, pushes=0)
        records = self.tier.arena.records8.reshape(-1, layout.stride)
        columns = [(layout.weights_at, edit.weights), (layout.state_at, edit.state)]
        columns += [(layout.show_click_at + 4 * column, values) for column, values in edit.events]
        for at, values in columns:
            if values is not None and values.size:
                data = np.ascontiguousarray(values).view(np.uint8).reshape(count, -1)
                records[places, at : at + data.shape[1]] = data

    # ------------------------------------------------------------ stats
    def stats(self) -> pb.TableStats:
        """Live counters of the table."""
        tier, counters = self.tier, self.counters
        exact = tier.stored.exact  # before the rows: a count that becomes exact between is not told as one
        rows = tier.live_rows()
        with tier.lock:
            arena = tier.arena
            return pb.TableStats(
                name=self.name, rows=rows, rows_exact=exact, hot_rows=len(arena),
                dirty_rows=arena.count(index.DIRTY), record_bytes=arena.record_bytes,
                index_bytes=arena.index_bytes, pulled_ids=counters.pulled_ids, hot_hits=counters.hot_hits,
                pushed_ids=counters.pushed_ids, spilled_rows=tier.spilled_rows,
                evicted_rows=counters.evicted_rows, refused_ids=counters.refused_ids,
                disk_bytes=tier.rows.disk_bytes(), frozen=self.frozen != "off",
                freeze=FREEZE_MODES[self.frozen],
            )  # fmt: skip
