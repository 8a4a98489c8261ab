# SPDX-License-Identifier: Apache-2.0
"""Slow, obvious oracles for the kernels: plain Python over one element at a time, float64 arithmetic."""

import math

import numpy as np
from numpy.typing import NDArray

MASK = (1 << 64) - 1


def mix64(x: int) -> int:
    """Splitmix64's finaliser of one integer."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def rounding_random(row_id: int, lsn: int, element: int) -> int:
    """The 32 random bits that round one element."""
    word = mix64((mix64(row_id ^ mix64(lsn)) + element // 2) & MASK)
    return (word >> 32 * (element % 2)) & 0xFFFFFFFF


def round_stochastically(value: float, random: int, grid: NDArray[np.float64], random_bits: int) -> float:
    """`value` to one of its neighbours in `grid` (ascending, finite), up with probability proportional to
    the distance from the lower one. `random` is uniform below 2^random_bits.
    """
    if math.isnan(value):
        return value
    magnitude = abs(value)
    if magnitude >= grid[-1]:
        return math.copysign(float(grid[-1]), value)
    upper = int(np.searchsorted(grid, magnitude, side="right"))
    low, high = float(grid[upper - 1]), float(grid[upper])
    fraction = (magnitude - low) / (high - low)
    goes_up = math.floor(fraction * 2**random_bits) + random % 2**random_bits >= 2**random_bits
    return math.copysign(high if goes_up else low, value)
