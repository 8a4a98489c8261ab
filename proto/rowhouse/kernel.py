# SPDX-License-Identifier: Apache-2.0
"""What client and server both do to a batch: dedup with inverse, sums of duplicates, a bound on magnitudes.

A client sums before it sends; a shard sums again, because any stub may push an id twice, and several trainers
may push the same one. Free functions over arrays that release the GIL, each with a naive oracle in
tests/unit/test_kernel.py.

Invariants: 1. distinct ids come in the order of their first appearance; 2. gradients of one id are added in
fp32 in the order of appearance, so a push has the same bits wherever it is summed, and a replay too.
Thread safety: pure functions.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rowhouse.mix import mix64_scalar

_U32, _U64 = np.uint32, np.uint64
_NO_SALT = _U64(0)
_ASCEND_BLOCK = 256
_CHECK_BLOCK = 4096

Scalar = TypeVar("Scalar", bound=np.generic)


def as_read_only(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """A view that kernels see as one type wherever the array came from, so that they compile once."""
    view = array.view()
    view.flags.writeable = False
    return view


@njit(nogil=True, cache=True)
def ascend(ids: NDArray[np.uint64]) -> bool:
    """Whether each of `ids` ((n,) uint64) is greater than the one before it, as np.unique and torch.unique
    leave them; then none is there twice. A batch in another order is told within a block."""
    for begin in range(0, ids.shape[0], _ASCEND_BLOCK):
        block = ids[begin : min(begin + _ASCEND_BLOCK + 1, ids.shape[0])]
        falls = np.int64(0)
        for i in range(1, block.shape[0]):  # counted without an exit, in vectors
            falls += np.int64(block[i] <= block[i - 1])
        if falls:
            return False
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def deduplicate(
    ids: NDArray[np.uint64], inverse: NDArray[np.signedinteger], salt: np.uint64 = _NO_SALT
) -> NDArray[np.uint64]:
    """Distinct ids of `ids` in the order of first appearance.

    An open-addressing table with linear probing, at most half full, of 4-byte numbers into the answer: that
    of 26,624 ids has 256 KiB and stays in the L2 cache. An id's first place comes of the low bits of its
    hash: the ids of one shard share the high ones (placement.py), and would crowd in one part of the table.

    Parameters
    ----------
    ids
        (n,) uint64, n < 2^31.
    inverse
        (n,) int64 or int32, written: `answer[inverse[i]] == ids[i]`. Its values rise by one at each first
        appearance.
    salt
        Changes where ids come in the table, and nothing of the answer. Who takes ids from strangers gives one
        that they cannot know: else they send ids that all have one place, and 80,000 of them take 9 seconds.

    Returns
    -------
    ndarray
        (u,) uint64, new.
    """
    count = ids.shape[0]
    bits = 4
    while (1 << bits) < 2 * count:
        bits += 1
    table = np.zeros(1 << bits, np.int32)  # number among the distinct ids, plus one; 0 is free
    mask = _U64((1 << bits) - 1)
    distinct = np.empty(count, _U64)
    found = 0
    for i in range(count):
        at = mix64_scalar(ids[i] ^ salt) & mask
        while table[at] != 0 and distinct[table[at] - 1] != ids[i]:
            at = (at + _U64(1)) & mask
        if table[at] == 0:
            distinct[found] = ids[i]
            found += 1
            table[at] = found
        inverse[i] = table[at] - 1
    return distinct[:found]


def places_among(
    ids: NDArray[np.uint64], others: Sequence[NDArray[np.uint64]], salt: np.uint64 = _NO_SALT
) -> NDArray[np.int64]:
    """Positions in `ids` of those that are among any of the others.

    Parameters
    ----------
    ids
        (n,) uint64.
    others
        (m,) uint64 each.
    salt
        As of `deduplicate`.

    Returns
    -------
    ndarray
        Ascending, (k,) int64.
    """
    if not others or not ids.shape[0]:
        return np.empty(0, np.int64)
    joined = np.concatenate([*others, ids])
    inverse = np.empty(joined.shape[0], np.int64)
    deduplicate(as_read_only(joined), inverse, salt)
    count = joined.shape[0] - ids.shape[0]
    if not count:
        return np.empty(0, np.int64)
    known = inverse[:count].max() + 1  # numbers go up by first appearance, so those of the others come first
    return np.flatnonzero(inverse[count:] < known).astype(np.int64)


@njit(nogil=True, cache=True, error_model="numpy")
def sum_groups(
    rows: NDArray[np.float32], inverse: NDArray[np.signedinteger], count: int
) -> NDArray[np.float32]:
    """Sum of the rows of each distinct id, in fp32, in the order of appearance.

    Parameters
    ----------
    rows
        (n, dim) float32.
    inverse
        (n,) from `deduplicate`: each first appearance comes in ascending order, so a first row is copied and
        nothing needs zeroing.
    count
        Number of distinct ids.

    Returns
    -------
    ndarray
        (count, dim) float32, new.
    """
    out = np.empty((count, rows.shape[1]), np.float32)
    seen = 0
    for i in range(inverse.shape[0]):
        row = inverse[i]
        if row == seen:
            seen += 1
            for j in range(out.shape[1]):
                out[row, j] = rows[i, j]
        else:
            for j in range(out.shape[1]):
                out[row, j] += rows[i, j]
    return out


@njit(nogil=True, cache=True, error_model="numpy")
def first_not_below(values: NDArray[np.float32], bound: float) -> int:
    """Flat index of the first element of C-contiguous float32 `values` that is NaN or not below `bound`
    (greater than 0, infinity for any finite one) in magnitude; -1 if there is none."""
    bits = values.reshape(-1).view(_U32)
    limit = np.full(1, bound, np.float32).view(_U32)[0]
    count = bits.shape[0]
    for begin in range(0, count, _CHECK_BLOCK):
        block = bits[begin : min(begin + _CHECK_BLOCK, count)]
        largest = _U32(0)  # an integer maximum is one vector instruction; a search with an exit is not
        for i in range(block.shape[0]):
            largest = max(largest, _U32(block[i] & _U32(0x7FFFFFFF)))
        if largest >= limit:
            for i in range(block.shape[0]):
                if block[i] & _U32(0x7FFFFFFF) >= limit:
                    return begin + i
    return -1
