# SPDX-License-Identifier: Apache-2.0
"""Optimizer configs, and what happens to gradients before the optimizer."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from rowhouse.error import InvalidRequestError

from ps_server.kernel.gradient import clip
from ps_server.table import optimizer
from ps_server.table.optimizer import Adagrad, Adam, Ftrl, Optimizer, OptimizerConfig, Sgd
from ps_server.table.push import sum_duplicates
from tests import naive

ADAPTER: TypeAdapter[Any] = TypeAdapter(OptimizerConfig)
KINDS = {
    "sgd": 0, "momentum": 16, "adagrad": 16, "rowwise_adagrad": 1, "adam": 33, "adamw": 33,
    "ftrl": 32, "group_ftrl": 32, "fobos": 0, "fobos_adagrad": 16,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_defaults_and_a_state(kind: str) -> None:
    config = ADAPTER.validate_python({"kind": kind})
    assert config.kind == kind
    assert config.state_size(16) == KINDS[kind]
    state = config.initial_state(16)
    assert state.shape == (KINDS[kind],) and state.dtype == np.float32
    assert config.hyper()[0] == config.learning_rate
    np.testing.assert_array_equal(config.hyper(0.125)[1:], config.hyper()[1:])
    assert config.hyper(0.125)[0] == 0.125 and config.hyper().dtype == np.float64
    assert ADAPTER.validate_python(config.model_dump()) == config
    with pytest.raises(ValidationError):
        config.learning_rate = 1.0


def test_accumulators_start_where_the_config_says() -> None:
    assert Adagrad(initial_accumulator_value=0.5).initial_state(2).tolist() == [0.5, 0.5]
    np.testing.assert_array_equal(Ftrl().initial_state(2), np.array([0, 0, 0.1, 0.1], np.float32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "sdg"},
        {},
        {"kind": "sgd", "learning_rate": 0},
        {"kind": "sgd", "learning_rate": -1.0},
        {"kind": "sgd", "learning_rate": math.inf},
        {"kind": "sgd", "learning_rate": math.nan},
        {"kind": "sgd", "learning_rate": 1e39},
        {"kind": "sgd", "learning_rate": "0.1"},
        {"kind": "sgd", "momentum": 0.9},
        {"kind": "sgd", "clip_value": 0},
        {"kind": "sgd", "clip_norm": -1.0},
        {"kind": "sgd", "weight_decay": -0.1},
        {"kind": "momentum", "momentum": 1.0},
        {"kind": "momentum", "nesterov": True, "dampening": 0.1},
        {"kind": "momentum", "nesterov": True, "momentum": 0.0},
        {"kind": "adagrad", "eps": 0},
        {"kind": "adam", "beta2": 1.0},
        {"kind": "ftrl", "beta": 1.0},
        {"kind": "ftrl", "convention": "keras"},
        {"kind": "ftrl", "weight_decay": 0.1},
        {"kind": "group_ftrl", "l21": math.nan},
        {"kind": "fobos", "eps": 0.1},
    ],
)
def test_wrong_configs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(wrong)


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf, 1e39])
def test_wrong_rates_of_a_push_are_refused(rate: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"learning rate is .*; Sgd takes 0 to 3e\+38"):
        Sgd().hyper(rate)


def test_rate_zero_is_for_optimizers_that_do_not_divide_by_it() -> None:
    assert Sgd().hyper(0.0)[0] == 0.0
    with pytest.raises(InvalidRequestError, match=r"learning rate is 0\.0; Ftrl takes 1e-30 to"):
        Ftrl().hyper(0.0)


# ------------------------------------------------------------------ clipping
def test_clipping_is_by_value_then_by_norm() -> None:
    gradients = np.array([[3.0, -40.0], [0.3, 0.4], [-1e30, 1e30]], np.float32)
    kept = gradients.copy()
    out = Sgd(clip_value=4.0, clip_norm=1.0).clipped(gradients)
    np.testing.assert_array_equal(gradients, kept)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(out, [[0.6, -0.8], [0.3, 0.4], [-half, half]], rtol=1e-6)
    np.testing.assert_array_equal(Sgd(clip_value=4.0).clipped(gradients), np.clip(gradients, -4, 4))
    by_norm = Adam(clip_norm=2.0).clipped(gradients).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(by_norm, axis=1), [2.0, 0.5, 2.0], rtol=1e-6)
    assert Sgd().clipped(gradients) is gradients


def test_zero_limits_of_the_kernel_change_nothing() -> None:
    gradients = np.array([[3e38, -3e38, 1e-45]], np.float32)
    out = gradients.copy()
    clip(out, 0.0, 0.0)
    np.testing.assert_array_equal(out, gradients)


# ------------------------------------------------------------------ duplicates
IDS = st.lists(st.sampled_from([0, 1, 2, 3, 2**32, 2**63, 2**64 - 1, 2**64 - 2]), max_size=40)


@given(ids=IDS, dim=st.integers(1, 5), seed=st.integers(0, 1000))
def test_duplicates_are_summed_in_order(ids: list[int], dim: int, seed: int) -> None:
    gradients = np.random.default_rng(seed).standard_normal((len(ids), dim)).astype(np.float32)
    unique, sums = sum_duplicates(np.array(ids, np.uint64), gradients)
    expected = naive.sum_duplicates(ids, gradients)
    assert unique.tolist() == list(expected)
    if expected:
        np.testing.assert_array_equal(sums, np.stack(list(expected.values())))


@pytest.mark.parametrize("ordered", [False, True])
def test_a_batch_without_duplicates_is_not_copied(ordered: bool) -> None:
    ids = np.random.default_rng(0).permutation(5000).astype(np.uint64) * np.uint64(2**40)
    ids = np.sort(ids) if ordered else ids
    gradients = np.ones((5000, 2), np.float32)
    unique, sums = sum_duplicates(ids, gradients)
    assert unique is ids and sums is gradients


def test_arguments_may_be_read_only() -> None:
    ids = np.array([7, 7], np.uint64)
    gradients: NDArray[np.float32] = np.ones((2, 3), np.float32)
    ids.flags.writeable = gradients.flags.writeable = False  # views of a received message are
    unique, sums = sum_duplicates(ids, gradients)
    assert unique.tolist() == [7] and (sums == 2).all()
    assert (Sgd(clip_value=0.5).clipped(gradients) == 0.5).all()


def test_every_config_of_the_module_is_in_the_union() -> None:
    models = [c for c in vars(optimizer).values() if isinstance(c, type) and issubclass(c, Optimizer)]
    kinds = {c.model_fields["kind"].default for c in models if "kind" in c.model_fields}
    assert kinds == set(KINDS)
