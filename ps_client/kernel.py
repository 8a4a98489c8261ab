# SPDX-License-Identifier: Apache-2.0
"""Kernels of the client: split by shard, gather back, sums of bags. Dedup and sums are in rowhouse/kernel.py.

Free functions over arrays; each releases the GIL, and each has a naive oracle in
tests/unit/test_client_kernel.py. What an array may hold is checked before (validation.py).

Invariants: 1. within a shard, ids keep their order; 2. gradients of one id are added in fp32 in the order of
appearance.
Thread safety: pure functions; scratch is allocated by each call.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray
from rowhouse.mix import mix64_scalar
from rowhouse.placement import PARTITION_SHIFT


@njit(nogil=True, cache=True)
def group_by_shard(
    ids: NDArray[np.uint64], shards: NDArray[np.uint16], shard_count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of `ids` ordered by shard: a stable counting sort.

    Parameters
    ----------
    ids
        (n,) uint64.
    shards
        (PARTITIONS,) uint16, the shard of each partition (placement.PartitionMap.shards).
    shard_count
        Number of shards; each value of `shards` is below it.

    Returns
    -------
    positions, bounds
        (n,) int64 and (shard_count + 1,) int64: shard s gets `positions[bounds[s]:bounds[s + 1]]`.
    """
    count = ids.shape[0]
    owners = np.empty(count, np.uint16)
    bounds = np.zeros(shard_count + 1, np.int64)
    for i in range(count):
        owner = shards[mix64_scalar(ids[i]) >> PARTITION_SHIFT]
        owners[i] = owner
        bounds[owner + 1] += 1
    for shard in range(shard_count):
        bounds[shard + 1] += bounds[shard]
    following = bounds[:shard_count].copy()
    positions = np.empty(count, np.int64)
    for i in range(count):
        owner = owners[i]
        positions[following[owner]] = i
        following[owner] += 1
    return positions, bounds


@njit(nogil=True, cache=True)
def gather(rows: NDArray[np.float32], positions: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Write `out[i] = rows[positions[i]]`; `rows` (u, dim), `positions` (n,), `out` (n, dim)."""
    for i in range(positions.shape[0]):
        position = positions[i]
        for j in range(out.shape[1]):
            out[i, j] = rows[position, j]


@njit(nogil=True, cache=True)
def scatter(rows: NDArray[np.float32], positions: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Write `out[positions[i]] = rows[i]`; `rows` (n, dim), distinct `positions` (n,), `out` (u, dim)."""
    for i in range(positions.shape[0]):
        position = positions[i]
        for j in range(out.shape[1]):
            out[position, j] = rows[i, j]


@njit(nogil=True, cache=True)
def are_bags(starts: NDArray[np.int64], count: int) -> bool:
    """Whether (B + 1,) `starts` cut the first of `count` ids into B bags: from 0, at most to `count`, never
    down."""
    bags = starts.shape[0] - 1
    if bags < 0 or starts[0] != 0 or starts[bags] > count:
        return False
    falls = 0
    for bag in range(bags):
        falls += starts[bag + 1] < starts[bag]
    return falls == 0


@njit(nogil=True, cache=True)
def sum_pooled(
    gradients: NDArray[np.float32],
    starts: NDArray[np.int64],
    inverse: NDArray[np.int64],
    weights: NDArray[np.float32],
    mean: bool,
    seen: int,
    sums: NDArray[np.float32],
) -> int:
    """Add to each distinct id's sum what it gets of the bags that it is in, in the order of appearance.

    Parameters
    ----------
    gradients
        (B, dim) float32, of the pooled vectors.
    starts
        (B + 1,) int64 that are_bags of n; (0,): each id is a bag.
    inverse
        (n,) int64, which sum each id adds to.
    weights
        (n,) factors of the ids; (0,): all 1.
    mean
        Whether a bag is the mean of its rows.
    seen
        Distinct ids before these; they are numbered by first appearance, so a first gradient is copied and
        needs no zero before it. -1: add them all to what is there.
    sums
        (u, dim) float32, written.

    Returns
    -------
    int
        `seen` for the ids that follow.
    """
    single = starts.shape[0] == 0
    weighted = weights.shape[0] > 0
    for bag in range(gradients.shape[0]):
        first, last = (bag, bag + 1) if single else (starts[bag], starts[bag + 1])
        shared = np.float32(1.0)
        if mean and not single and last > first:
            shared = np.float32(1.0) / np.float32(last - first)
        for i in range(first, last):
            factor = shared * weights[i] if weighted else shared
            row = inverse[i]
            if row == seen:
                for j in range(sums.shape[1]):
                    sums[row, j] = factor * gradients[bag, j]
                seen += 1
            else:
                for j in range(sums.shape[1]):
                    sums[row, j] += factor * gradients[bag, j]
    return seen
