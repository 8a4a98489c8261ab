# SPDX-License-Identifier: Apache-2.0
"""Bulk load and export of a table, past the arena: sorted files in, column buffers out.

A load sorts its rows by key (sorter.py), writes them to SST files in `<shard>/load` and moves all of these
into the store in one step, so a kill leaves all of the load or nothing of it; what is left in `load` goes
with the next one. Loaded rows replace those that are there, and carry the LSN that the shard has applied,
so no push is applied to them twice. An id may be in the input once.

Into a running shard: no push or eviction may reach the table from begin to end (freeze it first, or load
before training): if one does, the load is refused as a whole. The table's hot rows are dropped, clean, at
the end, so pulls see either the old rows or all of the new ones. Thread safety: one load per shard at a
time; the rest as shard.py says.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rowhouse.error import InvalidRequestError, StoreError, UnknownTableError
from rowhouse.mix import mix64, unmix64
from rowhouse.placement import PartitionMap

from ps_server import checkpoint
from ps_server.checkpoint import CheckpointState
from ps_server.column import LoadBatch, arrays_of, schema_of, to_record_batch
from ps_server.config_error import nearest
from ps_server.directory import Descriptor, held, open_store, read_descriptor
from ps_server.row import ID_BYTES, RowLayout, put_lsn
from ps_server.shard import Shard
from ps_server.sorter import ExternalSorter, Records, default_memory_bytes
from ps_server.sst_worker import WORKERS_MAX, FileWriters
from ps_server.store import Keys, RowFamily, Store

FILE_BYTES: Final = 128 << 20
"""Bytes of rows per SST file before compression: twice the store's target, half of which zstd takes."""

EXPORT_ROWS: Final = 65_536
"""Rows per exported batch."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a load did: rows loaded, how many of them replaced a row that was there, and SST files."""

    rows: int
    replaced: int
    files: int


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A table to load into or to export: what a running shard and a stopped one have in common.

    Attributes
    ----------
    name, layout
        The table's.
    rows, tombstones
        Its families.
    directory, shard, partition_map
        Of the shard.
    lsn
        Applied so far; nothing changes the table while a load lasts.
    initial_state
        Optimizer state of a row that comes without one; None where only a config would know it.
    commit
        Runs an ingest of so many rows more than before, and makes it count.
    """

    name: str
    layout: RowLayout
    rows: RowFamily
    tombstones: RowFamily
    directory: Path
    shard: int
    partition_map: PartitionMap
    lsn: int
    initial_state: NDArray[np.float32] | None
    commit: Callable[[Callable[[], None], int], None]


# ---------------------------------------------------------------- places
@contextmanager
def _place(target: Shard | Path, name: str, *, writing: bool) -> Iterator[_Place]:
    """The table of a running shard, or of a stopped one's directory."""
    if isinstance(target, Shard):
        yield _live_place(target, name, writing)
        return
    descriptor = read_descriptor(target)
    layout = descriptor.layouts.get(name)
    if layout is None:
        raise UnknownTableError(f"table {name!r} is unknown; {nearest(name, list(descriptor.layouts))}")
    if writing:
        store = open_store(target, descriptor.families(), read_only=False)
        try:
            yield _stopped_place(target, name, descriptor, store)
        finally:
            store.close()
        return
    with held(target):
        store = open_store(target, descriptor.families())
        try:
            yield _stopped_place(target, name, descriptor, store)
        finally:
            store.close()


def _live_place(shard: Shard, name: str, writing: bool) -> _Place:
    table, lsn = shard.table_at_lsn(name, writing=writing)
    tier = table.tier
    for segment in range(tier.arena.segments):
        tier.write_back_segment(segment)
    return _Place(
        name=name, layout=table.layout, rows=tier.rows, tombstones=tier.tombstones,
        directory=shard.directory, shard=shard.index, partition_map=shard.partition_map, lsn=lsn,
        initial_state=table.initial_state,
        commit=lambda ingest, added: tier.replace_stored(ingest, added, lsn),
    )  # fmt: skip


def _stopped_place(directory: Path, name: str, descriptor: Descriptor, store: Store) -> _Place:
    state, life = checkpoint.read(store), checkpoint.read_life(store)
    if not life.clean:
        raise StoreError(f"{directory}: was not stopped cleanly; start and stop its shard once to recover it")
    layout, rows = descriptor.layouts[name], store.families[f"row.{name}"]

    def commit(ingest: Callable[[], None], added: int) -> None:
        before = state.rows.get(name)
        if before is None:
            before = sum(keys.shape[0] for keys, _ in rows.scan(EXPORT_ROWS, with_values=False))
        _write_count(store, state, name, None)  # after a kill the next start counts
        ingest()
        _write_count(store, state, name, before + added)

    return _Place(
        name=name, layout=layout, rows=rows, tombstones=store.families[f"tombstone.{name}"],
        directory=directory, shard=descriptor.shard, partition_map=descriptor.partition_map(), lsn=state.lsn,
        initial_state=None if layout.state_size else np.empty(0, np.float32), commit=commit,
    )  # fmt: skip


def _write_count(store: Store, state: CheckpointState, table: str, rows: int | None) -> None:
    checkpoint.write(store, replace(state, rows={**state.rows, table: rows}), {})


# ---------------------------------------------------------------- load
def bulk_load(
    target: Shard | Path,
    table: str,
    batches: Iterable[LoadBatch],
    *,
    skip_others: bool = False,
    memory_bytes: int | None = None,
    workers: int | None = None,
    clock: Callable[[], float] = time.time,
    failpoint: Callable[[str], None] = lambda _name: None,
    progress: Callable[[int], None] = lambda _rows: None,
) -> LoadReport:
    """Load rows into a table, all or none.

    Parameters
    ----------
    target
        A running shard, or the directory of one that was stopped cleanly.
    table
        Its name.
    batches
        Tuples (ids (n,) uint64, weights (n, dim) float32[, state (n, state_size) float32]), or Arrow record
        batches with columns `id`, `weights` and, optionally, `state`. Without state a row starts with the
        optimizer's initial one, which a stopped shard does not know: it refuses where the table keeps any.
    skip_others
        Leave out ids that another shard owns instead of refusing them.
    memory_bytes
        Memory to sort in; more rows than fit go to scratch files, once. None: a quarter of what is free,
        256 MiB to 8 GiB.
    workers
        Other processes that write files when there is more than one to write; None: one per core that is
        left, WORKERS_MAX at most.
    clock
        Seconds since the epoch: loaded rows count as pushed once, now.
    failpoint
        Called with "mid SST ingest" just before and just after the files are moved in.
    progress
        Called with the number of rows written to files so far.

    Returns
    -------
    LoadReport
        How many rows.

    Raises
    ------
    InvalidRequestError
        A wrong shape or type, a value that is not finite, an id twice, an id of another shard, no table
        of that name. Nothing was changed.
    PreconditionError
        The table was pushed to, or rows of it evicted, meanwhile. Nothing was changed.
    StoreError
        The store refused something. DirectoryInUseError: a shard runs in that directory.
    """
    with _place(target, table, writing=True) as place:
        scratch = place.directory / "load"
        writers = FileWriters(min(os.cpu_count() or 1, WORKERS_MAX + 1) - 1 if workers is None else workers)
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            record_bytes = ID_BYTES + place.layout.value_bytes
            memory = default_memory_bytes() if memory_bytes is None else memory_bytes
            sorter = ExternalSorter(scratch, record_bytes, memory)
            pack = _Packer(place, int(clock()), skip_others)
            for batch in batches:
                pack.pack(batch, sorter)
                if sorter.rows * record_bytes > FILE_BYTES:
                    writers.start()
            return _write_and_ingest(place, sorter, scratch, failpoint, progress, writers)
        except OSError as error:
            raise StoreError(f"{scratch}: {error.strerror or error}") from error
        finally:
            writers.close()
            shutil.rmtree(scratch, ignore_errors=True)


class _Packer:
    """Turns batches into records of (key, value), in the sorter's own memory."""

    def __init__(self, place: _Place, now_s: int, skip_others: bool) -> None:
        self._place, self._now_s, self._skip_others = place, now_s, skip_others

    def pack(self, batch: LoadBatch, sorter: ExternalSorter) -> None:
        """Check a batch and give its rows to the sorter."""
        place, layout = self._place, self._place.layout
        ids, weights, state = arrays_of(batch, layout, place.name)
        if state is None and place.initial_state is None:
            raise InvalidRequestError(
                f"table {place.name!r} keeps {layout.state_size} values of optimizer state per row: give "
                "them as `state`, or load with a config, which knows how they begin"
            )
        keys = mix64(ids)
        owners = place.partition_map.shards_of(ids)
        if (owners != place.shard).any():
            if not self._skip_others:
                other = int(np.flatnonzero(owners != place.shard)[0])
                raise InvalidRequestError(
                    f"table {place.name!r}: id {int(ids[other])} belongs to shard {int(owners[other])}; "
                    f"this is shard {place.shard}"
                )
            own = owners == place.shard
            keys, weights, state = keys[own], weights[own], None if state is None else state[own]
        if state is None and place.initial_state is not None:
            state = np.broadcast_to(place.initial_state, (keys.shape[0], layout.state_size))
        done = 0
        while done < keys.shape[0]:
            records = sorter.room(keys.shape[0] - done)
            part = slice(done, done := done + records.shape[0])
            self._fill(records, keys[part], weights[part], None if state is None else state[part])
            sorter.commit(keys[part])

    def _fill(self, records: Records, keys: Keys, weights: NDArray[Any], state: NDArray[Any] | None) -> None:
        layout = self._place.layout
        records[:] = 0
        records[:, :ID_BYTES] = keys.astype(">u8").view(np.uint8).reshape(-1, ID_BYTES)
        # A record of the store has its parts where a record in memory has them (row.py).
        packed = np.ascontiguousarray(weights).view(np.uint8)
        records[:, layout.weights_at : layout.weights_at + packed.shape[1]] = packed
        if layout.state_size:
            self._put(records, layout.state_at, state, "<f4")
        if layout.push_time:
            self._put(records, layout.push_time_at, self._now_s, "<u4")
        if layout.push_count:
            self._put(records, layout.push_count_at, 1, "<u4")
        if layout.show_click:
            self._put(records, layout.show_click_at, 1.0, "<f4")
        put_lsn(records, self._place.lsn)

    @staticmethod
    def _put(records: Records, at: int, value: Any, kind: str) -> None:
        data = np.atleast_2d(np.ascontiguousarray(value, kind)).view(np.uint8)
        records[:, at : at + data.shape[1]] = data


def _write_and_ingest(
    place: _Place,
    sorter: ExternalSorter,
    scratch: Path,
    failpoint: Callable[[str], None],
    progress: Callable[[int], None],
    writers: FileWriters,
) -> LoadReport:
    """Write the sorted rows to files, then move these in."""
    known, empty = _KeySet(place.rows), place.rows.is_empty()
    buried = _KeySet(place.tombstones)
    width = place.layout.value_bytes
    file_rows = max(1, FILE_BYTES // (ID_BYTES + width))
    files: list[Path] = []
    replaced, written, tombstones = 0, 0, []
    last: int | None = None
    for keys, records in sorter.ranges():
        last = _check_distinct(place, keys, last)
        replaced += 0 if empty else known.among(keys).shape[0]
        tombstones.append(buried.among(keys))
        for first in range(0, keys.shape[0], file_rows):
            path = scratch / f"{len(files):06d}.sst"
            writers.write(path, records[first : first + file_rows])
            files.append(path)
            written += min(file_rows, keys.shape[0] - first)
            progress(written)
    writers.wait()

    def ingest() -> None:
        failpoint("mid SST ingest")
        place.rows.ingest(files)
        failpoint("mid SST ingest")

    if files:
        place.commit(ingest, sorter.rows - replaced)
        for keys in tombstones:  # a kill before this leaves one that is older than its row
            if keys.shape[0]:
                place.tombstones.delete(keys)
        place.tombstones.flush()
    return LoadReport(rows=sorter.rows, replaced=replaced, files=len(files))


def _check_distinct(place: _Place, keys: Keys, last: int | None) -> int:
    """InvalidRequestError when a key is there twice; returns the last one of this range."""
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if twice.shape[0] or int(keys[0]) == last:
        key = keys[twice[:1]] if twice.shape[0] else keys[:1]
        raise InvalidRequestError(
            f"table {place.name!r}: id {int(unmix64(key)[0])} is in the input more than once"
        )
    return int(keys[-1])


class _KeySet:
    """Keys of a family, asked about in ascending ranges."""

    def __init__(self, family: RowFamily) -> None:
        self._family = family

    def among(self, keys: Keys) -> Keys:
        """Those of ascending `keys` that the family has."""
        found = [np.empty(0, np.uint64)]
        end = int(keys[-1]) + 1
        for stored, _ in self._family.scan(
            EXPORT_ROWS, int(keys[0]), end if end < 1 << 64 else None, with_values=False
        ):
            places = np.minimum(np.searchsorted(keys, stored), keys.shape[0] - 1)
            found.append(stored[keys[places] == stored])
        return np.concatenate(found)


# ---------------------------------------------------------------- export
def export_schema(target: Shard | Path, table: str) -> pa.Schema:
    """Arrow schema of a table's export; raises as `export_table`."""
    if isinstance(target, Shard):
        return schema_of(target.table_at_lsn(table)[0].layout)
    descriptor = read_descriptor(target)
    if table not in descriptor.layouts:
        raise UnknownTableError(f"table {table!r} is unknown; {nearest(table, list(descriptor.layouts))}")
    return schema_of(descriptor.layouts[table])


def export_table(
    target: Shard | Path, table: str, *, batch_rows: int = EXPORT_ROWS
) -> Iterator[pa.RecordBatch]:
    """Every row of a table, in the order of the mixed keys, as they were when the export began.

    Parameters
    ----------
    target
        A running shard (its dirty rows are written back first; pushes go on), or the directory of one
        that was stopped cleanly.
    table
        Its name.
    batch_rows
        Rows per batch, at most.

    Yields
    ------
    pyarrow.RecordBatch
        Columns `id` uint64, `weights` and `state` fixed-size lists (float16 weights where the table has
        them, else float32; no `state` where the optimizer keeps none), `lsn` uint64.

    Raises
    ------
    UnknownTableError, DirectoryInUseError, StoreError
        No such table; a shard runs there; not stopped cleanly. CorruptionError: rows before the damage
        were yielded.
    """
    with _place(target, table, writing=False) as place:
        for keys, values in place.rows.scan(batch_rows):
            yield to_record_batch(keys, values, place.layout)
