# SPDX-License-Identifier: Apache-2.0
"""kernel/step.py through the arena: every row that is here is stepped as by itself, and no other is."""

from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from rowhouse import dtype

from ps_server.disk.row import RowLayout
from ps_server.kernel import index
from ps_server.kernel.rounding import round_rows, widen_rows
from ps_server.kernel.step import STEP_HOT
from ps_server.table.arena import Arena
from ps_server.table.optimizer import OptimizerConfig

from .optimizer_kernel import kernel_of

KINDS: list[Any] = list(get_args(get_args(OptimizerConfig)[0]))
LSN = 77


def _arena(optimizer: Any, dim: int, code: int, ids: NDArray[np.uint64]) -> Arena:
    """Rows of `ids`, their weights and states below 1 and above 0."""
    layout = RowLayout(
        dim=dim, dtype=code, state_size=optimizer.state_size(dim), push_time=True, push_count=False
    )
    arena = Arena(layout, 1000, lambda _bytes: True)
    arena.insert(ids, arena.free_places(ids.shape[0]), 0)
    rng = np.random.default_rng(dim)
    for slot in range(ids.shape[0]):
        first = slot * layout.stride
        weights = dtype.narrow(rng.random((1, dim), np.float32), code).view(np.uint8).reshape(-1)
        arena.records8[first + layout.weights_at :][: weights.shape[0]] = weights
        state = rng.random(layout.state_size, np.float32).view(np.uint8)
        arena.records8[first + layout.state_at :][: state.shape[0]] = state
    return arena


def _step_one(
    arena: Arena, optimizer: Any, slot: int, row_id: NDArray[np.uint64], gradient: NDArray[np.float32]
) -> None:
    """The oracle: one row by the optimizer's own kernel."""
    layout, code = arena.layout, arena.layout.dtype
    first = np.array([slot * layout.stride])
    weight_at, state_at = (first + layout.weights_at) // 4, (first + layout.state_at) // 4
    words = arena.records32
    if code != dtype.FLOAT32:
        row_at, tile = (first + layout.weights_at) // 2, np.empty((1, layout.dim), np.float32)
        widen_rows(arena.records16, row_at, layout.dim, code, tile)
        words, weight_at = tile.reshape(-1), np.zeros(1, np.int64)
    kernel_of(optimizer)(words, weight_at, arena.records32, state_at, gradient, optimizer.hyper())
    if code != dtype.FLOAT32:
        round_rows(tile, row_id, LSN, layout.dim, code, arena.records16, row_at)


@pytest.mark.parametrize("code", sorted(dtype.NAMES))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dim", "count", "missing"), [(16, 200, 0), (5, 200, 40), (1, 64, 64), (3, 65, 1), (70, 150, 9)]
)
def test_rows_that_are_here_are_stepped_as_one_by_one(
    kind: Any, code: int, dim: int, count: int, missing: int
) -> None:
    optimizer, rng = kind(), np.random.default_rng(count)
    ids = rng.permutation(np.arange(1, count + 1, dtype=np.uint64) << np.uint64(40))
    here = np.sort(rng.permutation(count)[missing:])
    gradients = rng.standard_normal((count, dim)).astype(np.float32)
    others = np.arange(5, dtype=np.uint64)
    expected, arena = (_arena(optimizer, dim, code, np.append(others, ids[here])) for _ in range(2))
    for i in here:
        places, _ = expected.find(ids[i : i + 1])
        _step_one(expected, optimizer, int(places[0]), ids[i : i + 1], gradients[i : i + 1])
    places, absent = arena.step(STEP_HOT[optimizer.kind], ids, gradients, optimizer.hyper(), LSN)
    assert absent == missing
    np.testing.assert_array_equal(np.flatnonzero(places >= 0), here)
    np.testing.assert_array_equal(arena.ids_of(places[here]), ids[here])
    np.testing.assert_array_equal(arena.records8, expected.records8)
    dirty = index.REFERENCED | index.DIRTY
    assert (arena.flags_of(ids[here]) == dirty).all() and not arena.flags_of(others).any()


def test_every_optimizer_can_step() -> None:
    assert {kind().kind for kind in KINDS} == set(STEP_HOT)
