# SPDX-License-Identifier: Apache-2.0
"""Kernels of the client: dedup with inverse, split by shard, gather back, sums of duplicates and of bags.

Free functions over arrays; each releases the GIL, and each has a naive oracle in
tests/unit/test_client_kernel.py. What an array may hold is checked before (validation.py).

Invariants: 1. distinct ids come in the order of their first appearance, so the same batch always
gives the same message; 2. gradients of one id are added in fp32 in the order of appearance, so a
push has the same bits however it is split; 3. within a shard, ids keep their order.
Thread safety: pure functions; scratch is allocated by each call.
"""

import math
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray
from rowhouse.ids import as_read_only
from rowhouse.mix import mix64_scalar
from rowhouse.placement import PARTITION_SHIFT

_EMPTY: Final = np.int32(-1)
_EXPONENT: Final = np.uint32(0x7F800000)
"""Exponent bits of an fp32; all set in a NaN or an infinity and in nothing else."""

BLOCK: Final = 16
"""Ids hashed ahead of their probes: the hashes of a block do not wait for one another's misses."""


@njit(nogil=True, cache=True)
def deduplicate(ids: NDArray[np.uint64], inverse: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Distinct ids of `ids` in the order of first appearance.

    An open-addressing table with linear probing at load 1/4 to 1/2; it holds 4-byte positions into
    the answer, so a batch of 26,624 ids needs 256 KiB of table and stays in the L2 cache.

    Parameters
    ----------
    ids
        (n,) uint64, n < 2^31.
    inverse
        (n,) int64, written: `answer[inverse[i]] == ids[i]`.

    Returns
    -------
    ndarray
        (u,) uint64, new.
    """
    count = ids.shape[0]
    size = 16
    while size < 2 * count:
        size *= 2
    mask = np.uint64(size - 1)
    slots = np.full(size, _EMPTY, np.int32)
    distinct = np.empty(count, np.uint64)
    homes = np.empty(BLOCK, np.uint64)
    found = 0
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        for i in range(start, stop):
            homes[i - start] = mix64_scalar(ids[i]) & mask
        for i in range(start, stop):
            slot = homes[i - start]
            while True:
                position = slots[slot]
                if position == _EMPTY:
                    slots[slot] = found
                    distinct[found] = ids[i]
                    inverse[i] = found
                    found += 1
                    break
                if distinct[position] == ids[i]:
                    inverse[i] = position
                    break
                slot = (slot + np.uint64(1)) & mask
    return distinct[:found].copy()


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
def sum_duplicates(
    gradients: NDArray[np.float32], inverse: NDArray[np.int64], count: int
) -> NDArray[np.float32]:
    """Sum of the gradients of each distinct id, in fp32, in the order of appearance.

    Parameters
    ----------
    gradients
        (n, dim) float32.
    inverse
        (n,) int64 from `deduplicate`: values rise by one at each first appearance, so a first
        gradient is copied and nothing needs zeroing.
    count
        Number of distinct ids.

    Returns
    -------
    ndarray
        (count, dim) float32, new.
    """
    out = np.empty((count, gradients.shape[1]), np.float32)
    seen = 0
    for i in range(inverse.shape[0]):
        row = inverse[i]
        if row == seen:
            for j in range(out.shape[1]):
                out[row, j] = gradients[i, j]
            seen += 1
        else:
            for j in range(out.shape[1]):
                out[row, j] += gradients[i, j]
    return out


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


@njit(nogil=True, cache=True)
def _largest_exponent(bits: NDArray[np.uint32]) -> np.uint32:
    # An integer reduction without a branch: LLVM turns it into vector instructions.
    largest = np.uint32(0)
    for i in range(bits.shape[0]):
        largest = max(largest, bits[i] & _EXPONENT)
    return largest


def magnitude_bound(values: NDArray[np.float32]) -> float:
    """The power of two that every element of a C-contiguous float32 array is below in magnitude; infinity
    when one is a NaN or an infinity."""
    exponent = int(_largest_exponent(as_read_only(values.reshape(-1).view(np.uint32))))
    return math.inf if exponent == _EXPONENT else math.ldexp(1.0, (exponent >> 23) - 126)
