# SPDX-License-Identifier: Apache-2.0
"""Folds operands' hashes into a feature's hash: dense columns, and products of lists.

state = start; for each operand: state = mix(state ^ hash), in order (feature_cross/id_format.py, section
"Mixer" of docs/id_format.md). The last step may lay the id out as well: & keep | top.
No argument has a default: numba takes 130 µs for a call that leaves one out.
Invariant: a kernel writes every element of `out`. Thread safety: free functions, GIL released; `out` is the
caller's.
"""

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from feature_cross.id_format import GAMMA, MULTIPLIER_1, MULTIPLIER_2

__all__ = [
    "fold_first", "fold_next", "fold_pair", "fold_product", "lay_out", "mix", "multiply_product",
    "product_offsets",
]  # fmt: skip

_GAMMA: Final = np.uint64(GAMMA)
_M1: Final = np.uint64(MULTIPLIER_1)
_M2: Final = np.uint64(MULTIPLIER_2)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)


@njit(inline="always")
def mix(x: Any) -> Any:
    """The mixer's bijection of one number, for use inside kernels."""
    z = np.uint64(x) + _GAMMA
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return z ^ (z >> _S31)


@njit(nogil=True, cache=True)
def fold_first(
    start: np.uint64,
    hashes: NDArray[np.uint64],
    out: NDArray[np.uint64],
    keep: np.uint64,
    top: np.uint64,
) -> None:
    """out[i] = mix(start ^ hashes[i]) & keep | top; all (n,) uint64."""
    state = start
    for i in range(hashes.shape[0]):
        out[i] = (mix(state ^ hashes[i]) & keep) | top


@njit(nogil=True, cache=True)
def fold_pair(
    start: np.uint64,
    a: NDArray[np.uint64],
    b: NDArray[np.uint64],
    out: NDArray[np.uint64],
    keep: np.uint64,
    top: np.uint64,
) -> None:
    """out[i] = mix(mix(start ^ a[i]) ^ b[i]) & keep | top: two operands in one pass; all (n,) uint64."""
    state = start
    for i in range(a.shape[0]):
        out[i] = (mix(mix(state ^ a[i]) ^ b[i]) & keep) | top


@njit(nogil=True, cache=True)
def fold_next(
    states: NDArray[np.uint64],
    hashes: NDArray[np.uint64],
    keep: np.uint64,
    top: np.uint64,
) -> None:
    """states[i] = mix(states[i] ^ hashes[i]) & keep | top, in place; both (n,) uint64."""
    for i in range(states.shape[0]):
        states[i] = (mix(states[i] ^ hashes[i]) & keep) | top


@njit(nogil=True, cache=True)
def lay_out(hashes: NDArray[np.uint64], keep: np.uint64, top: np.uint64) -> None:
    """hashes[i] = hashes[i] & keep | top, in place; (n,) uint64."""
    for i in range(hashes.shape[0]):
        hashes[i] = (hashes[i] & keep) | top


@njit(nogil=True, cache=True)
def product_offsets(
    left: NDArray[np.int64], right: NDArray[np.int64], alive: NDArray[np.uint8], limit: int, cut: bool
) -> tuple[NDArray[np.int64], int]:
    """Offsets of the row-wise product of two jagged columns.

    Parameters
    ----------
    left, right
        (rows + 1,) int64.
    alive
        (rows,) uint8; 0 where some other operand is empty, so that the row has no product.
    limit, cut
        Most ids of one row. Past it the row is cut, or named.

    Returns
    -------
    (rows + 1,) int64, and the first row past `limit` that may not be cut, or -1.
    """
    rows = alive.shape[0]
    offsets = np.empty(rows + 1, np.int64)
    offsets[0] = 0
    for r in range(rows):
        count = 0
        if alive[r]:
            # Neither factor is past 2^31 (an Arrow list) and 2^16 (limit), so this cannot overflow.
            count = (left[r + 1] - left[r]) * (right[r + 1] - right[r])
            if count > limit:
                if not cut:
                    return offsets, r
                count = limit
        offsets[r + 1] = offsets[r] + count
    return offsets, -1


@njit(nogil=True, cache=True)
def fold_product(
    states: NDArray[np.uint64],
    state_offsets: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    hash_offsets: NDArray[np.int64],
    out: NDArray[np.uint64],
    out_offsets: NDArray[np.int64],
) -> None:
    """Fold a jagged operand into jagged states, row by row, the operand varying fastest.

    Shapes: states and hashes (total,) uint64 with (rows + 1,) int64 offsets; out as product_offsets says.
    A row of `out` that is shorter than its product keeps the first ids.
    """
    for r in range(out_offsets.shape[0] - 1):
        k = out_offsets[r]
        end = out_offsets[r + 1]
        i = state_offsets[r]
        while k < end:
            for j in range(hash_offsets[r], hash_offsets[r + 1]):
                if k == end:
                    break
                out[k] = mix(states[i] ^ hashes[j])
                k += 1
            i += 1


@njit(nogil=True, cache=True)
def multiply_product(
    left: NDArray[np.float32],
    left_offsets: NDArray[np.int64],
    right: NDArray[np.float32],
    right_offsets: NDArray[np.int64],
    out: NDArray[np.float32],
    out_offsets: NDArray[np.int64],
) -> None:
    """The weights of what `fold_product` makes: left times right, row by row; shapes as there, float32."""
    for r in range(out_offsets.shape[0] - 1):
        k = out_offsets[r]
        end = out_offsets[r + 1]
        i = left_offsets[r]
        while k < end:
            for j in range(right_offsets[r], right_offsets[r + 1]):
                if k == end:
                    break
                out[k] = left[i] * right[j]
                k += 1
            i += 1
