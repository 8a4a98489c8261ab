# SPDX-License-Identifier: Apache-2.0
"""The hot rows of one table: an index and one flat array of records, both worked on by kernels.

Address space for as many rows as the budget could ever hold is reserved at once and committed by the
kernel page by page as rows come, so records never move and growing costs nothing; the index grows by
sectors (kernel/index.py). What is committed was granted by the budget before.

Invariants: 1. every place is free, or in the index, or in the hands of the table's lock holder; 2. bytes
touched <= bytes granted; 3. evicting takes clean and dirty rows alike: the caller writes dirty ones back
before it lets go of the lock. Thread safety: none; the table's lock covers every call.
"""

import mmap
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.error import ConfigError
from rowhouse.kernel import as_read_only

from ps_server.disk.row import RowLayout
from ps_server.kernel import index, record
from ps_server.kernel.step import StepHot

Places = NDArray[np.int64]
Ids = NDArray[np.uint64]

ROWS_PER_SECTOR: Final = 16_384
"""Rows of a full sector: growing one copies 170 KB, which takes well under a millisecond."""

SECTORS_MAX: Final = 1 << 16
"""The hash has 16 bits for the sector beside 28 for the tag."""

CAP_MIN: Final = 32
"""Entries of a sector at start."""

GRANT_BYTES: Final = 2 << 20
"""Budget is taken in steps of this size: a huge page, and rare enough that asking costs nothing."""

WIDENING: Final = {dtype.FLOAT16: index.WIDEN_HALF, dtype.BFLOAT16: index.WIDEN_BFLOAT}
"""How rows of each narrow dtype become float32."""

EVICT_MIN: Final = 512
"""Victims per sweep at least, so that a row at a time never pays for a whole sweep."""


def reserve(bytes_: int, huge: bool = False) -> NDArray[np.uint8]:
    """`bytes_` of zeroed address space, committed when touched; a uint8 array, page aligned.

    `huge` asks for huge pages, which save most TLB misses of random access to a dense array.
    """
    size = max(bytes_, mmap.PAGESIZE)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        region = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        raise ConfigError(
            f"memory_budget: {size} bytes of address space cannot be reserved ({error.strerror}): "
            "lower it, or raise the limit of the process (ulimit -v, vm.overcommit_memory)"
        ) from None
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(region, np.uint8)


def _sector_count(rows: int) -> int:
    wanted = max(1, rows // ROWS_PER_SECTOR)
    return min(SECTORS_MAX, 1 << (wanted - 1).bit_length())


class Arena:
    """Hot rows of one table.

    Parameters
    ----------
    layout
        Layout of a record.
    rows_max
        Rows to reserve address space for.
    grant
        Asks the budget for so many bytes; True when they may be used.
    """

    def __init__(self, layout: RowLayout, rows_max: int, grant: Callable[[int], bool]) -> None:
        self.layout = layout
        self.rows_max = rows_max
        self._grant = grant
        sectors = _sector_count(rows_max)
        reserved = (int(rows_max / sectors / 0.75 * 1.25) + 1024) // index.LINE * index.LINE
        self._geometry = np.array(
            [sectors, reserved, 64 - (sectors.bit_length() - 1), layout.stride // 8], np.int64
        )
        self._entries = reserve(sectors * reserved * 8).view(np.uint64)
        self._caps = np.full(sectors, CAP_MIN, np.int64)
        self._counts = np.zeros(sectors, np.int64)
        self._records = reserve(rows_max * layout.stride, huge=layout.stride * rows_max > 64 << 20)
        self.records8 = self._records
        self.records16 = self._records[: self._records.size & ~1].view(np.uint16)
        self.records32 = self._records[: self._records.size & ~3].view(np.float32)
        self.records64 = self._records[: self._records.size & ~7].view(np.uint64)
        self._free = reserve(rows_max * 4).view(np.uint32)  # a stack of places that were given back
        self._free_count = 0
        self._next_place = 0  # places from here on were never used
        self._granted_rows = 0
        self._hand = np.zeros(2, np.int64)
        self.row_lsn: NDArray[np.uint64] | None = None  # LSN of each place's row, during recovery only

    # ------------------------------------------------------------ counts
    def __len__(self) -> int:
        return int(self._counts.sum())

    @property
    def sectors(self) -> int:
        """Number of index sectors."""
        return int(self._geometry[index.SECTORS])

    @property
    def record_bytes(self) -> int:
        """Bytes of records in use."""
        return len(self) * self.layout.stride

    @property
    def index_bytes(self) -> int:
        """Bytes of index entries in use, empty ones included."""
        return int(self._caps.sum()) * 8

    def count(self, flags: int) -> int:
        """Rows whose entries carry all of `flags` (a scan of the index)."""
        return int(index.count_flags(self._entries, self._caps, self._geometry, flags))

    # ------------------------------------------------------------ finding
    def find(self, ids: Ids, set_flags: int = index.REFERENCED) -> tuple[Places, int]:
        """Place of each id ((n,) int64, -1: not here) and how many are not here."""
        places = np.empty(ids.shape[0], np.int64)
        missing = index.find(
            ids, self._entries, self._caps, self._geometry, self.records64, set_flags, places
        )
        return places, int(missing)

    def gather(self, ids: Ids, set_flags: int, out: NDArray[Any]) -> Places:
        """Weights of those ids that are here.

        Parameters
        ----------
        ids
            (n,) uint64, duplicates allowed.
        set_flags
            Set in the entry of each row that is read.
        out
            (n, dim) C-contiguous, written: float32, to which 16-bit weights are widened, or the dtype that
            carries the layout's own.

        Returns
        -------
        ndarray
            Places of the ids that are not here, (m,) int64 ascending; their rows of `out` stay as they were.
        """
        layout = self.layout
        storage = dtype.STORAGE[layout.dtype]
        mode = index.COPY if out.dtype == storage else WIDENING[layout.dtype]
        missing = np.empty(ids.shape[0], np.int64)
        count = index.gather(
            ids, self._entries, self._caps, self._geometry, self.records64, set_flags,
            layout.weights_at, layout.dim * storage.itemsize, mode, out.reshape(-1).view(np.uint8), missing,
        )  # fmt: skip
        return missing[:count]

    def step(
        self,
        step_hot: StepHot,
        ids: Ids,
        gradients: NDArray[np.float32],
        hyper: NDArray[np.float64],
        lsn: int,
    ) -> tuple[Places, int]:
        """Step the rows of those ids that are here; they become dirty.

        Parameters
        ----------
        step_hot
            The optimizer's of kernel/step.py.
        ids
            (n,) uint64, distinct.
        gradients
            (n, dim) float32, one per id.
        hyper
            The optimizer's hyperparameters.
        lsn
            The push's; seeds stochastic rounding.

        Returns
        -------
        tuple
            Place of each id ((n,) int64, -1: not here) and how many are not here.
        """
        layout = self.layout
        places = np.empty(ids.shape[0], np.int64)
        missing = step_hot(
            as_read_only(ids), self._entries, self._caps, self._geometry, self.records64,
            index.REFERENCED | index.DIRTY, self.records32, self.records16, layout.dtype,
            layout.weights_at, layout.state_at, as_read_only(gradients), hyper, lsn, places,
        )  # fmt: skip
        return places, int(missing)

    def clear_flags(self, ids: Ids, flags: int) -> None:
        """Clear flags of the entries of those ids that are here."""
        index.clear_flags(ids, self._entries, self._caps, self._geometry, self.records64, flags)

    # ------------------------------------------------------------ coming and going
    def free_places(self, wanted: int) -> Places:
        """Up to `wanted` places that nobody uses: recycled ones first, then new ones if the budget
        grants them. Fewer than wanted means: evict."""
        recycled = min(wanted, self._free_count)
        places = np.empty(wanted, np.int64)
        self._free_count -= recycled
        places[:recycled] = self._free[self._free_count : self._free_count + recycled]
        fresh = min(wanted - recycled, self._extend(wanted - recycled))
        places[recycled : recycled + fresh] = np.arange(self._next_place, self._next_place + fresh)
        self._next_place += fresh
        return places[: recycled + fresh]

    def _extend(self, wanted: int) -> int:
        """Never-used places available after asking the budget for what is missing."""
        cost = self.row_cost_bytes
        short = self._next_place + wanted - self._granted_rows
        left = self.rows_max - self._granted_rows
        steps = [max(short, GRANT_BYTES // cost), short]  # then the last of the budget in smaller bites
        while steps[-1] > 1:
            steps.append(steps[-1] // 2)
        for step in steps if short > 0 else []:
            if 0 < step <= left and self._grant(step * cost):
                self._granted_rows += step
                break
        return self._granted_rows - self._next_place

    @property
    def row_cost_bytes(self) -> int:
        """Budget bytes of one row: record, index share, and its LSN during recovery."""
        return self.layout.cost_bytes + (8 if self.row_lsn is not None else 0)

    def give_back(self, places: Places) -> None:
        """Make places free again; their rows must be out of the index."""
        self._free[self._free_count : self._free_count + places.shape[0]] = places
        self._free_count += places.shape[0]

    def insert(self, ids: Ids, places: Places, flags: int) -> None:
        """Enter distinct ids that are not here at free places; writes the ids into the records."""
        entered = index.insert(
            ids, places, flags, self._entries, self._caps, self._counts, self._geometry, self.records64
        )
        # a sector holds 25 % more than its even share, 20 standard deviations at 16,384 rows
        assert entered == ids.shape[0], "an index sector is full: ids are not spread by mix64"

    def sweep(self, wanted: int) -> tuple[Places, NDArray[np.uint8]]:
        """Take victims out of the index by CLOCK; returns their places and flags. Places are not free
        until `give_back`."""
        wanted = max(wanted, min(EVICT_MIN, self._granted_rows // 8), self._granted_rows // 128)
        places = np.empty(wanted, np.int64)
        flags = np.empty(wanted, np.uint8)
        n = index.sweep(
            self._hand, wanted, self._entries, self._caps, self._counts, self._geometry, places, flags
        )
        return places[:n], flags[:n]

    def remove(self, ids: Ids) -> tuple[Places, NDArray[np.uint8]]:
        """Take those ids that are here out of the index; returns their places and flags."""
        places = np.empty(ids.shape[0], np.int64)
        flags = np.empty(ids.shape[0], np.uint8)
        n = index.remove(
            ids, self._entries, self._caps, self._counts, self._geometry, self.records64, places, flags
        )
        return places[:n], flags[:n]

    def take_dirty(self, sector: int, rows: int = 0) -> tuple[Places, NDArray[np.uint8], int]:
        """Places and former flags of dirty rows, which become clean and STORED: those of a sector, and of the
        ones after it up to about `rows`. And the next sector."""
        places = np.empty(max(int(self._caps[sector]), rows), np.int64)
        flags = np.empty(places.shape[0], np.uint8)
        n, following = index.take_dirty(sector, self._entries, self._caps, self._geometry, places, flags)
        return places[:n], flags[:n], following

    def ids_of(self, places: Places) -> Ids:
        """Ids of the records in `places`; a new (n,) uint64."""
        ids = np.empty(places.shape[0], np.uint64)
        record.read_ids(self.records64, self.layout.stride // 8, places, ids)
        return ids

    def flags_of(self, ids: Ids) -> NDArray[np.uint8]:
        """Flags of each id's entry, 0 where it is not hot; a new (n,) uint8."""
        flags = np.zeros(ids.shape[0], np.uint8)
        index.read_flags(ids, self._entries, self._caps, self._geometry, self.records64, flags)
        return flags

    # ------------------------------------------------------------ recovery
    def begin_recovery(self) -> None:
        """Keep each hot row's LSN from here on; the arena must be empty."""
        assert len(self) == 0
        self.row_lsn = reserve(self.rows_max * 8).view(np.uint64)

    def end_recovery(self) -> int:
        """Forget the LSNs; returns the budget bytes to release."""
        self.row_lsn = None
        return self._granted_rows * 8
