# SPDX-License-Identifier: Apache-2.0
"""Rows of a bulk load put into buckets by their key: the first pass of a radix sort.

The pass writes to as many places as there are buckets, which stay in the processor's cache between two rows
of one bucket; a bucket that is full is for the caller to take away. (Satish et al. 2010, "Fast Sort on CPUs
and GPUs", section 3.1, has buffers like these before the memory of a radix sort.)

Thread safety: none; one thread at a time for one set of buckets.
"""

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ps_server.kernel.intrinsic import copy_bytes

PREFIX_SHIFT: Final = 48
"""Bits to drop from a key to get the prefix that a bucket is looked up by."""

_BYTE: Final = np.uint64(0xFF)


@njit(nogil=True, cache=True, error_model="numpy")
def scatter(
    keys: NDArray[np.uint64],
    weights: NDArray[np.uint8],
    weights_at: int,
    state: NDArray[np.uint8],
    state_at: int,
    first: int,
    bucket_of: NDArray[np.uint16],
    stage: NDArray[np.uint8],
    filled: NDArray[np.int64],
) -> tuple[int, int]:
    """Append records to their buckets until one of these is full.

    Parameters
    ----------
    keys
        (n,) uint64; written big-endian at the beginning of a record.
    weights, state
        (n, k) uint8 each, copied to `weights_at` and `state_at` of the record; a `state` of one row is
        taken for all records.
    weights_at, state_at
        Byte offsets in a record.
    first
        The record to begin with.
    bucket_of
        (65,536,) uint16: the bucket of a key's upper 16 bits.
    stage
        (buckets, rows, record_bytes) uint8; written. Bytes of a record that are not named above stay.
    filled
        (buckets,) int64: rows in each bucket; written. None may be full.

    Returns
    -------
    tuple[int, int]
        The record to go on with, and the bucket that is full, or -1 when all records are taken.
    """
    buckets_rows, width, state_width = stage.shape[1], weights.shape[1], state.shape[1]
    record_bytes = stage.shape[2]
    step = state_width if state.shape[0] == keys.shape[0] else 0
    to, weights_of, state_of = stage.reshape(-1), weights.reshape(-1), state.reshape(-1)
    for i in range(first, keys.shape[0]):
        key = keys[i]
        bucket = bucket_of[key >> np.uint64(PREFIX_SHIFT)]
        at = (bucket * buckets_rows + filled[bucket]) * record_bytes
        for j in range(8):
            to[at + j] = (key >> np.uint64(56 - 8 * j)) & _BYTE
        copy_bytes(to, at + weights_at, weights_of, i * width, width)
        copy_bytes(to, at + state_at, state_of, i * step, state_width)
        filled[bucket] += 1
        if filled[bucket] == buckets_rows:
            return i + 1, bucket
    return keys.shape[0], -1
