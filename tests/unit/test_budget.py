# SPDX-License-Identifier: Apache-2.0
"""The memory budget: never above its total, never below a table's floor."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rowhouse.error import ConfigError

from ps_server.table.budget import FLOOR_FRACTION, Budget, least_budget, split

TOTAL = 1_000_000


def test_a_greedy_table_leaves_every_other_its_floor() -> None:
    budget = Budget(TOTAL, ["a", "b", "c", "d"])
    floor = budget.floor_bytes
    assert floor == TOTAL * FLOOR_FRACTION / 4
    assert not budget.grant("a", TOTAL)
    assert budget.grant("a", TOTAL - 3 * floor)
    assert not budget.grant("a", 1)
    assert not budget.grant("b", floor + 1)
    assert all(budget.grant(name, floor) for name in "bcd")
    assert budget.granted_bytes == TOTAL and not budget.grant("d", 1)


def test_what_is_released_can_be_granted_again() -> None:
    budget = Budget(TOTAL, ["a"])
    assert budget.grant("a", TOTAL) and not budget.grant("a", 1)
    budget.release("a", 8)
    assert not budget.grant("a", 9) and budget.grant("a", 8)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, TOTAL))))
def test_never_above_the_total_and_floors_are_always_there(asks: list[tuple[str, int]]) -> None:
    budget = Budget(TOTAL, ["a", "b", "c"])
    granted = dict.fromkeys("abc", 0)
    for name, wanted in asks:
        if budget.grant(name, wanted):
            granted[name] += wanted
        assert budget.granted_bytes == sum(granted.values()) <= TOTAL
    for name, held in granted.items():
        assert held >= budget.floor_bytes or budget.grant(name, budget.floor_bytes - held)


def test_threads_together_get_no_more_than_the_total() -> None:
    budget = Budget(TOTAL, ["a", "b"])
    with ThreadPoolExecutor(4) as pool:
        won = sum(pool.map(lambda i: budget.grant("ab"[i % 2], 997), range(2_000)))
    assert budget.granted_bytes == won * 997
    assert TOTAL - 997 < won * 997 <= TOTAL


def test_a_floor_too_small_for_a_batch_is_a_config_error() -> None:
    budget = Budget(TOTAL, ["a", "b"])
    budget.require_rows("a", budget.floor_bytes // 64, 64)
    with pytest.raises(ConfigError, match=r"table 'a'; it needs 128000 \(64 rows of 2000 bytes\).* 1024000 "):
        budget.require_rows("a", 2_000, 64)
    Budget(1_024_000, ["a", "b"]).require_rows("a", 2_000, 64)


@pytest.mark.parametrize("budget", [1 << 20, 64 << 20, 100 << 20, 192 << 20, 1 << 30, 4 << 30, 1 << 40])
def test_a_budget_is_split_without_a_remainder_and_back(budget: int) -> None:
    store, rows = split(budget)
    kept_free = budget - store - rows
    assert store == min(budget // 4, 320 << 20)
    if budget >= 192 << 20:
        assert kept_free == (32 << 20) + min(budget // 8, 256 << 20)
    assert (kept_free > 0) == (budget > 64 << 20)
    assert least_budget(rows) <= budget
    assert split(least_budget(rows))[1] >= rows > split(least_budget(rows) - 8)[1]
