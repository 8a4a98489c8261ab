# SPDX-License-Identifier: Apache-2.0
"""Reading ahead of a replay: the rows of many records of the push log at once, in the store's order.

Thread safety: runs before anyone else has the shard.
"""

from collections.abc import Iterator
from contextlib import suppress
from logging import getLogger
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.codec import decode_push_request
from rowhouse.mix import mix64, unmix64

from ps_server.disk.segment import KIND_PUSH, read_records
from ps_server.disk.store import BLOCK_BYTES
from ps_server.table.budget import available_bytes
from ps_server.table.table import Table

READ_AHEAD_SHARE: Final = 0.9
"""Share of the rows that fit that replay reads ahead: some records make new rows."""

LSN_MAX: Final = (1 << 64) - 1

READ_AHEAD_ROWS: Final = 131_072
"""Rows of one multi-get: long enough that neighbours share blocks, 20 MB of values."""

READ_BYTES: Final = 4 << 20

_logger = getLogger(__name__)


def read_ahead(
    directory: Path, store_directory: Path, after_lsn: int, tables: dict[str, Table]
) -> Iterator[int]:
    """Read from the store what the next records touch, as many records as memory has room for; yields the LSN
    up to which that is done, and goes on when asked to.

    In the order of the store's keys a block is found and decompressed once for all the rows in it. The
    figures are in docs/ARCHITECTURE.md, "Durable, and exactly once".
    """
    touched = {name: _Touched(table) for name, table in tables.items() if table.tier.stored.cold_possible}
    lsn = after_lsn
    for record in read_records(directory, after_lsn) if touched else ():
        if record.kind == KIND_PUSH:
            for part in decode_push_request(record.payload).changes:
                if part.table in touched:
                    touched[part.table].add(part.ids)
        lsn = record.lsn
        if any(ids.full for ids in touched.values()):
            for ids in touched.values():
                ids.read(store_directory)
            yield lsn
    for ids in touched.values():
        ids.read(store_directory)
    yield lsn if touched else LSN_MAX


def read_files(directory: Path, rows: int) -> None:
    """Bring the row files into the page cache where so many rows touch a good part of their blocks, and they
    fit: in order, at the disk's full speed, and not block by block as RocksDB asks (3.3 million of 50 million
    rows: 15 s and 3, not 30)."""
    sizes: dict[Path, int] = {}
    for path in sorted(directory.glob("*.sst")):
        with suppress(FileNotFoundError):  # a compaction in the background took it away
            sizes[path] = path.stat().st_size
    size = sum(sizes.values())
    if rows * BLOCK_BYTES < size // 4 or size > available_bytes() // 2:
        return
    buffer = bytearray(READ_BYTES)
    for path in sizes:
        with suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


class _Touched:
    """Store keys of a table's rows that records touch: 8 bytes each, beside the record of 30 and more that a
    row takes once it is hot."""

    def __init__(self, table: Table) -> None:
        self._table, self._limit = table, int(table.tier.rows_min * READ_AHEAD_SHARE)
        self._keys: list[NDArray[np.uint64]] = []
        self._count = 0
        self.full = False

    def add(self, ids: NDArray[np.uint64]) -> None:
        """Take another record's ids, (n,) uint64; they are full when no other record's may fit."""
        self._keys.append(mix64(ids))
        self._count += ids.shape[0]
        if self._count > self._limit:
            self._keys = [self._distinct()]
            self._count = self._keys[0].shape[0]
            self.full = self._count > self._limit * READ_AHEAD_SHARE

    def read(self, store_directory: Path) -> None:
        """Make them hot, and begin anew."""
        if self._keys:
            keys = self._distinct()
            _logger.info("table %r: reading %d rows ahead", self._table.name, keys.shape[0])
            read_files(store_directory, keys.shape[0])
            for first in range(0, keys.shape[0], READ_AHEAD_ROWS):
                self._table.prefetch(unmix64(keys[first : first + READ_AHEAD_ROWS]))
        self._keys, self._count, self.full = [], 0, False

    def _distinct(self) -> NDArray[np.uint64]:
        """All keys, ascending (np.unique hashes integers, in ten times the time at millions of them)."""
        keys = np.sort(np.concatenate(self._keys))
        first: NDArray[np.bool_] = np.concatenate([[True], keys[1:] != keys[:-1]])
        return keys[first]
