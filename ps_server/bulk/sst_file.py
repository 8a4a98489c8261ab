# SPDX-License-Identifier: Apache-2.0
"""Sorted files made from the extents of a bulk load (spool.py), in whichever process does it.

Imports no more than RocksDB and NumPy, because the processes beside a load (sst_worker.py) begin with it.
Thread safety: none; each thread has a FileMaker of its own.
"""

import ctypes
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ps_server.disk.store import KEY_BYTES, Keys, SortedFile

KEY_END: Final = 1 << 64
"""The first number that is no key."""

BYTES_PER_KEY: Final = 24
"""Key, its place in the order, and the sorted key, beside the record."""

PIECE_ROWS: Final = 4096
"""Rows that are put in order at a time; they stay in the processor's cache until RocksDB has them."""

_PUNCH_HOLE_KEEP_SIZE: Final = 0x03
_FALLOCATE: Final = ctypes.CDLL(None).fallocate
_FALLOCATE.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

Extent: TypeAlias = tuple[int, int, int]
"""(0 in memory or 1 on disk, byte at which it begins, rows)."""

Records = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows that are sorted at once.

    Attributes
    ----------
    extents
        Where they are, among others unless `whole`.
    rows
        How many, about.
    first, end
        Their keys: from `first` to below `end`.
    whole
        Whether the extents hold no other rows.
    """

    extents: list[Extent]
    rows: int
    first: int
    end: int
    whole: bool


@dataclass(frozen=True, kw_only=True)
class Job:
    """Files to be written.

    Attributes
    ----------
    stem
        Their path, without the number of a file and ".sst".
    record_bytes
        Of a record: a big-endian key and its value.
    file_rows
        Rows per file, at most.
    disk
        Path of the scratch file.
    wants_keys
        Whether the keys are asked for.
    parts
        By ascending key.
    """

    stem: str
    record_bytes: int
    file_rows: int
    disk: str
    wants_keys: bool
    parts: list[Part]

    def to_document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @staticmethod
    def from_document(document: dict[str, Any]) -> "Job":
        """What `to_document` gave."""
        return Job(**{**document, "parts": [Part(**part) for part in document["parts"]]})


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of a job.

    Attributes
    ----------
    files
        Written, by ascending key.
    rows
        In them.
    twice
        A key that is there twice, with which the job ended; or None.
    keys
        All of them, ascending, if they were asked for; (rows,) uint64.
    """

    files: list[Path]
    rows: int
    twice: int | None
    keys: Keys


class FileMaker:
    """Does jobs, in memory that it keeps between them.

    Parameters
    ----------
    memory_fd
        Descriptor of the memory that extents are in.
    """

    def __init__(self, memory_fd: int) -> None:
        self._memory_fd = memory_fd
        self._buffer = np.empty(0, np.uint8)

    def make(self, job: Job) -> Made:
        """Write a job's files; OSError and StoreError when it cannot be done."""
        series = _Series(job)
        kept = [np.empty(0, np.uint64)]
        for part in job.parts:
            records = self._read(part, job)
            keys = _keys_of(records)
            order = np.argsort(keys)
            keys = keys[order]
            twice = np.flatnonzero(keys[1:] == keys[:-1])
            if twice.shape[0]:
                return Made(files=series.files, rows=series.rows, twice=int(keys[twice[0]]), keys=kept[0])
            if job.wants_keys:
                kept.append(keys)
            series.append(records, order)
        series.finish()
        return Made(files=series.files, rows=series.rows, twice=None, keys=np.concatenate(kept))

    def _read(self, part: Part, job: Job) -> Records:
        """The records of a part, in no order, in this object's buffer. Where no other part reads them, the
        memory and the disk that they were in are given back."""
        width, at = job.record_bytes, 0
        sources = [self._memory_fd]
        if any(place for place, _, _ in part.extents):
            sources.append(os.open(job.disk, os.O_RDWR | os.O_CLOEXEC))
        try:
            for place, begin, rows in part.extents:
                self._make_room(at, max(at + rows * width, part.rows * width))
                records = self._buffer[at : at + rows * width].reshape(rows, width)
                read_at(sources[place], records.reshape(-1).data, begin)
                at += rows * width if part.whole else _keep(records, part) * width
                if part.whole:
                    _give_back(sources[place], begin, rows * width)
        finally:
            for source in sources[1:]:
                os.close(source)
        return self._buffer[:at].reshape(at // width, width)

    def _make_room(self, used: int, wanted: int) -> None:
        if wanted > self._buffer.shape[0]:
            buffer = np.empty(wanted + wanted // 4, np.uint8)
            buffer[:used] = self._buffer[:used]
            self._buffer = buffer


class _Series:
    """The files of a job, begun one after another as they fill."""

    def __init__(self, job: Job) -> None:
        self.files: list[Path] = []
        self.rows = 0
        self._job, self._room = job, 0
        self._file: SortedFile | None = None

    def append(self, records: Records, order: NDArray[np.intp]) -> None:
        """Add records in this order, copied whole: five times as fast as by bytes."""
        whole = records.view(f"V{records.shape[1]}").reshape(-1)
        done = 0
        while done < order.shape[0]:
            if self._file is None:
                self.files.append(Path(f"{self._job.stem}-{len(self.files):04d}.sst"))
                self._file = SortedFile(self.files[-1])
                self._room = self._job.file_rows
            chosen = order[done : done + min(PIECE_ROWS, self._room)]
            self._file.append(whole.take(chosen).view(np.uint8).reshape(-1, records.shape[1]))
            done += chosen.shape[0]
            self._room -= chosen.shape[0]
            if not self._room:
                self.finish()
        self.rows += done

    def finish(self) -> None:
        """Complete the last file."""
        if self._file is not None:
            self._file.finish()
            self._file = None


def _keys_of(records: Records) -> Keys:
    return np.ascontiguousarray(records[:, :KEY_BYTES]).view(">u8").reshape(-1).astype(np.uint64)


def _keep(records: Records, part: Part) -> int:
    """Move the records that are of the part to the front; returns how many they are."""
    keys = _keys_of(records)
    inside = keys >= np.uint64(part.first)
    if part.end < KEY_END:
        inside &= keys < np.uint64(part.end)
    rows = int(inside.sum())
    records[:rows] = records[inside]
    return rows


def _give_back(fd: int, begin: int, length: int) -> None:
    """Have the file system free these bytes of a file; where it cannot, they stay until the file goes."""
    _FALLOCATE(fd, _PUNCH_HOLE_KEEP_SIZE, begin, length)


def read_at(fd: int, data: memoryview, at: int) -> None:
    """Fill `data` from byte `at` of a file; OSError where it ends before that."""
    done = 0
    while done < len(data):
        count = os.preadv(fd, [data[done:]], at + done)
        if not count:
            raise OSError(f"a scratch file ends at byte {at + done}; {len(data) - done} more were expected")
        done += count


def write_at(fd: int, data: memoryview, at: int) -> None:
    """Write all of `data` from byte `at` of a file."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], at + done)
