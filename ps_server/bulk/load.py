# SPDX-License-Identifier: Apache-2.0
"""Bulk load of a table, past the arena, through sorted files.

A load puts its rows into buckets by key as they come (spool.py), has these sorted and written to SST files
in `<shard>/load` by several processes (sst_worker.py), and moves all of the files into the store in one step,
so a kill leaves all of the load or nothing of it; what is left in `load` goes with the next one. Loaded rows
replace those that are there, and carry the LSN that the shard has applied, so no push is applied to them
twice. An id may be in the input once.

Into a running shard: no push or eviction may reach the table from begin to end (freeze it first, or load
before training): if one does, the load is refused as a whole. The table's hot rows are dropped, clean, at
the end, so pulls see either the old rows or all of the new ones. Thread safety: one load per shard at a
time; the rest as shard.py says.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.error import InvalidRequestError, StoreError
from rowhouse.mix import mix64, unmix64

from ps_server.bulk.column import RESETTABLE, Columns, LoadBatch, columns_of
from ps_server.bulk.open_table import SCAN_ROWS, OpenTable, open_table
from ps_server.bulk.spool import READ_SHARE, Spool, default_memory_bytes
from ps_server.bulk.sst_file import BYTES_PER_KEY, Job, Part, Records
from ps_server.bulk.sst_worker import WORKERS_MAX, FileWriters
from ps_server.disk.row import ID_BYTES, RowLayout, put_lsn, row_time_s
from ps_server.disk.store import Keys, RowFamily
from ps_server.life.recovery import LOAD_FOLDER
from ps_server.shard.shard import Shard

FILE_BYTES: Final = 64 << 20
"""Bytes of rows per SST file before compression, about: the store's target. Twice as many at most."""

FILE_BYTES_MIN: Final = 8 << 20
START_BYTES: Final = 16 << 20
"""Less in each process is written by one alone, and where there may be no more rows than this, no other is
started: it takes 0.2 s to begin, in which a hundred thousand rows are written."""

LOOK_UP_ROWS: Final = 4
PIECE_KEYS: Final = 16_384
"""A look-up of a key costs about as much as reading this many rows in their order; keys per multi-get."""

NAMED_MAX: Final = 8
"""Skipped ids that the log names."""

_logger = getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a load did.

    Attributes
    ----------
    rows, replaced, files
        Rows loaded, how many of them replaced a row that was there, and SST files.
    reset
        Columns of the table that began anew, as asked.
    left_out
        Columns of the input that the table has no use for.
    not_finite
        Rows that were left out because they are not finite.
    """

    rows: int
    replaced: int
    files: int
    reset: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    not_finite: int = 0


def bulk_load(
    target: Shard | Path,
    table: str,
    batches: Iterable[LoadBatch],
    *,
    skip_others: bool = False,
    skip_not_finite: bool = False,
    reset: Collection[str] = (),
    memory_bytes: int | None = None,
    workers: int | None = None,
    clock: Callable[[], float] = time.time,
    failpoint: Callable[[str], None] = lambda _name: None,
    progress: Callable[[int], None] = lambda _rows: None,
    more_follow: bool = False,
    compacting: Callable[[], None] = lambda: None,
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
        batches with the columns of an export (column.py).
    skip_others
        Leave out ids that another shard owns instead of refusing them.
    skip_not_finite
        Leave out rows with a NaN or an infinity in weights or state instead of refusing them; they are
        counted, and the first ones named in the log.
    reset
        Columns of RESETTABLE that begin anew, whether the input has them or not: `state` as the optimizer's
        first (which only a running shard knows), the others as a row that was pushed once, now. What the
        table keeps must be in the input or be named here. Names that the table does not keep do nothing.
    memory_bytes
        Memory to sort in; more rows than fit go to scratch files, once. None: a quarter of what is free,
        256 MiB to 8 GiB.
    workers
        Other processes that write files when there is more than one to write; None: one per core that is
        left, WORKERS_MAX at most.
    clock
        Seconds since the epoch, for what begins anew.
    failpoint
        Called with "mid SST ingest" just before and just after the files are moved in.
    progress
        Called with the number of rows written to files so far.
    more_follow
        Further parts of the table are loaded next, so its files need not be made one sorted run yet: that
        rewrites the whole table, which is done at the end of each load into a stopped shard that had rows.
        (A running shard does it in the background.)
    compacting
        Called when that begins.

    Returns
    -------
    LoadReport
        How many rows.

    Raises
    ------
    InvalidRequestError
        A wrong shape or type, a value that is not finite, an id twice, an id of another shard, no table
        of that name, a column that is missing and not named in `reset`. Nothing was changed.
    PreconditionError
        The table was pushed to, or rows of it evicted, meanwhile. Nothing was changed.
    StoreError
        The store refused something. DirectoryInUseError: a shard runs in that directory.
    """
    _check_reset(reset)
    with open_table(target, table, writing=True) as opened:
        scratch = opened.directory / LOAD_FOLDER
        shutil.rmtree(scratch, ignore_errors=True)
        memory = default_memory_bytes() if memory_bytes is None else memory_bytes
        spool: Spool | None = None
        writers: FileWriters | None = None
        try:
            scratch.mkdir(exist_ok=True)
            # of its own: a worker of a load that was killed may be at its last file still
            folder = Path(tempfile.mkdtemp(dir=scratch))
            spool = _spool(opened, folder, memory)
            count = min(os.cpu_count() or 1, WORKERS_MAX + 1) - 1 if workers is None else workers
            writers = FileWriters(count, spool.memory_fd)
            left_out, skipped = set[str](), 0
            first = _first_metadata(opened.layout, int(row_time_s(clock())))
            for batch in batches:
                columns = columns_of(
                    batch, opened.layout, opened.name, state_of=opened.state_of, reset=reset,
                    skip_not_finite=skip_not_finite,
                )  # fmt: skip
                left_out |= columns.left_out
                skipped += _note_skipped(opened, columns.skipped, skipped)
                _pack(opened, columns, spool, first, skip_others)
                if spool.rows * spool.record_bytes > START_BYTES:
                    writers.start()
            spool.finish()
            in_parts = not opened.rows.is_empty()  # then there is what loaded rows may replace
            jobs = _jobs(spool, folder, memory, writers.processes, in_parts)
            report = _write_and_ingest(opened, jobs, writers, failpoint, progress)
            if in_parts and isinstance(target, Path) and not more_follow:
                compacting()
                opened.rows.compact()
            begun = _begun(opened.layout, reset)
            return replace(report, reset=begun, left_out=tuple(sorted(left_out)), not_finite=skipped)
        except OSError as error:
            raise StoreError(f"{scratch}: {error.strerror or error}") from error
        finally:
            if writers is not None:
                writers.close()
            if spool is not None:
                spool.close()
            shutil.rmtree(scratch, ignore_errors=True)


def _check_reset(reset: Collection[str]) -> None:
    wrong = sorted({*reset} - {*RESETTABLE})
    if wrong:
        raise InvalidRequestError(
            f"reset: {wrong[0]!r} does not begin anew; choose of {', '.join(RESETTABLE)}"
        )


def _begun(layout: RowLayout, reset: Collection[str]) -> tuple[str, ...]:
    """Columns of the table that begin anew."""
    kept = {*layout.metadata} | ({"state"} if layout.state_size else set())
    return tuple(name for name in RESETTABLE if name in kept and name in reset)


def _spool(opened: OpenTable, folder: Path, memory_bytes: int) -> Spool:
    """An empty spool for the table's rows, with what is equal in all of them in their template."""
    layout = opened.layout
    template = np.zeros((1, ID_BYTES + layout.value_bytes), np.uint8)
    put_lsn(template, opened.lsn)
    return Spool(
        folder / "rows", template[0], weights_at=layout.weights_at, state_at=layout.state_at,
        owned=opened.partition_map.shards == opened.shard, memory_bytes=memory_bytes,
    )  # fmt: skip


def _first_metadata(layout: RowLayout, now_s: int) -> dict[str, Records]:
    """(1, 4) uint8 of each word of a row that was pushed, shown and not clicked once, now."""
    first = {"push_time": now_s, "push_count": 1, "shows": 1.0, "clicks": 0.0}
    return {n: np.array([[first[n]]], kind).view(np.uint8) for n, (_, kind) in layout.metadata.items()}


def _note_skipped(opened: OpenTable, ids: NDArray[np.uint64], before: int) -> int:
    """How many of the skipped rows are this shard's; the first ones of a load are named in the log."""
    own = ids[opened.partition_map.shards_of(ids) == opened.shard]
    if own.shape[0] and not before:
        _logger.warning(
            "table %r: rows that are not finite are left out; the first ids of them are %s",
            opened.name, own[:NAMED_MAX].tolist(),
        )  # fmt: skip
    return int(own.shape[0])


def _pack(
    opened: OpenTable, columns: Columns, spool: Spool, first: dict[str, Records], skip_others: bool
) -> None:
    """Give the rows of a batch to the spool; `first` is the metadata of those that bring none."""
    ids, weights, tail = columns.ids, columns.weights, _tail_of(columns, opened, first)
    keys = mix64(ids)
    owners = opened.partition_map.shards_of(ids)
    if (owners != opened.shard).any():
        if not skip_others:
            other = int(np.flatnonzero(owners != opened.shard)[0])
            raise InvalidRequestError(
                f"table {opened.name!r}: id {int(ids[other])} belongs to shard {int(owners[other])}; "
                f"this is shard {opened.shard}"
            )
        own = owners == opened.shard
        tail = tail[own] if tail.shape[0] == ids.shape[0] else tail
        keys, weights = keys[own], weights[own]
    spool.add(keys, _bytes_of(weights), tail)


def _tail_of(columns: Columns, opened: OpenTable, first: dict[str, Records]) -> Records:
    """State and metadata, which follow one another in a record, as bytes of each row; (1, bytes) where all
    rows have the same."""
    parts = []
    if columns.state is not None:
        parts.append(_bytes_of(columns.state.astype("<f4", copy=False)))
    elif opened.initial_state is None:
        raise InvalidRequestError(
            f"table {opened.name!r}: only the config knows the optimizer's first state: load with --config"
        )
    else:
        parts.append(_bytes_of(opened.initial_state.reshape(1, -1)))
    for name, (_, kind) in opened.layout.metadata.items():
        given = columns.metadata.get(name)
        parts.append(first[name] if given is None else _bytes_of(given.astype(kind).reshape(-1, 1)))
    shared = columns.state is None and not columns.metadata
    rows = 1 if shared else columns.ids.shape[0]
    return np.hstack([np.broadcast_to(part, (rows, part.shape[1])) for part in parts])


def _bytes_of(rows: NDArray[Any]) -> Records:
    data = np.ascontiguousarray(rows)
    return data.view(np.uint8).reshape(data.shape[0], data.shape[1] * data.itemsize)


def _jobs(spool: Spool, folder: Path, memory_bytes: int, processes: int, wants_keys: bool) -> list[Job]:
    """The files to be written, as many jobs of about equal size as all processes need to end together."""
    record_bytes = spool.record_bytes
    rows_max = int(memory_bytes * READ_SHARE / processes / (record_bytes + BYTES_PER_KEY))
    wanted = max(1, -(-spool.rows * record_bytes // FILE_BYTES))
    if spool.rows * record_bytes > processes * FILE_BYTES_MIN:
        wanted = -(-wanted // processes) * processes
    jobs: list[list[Part]] = []
    rows = 0
    for part in spool.parts(max(1, rows_max)):
        if rows * wanted >= len(jobs) * spool.rows:
            jobs.append([])
        jobs[-1].append(part)
        rows += part.rows
    file_rows = max(1, 2 * FILE_BYTES // record_bytes)
    return [
        Job(
            stem=str(folder / f"{number:06d}"), record_bytes=record_bytes, file_rows=file_rows,
            disk=str(spool.path), wants_keys=wants_keys, parts=parts,
        )
        for number, parts in enumerate(jobs)
    ]  # fmt: skip


def _write_and_ingest(
    opened: OpenTable,
    jobs: list[Job],
    writers: FileWriters,
    failpoint: Callable[[str], None],
    progress: Callable[[int], None],
) -> LoadReport:
    """Write the rows to files, then move these in."""
    known = _KeySet(opened.rows, sum(part.rows for job in jobs for part in job.parts))
    files: list[Path] = []
    replaced = written = 0
    for made in writers.run(jobs):
        if made.twice is not None:
            twice = int(unmix64(np.array([made.twice], np.uint64))[0])
            raise InvalidRequestError(f"table {opened.name!r}: id {twice} is in the input more than once")
        if made.keys.shape[0]:
            replaced += known.among(made.keys)
        files += made.files
        written += made.rows
        progress(written)
    files.sort()

    def ingest() -> None:
        failpoint("mid SST ingest")
        opened.rows.ingest(files, written - replaced)
        failpoint("mid SST ingest")

    if files:
        opened.commit(ingest, written - replaced)
    return LoadReport(rows=written, replaced=replaced, files=len(files))


class _KeySet:
    """Keys of a family, asked about in ascending ranges.

    The family's rows are read, or each key is looked up where these are so many that this is cheaper: so the
    cost of a part of a large load does not grow with the parts before it.

    Parameters
    ----------
    family
        What is asked.
    asked_rows
        Keys that will be asked about, in all.
    """

    def __init__(self, family: RowFamily, asked_rows: int) -> None:
        self._family = family
        self._looks_up = (family.count or 0) > LOOK_UP_ROWS * asked_rows

    def among(self, keys: Keys) -> int:
        """How many of ascending `keys` the family has."""
        if self._looks_up:
            pieces = range(0, keys.shape[0], PIECE_KEYS)
            return sum(int(self._family.get(keys[i : i + PIECE_KEYS])[0].sum()) for i in pieces)
        found, end = 0, int(keys[-1]) + 1
        for stored, _ in self._family.scan(
            SCAN_ROWS, int(keys[0]), end if end < 1 << 64 else None, with_values=False
        ):
            positions = np.minimum(np.searchsorted(keys, stored), keys.shape[0] - 1)
            found += int((keys[positions] == stored).sum())
        return found
