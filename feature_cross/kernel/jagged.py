# SPDX-License-Identifier: Apache-2.0
"""Columns in and out: buckets, missing values, and the bound of a list's length.

Invariant: rows stay in order, and elements within a row. Thread safety: free functions, GIL released.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["all_ascii", "compact", "compress", "hash_buckets"]


@njit(nogil=True, cache=True)
def all_ascii(data: NDArray[np.uint8], offsets: NDArray[Any]) -> bool:
    """Whether the offsets rise within `data` and every byte between them is ASCII, and so valid UTF-8.

    `data` is (bytes,) uint8, `offsets` (n + 1,) int32 or int64. False only says that one must look closer.
    """
    n = offsets.shape[0] - 1
    begin, end = np.int64(offsets[0]), np.int64(offsets[n])
    if begin < 0 or end > data.shape[0]:
        return False
    falls = 0
    for i in range(n):
        falls += offsets[i + 1] < offsets[i]
    if falls:
        return False
    seen = np.uint8(0)
    for i in range(begin, end):
        seen |= data[i]
    return bool(seen < 128)


@njit(nogil=True, cache=True)
def hash_buckets(
    values: NDArray[np.float64],
    edges: NDArray[np.float64],
    table: NDArray[np.uint64],
    out: NDArray[np.uint64],
    unknown: NDArray[np.bool_],
) -> bool:
    """The hash of each value's bucket.

    Parameters
    ----------
    values
        (n,) float64.
    edges, table
        (buckets,) lower edges, rising from minus infinity, and their hashes.
    out
        (n,) uint64, written.
    unknown
        (n,) bool, false; set where a value is NaN.

    Returns
    -------
    Whether any value is NaN.
    """
    any_unknown = False
    for i in range(values.shape[0]):
        value = values[i]
        low, count = 0, edges.shape[0]
        while count > 1:  # the last edge at or below value, without a branch to mispredict
            half = count // 2
            low += half * (edges[low + half] <= value)
            count -= half
        out[i] = table[low]
        if np.isnan(value):
            unknown[i] = True
            any_unknown = True
    return any_unknown


@njit(nogil=True, cache=True)
def compress(hashes: NDArray[Any], nulls: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Drop the rows that are null: new (rows left,) of the same dtype, and (rows + 1,) int64 offsets."""
    rows = hashes.shape[0]
    out = np.empty(rows, hashes.dtype)
    offsets = np.empty(rows + 1, np.int64)
    offsets[0] = 0
    k = 0
    for r in range(rows):
        out[k] = hashes[r]
        k += not nulls[r]
        offsets[r + 1] = k
    return out[:k].copy(), offsets


@njit(nogil=True, cache=True)
def compact(
    hashes: NDArray[Any],
    offsets: NDArray[np.int64],
    nulls: NDArray[np.uint8],
    null_rows: NDArray[np.uint8],
    null_hash: Any,
    own_id: bool,
    length_max: int,
    keep_last: bool,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Drop nulls or give them `null_hash`, then keep at most `length_max` elements of each row.

    Parameters
    ----------
    hashes, offsets
        (total,) uint64 hashes or float32 weights, and (rows + 1,) int64.
    nulls, null_rows
        (total,) and (rows,) uint8, or empty when there are none.
    null_hash, own_id
        With own_id a null element, or a null row as its only element, has null_hash.
    length_max, keep_last
        -1 for no bound; which end of a longer row is kept.

    Returns
    -------
    New arrays of the same kinds.
    """
    rows = offsets.shape[0] - 1
    out = np.empty(hashes.shape[0] + (rows if own_id else 0), hashes.dtype)
    out_offsets = np.empty(rows + 1, np.int64)
    out_offsets[0] = 0
    k = 0
    for r in range(rows):
        first = k
        if null_rows.shape[0] and null_rows[r]:
            if own_id:
                out[k] = null_hash
                k += 1
        else:
            for i in range(offsets[r], offsets[r + 1]):
                if nulls.shape[0] and nulls[i]:
                    if own_id:
                        out[k] = null_hash
                        k += 1
                else:
                    out[k] = hashes[i]
                    k += 1
        if 0 <= length_max < k - first:
            if keep_last:
                for i in range(length_max):
                    out[first + i] = out[k - length_max + i]
            k = first + length_max
        out_offsets[r + 1] = k
    return out[:k].copy(), out_offsets
