# SPDX-License-Identifier: Apache-2.0
"""What happens to a push's gradients before the optimizer: checked, summed over duplicates, clipped.

Invariants: 1. duplicates are summed in the order of the push, in float32, so a replay gives the same
bits; 2. unique ids keep the order of their first appearance.
Thread safety: pure functions, but for `clip`, which writes its argument.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray
from rowhouse.ids import as_read_only, ascend
from rowhouse.mix import mix64_scalar

from ps_server.kernel.intrinsic import float_bits

_U32, _U64 = np.uint32, np.uint64
_CHECK_BLOCK = 4096


@njit(nogil=True, cache=True, error_model="numpy")
def first_not_below(gradients: NDArray[np.float32], bound: float) -> int:
    """Flat index of the first element of `gradients` (n, dim) float32 that is NaN or not below `bound`
    (greater than 0, infinity for any finite one) in magnitude; -1 if there is none."""
    bits = gradients.reshape(-1).view(_U32)
    limit = float_bits(np.float32(bound))
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


@njit(nogil=True, cache=True, error_model="numpy")
def group_ids(ids: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Distinct ids and where each id of a batch went.

    Parameters
    ----------
    ids
        (n,) uint64, any values.

    Returns
    -------
    tuple
        The distinct ids in order of first appearance, (m,) uint64, and for each input its index among
        them, (n,) int32. Open addressing with linear probing, at most half full.
    """
    count = ids.shape[0]
    bits = 4
    while (1 << bits) < 2 * count:
        bits += 1
    table = np.zeros(1 << bits, np.int32)  # index among the distinct ids, plus one; 0 is free
    mask, shift = _U64((1 << bits) - 1), _U64(64 - bits)
    unique = np.empty(count, _U64)
    group = np.empty(count, np.int32)
    found = 0
    for i in range(count):
        at = mix64_scalar(ids[i]) >> shift
        while table[at] != 0 and unique[table[at] - 1] != ids[i]:
            at = (at + _U64(1)) & mask
        if table[at] == 0:
            unique[found] = ids[i]
            found += 1
            table[at] = found
        group[i] = table[at] - 1
    return unique[:found], group


@njit(nogil=True, cache=True, error_model="numpy")
def sum_groups(gradients: NDArray[np.float32], group: NDArray[np.int32], count: int) -> NDArray[np.float32]:
    """Sum the rows of each group.

    Parameters
    ----------
    gradients
        (n, dim) float32.
    group
        (n,) int32, from `group_ids`: each group's first appearance comes in ascending order.
    count
        Number of groups, m.

    Returns
    -------
    NDArray
        A new (m, dim) float32 array.
    """
    dim = gradients.shape[1]
    out = np.empty((count, dim), np.float32)
    seen = 0
    for i in range(group.shape[0]):
        row = group[i]
        if row == seen:
            seen += 1
            for j in range(dim):
                out[row, j] = gradients[i, j]
        else:
            for j in range(dim):
                out[row, j] += gradients[i, j]
    return out


def sum_duplicates(
    ids: NDArray[np.uint64], gradients: NDArray[np.float32]
) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Ids without duplicates, and the sum of each one's gradients.

    Parameters
    ----------
    ids
        (n,) uint64, contiguous.
    gradients
        (n, dim) float32, C-contiguous.

    Returns
    -------
    tuple
        Ids in order of first appearance, (m,) uint64, and summed gradients, (m, dim) float32. The
        arguments themselves, not copies, if no id appears twice.
    """
    if ascend(ids):  # as np.unique and torch.unique leave them
        return ids, gradients
    ids = as_read_only(ids)
    unique, group = group_ids(ids)
    if unique.shape[0] == ids.shape[0]:
        return ids, gradients
    return unique, sum_groups(gradients, group, unique.shape[0])


def sum_below(
    ids: NDArray[np.uint64], gradients: NDArray[np.float32], bound: float
) -> tuple[NDArray[np.uint64], NDArray[np.float32], int]:
    """`sum_duplicates`, where no element reaches `bound` in magnitude, before or after the sum.

    Returns
    -------
    tuple
        What `sum_duplicates` returns, and -1. Or the ids and gradients in which an element is a NaN or not
        below `bound` (greater than 0, infinity for any finite one), and its flat index.
    """
    bad = int(first_not_below(gradients, bound))
    if bad >= 0:
        return ids, gradients, bad
    unique, sums = sum_duplicates(ids, gradients)
    return unique, sums, -1 if sums is gradients else int(first_not_below(sums, bound))


@njit(nogil=True, cache=True, error_model="numpy")
def clip(gradients: NDArray[np.float32], by_value: float, by_norm: float) -> None:
    """Clip finite gradients in place, first each element, then each row's L2 norm.

    Parameters
    ----------
    gradients
        (n, dim) float32, written: pass a copy if the push must keep its own.
    by_value
        Elements are brought into [-by_value, by_value]; 0 for no such limit.
    by_norm
        A row longer than this is scaled by by_norm / norm; 0 for no such limit.
    """
    limit = np.float32(by_value if by_value > 0.0 else np.inf)
    longest = by_norm if by_norm > 0.0 else np.inf
    for i in range(gradients.shape[0]):
        square = 0.0  # float64: a float32 sum of squares overflows at a norm of 1.8e19
        for j in range(gradients.shape[1]):
            g = min(max(gradients[i, j], -limit), limit)
            gradients[i, j] = g
            square += np.float64(g) * np.float64(g)
        norm = np.sqrt(square)
        if norm > longest:
            scale = np.float32(longest / norm)
            for j in range(gradients.shape[1]):
                gradients[i, j] *= scale
