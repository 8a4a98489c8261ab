# SPDX-License-Identifier: Apache-2.0
"""mix64: the bijection of 64-bit ids that placement, the store's keys and the initializers share.

It is the finaliser of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators", section 4.2, constants of variant 13 by Stafford), applied to id + the golden gamma.
Invariants: 1. distinct ids have distinct images; 2. unmix64(mix64(x)) == x for all 2^64 ids.
Thread safety: pure functions.
"""

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

GOLDEN_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_M1: Final = np.uint64(0xBF58476D1CE4E5B9)
_M2: Final = np.uint64(0x94D049BB133111EB)
_INVERSE_M1: Final = np.uint64(0x96DE1B173F119089)
_INVERSE_M2: Final = np.uint64(0x319642B2D24D8EC3)
_S27, _S30, _S31, _S54, _S60, _S62 = (np.uint64(s) for s in (27, 30, 31, 54, 60, 62))


@njit(inline="always")
def mix64_scalar(x: np.uint64) -> np.uint64:
    """mix64 of one id, for use inside other kernels."""
    z = np.uint64(x) + GOLDEN_GAMMA
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return z ^ (z >> _S31)


@njit(inline="always")
def unmix64_scalar(x: np.uint64) -> np.uint64:
    """The inverse of mix64_scalar."""
    z = np.uint64(x)
    z = (z ^ (z >> _S31) ^ (z >> _S62)) * _INVERSE_M2
    z = (z ^ (z >> _S27) ^ (z >> _S54)) * _INVERSE_M1
    z = z ^ (z >> _S30) ^ (z >> _S60)
    return z - GOLDEN_GAMMA


@njit(nogil=True, cache=True)
def mix64(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """mix64 of each id; `ids` is (n,) uint64, the answer a new (n,) uint64."""
    out = np.empty(ids.shape[0], np.uint64)
    for i in range(ids.shape[0]):
        out[i] = mix64_scalar(ids[i])
    return out


@njit(nogil=True, cache=True)
def unmix64(mixed: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The id of each image; `mixed` is (n,) uint64, the answer a new (n,) uint64."""
    out = np.empty(mixed.shape[0], np.uint64)
    for i in range(mixed.shape[0]):
        out[i] = unmix64_scalar(mixed[i])
    return out
