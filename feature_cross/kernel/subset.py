# SPDX-License-Identifier: Apache-2.0
"""Lists as one id, and every k-subset of a list.

Subsets are enumerated in lexicographic order without recursion, carrying the mixer's state of each prefix,
so that a subset costs one mix and not k; equal neighbours of the sorted list are skipped at each depth, so
every distinct sub-multiset is given once (Knuth, The Art of Computer Programming 4A, 7.2.1.3).
Thread safety: free functions, GIL released.
"""

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from feature_cross.kernel.fold import mix

__all__ = ["count_subsets", "fold_rows", "fold_subsets", "sort_rows"]

_INSERTION_MAX: Final = 32
"""Below this insertion sort beats numpy's sort, which allocates."""

_BINOMIAL_MAX: Final = 32
"""Elements of a row up to which (n choose k) and every step to it fit in 63 bits with room to spare."""

_SATURATED: Final = 1 << 40
"""Counts stop here: past every limit, and far from overflow."""


@njit(nogil=True, cache=True)
def sort_rows(
    hashes: NDArray[np.uint64], offsets: NDArray[np.int64], multiset: bool
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Sort each row's hashes, and keep equal ones once unless `multiset`; both arrays are new."""
    out = np.empty_like(hashes)
    out_offsets = np.empty_like(offsets)
    out_offsets[0] = 0
    k = 0
    for r in range(offsets.shape[0] - 1):
        begin, end = offsets[r], offsets[r + 1]
        first = k
        if end - begin > _INSERTION_MAX:
            out[k : k + end - begin] = np.sort(hashes[begin:end])
        else:
            for i in range(begin, end):
                value = hashes[i]
                j = first + i - begin
                while j > first and out[j - 1] > value:
                    out[j] = out[j - 1]
                    j -= 1
                out[j] = value
        stop = first + end - begin
        if multiset:
            k = stop
        else:
            for i in range(first, stop):
                if i == first or out[i] != out[k - 1]:
                    out[k] = out[i]
                    k += 1
        out_offsets[r + 1] = k
    return out[:k], out_offsets


@njit(nogil=True, cache=True)
def fold_rows(
    hashes: NDArray[np.uint64], offsets: NDArray[np.int64], mixed_seed: np.uint64, operation: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """One hash per row that is not empty, from all of its elements in order.

    Returns (non-empty rows,) uint64 and (rows + 1,) int64 offsets. `mixed_seed` is mix(seed).
    """
    rows = offsets.shape[0] - 1
    out = np.empty(rows, np.uint64)
    out_offsets = np.empty(rows + 1, np.int64)
    out_offsets[0] = 0
    k = 0
    head = np.uint64(operation) << np.uint64(32)
    for r in range(rows):
        begin, end = offsets[r], offsets[r + 1]
        if end > begin:
            state = mix(np.uint64(mixed_seed) ^ (head | np.uint64(end - begin)))
            for i in range(begin, end):
                state = mix(state ^ hashes[i])
            out[k] = state
            k += 1
        out_offsets[r + 1] = k
    return out[:k], out_offsets


@njit(nogil=True, cache=True)
def _count(hashes: NDArray[np.uint64], begin: int, end: int, size: int, ways: NDArray[np.int64]) -> int:
    """Distinct sub-multisets of `size` elements of a sorted row, saturated; `ways` is scratch."""
    ways[:] = 0
    ways[0] = 1
    i = begin
    while i < end:
        repeats = 1
        while i + repeats < end and hashes[i + repeats] == hashes[i]:
            repeats += 1
        for j in range(size, 0, -1):
            total = ways[j]
            for t in range(1, min(repeats, j) + 1):
                total += ways[j - t]
            ways[j] = min(total, _SATURATED)
        i += repeats
    return int(ways[size])


@njit(nogil=True, cache=True)
def count_subsets(
    hashes: NDArray[np.uint64], offsets: NDArray[np.int64], sizes: NDArray[np.int64], limit: int, cut: bool
) -> tuple[NDArray[np.int64], int]:
    """Offsets of the subsets of each sorted row, all sizes together.

    Returns (rows + 1,) int64, and the first row past `limit` that may not be cut, or -1.
    """
    rows = offsets.shape[0] - 1
    out_offsets = np.empty(rows + 1, np.int64)
    out_offsets[0] = 0
    ways = np.empty(sizes.max() + 1, np.int64)
    for r in range(rows):
        count = 0
        begin, end = offsets[r], offsets[r + 1]
        distinct = end - begin <= _BINOMIAL_MAX
        for i in range(begin + 1, end if distinct else begin):
            distinct &= hashes[i] != hashes[i - 1]
        for size in sizes:
            if distinct:
                ways_here = 1 if size <= end - begin else 0
                for k in range(min(size, end - begin - size)):  # each step divides evenly
                    ways_here = ways_here * (end - begin - k) // (k + 1)
                count += ways_here
            else:
                count += _count(hashes, begin, end, size, ways)
        if count > limit:
            if not cut:
                return out_offsets, r
            count = limit
        out_offsets[r + 1] = out_offsets[r] + count
    return out_offsets, -1


@njit(nogil=True, cache=True)
def fold_subsets(
    hashes: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    starts: NDArray[np.uint64],
    out: NDArray[np.uint64],
    out_offsets: NDArray[np.int64],
) -> None:
    """Hash of every subset of each sorted row, sizes in the given order, up to the row's part of `out`.

    `starts` is (sizes,) uint64: the mixer's state before the first element, which knows the arity.
    """
    deepest = sizes.max()
    index = np.empty(deepest + 1, np.int64)
    states = np.empty(deepest + 1, np.uint64)
    for r in range(offsets.shape[0] - 1):
        k = out_offsets[r]
        stop = out_offsets[r + 1]
        end = offsets[r + 1]
        for s in range(sizes.shape[0]):
            size = sizes[s]
            states[0] = starts[s]
            index[0] = offsets[r]
            depth = 0
            while depth >= 0 and k < stop:
                i = index[depth]
                if i <= end - (size - depth):
                    states[depth + 1] = mix(states[depth] ^ hashes[i])
                    if depth < size - 1:
                        index[depth + 1] = i + 1
                        depth += 1
                        continue
                    out[k] = states[size]
                    k += 1
                else:
                    depth -= 1
                    if depth < 0:
                        break
                i = index[depth] + 1
                while i < end and hashes[i] == hashes[i - 1]:
                    i += 1
                index[depth] = i
