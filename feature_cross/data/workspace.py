# SPDX-License-Identifier: Apache-2.0
"""What the batches of one stream share: arrays to write in, row numbers, and hashes of dictionaries.

Fresh memory costs a page fault for every 4 KiB, half a microsecond to two: as long as the ids that go into it
take. Whether the allocator gives pages back between two batches depends on what else the process allocates,
so a stream keeps its own arrays and writes in them again once nobody looks at them any more; the engine keeps
them for the next stream. Whoever holds ids (a NumPy view, an Arrow array or a tensor over one) refers to the
array under them, and an array to which only the workspace refers is free.
Invariants: 1. an array that anybody can still see is never written again; 2. a dictionary is taken for one
seen before only if it is the same memory, kept from being freed, of a source that leaves it unchanged.
Thread safety: any threads.
"""

import sys
from collections.abc import Callable
from threading import Lock
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_cross.limit import BATCH_ROWS_DEFAULT, KEPT_BYTES_MAX

__all__ = ["Workspace"]

T = TypeVar("T")

_SMALL: Final = 8192
"""Numbers, 64 KiB: fewer come from memory that the allocator keeps anyway."""


def _references(arrays: list[NDArray[np.uint64]], place: int) -> int:
    return sys.getrefcount(arrays[place])


_ALONE: Final = _references([np.empty(0, np.uint64)], 0)
"""References to an array that only its list holds, counted the same way: what a call adds is Python's own."""


class Workspace:
    """Arrays and hashes for the batches of one stream, or of one call.

    Parameters
    ----------
    steady
        Whether the source keeps a dictionary unchanged until `forget`: a file and a table do while the stream
        lasts; a generator may fill the same memory again with its next batch. Without it no hashes are kept.
    """

    def __init__(self, steady: bool = False) -> None:
        self._steady = steady
        self._lock = Lock()
        self._arrays: list[NDArray[np.uint64]] = []
        self._kept_bytes = 0
        self._each: NDArray[np.int64] | None = None
        self._dictionaries: dict[Any, tuple[Any, pa.Array, Any]] = {}

    def renew(self, steady: bool) -> None:
        """Serve another stream: its arrays stay, hashes of the last one's dictionaries do not."""
        self._steady = steady
        self._dictionaries.clear()

    def forget(self) -> None:
        """Dictionaries from here on are others, even where they have the memory of those before."""
        self._dictionaries.clear()

    def numbers(self, count: int) -> NDArray[np.uint64]:
        """(count,) uint64 of any content, for the caller to write: new, or let go of by all before."""
        if count < _SMALL:
            return np.empty(count, np.uint64)
        with self._lock:
            arrays = self._arrays
            for place in range(len(arrays)):
                if count <= len(arrays[place]) <= 2 * count and _references(arrays, place) == _ALONE:
                    return arrays[place][:count]
            room = 1 << (count - 1).bit_length()
            if self._kept_bytes + 8 * room > KEPT_BYTES_MAX:
                return np.empty(count, np.uint64)
            self._kept_bytes += 8 * room
            arrays.append(np.empty(room, np.uint64))
            return arrays[-1][:count]

    def each(self, rows: int) -> NDArray[np.int64]:
        """0, 1, …, rows: the offsets of one id per row; (rows + 1,) int64, read-only."""
        each = self._each
        if each is None or len(each) <= rows:
            each = np.arange(rows + 1, dtype=np.int64)
            each.flags.writeable = False
            if rows <= BATCH_ROWS_DEFAULT:
                self._each = each
        return each[: rows + 1]

    def dictionary(self, key: Any, values: pa.Array, make: Callable[[], T]) -> T:
        """What `make` makes of a dictionary's values, or made of the same memory for the last batch.

        `key` is the same for one use of one column. Errors of `make` are passed on.
        """
        if not self._steady:
            return make()
        buffers = [buffer and (buffer.address, buffer.size) for buffer in values.buffers()]
        places = (values.type, len(values), values.offset, buffers)
        kept = self._dictionaries.get(key)
        if kept is not None and kept[0] == places:
            made: T = kept[2]
            return made
        made = make()
        self._dictionaries[key] = (places, values, made)
        return made
