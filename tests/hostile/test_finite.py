# SPDX-License-Identifier: Apache-2.0
"""Legal pushes never make a row that is not finite, in any optimizer and dtype, at any rate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rowhouse.limit import gradient_bound

from ps_server.bulk.export import export_table
from ps_server.bulk.load import bulk_load
from ps_server.table import optimizer as configs
from tests.driver import Driver, shard_config
from tests.unit.optimizer_kernel import KERNELS, kernel_of

LARGEST = float(np.finfo(np.float32).max)
positive = st.sampled_from([1e-30, 1e-19, 1e-3, 0.1, 1.0, 1e12, 1e19, 3e38])
not_negative = st.just(0.0) | positive
fraction = st.sampled_from([0.0, 0.5, 0.999, 1 - 1e-9, 1 - 2**-53])
clip = st.none() | positive
magnitudes = [0.0, 1e-45, 1e-30, 1e-12, 1.0, 1e12, 0.999 * 2.0**51, 1e19, LARGEST]
elements = st.sampled_from([sign * m for m in magnitudes for sign in (1, -1)])

OPTIMIZERS: dict[str, tuple[type[configs.Optimizer], dict[str, Any]]] = {
    "sgd": (configs.Sgd, {"weight_decay": not_negative}),
    "momentum": (
        configs.Momentum, {"weight_decay": not_negative, "momentum": fraction, "dampening": fraction},
    ),
    "adagrad": (
        configs.Adagrad,
        {"weight_decay": not_negative, "eps": positive, "initial_accumulator_value": not_negative},
    ),
    "rowwise_adagrad": (
        configs.RowwiseAdagrad,
        {"weight_decay": not_negative, "eps": positive, "initial_accumulator_value": not_negative},
    ),
    "adam": (
        configs.Adam, {"weight_decay": not_negative, "beta1": fraction, "beta2": fraction, "eps": positive},
    ),
    "adamw": (
        configs.AdamW, {"weight_decay": not_negative, "beta1": fraction, "beta2": fraction, "eps": positive},
    ),
    "ftrl": (
        configs.Ftrl,
        {
            "convention": st.just("plain"), "beta": not_negative, "l1": not_negative, "l2": not_negative,
            "initial_accumulator_value": not_negative,
        },
    ),
    "group_ftrl": (
        configs.GroupFtrl,
        {
            "l1": not_negative, "l2": not_negative, "l21": not_negative,
            "initial_accumulator_value": not_negative,
        },
    ),
    "fobos": (configs.Fobos, {"l1": not_negative, "l2": not_negative}),
    "fobos_adagrad": (
        configs.FobosAdagrad,
        {"l1": not_negative, "l2": not_negative, "eps": positive, "initial_accumulator_value": not_negative},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KERNELS)
@settings(max_examples=60)
@given(data=st.data())
def test_no_legal_push_makes_a_value_that_is_not_finite(kind: str, data: st.DataObject) -> None:
    """Whatever the config says: weights and state stay finite, push after push."""
    made, keys = OPTIMIZERS[kind]
    ours: Any = data.draw(
        st.builds(made, learning_rate=positive, clip_value=clip, clip_norm=clip, **keys), "optimizer"
    )
    bound = min(gradient_bound(kind, ours.clip_value, ours.clip_norm), LARGEST)
    dim = data.draw(st.sampled_from([1, 3, 16]), "dim")
    start = data.draw(st.sampled_from([0.0, 0.01, -1e12, LARGEST]), "weights")
    row = np.concatenate([np.full(dim, start, np.float32), ours.initial_state(dim)]).astype(np.float32)
    at = np.zeros(1, np.int64)
    rates = st.none() | (not_negative if made.zero_rate_allowed else positive)
    for _ in range(data.draw(st.integers(1, 6), "pushes")):
        values = data.draw(st.lists(elements, min_size=dim, max_size=dim), "gradient")
        gradient = np.clip(np.array([values], np.float64), -bound, bound).astype(np.float32)
        hyper = ours.hyper(data.draw(rates, "rate"))
        kernel_of(ours)(row, at, row, at + dim, ours.clipped(gradient), hyper)
        assert np.isfinite(row).all()


ALL: list[dict[str, Any]] = [
    {"name": f"{kind}_{dtype}", "dim": 4, "dtype": dtype, "optimizer": {"kind": kind}}
    for kind in KERNELS for dtype in ("fp32", "fp16", "bf16")
]  # fmt: skip
"""A table for each optimizer and dtype."""

IDS = np.arange(8, dtype=np.uint64)


def pushes() -> list[tuple[float, float | None]]:
    """(gradient, rate): what made rows NaN or infinite for good."""
    ftrl = [(1.0, 0.1), (1e12, 1e-30)]
    huge = [(1e12, 3e38), (-1e12, 3e38), (1.0, 3e38), (1e-30, None), (1e12, 1e-30)]
    return [*ftrl, *huge, (0.0, None), (1.0, 1e-30), (1.0, None)]


def gradients_of(size: float) -> NDArray[np.float32]:
    rows = np.full((8, 4), size, np.float32)
    rows[:, 1] = 0.0
    rows[:, 2] *= -1
    return rows


def test_rows_of_a_shard_stay_finite_and_an_export_can_be_loaded(tmp_path: Path) -> None:
    driver = Driver(shard_config(tmp_path, ALL, memory_budget="64MiB"), tmp_path / "shard")
    names = [table["name"] for table in ALL]
    for size, rate in pushes():
        driver.push({name: (IDS, gradients_of(size)) for name in names}, rate=rate)
        for name in names:
            assert np.isfinite(driver.pull(name, IDS)).all(), (name, size, rate)
    rows = {name: driver.pull(name, IDS) for name in names}
    driver.crash(tmp_path / "copy")
    for name in names:
        np.testing.assert_array_equal(driver.pull(name, IDS), rows[name], err_msg=f"{name} after the replay")
        assert bulk_load(driver.shard, name, export_table(driver.shard, name)).rows == 8
        np.testing.assert_array_equal(driver.pull(name, IDS), rows[name], err_msg=f"{name} after the load")
