# SPDX-License-Identifier: Apache-2.0
"""1,000 random steps of each optimizer, with duplicate ids, against torch.optim or a float64 oracle."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.limit import GRADIENT_BOUND

from ps_server.kernel.rounding import round_rows, widen_rows
from ps_server.table.optimizer import (
    Adagrad,
    Adam,
    AdamW,
    Fobos,
    FobosAdagrad,
    Ftrl,
    GroupFtrl,
    Momentum,
    Optimizer,
    RowwiseAdagrad,
    Sgd,
)
from ps_server.table.push import sum_duplicates
from tests import naive

from .optimizer_kernel import kernel_of

ROWS, STEPS = 6, 1000
DIMS = [1, 7, 16]


class Rows:
    """A few rows in one buffer, state beside the weights as in the arena, with gaps between them."""

    def __init__(self, optimizer: Optimizer, weights: NDArray[np.float32]) -> None:
        self.optimizer, self.dim = optimizer, weights.shape[1]
        size = self.dim + optimizer.state_size(self.dim)
        self.buffer = np.full(3 + ROWS * (size + 2), 777.0, np.float32)
        self.weight_at = 3 + np.arange(ROWS, dtype=np.int64) * (size + 2)
        self.inside = (self.weight_at[:, None] + np.arange(size)).reshape(-1)
        state = np.tile(optimizer.initial_state(self.dim), (ROWS, 1))
        self.buffer[self.inside] = np.hstack([weights, state]).reshape(-1)

    def step(
        self, ids: NDArray[np.uint64], gradients: NDArray[np.float32], rate: float | None = None
    ) -> None:
        at = self.weight_at[ids.astype(np.int64)]
        buffer, hyper = self.buffer, self.optimizer.hyper(rate)
        kernel_of(self.optimizer)(buffer, at, buffer, at + self.dim, self.optimizer.clipped(gradients), hyper)

    @property
    def weights(self) -> NDArray[np.float32]:
        assert (np.delete(self.buffer, self.inside) == 777.0).all(), "a gap between rows was written"
        out: NDArray[np.float32] = self.buffer[self.weight_at[:, None] + np.arange(self.dim)]
        return out


def _pushes(dim: int, seed: int) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float32]]]:
    """Batches of 1 to 9 ids among 6 rows: duplicates in nearly all, rows untouched in nearly all."""
    rng = np.random.default_rng(seed)
    drift = rng.standard_normal((ROWS, dim))
    for _ in range(STEPS):
        ids = rng.integers(0, ROWS, rng.integers(1, 10), np.uint64)
        noise = rng.standard_normal((ids.shape[0], dim)) * 2.0 ** rng.integers(-6, 3)
        yield ids, (noise + 0.1 * drift[ids.astype(np.int64)]).astype(np.float32)


def _initial(dim: int) -> NDArray[np.float32]:
    return np.random.default_rng(17).uniform(-0.5, 0.5, (ROWS, dim)).astype(np.float32)


Factory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
AGAINST_TORCH: list[tuple[Optimizer, Factory]] = [
    (Sgd(learning_rate=0.05), lambda p: torch.optim.SGD(p, 0.05)),
    (Sgd(learning_rate=0.02, weight_decay=0.1), lambda p: torch.optim.SGD(p, 0.02, weight_decay=0.1)),
    (
        Momentum(learning_rate=0.01, weight_decay=0.02),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.02),
    ),
    (
        Momentum(learning_rate=0.01, momentum=0.8, dampening=0.3),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.8, dampening=0.3),
    ),
    (
        Momentum(learning_rate=0.01, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    (Adagrad(learning_rate=0.1), lambda p: torch.optim.Adagrad(p, 0.1)),
    (
        Adagrad(learning_rate=0.1, weight_decay=0.01, initial_accumulator_value=0.3, eps=1e-3),
        lambda p: torch.optim.Adagrad(p, 0.1, weight_decay=0.01, initial_accumulator_value=0.3, eps=1e-3),
    ),
    (Adam(learning_rate=0.01), lambda p: torch.optim.Adam(p, 0.01)),
    (
        Adam(learning_rate=0.01, beta1=0.7, beta2=0.95, eps=1e-4, weight_decay=0.05),
        lambda p: torch.optim.Adam(p, 0.01, betas=(0.7, 0.95), eps=1e-4, weight_decay=0.05),
    ),
    (
        AdamW(learning_rate=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ),
]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(("ours", "factory"), AGAINST_TORCH, ids=lambda v: getattr(v, "kind", None))
def test_thousand_steps_equal_torch(ours: Optimizer, factory: Factory, dim: int) -> None:
    rows = Rows(ours, _initial(dim))
    # A parameter per row: torch skips one whose grad is None, which is what "lazy" means.
    parameters = [torch.nn.Parameter(torch.from_numpy(row.copy())) for row in _initial(dim)]
    theirs = factory(parameters)
    for step, (ids, gradients) in enumerate(_pushes(dim, seed=dim)):
        rate = None
        if step >= STEPS // 2:  # the trainer's schedule takes over
            rate = 0.01 / (1 + step % 7)
            theirs.param_groups[0]["lr"] = rate
        rows.step(*sum_duplicates(ids, gradients), rate)
        sums = naive.sum_duplicates(ids.tolist(), gradients)
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.from_numpy(sums[i]) if i in sums else None
        theirs.step()
    expected = torch.stack([p.detach() for p in parameters]).numpy()
    np.testing.assert_allclose(rows.weights, expected, rtol=2e-6, atol=2e-6)
    assert np.abs(expected - _initial(dim)).max() > 0.05


class Oracle(Protocol):
    w: list[float]

    def step(self, gradient: NDArray[np.float32]) -> None: ...


AGAINST_ORACLE: list[tuple[Optimizer, Callable[[int], Oracle]]] = [
    (
        RowwiseAdagrad(learning_rate=0.1, weight_decay=0.01, initial_accumulator_value=0.2, eps=1e-6),
        lambda d: naive.RowwiseAdagradRow(d, 0.1, 0.01, 1e-6, 0.2),
    ),
    (Ftrl(learning_rate=0.1), lambda d: naive.FtrlRow(d, 0.1, 0.0, 0.0, 0.0, 0.1)),
    (
        Ftrl(learning_rate=0.1, l1=3.0, l2=2.0, convention="tensorflow"),
        lambda d: naive.FtrlRow(d, 0.1, 0.0, 3.0, 4.0, 0.1),
    ),
    (
        Ftrl(learning_rate=0.1, l1=3.0, l2=2.0, beta=1.0, convention="plain", initial_accumulator_value=0.0),
        lambda d: naive.FtrlRow(d, 0.1, 1.0, 3.0, 2.0, 0.0),
    ),
    (
        GroupFtrl(learning_rate=0.1, l1=1.0, l2=0.5, l21=6.0),
        lambda d: naive.FtrlRow(d, 0.1, 0.0, 1.0, 1.0, 0.1, l21=6.0),
    ),
    (
        GroupFtrl(learning_rate=0.1, l21=9.0, beta=0.5, convention="plain"),
        lambda d: naive.FtrlRow(d, 0.1, 0.5, 0.0, 0.0, 0.1, l21=9.0),
    ),
    (Fobos(learning_rate=0.05, l1=0.1, l2=0.02), lambda d: naive.FobosRow(d, 0.05, 0.1, 0.02)),
    (
        FobosAdagrad(learning_rate=0.1, l1=0.3, l2=0.02, initial_accumulator_value=0.4, eps=1e-5),
        lambda d: naive.FobosRow(d, 0.1, 0.3, 0.02, 1e-5, 0.4),
    ),
]
SPARSE = [(o, n) for o, n in AGAINST_ORACLE if getattr(o, "l1", 0) or getattr(o, "l21", 0)]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(("ours", "oracle"), AGAINST_ORACLE, ids=lambda v: getattr(v, "kind", None))
def test_thousand_steps_equal_the_oracle(ours: Optimizer, oracle: Callable[[int], Oracle], dim: int) -> None:
    rows = Rows(ours, np.zeros((ROWS, dim), np.float32))
    expected = [oracle(dim) for _ in range(ROWS)]
    for ids, gradients in _pushes(dim, seed=dim):
        rows.step(*sum_duplicates(ids, gradients))
        for i, gradient in naive.sum_duplicates(ids.tolist(), gradients).items():
            expected[i].step(gradient)
    wanted = np.array([e.w for e in expected])
    np.testing.assert_allclose(rows.weights, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(wanted).max() > 0.01


@pytest.mark.parametrize(("ours", "oracle"), SPARSE, ids=lambda v: getattr(v, "kind", None))
def test_zeros_are_exact_and_have_no_sign(ours: Optimizer, oracle: Callable[[int], Oracle]) -> None:
    rows = Rows(ours, _initial(16))
    zeros = whole = 0
    for ids, gradients in _pushes(16, seed=3):
        unique, sums = sum_duplicates(ids, gradients)
        rows.step(unique, sums)
        after = rows.weights[unique.astype(np.int64)]
        zeros += int((after == 0).sum())
        whole += int((after == 0).all(axis=1).sum())
        assert (after.view(np.uint32) != 0x80000000).all()  # a row of zeros is all zero bytes
    assert zeros > 100
    if isinstance(ours, GroupFtrl):
        assert whole > 5
        assert zeros == 16 * whole if ours.l1 == 0 else zeros > 16 * whole


def test_ftrl_gives_the_published_values() -> None:
    # Monolith's test: rate 0.01, beta 0, accumulator 0.1, gradient 10 twice from 0.
    for convention in ("tensorflow", "plain"):
        ours = Ftrl.model_validate({"learning_rate": 0.01, "convention": convention})
        rows = Rows(ours, np.zeros((ROWS, 1), np.float32))
        for expected in (-0.009995, -0.0170643):
            rows.step(np.array([2], np.uint64), np.array([[10.0]], np.float32))
            assert rows.weights[2, 0] == pytest.approx(expected, rel=5e-6)
        assert (rows.weights[[0, 1, 3, 4, 5]] == 0).all()


def test_ftrl_without_any_denominator_stays_at_zero() -> None:
    for ours in (Ftrl(initial_accumulator_value=0.0), GroupFtrl(initial_accumulator_value=0.0)):
        rows = Rows(ours, np.zeros((ROWS, 2), np.float32))
        rows.step(np.array([0], np.uint64), np.array([[0.0, 1.0]], np.float32))
        assert rows.weights[0, 0] == 0.0 and rows.weights[0, 1] < 0


def test_group_ftrl_minimises_its_objective() -> None:
    # With equal n in the row the closed form is the exact minimiser of FTRL's objective plus the lasso.
    ours = GroupFtrl(learning_rate=0.1, l1=0.5, l2=0.7, l21=0.4, beta=1.0, convention="plain")
    rows = Rows(ours, np.zeros((ROWS, 3), np.float32))
    rows.step(np.array([0], np.uint64), np.array([[2.0, -2.0, 2.0]], np.float32))
    w = rows.weights[0].astype(np.float64)
    quadratic = (1.0 + np.sqrt(4.1)) / 0.1 + 0.7

    def objective(x: Any) -> float:
        z = np.array([2.0, -2.0, 2.0])
        group = 0.4 * np.sqrt(3) * np.linalg.norm(x)
        return float(z @ x + quadratic / 2 * x @ x + 0.5 * np.abs(x).sum() + group)

    rng = np.random.default_rng(1)
    best = objective(w)
    for _ in range(300):
        assert objective(w + rng.standard_normal(3) * 10.0 ** rng.integers(-4, 0)) >= best - 1e-9


def test_adam_count_stops_where_float32_ends() -> None:
    rows = Rows(Adam(), np.zeros((ROWS, 2), np.float32))
    steps = rows.buffer[rows.weight_at[0] + 6 : rows.weight_at[0] + 7]
    steps[0] = 2.0**24 - 1
    for _ in range(3):
        rows.step(np.array([0], np.uint64), np.ones((1, 2), np.float32))
    assert steps[0] == 2.0**24 and np.isfinite(rows.weights).all()


ALL: list[Optimizer] = [o for o, _ in AGAINST_TORCH] + [o for o, _ in AGAINST_ORACLE]


@pytest.mark.parametrize("ours", ALL, ids=lambda o: o.kind)
def test_a_row_depends_on_nothing_but_itself(ours: Optimizer) -> None:
    rng = np.random.default_rng(4)
    gradients = rng.standard_normal((ROWS, 9)).astype(np.float32)
    order = np.array([4, 2, 0, 5, 1, 3])
    together, alone = Rows(ours, _initial(9)), Rows(ours, _initial(9))
    for _ in range(3):
        together.step(order.astype(np.uint64), gradients[order])
        for i in range(ROWS):
            alone.step(np.array([i], np.uint64), gradients[i : i + 1].copy())
    np.testing.assert_array_equal(together.buffer.view(np.uint32), alone.buffer.view(np.uint32))


@pytest.mark.parametrize("ours", ALL, ids=lambda o: o.kind)
def test_no_number_of_legal_gradients_makes_a_state_infinite(ours: Any) -> None:
    """limit.GRADIENT_BOUND: a float32 sum of squares below 2^102 stops growing at 2^126."""
    largest = np.nextafter(np.float32(GRADIENT_BOUND), np.float32(0))
    rows = Rows(ours, np.zeros((ROWS, 2), np.float32))
    gradients = np.array([[largest, -largest]], np.float32)
    for _ in range(100):
        rows.step(np.array([0], np.uint64), gradients)
    assert np.isfinite(rows.buffer).all()
    if "adagrad" in ours.kind:
        state = rows.buffer[rows.weight_at[0] + 2 : rows.weight_at[0] + 2 + ours.state_size(2)]
        state[:] = 2.0**126
        rows.step(np.array([0], np.uint64), gradients)
        assert (state == 2.0**126).all()


@pytest.mark.parametrize("code", [dtype.FLOAT16, dtype.BFLOAT16])
@pytest.mark.parametrize("ours", ALL, ids=lambda o: o.kind)
def test_narrow_rows_follow_the_wide_ones(ours: Optimizer, code: int) -> None:
    # The weights go through a narrow word at each step; the mean over many copies stays near fp32's path.
    copies, dim, steps = 256, 4, 100
    rng = np.random.default_rng(8)
    state = np.tile(ours.initial_state(dim), (2, copies, 1))
    at = np.arange(copies, dtype=np.int64)
    words = np.zeros(copies * dim, np.uint16)
    wide, tile = np.zeros((copies, dim), np.float32), np.empty((copies, dim), np.float32)
    for lsn in range(steps):
        gradients = np.tile(rng.standard_normal(dim).astype(np.float32) + 0.3, (copies, 1))
        hyper, size = ours.hyper(), state.shape[2]
        kernel_of(ours)(wide.reshape(-1), at * dim, state[0].reshape(-1), at * size, gradients, hyper)
        widen_rows(words, at * dim, dim, code, tile)
        kernel_of(ours)(tile.reshape(-1), at * dim, state[1].reshape(-1), at * size, gradients, hyper)
        round_rows(tile, at.astype(np.uint64), lsn, dim, code, words, at * dim)
    widen_rows(words, at * dim, dim, code, tile)
    error = np.abs(tile.mean(axis=0) - wide[0]).max() / max(np.abs(wide).max(), 1.0)
    assert error < (0.002 if code == dtype.FLOAT16 else 0.01)
