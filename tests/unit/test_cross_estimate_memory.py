# SPDX-License-Identifier: Apache-2.0
"""Bytes of a row against the server's own layout, budgets, verdicts."""

import itertools
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_cross.error import FlagError
from feature_cross.estimate import memory
from feature_cross.estimate.memory import Budget, Cost, RowShape, decide, parse_size
from ps_server import optimizer as server_optimizer
from ps_server.config import TableConfig
from ps_server.row import ID_BYTES, LSN_BYTES, RowLayout

SERVER_KINDS = {
    kind.model_fields["kind"].default: kind
    for kind in typing.get_args(typing.get_args(server_optimizer.OptimizerConfig)[0])
}


def test_every_optimizer_of_the_server_is_known() -> None:
    assert set(SERVER_KINDS) == set(memory.OPTIMIZER_STATE)


@pytest.mark.parametrize(("kind", "dtype"), list(itertools.product(SERVER_KINDS, memory.DTYPE_BYTES)))
@pytest.mark.parametrize("dim", [1, 3, 16, 64])
def test_a_row_has_the_bytes_of_the_servers_layout(kind: str, dtype: str, dim: int) -> None:
    config = TableConfig.model_validate(
        {"name": "t", "dim": dim, "dtype": dtype, "optimizer": {"kind": kind, "learning_rate": 0.1}}
    )
    layout = RowLayout.of(config)
    shape = RowShape(dim=dim, dtype=dtype, optimizer=kind)
    assert shape.state_words() == layout.state_size
    assert shape.row_bytes("memory") == layout.cost_bytes
    assert shape.row_bytes("store") == ID_BYTES + layout.stored_bytes + LSN_BYTES + 12


def test_metadata_is_counted_as_the_server_does() -> None:
    layout = RowLayout(dim=5, dtype=2, state_size=1, push_time=True, push_count=True, show_click=True)
    shape = RowShape(dim=5, dtype="fp16", state=1, metadata_bytes=16)
    assert shape.row_bytes("memory") == layout.cost_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("1.5 TB", 15 * 10**11),
        ("64GiB", 64 * 2**30),
        ("1000", 1000),
        ("3kb", 3000),
        ("7B", 7),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8XB", "1e9", "0", "8 GB GB", "nan"])
def test_a_size_that_is_none_is_named(text: str) -> None:
    with pytest.raises(FlagError, match="--budget is"):
        parse_size(text)


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
