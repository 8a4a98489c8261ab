# SPDX-License-Identifier: Apache-2.0
"""Rows of a bulk load on their way to sorted files: put into buckets by key as they come.

The first pass of a radix sort, without a second buffer: each bucket of keys collects a few hundred rows in
memory that stays in the processor's cache; a full one is written away as an *extent*, to memory that other
processes share (a memfd) and, when that is used up, to a scratch file. The rows of one bucket are then read,
sorted and written to a file by whoever has time (sst_file.py), in another process as well as in this one.
Fresh memory costs more than the copy into it; a write to a memfd gets its pages in one go.
mix64 spreads ids evenly, so buckets are of equal size.

Invariants: 1. the parts that `parts` names hold every row once, and their ranges of keys ascend and share no
key; 2. about `memory_bytes` are used at a time, READ_SHARE of it by those who read. Thread safety: none.
"""

import os
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.limit import PARTITIONS

from ps_server.bulk.sst_file import Extent, Part, write_at
from ps_server.disk.store import Keys
from ps_server.kernel.scatter import PREFIX_SHIFT, scatter
from ps_server.table.budget import available_bytes

BUCKETS: Final = 512
"""A bucket of 10 million rows of 78 bytes is 1.5 MB: it is sorted in the processor's cache."""

STAGE_BYTES: Final = 16 << 20
"""Rows under way to their extents, in all buckets: 32 KiB each, in the processor's cache between two rows."""

STAGE_SHARE: Final = 1 / 8
READ_SHARE: Final = 1 / 4
"""Of the memory for a load: rows under way at most (all of it once extents go to the disk, so that they are
long), and what all who sort take to read into."""

MEMORY_SHARE: Final = 1 / 4
MEMORY_MIN_BYTES, MEMORY_MAX_BYTES = 256 << 20, 8 << 30
"""Memory for a load, of what is available: what does not fit makes its way through a scratch file, at the
disk's speed. 8 GiB are 67 million rows of 78 bytes."""

_PREFIXES: Final = 1 << (64 - PREFIX_SHIFT)

Records = NDArray[np.uint8]


def default_memory_bytes() -> int:
    """A quarter of the memory that is available (Linux), within bounds."""
    return min(max(int(available_bytes() * MEMORY_SHARE), MEMORY_MIN_BYTES), MEMORY_MAX_BYTES)


class Spool:
    """Collects records in buckets of keys.

    Parameters
    ----------
    path
        Scratch file for what does not fit in memory; made when it is needed.
    template
        (record_bytes,) uint8: a record as it is before its key, weights and state are put in.
    weights_at, state_at
        Where these two begin in it. The key is at the beginning.
    owned
        (PARTITIONS,) bool: partitions that the keys belong to.
    memory_bytes
        Memory to use, about.
    """

    def __init__(
        self,
        path: Path,
        template: Records,
        *,
        weights_at: int,
        state_at: int,
        owned: NDArray[np.bool_],
        memory_bytes: int,
    ) -> None:
        self.rows = 0
        self.memory_fd = os.memfd_create("rows")
        """The memory that holds extents, for other processes."""
        self.path = path
        self._disk_fd: int | None = None
        self._template, self._weights_at, self._state_at = template, weights_at, state_at
        self._stage_bytes_max = int(memory_bytes * STAGE_SHARE)
        self._extent_bytes_max = int(memory_bytes * (1 - STAGE_SHARE - READ_SHARE))
        self._memory_end = self._disk_end = 0
        self._bucket_of = _buckets(owned)
        self._extents: list[list[Extent]] = [[] for _ in range(BUCKETS)]
        self._filled = np.zeros(BUCKETS, np.int64)
        self._stage = self._new_stage(min(STAGE_BYTES, self._stage_bytes_max))

    @property
    def record_bytes(self) -> int:
        """Bytes of a record."""
        return int(self._template.shape[0])

    @property
    def disk_bytes(self) -> int:
        """Bytes that did not fit in memory."""
        return self._disk_end

    def _new_stage(self, stage_bytes: int) -> Records:
        rows = max(1, stage_bytes // (BUCKETS * self.record_bytes))
        stage = np.empty((BUCKETS, rows, self.record_bytes), np.uint8)
        stage[:] = self._template
        return stage

    def add(self, keys: Keys, weights: Records, state: Records) -> None:
        """Add rows: `keys` (n,) uint64, `weights` and `state` (n, bytes) uint8; `state` may be (1, bytes).

        Raises OSError when there is no memory, or no room on the disk.
        """
        done, full = 0, 0
        while full >= 0:
            done, full = scatter(
                keys, weights, self._weights_at, state, self._state_at, done, self._bucket_of,
                self._stage, self._filled,
            )  # fmt: skip
            if full >= 0:
                self._write_away(full)
        self.rows += keys.shape[0]

    def finish(self) -> None:
        """Write away what is under way, and give its memory back; raises as `add`."""
        self._write_all_away()
        self._stage = np.empty((0, 0, self.record_bytes), np.uint8)

    def _write_all_away(self) -> None:
        for bucket in np.flatnonzero(self._filled).tolist():
            self._write_away(bucket)

    def _write_away(self, bucket: int) -> None:
        """Make an extent of the rows of a bucket that are under way."""
        rows = int(self._filled[bucket])
        data = self._stage[bucket, :rows].reshape(-1).data
        self._filled[bucket] = 0
        if self._disk_fd is None and self._memory_end + len(data) <= self._extent_bytes_max:
            write_at(self.memory_fd, data, self._memory_end)
            self._extents[bucket].append((0, self._memory_end, rows))
            self._memory_end += len(data)
            return
        begins = self._disk_fd is None
        if self._disk_fd is None:
            self._disk_fd = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        write_at(self._disk_fd, data, self._disk_end)
        self._extents[bucket].append((1, self._disk_end, rows))
        self._disk_end += len(data)
        if begins:
            self._lengthen()

    def _lengthen(self) -> None:
        """Longer extents, now that they are read back from the disk."""
        if self._stage_bytes_max >= 2 * STAGE_BYTES:
            self._write_all_away()
            self._stage = self._new_stage(self._stage_bytes_max)

    def parts(self, rows_max: int) -> list[Part]:
        """What is here after `finish`, by ascending key, about `rows_max` rows or fewer in each part.

        A larger bucket is in several parts, of which each one reads it all.
        """
        starts = np.searchsorted(self._bucket_of, np.arange(BUCKETS + 1)).tolist()
        found: list[Part] = []
        for bucket, extents in enumerate(self._extents):
            rows = sum(count for _, _, count in extents)
            if rows:
                low, high = (start << PREFIX_SHIFT for start in starts[bucket : bucket + 2])
                pieces = -(-rows // rows_max)
                bounds = [low + (high - low) * i // pieces for i in range(pieces + 1)]
                share = -(-rows // pieces)
                found += (
                    Part(extents=extents, rows=share, first=a, end=b, whole=pieces == 1)
                    for a, b in pairwise(bounds)
                )
        return found

    def close(self) -> None:
        """Give memory and file descriptors back; the scratch file stays."""
        os.close(self.memory_fd)
        if self._disk_fd is not None:
            os.close(self._disk_fd)


def _buckets(owned: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """The bucket of each prefix: those of partitions that are owned are spread over all buckets."""
    own = np.repeat(owned, _PREFIXES // PARTITIONS)
    before: NDArray[np.int64] = np.cumsum(own) - own
    buckets: NDArray[np.int64] = np.minimum(before * BUCKETS // max(int(own.sum()), 1), BUCKETS - 1)
    return buckets.astype(np.uint16)
