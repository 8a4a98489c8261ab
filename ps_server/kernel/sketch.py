# SPDX-License-Identifier: Apache-2.0
"""A counting sketch: about how often each id was seen, in fixed memory.

A count-min sketch of four rows with conservative update (Cormode, Muthukrishnan 2005, "An Improved Data
Stream Summary: the Count-Min Sketch", section 3; Estan, Varghese 2002, "New Directions in Traffic
Measurement and Accounting", section 3.3.2: only the counters that equal the minimum go up), blocked as
Bloom filters are (Putze, Sanders, Singler 2007, "Cache-, Hash- and Space-Efficient Bloom Filters"): all
four counters of an id lie in one cache line of 64 bytes, a quarter of the line for each row of the sketch.

Invariants: 1. without halving, an estimate is never below the true count (up to the counters' largest
value, where they stay); 2. the counters are a pure function of the ids counted, in order, and the halvings.
Thread safety: none; the caller lets one thread count at a time.
"""

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray
from rowhouse.mix import mix64_scalar

from ps_server.kernel.intrinsic import prefetch_write

LINE_BYTES: Final = 64
_ROWS: Final = 4
_AHEAD: Final = 24  # ids: more than latency asks for, as lines are written back too
_U64 = np.uint64


@njit(nogil=True, cache=True, error_model="numpy")
def sketch_add(
    counters: NDArray[Any], seed: np.uint64, ids: NDArray[np.uint64], limit: int
) -> NDArray[np.uint16]:
    """Count each id once more.

    Parameters
    ----------
    counters
        (2^k,) uint8 or uint16, at least one cache line of LINE_BYTES, aligned to it for speed; written.
    seed
        Seed of the hash.
    ids
        (n,) uint64; an id that stands there twice is counted twice.
    limit
        Largest value of a counter, where it stays; at most the dtype's own.

    Returns
    -------
    NDArray
        A new (n,) uint16: the estimate of each id's count, this one included.
    """
    line = LINE_BYTES // counters.itemsize
    lane = _U64(line // _ROWS)
    lines = _U64(counters.shape[0] // line)
    key = mix64_scalar(seed)
    count = ids.shape[0]
    hashes = np.empty(count, np.uint64)
    for i in range(count):
        hashes[i] = mix64_scalar(ids[i] ^ key)
    out = np.empty(count, np.uint16)
    for i in range(count):
        if i + _AHEAD < count:
            ahead = (hashes[i + _AHEAD] >> _U64(32)) & (lines - _U64(1))
            prefetch_write(counters, ahead * _U64(line))
        h = hashes[i]
        start = ((h >> _U64(32)) & (lines - _U64(1))) * _U64(line)
        least = np.int64(limit)
        for r in range(_U64(_ROWS)):
            place = start + r * lane + ((h >> (r * _U64(4))) & (lane - _U64(1)))
            least = min(least, np.int64(counters[place]))
        least = min(least + 1, np.int64(limit))
        for r in range(_U64(_ROWS)):
            place = start + r * lane + ((h >> (r * _U64(4))) & (lane - _U64(1)))
            counters[place] = max(np.int64(counters[place]), least)
        out[i] = least
    return out


@njit(nogil=True, cache=True, error_model="numpy")
def sketch_halve(counters: NDArray[Any]) -> None:
    """Halve every counter, rounding down, so that what was frequent long ago can be forgotten."""
    for i in range(counters.shape[0]):
        counters[i] >>= 1
