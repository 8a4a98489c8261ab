# SPDX-License-Identifier: Apache-2.0
"""The shard's memory budget: a hard limit, counted before memory is touched.

Each table reserves address space for as many rows as the whole budget could hold, but commits only what
it was granted. Grants are first come, first served, above a floor that is kept for every table; what a
table was granted it keeps, and when the budget is spent it recycles its own rows (CLOCK).

`split` says what of `memory_budget` that total is: the rest goes to RocksDB, and to what nobody can count.

Invariants: 1. granted <= total, always; 2. each table can get at least its floor.
Thread safety: every method may be called from any thread.
"""

import threading
from pathlib import Path
from typing import Final

from rowhouse.error import ConfigError

STORE_SHARE: Final = 0.25
"""Share of memory_budget for RocksDB (block cache, memtables)."""

STORE_BYTES_MAX: Final = 320 << 20
"""More serves nobody: half of it are memtables, and blocks of rows are cached by the operating system alone
(store.py). The other half holds the top of each file's index, 10 MB for a billion rows."""

UNCOUNTED_BYTES, UNCOUNTED_SHARE, UNCOUNTED_MAX = 32 << 20, 1 / 8, 256 << 20
"""Kept free: copies of one request, rows on their way to the store, RocksDB's flush and compaction buffers,
which grow with its memtables, what malloc cannot give back. Measured with budgets of 32, 64 and 256 MiB:
20, 26 and 56 MiB."""

UNCOUNTED_FROM: Final = 64 << 20
"""A budget below this (tests, small tables) has nothing to keep free; from 192 MiB on it is kept in full."""

FLOOR_FRACTION = 0.25
"""Share of the budget that is split evenly as floors, so that a table that comes late can still work."""


MEMINFO: Final = Path("/proc/meminfo")


def available_bytes() -> int:
    """Memory that can be had without swapping, by the kernel's estimate (Linux); 0 where it does not tell."""
    lines = MEMINFO.read_text().splitlines() if MEMINFO.exists() else []
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def split(memory_budget: int) -> tuple[int, int]:
    """Bytes for the store, and for hot rows and admission sketches, of a shard's `memory_budget`."""
    store = min(int(memory_budget * STORE_SHARE), STORE_BYTES_MAX)
    uncounted = UNCOUNTED_BYTES + min(int(memory_budget * UNCOUNTED_SHARE), UNCOUNTED_MAX)
    uncounted = min(uncounted, max(0, memory_budget - UNCOUNTED_FROM) // 2)
    return store, memory_budget - store - uncounted


def least_budget(row_bytes: int) -> int:
    """The least memory_budget that leaves so many bytes for hot rows and sketches."""
    low, high = row_bytes, 2 * row_bytes + 2 * (STORE_BYTES_MAX + UNCOUNTED_BYTES + UNCOUNTED_MAX)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if split(middle)[1] >= row_bytes else (middle + 1, high)
    return low


class Budget:
    """Bytes of hot rows of one shard, shared by its tables.

    Parameters
    ----------
    total_bytes
        What all tables together may hold.
    table_names
        The tables that will ask.
    """

    def __init__(self, total_bytes: int, table_names: list[str]) -> None:
        self.total_bytes = total_bytes
        self.floor_bytes = int(total_bytes * FLOOR_FRACTION / max(1, len(table_names)))
        self._granted = dict.fromkeys(table_names, 0)
        self._lock = threading.Lock()

    @property
    def granted_bytes(self) -> int:
        """Bytes granted so far, all tables together."""
        with self._lock:
            return sum(self._granted.values())

    def grant(self, table: str, wanted_bytes: int) -> bool:
        """Grant `wanted_bytes` more to `table`, or nothing; True when granted."""
        with self._lock:
            own = self._granted[table]
            kept_for_others = sum(
                max(0, self.floor_bytes - bytes_) for name, bytes_ in self._granted.items() if name != table
            )
            used = sum(self._granted.values())
            if used + wanted_bytes + kept_for_others > self.total_bytes:
                return False
            self._granted[table] = own + wanted_bytes
            return True

    def release(self, table: str, bytes_: int) -> None:
        """Give back what `table` holds no more (recovery's side array)."""
        with self._lock:
            self._granted[table] -= bytes_
            assert self._granted[table] >= 0

    def require_rows(self, table: str, row_cost_bytes: int, rows_min: int) -> None:
        """ConfigError unless the floor of `table` holds `rows_min` rows of `row_cost_bytes`."""
        if self.floor_bytes < row_cost_bytes * rows_min:
            needed = int(row_cost_bytes * rows_min * len(self._granted) / FLOOR_FRACTION)
            raise ConfigError(
                f"memory_budget leaves {self.floor_bytes} bytes for table {table!r}; it needs "
                f"{row_cost_bytes * rows_min} ({rows_min} rows of {row_cost_bytes} bytes): "
                f"raise the budget for hot rows to {needed} bytes or more"
            )
