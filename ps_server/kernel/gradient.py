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
from rowhouse.kernel import deduplicate, first_not_below, sum_groups


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
    group = np.empty(ids.shape[0], np.int32)
    unique = deduplicate(as_read_only(ids), group)
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
