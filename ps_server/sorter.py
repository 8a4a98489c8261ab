# SPDX-License-Identifier: Apache-2.0
"""Sorting more rows than fit in memory by their mixed key, for bulk loads.

Full buffers are sorted and written to a scratch file each (a run); then ranges of partitions that fit in
memory are read from all runs and sorted again. mix64 spreads ids evenly, so that partitions are of equal
size, and a range needs no merging. (Knuth, The Art of Computer Programming, vol. 3, section 5.4, has the
general case.)

Invariants: 1. `ranges` yields every record once, keys ascending over all it yields; 2. about
`memory_bytes` are used at a time, and what one yielded range takes. Thread safety: none; one user at a time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.error import StoreError
from rowhouse.limit import PARTITIONS
from rowhouse.placement import PARTITION_SHIFT

from ps_server.memory import available_bytes
from ps_server.store import KEY_BYTES, Keys

RANGE_ROWS_MAX: Final = 1 << 20
"""Rows yielded at a time, at most: one file's worth, and small beside the memory it is taken from."""

BYTES_PER_KEY: Final = 24
"""Key, its place in the order, and the sort's own copy, beside the record."""

MEMORY_SHARE: Final = 1 / 4
MEMORY_MIN_BYTES, MEMORY_MAX_BYTES = 256 << 20, 8 << 30
"""Memory to sort in, of what is available: what does not fit makes its way through scratch files, at the
disk's speed. 8 GiB are 80 million rows of 78 bytes."""

Records = NDArray[np.uint8]


def default_memory_bytes() -> int:
    """A quarter of the memory that is available (Linux), within bounds."""
    return min(max(int(available_bytes() * MEMORY_SHARE), MEMORY_MIN_BYTES), MEMORY_MAX_BYTES)


class ExternalSorter:
    """Collects records, then yields them by key.

    Parameters
    ----------
    directory
        Folder for runs; it must exist and is left with files in it.
    record_bytes
        Bytes of a record; its first KEY_BYTES are the key, big-endian.
    memory_bytes
        Memory to use, about.
    """

    def __init__(self, directory: Path, record_bytes: int, memory_bytes: int) -> None:
        self.rows = 0
        self._directory, self._record_bytes = directory, record_bytes
        self._rows_max = max(1, memory_bytes // (record_bytes + BYTES_PER_KEY))
        # Allocated once: fresh memory costs as much again as the copy into it. (Huge pages: no difference.)
        self._keys = np.empty(self._rows_max, np.uint64)
        self._records = np.empty((self._rows_max, record_bytes), np.uint8)
        self._buffered = 0
        self._runs: list[tuple[Path, NDArray[np.int64]]] = []  # with the first row of each partition

    @property
    def runs(self) -> int:
        """Runs written to files so far."""
        return len(self._runs)

    def room(self, rows: int) -> Records:
        """Memory for the next records, `rows` or fewer, (n, record_bytes) uint8: fill it, then `commit`.

        Raises StoreError when a run cannot be written to make room.
        """
        if self._buffered == self._rows_max:
            self._spill()
        return self._records[self._buffered : min(self._buffered + rows, self._rows_max)]

    def commit(self, keys: Keys) -> None:
        """Take the records that were filled in; their keys, (n,) uint64, are what they begin with."""
        self._keys[self._buffered : self._buffered + keys.shape[0]] = keys
        self._buffered += keys.shape[0]
        self.rows += keys.shape[0]

    def _take_buffer(self) -> tuple[Keys, Records]:
        """Views of what is buffered; the buffer is empty, and overwritten by the next `add`."""
        count, self._buffered = self._buffered, 0
        return self._keys[:count], self._records[:count]

    def _spill(self) -> None:
        keys, records = self._take_buffer()
        order = np.argsort(keys)
        path = self._directory / f"{len(self._runs):06d}.run"
        try:
            with path.open("wb") as file:
                for first in range(0, order.shape[0], RANGE_ROWS_MAX):
                    file.write(self._ordered(records, order[first : first + RANGE_ROWS_MAX]).data)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from error
        partitions = (keys >> PARTITION_SHIFT).astype(np.int64)
        counts = np.bincount(partitions, minlength=PARTITIONS)
        self._runs.append((path, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)))

    def _ordered(self, records: Records, order: NDArray[np.intp]) -> Records:
        """Records in this order, copied whole: five times as fast as by bytes."""
        whole = records.view(f"V{self._record_bytes}").reshape(-1)
        return whole.take(order).view(np.uint8).reshape(-1, self._record_bytes)

    def ranges(self) -> Iterator[tuple[Keys, Records]]:
        """(keys (n,) uint64, records (n, record_bytes) uint8), ascending; to be iterated once."""
        if not self._runs:
            yield from self._sorted(*self._take_buffer())
            return
        self._spill()
        sizes = np.sum([np.diff(offsets) for _, offsets in self._runs], axis=0)
        first = 0
        while first < PARTITIONS:
            rows = np.cumsum(sizes[first:])
            end = first + max(1, int(np.searchsorted(rows, self._rows_max, side="right")))
            if rows[end - first - 1] > self._records.shape[0]:  # one partition with more than its share
                self._records = np.empty((int(rows[end - first - 1]), self._record_bytes), np.uint8)
            count = 0
            for run in self._runs:
                count += self._read(run, first, end, count)
            records = self._records[:count]
            keys = np.ascontiguousarray(records[:, :KEY_BYTES]).view(">u8").reshape(-1)
            yield from self._sorted(keys.astype(np.uint64), records)
            first = end

    def _read(self, run: tuple[Path, NDArray[np.int64]], first: int, end: int, at: int) -> int:
        """Read a run's part of a range of partitions into the buffer from row `at`; returns its rows."""
        path, offsets = run
        begin, count = int(offsets[first]), int(offsets[end] - offsets[first])
        with path.open("rb") as file:
            file.seek(begin * self._record_bytes)
            file.readinto(self._records[at : at + count].reshape(-1).data)
        return count

    def _sorted(self, keys: Keys, records: Records) -> Iterator[tuple[Keys, Records]]:
        order = np.argsort(keys)
        for first in range(0, order.shape[0], RANGE_ROWS_MAX):
            part = order[first : first + RANGE_ROWS_MAX]
            yield keys[part], self._ordered(records, part)
