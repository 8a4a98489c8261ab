# SPDX-License-Identifier: Apache-2.0
"""A sum of bytes against a budget, and what to cut when it is past it; bytes of a row are in
feature_cross/author/size.py. Thread safety: pure functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Budget", "Cost", "Verdict", "decide"]


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
