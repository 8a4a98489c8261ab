# SPDX-License-Identifier: Apache-2.0
"""Bytes of a row on rowhouse's servers, budgets as people write them, and what to cut when a sum is past one.

feature_cross imports nothing of the server, so the layout's arithmetic (docs/row_format.md) stands here a
second time; tests/unit/test_cross_estimate_memory.py holds the two together, for every optimizer and dtype.
Thread safety: pure functions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from feature_cross.error import FlagError

__all__ = [
    "DTYPE_BYTES", "OPTIMIZER_STATE", "TIERS", "Budget", "Cost", "RowShape", "Verdict", "decide",
    "parse_size",
]  # fmt: skip

DTYPE_BYTES: Final[Mapping[str, int]] = {"fp32": 4, "fp16": 2, "bf16": 2}

OPTIMIZER_STATE: Final[Mapping[str, tuple[int, int]]] = {
    "sgd": (0, 0), "momentum": (1, 0), "adagrad": (1, 0), "rowwise_adagrad": (0, 1), "adam": (2, 1),
    "adamw": (2, 1), "ftrl": (2, 0), "group_ftrl": (2, 0), "fobos": (0, 0), "fobos_adagrad": (1, 0),
}  # fmt: skip
"""float32 words of state by optimizer: per weight, and per row besides."""

TIERS: Final = ("memory", "store")
"""`memory`: every row hot, with its place in the index. `store`: on disk, before compression."""

_ID_BYTES: Final = 8
_LSN_BYTES: Final = 6
_INDEX_BYTES: Final = 14
_STORE_OVERHEAD_BYTES: Final = 12
"""RocksDB's own, compacted and uncompressed: 84 bytes were measured for a key of 8 and a value of 64, 52 for
a value of 32, Bloom filter included (docs/performance.md)."""

_UNITS: Final = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "PIB": 2**50,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShape:
    """What a row of a table is made of.

    Attributes
    ----------
    dim
        Weights.
    dtype
        Their type: fp32, fp16 or bf16.
    optimizer
        Whose state is beside them.
    state
        float32 words of state; None takes the optimizer's.
    metadata_bytes
        Of the table's policies: 4 for a TTL, 4 for least-frequent eviction, 12 for show/click scores.
    """

    dim: int = 16
    dtype: str = "fp32"
    optimizer: str = "adagrad"
    state: int | None = None
    metadata_bytes: int = 0

    def state_words(self, dim: int | None = None) -> int:
        """float32 words of state of a row of `dim` weights (the shape's own if None)."""
        if self.state is not None:
            return self.state
        per_weight, per_row = OPTIMIZER_STATE[self.optimizer]
        return per_weight * (self.dim if dim is None else dim) + per_row

    def row_bytes(self, tier: str, dim: int | None = None) -> int:
        """Bytes of one row in a tier, at `dim` weights (the shape's own if None)."""
        weights = (self.dim if dim is None else dim) * DTYPE_BYTES[self.dtype]
        value = -(-weights // 4) * 4 + 4 * self.state_words(dim) + self.metadata_bytes
        if tier == "store":
            return _ID_BYTES + value + _LSN_BYTES + _STORE_OVERHEAD_BYTES
        return -(-(_ID_BYTES + value) // 8) * 8 + _INDEX_BYTES


def parse_size(text: str) -> int:
    """Bytes of `8GB`, `1.5 TB`, `64GiB` or `1000`; FlagError if it is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise FlagError(f"--budget is {text!r}; it must be a number and a unit, as 8GB, 64GiB or 1.5TB")
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size < 1:
        raise FlagError(f"--budget is {text!r}; it must be at least 1 byte")
    return size


@dataclass(frozen=True, slots=True)
class Cost:
    """Rows of one group of features that share ids (mostly one feature), now or as projected.

    `low` and `high` are the bounds of `rows`; `once_share` is the share of rows seen once.
    """

    name: str
    rows: float
    low: float
    high: float
    once_share: float
    row_bytes: int

    @property
    def bytes(self) -> float:
        """Bytes of all rows."""
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget of `bytes` in a tier."""

    bytes: int
    tier: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """A sum against a budget.

    Attributes
    ----------
    verdict
        `fits` (also at the upper bound), `likely fits` (the upper bound does not), `likely exceeds` (the
        lower bound fits) or `exceeds`.
    bytes, low, high
        The sum, and its bounds: those of all features at once, so they are wide.
    share
        Of the budget.
    cut
        Names to cut, the dearest first, until the rest fits; empty where all fits.
    cut_bytes
        What that frees.
    admit_twice_bytes
        The sum if a row is only made at an id's second occurrence.
    """

    verdict: str
    bytes: float
    low: float
    high: float
    share: float
    cut: tuple[str, ...]
    cut_bytes: float
    admit_twice_bytes: float

    @property
    def within(self) -> bool:
        """Whether the expected sum is within the budget."""
        return self.verdict in ("fits", "likely fits")


def decide(costs: Sequence[Cost], budget: Budget) -> Verdict:
    """Hold a sum to a budget.

    Parameters
    ----------
    costs
        What each group of features takes.
    budget
        The most that they may take together.
    """
    total = sum(cost.bytes for cost in costs)
    low = sum(cost.low * cost.row_bytes for cost in costs)
    high = sum(cost.high * cost.row_bytes for cost in costs)
    if total <= budget.bytes:
        verdict = "fits" if high <= budget.bytes else "likely fits"
    else:
        verdict = "exceeds" if low > budget.bytes else "likely exceeds"
    cut: list[str] = []
    freed = 0.0
    for cost in sorted(costs, key=lambda cost: (-cost.bytes, cost.name)):
        if total - freed <= budget.bytes:
            break
        cut.append(cost.name)
        freed += cost.bytes
    twice = sum(cost.bytes * (1 - cost.once_share) for cost in costs)
    return Verdict(verdict, total, low, high, total / budget.bytes, tuple(cut), freed, twice)
