# SPDX-License-Identifier: Apache-2.0
"""Budgets and verdicts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_cross.author.estimate.memory import Budget, Cost, decide


def cost(name: str, rows: float, spread: float = 0.0, once: float = 0.5, row_bytes: int = 100) -> Cost:
    return Cost(name, rows, rows * (1 - spread), rows * (1 + spread), once, row_bytes)


@pytest.mark.parametrize(
    ("spread", "budget", "verdict", "within"),
    [
        (0.1, 1200, "fits", True),
        (0.3, 1200, "likely fits", True),
        (0.3, 800, "likely exceeds", False),
        (0.1, 800, "exceeds", False),
        (0.0, 1000, "fits", True),
    ],
)
def test_the_verdict_follows_the_bounds(spread: float, budget: int, verdict: str, within: bool) -> None:
    found = decide([cost("a", 10, spread)], Budget(budget, "memory"))
    assert (found.verdict, found.within) == (verdict, within)
    assert found.share == pytest.approx(1000 / budget)


def test_the_dearest_are_cut_until_the_rest_fits() -> None:
    costs = [cost("a", 10), cost("b", 50), cost("c", 20, row_bytes=200), cost("d", 1)]
    found = decide(costs, Budget(1200, "memory"))
    assert found.cut == ("b", "c")
    assert found.cut_bytes == 9000
    assert found.admit_twice_bytes == pytest.approx(found.bytes / 2)
    assert decide(costs, Budget(10**6, "memory")).cut == ()


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8), st.integers(1, 10**5))
def test_after_the_cut_it_fits_and_no_cut_is_idle(rows: list[int], budget: int) -> None:
    costs = [cost(f"f{i}", n) for i, n in enumerate(rows)]
    found = decide(costs, Budget(budget, "memory"))
    assert found.bytes - found.cut_bytes <= budget
    if found.cut:
        last = next(one.bytes for one in costs if one.name == found.cut[-1])
        assert found.bytes - found.cut_bytes + last > budget
