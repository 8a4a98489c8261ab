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


def _shrink(value: float, threshold: float) -> float:
    return math.copysign(max(abs(value) - threshold, 0.0), value)


class FtrlRow:
    """FTRL-proximal of one row, with an optional lasso over the row, in float64."""

    def __init__(
        self, dim: int, rate: float, beta: float, l1: float, l2: float, accumulator: float, l21: float = 0.0
    ) -> None:
        self.rate, self.beta, self.l1, self.l2, self.l21 = rate, beta, l1, l2, l21
        self.w, self.z, self.n = [0.0] * dim, [0.0] * dim, [accumulator] * dim

    def step(self, gradient: NDArray[np.float32]) -> None:
        solution = []
        for j, g in enumerate(map(float, gradient)):
            sigma = (math.sqrt(self.n[j] + g * g) - math.sqrt(self.n[j])) / self.rate
            self.z[j] += g - sigma * self.w[j]
            self.n[j] += g * g
            solution.append(-_shrink(self.z[j], self.l1))
        norm = math.sqrt(sum(s * s for s in solution))
        limit = self.l21 * math.sqrt(len(solution))
        keep = 0.0 if norm <= limit else 1.0 - limit / norm
        for j, s in enumerate(solution):
            self.w[j] = keep * s / ((self.beta + math.sqrt(self.n[j])) / self.rate + self.l2) if s else 0.0


class FobosRow:
    """Forward-backward splitting of one row in float64; `eps` None is the plain step."""

    def __init__(
        self, dim: int, rate: float, l1: float, l2: float, eps: float | None = None, accumulator: float = 0.0
    ) -> None:
        self.rate, self.l1, self.l2, self.eps = rate, l1, l2, eps
        self.w, self.n = [0.0] * dim, [accumulator] * dim

    def step(self, gradient: NDArray[np.float32]) -> None:
        for j, g in enumerate(map(float, gradient)):
            self.n[j] += g * g
            rate = self.rate if self.eps is None else self.rate / (math.sqrt(self.n[j]) + self.eps)
            self.w[j] = _shrink(self.w[j] - rate * g, rate * self.l1) / (1.0 + rate * self.l2)


class RowwiseAdagradRow:
    """Adagrad with one accumulator for the row, in float64."""

    def __init__(self, dim: int, rate: float, decay: float, eps: float, accumulator: float) -> None:
        self.rate, self.decay, self.eps, self.n, self.w = rate, decay, eps, accumulator, [0.0] * dim

    def step(self, gradient: NDArray[np.float32]) -> None:
        g = [float(x) + self.decay * w for x, w in zip(gradient, self.w, strict=True)]
        self.n += sum(x * x for x in g) / len(g)
        self.w = [w - self.rate / (math.sqrt(self.n) + self.eps) * x for w, x in zip(self.w, g, strict=True)]


def sum_duplicates(ids: list[int], gradients: NDArray[np.float32]) -> dict[int, NDArray[np.float32]]:
    """Sum of each id's gradients, added in float32 in the order of the batch."""
    sums: dict[int, NDArray[np.float32]] = {}
    for i, one in enumerate(ids):
        sums[one] = sums[one] + gradients[i] if one in sums else gradients[i].copy()
    return sums


def initial_uniform(seed: int, row_id: int, element: int) -> float:
    """The uniform deviate in (0, 1) behind one initial weight."""
    bits = mix64((mix64(row_id ^ mix64(seed)) + element) & MASK)
    return ((bits >> 12) + 0.5) / 2.0**52


class Sketch:
    """Count-min of four rows with conservative update, each id's counters in one line of 64 bytes."""

    def __init__(self, width_bits: int, counter_bytes: int, seed: int) -> None:
        self.line = 64 // counter_bytes
        self.limit: int = 256**counter_bytes - 1
        self.lines: int = 2**width_bits // self.line
        self.counters: list[int] = [0] * 2**width_bits
        self.key = mix64(seed)

    def add(self, row_id: int) -> int:
        h = mix64(row_id ^ self.key)
        lane = self.line // 4
        places = [(h >> 32) % self.lines * self.line + r * lane + (h >> 4 * r) % lane for r in range(4)]
        count = min(min(self.counters[p] for p in places) + 1, self.limit)
        for p in places:
            self.counters[p] = max(self.counters[p], count)
        return count
