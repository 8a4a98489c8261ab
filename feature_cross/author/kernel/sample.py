# SPDX-License-Identifier: Apache-2.0
"""Counts the ids of a sample of the id space: those whose mixed bits begin with zeros, in an open table.

A sampled id is counted from its first occurrence, so its count and first row are exact. Thread safety: free
functions, GIL released; a table belongs to one caller at a time.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from feature_cross.kernel.fold import mix

__all__ = ["observe", "reinsert"]

_ZERO, _ONE = np.uint64(0), np.uint64(1)


@njit(nogil=True, cache=True)
def _find(
    key: np.uint64, check: np.uint64, mixed: np.uint64,
    keys: NDArray[np.uint64], checks: NDArray[np.uint64], counts: NDArray[np.int64],
) -> int:  # fmt: skip
    """The place of (key, check), or the empty one where it belongs."""
    mask = np.uint64(keys.shape[0] - 1)
    at = mixed & mask
    while counts[at] != 0 and (keys[at] != key or checks[at] != check):
        at = (at + _ONE) & mask
    return np.int64(at)  # type: ignore[return-value]


@njit(nogil=True, cache=True)
def observe(
    ids: NDArray[np.uint64], checks_in: NDArray[np.uint64], offsets: NDArray[np.int64],
    row: int, row_stop: int, at: int, row_base: int, zero_bits: np.uint64,
    keys: NDArray[np.uint64], checks: NDArray[np.uint64],
    counts: NDArray[np.int64], firsts: NDArray[np.int64],
    used: int, used_max: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Count the occurrences of rows [row, row_stop), from occurrence `at` on, until the table is full.

    Parameters
    ----------
    ids, checks_in
        (occurrences,) ids, and a second hash of the value behind each.
    offsets
        (rows + 1,) where each row's ids begin.
    row, row_stop, at
        Where to begin and end; `at` is an occurrence of `row`.
    row_base
        Number of the batch's first row.
    zero_bits
        An id is sampled when its mixed bits have none of these.
    keys, checks, counts, firsts
        The table, (size,) each, size a power of two; a count of 0 is an empty place.
    used, used_max
        Places taken, and the most that may be.

    Returns
    -------
    The row and occurrence to go on from, and the places taken.
    """
    while row < row_stop:
        stop = offsets[row + 1]
        while at < stop:
            mixed = mix(ids[at])
            if mixed & zero_bits == _ZERO:
                place = _find(ids[at], checks_in[at], mixed, keys, checks, counts)
                if counts[place] == 0:
                    if used >= used_max:
                        return row, at, used
                    used += 1
                    keys[place] = ids[at]
                    checks[place] = checks_in[at]
                    firsts[place] = row_base + row
                counts[place] += 1
            at += 1
        row += 1
    return row, at, used


@njit(nogil=True, cache=True)
def reinsert(
    old_keys: NDArray[np.uint64], old_checks: NDArray[np.uint64], old_counts: NDArray[np.int64],
    old_firsts: NDArray[np.int64], zero_bits: np.uint64,
    keys: NDArray[np.uint64], checks: NDArray[np.uint64],
    counts: NDArray[np.int64], firsts: NDArray[np.int64],
) -> int:  # fmt: skip
    """Move the entries that are still sampled into an empty table; gives the places taken.

    Parameters
    ----------
    old_keys, old_checks, old_counts, old_firsts
        The table to empty.
    zero_bits
        As in `observe`.
    keys, checks, counts, firsts
        The table to fill.
    """
    used = 0
    for i in range(old_keys.shape[0]):
        if old_counts[i] != 0:
            mixed = mix(old_keys[i])
            if mixed & zero_bits == _ZERO:
                place = _find(old_keys[i], old_checks[i], mixed, keys, checks, counts)
                keys[place] = old_keys[i]
                checks[place] = old_checks[i]
                counts[place] = old_counts[i]
                firsts[place] = old_firsts[i]
                used += 1
    return used
