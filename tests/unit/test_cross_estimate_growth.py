# SPDX-License-Identifier: Apache-2.0
"""Projections against rows that were held back: known distributions, drift, and the stated error."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from feature_cross.author.estimate.growth import (
    METHODS,
    SPECTRUM_LENGTH,
    Growth,
    Projection,
    checkpoint_after,
    good_toulmin,
    project,
)

ROWS = 400_000


def curve(values: NDArray[np.int64], rows: int) -> Growth:
    """The growth curve of the first `rows` values, counted in the plainest way."""
    at: list[int] = []
    distinct, spectra = [], []
    while not at or at[-1] < rows:
        at.append(min(checkpoint_after(at[-1] if at else 0), rows))
        _, counts = np.unique(values[: at[-1]], return_counts=True)
        distinct.append(len(counts))
        spectra.append(np.bincount(counts[counts <= SPECTRUM_LENGTH], minlength=SPECTRUM_LENGTH + 1)[1:])
    return Growth(np.array(at, np.float64), np.array(distinct, np.float64), np.array(spectra, np.float64))


def values_of(name: str, seed: int) -> NDArray[np.int64]:
    random = np.random.default_rng(seed)
    made: dict[str, Callable[[], NDArray[Any]]] = {
        "zipf 1.1": lambda: random.zipf(1.1, ROWS).clip(0, 2**60),
        "zipf 1.5": lambda: random.zipf(1.5, ROWS).clip(0, 2**60),
        "uniform 1e3": lambda: random.integers(0, 1000, ROWS),
        "uniform 1e5": lambda: random.integers(0, 100_000, ROWS),
        "uniform 1e6": lambda: random.integers(0, 1_000_000, ROWS),
        "uniform 1e12": lambda: random.integers(0, 10**12, ROWS),
        "lognormal": lambda: np.exp(random.normal(8, 2, ROWS)).astype(np.int64),
        "negative binomial": lambda: random.choice(50_000, ROWS, p=weights(random, 50_000)),
    }
    return made[name]().astype(np.int64)


def weights(random: np.random.Generator, size: int) -> NDArray[np.float64]:
    drawn = random.gamma(0.5, size=size)
    return np.asarray(drawn / drawn.sum(), np.float64)


NAMES = [
    "zipf 1.1", "zipf 1.5", "uniform 1e3", "uniform 1e5", "uniform 1e6", "uniform 1e12", "lognormal",
    "negative binomial",
]  # fmt: skip


def tried(name: str, factor: int, seed: int = 0) -> tuple[Projection, int]:
    """The projection of the first part of the rows to all of them, and the truth."""
    values = values_of(name, seed)
    part = ROWS // factor
    return project(curve(values, part), part * factor), len(np.unique(values[: part * factor]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("factor", "within"), [(2, 0.03), (4, 0.07), (10, 0.25)])
def test_held_out_rows_of_known_distributions(name: str, factor: int, within: float) -> None:
    found, truth = tried(name, factor)
    assert found.distinct == pytest.approx(truth, rel=within), found.method
    assert found.method in METHODS and found.rows == ROWS


def test_the_stated_bounds_hold_as_often_as_the_docs_say() -> None:
    """Nine in ten; each of the 48 tries is on rows that the method has not seen."""
    inside = []
    for name in NAMES:
        for factor in (2, 4, 16):
            for seed in (1, 2):
                found, truth = tried(name, factor, seed)
                inside.append(found.low - 1 <= truth <= found.high + 1)
    assert np.mean(inside) >= 0.9


def test_drift_is_followed() -> None:
    """New items all the time: nothing that looks at counts alone can see it."""
    random = np.random.default_rng(0)
    values = (np.arange(ROWS) // 50 + random.geometric(1 / 20, ROWS)).astype(np.int64)
    found = project(curve(values, ROWS // 4), ROWS)
    truth = len(np.unique(values))
    assert found.distinct == pytest.approx(truth, rel=0.1)
    assert good_toulmin(curve(values, ROWS // 4), ROWS) < 0.8 * truth


def test_good_toulmin_is_exact_on_average_at_twice_the_rows() -> None:
    """The series at t = 1: f1 - f2 + f3 - ... new ids."""
    spectra = np.zeros((1, SPECTRUM_LENGTH))
    spectra[0, :4] = [100, 40, 20, 5]
    growth = Growth(np.array([1000.0]), np.array([165.0]), spectra)
    assert good_toulmin(growth, 2000) == pytest.approx(165 + 100 - 40 + 20 - 5, abs=0.1)


def test_good_toulmin_is_not_moved_by_ids_that_are_certain_to_come_again() -> None:
    spectra = np.zeros((1, SPECTRUM_LENGTH))
    spectra[0, 30:60:2] = 10
    assert good_toulmin(Growth(np.array([1000.0]), np.array([150.0]), spectra), 2000) == pytest.approx(150)


def test_fewer_rows_are_looked_up() -> None:
    growth = curve(values_of("uniform 1e5", 0), 20_000)
    found = project(growth, 10_000)
    assert found.method == "seen" and found.low == found.high == found.distinct
    truth = len(np.unique(values_of("uniform 1e5", 0)[:10_000]))
    assert found.distinct == pytest.approx(truth, rel=0.02)
    assert project(growth, 20_000).distinct == growth.distinct[-1]


def test_too_few_rows_give_no_more_than_bounds() -> None:
    growth = curve(values_of("uniform 1e12", 0), 300)
    found = project(growth, 10_000)
    assert found.method == "all-new" and found.error is None
    assert found.low == 300 and found.high == pytest.approx(10_000, rel=0.01)


def test_no_ids_stay_none() -> None:
    growth = Growth(np.array([500.0]), np.zeros(1), np.zeros((1, SPECTRUM_LENGTH)))
    assert project(growth, 10**9).high == 0


def test_a_vocabulary_that_is_complete_stays_so() -> None:
    found, truth = tried("uniform 1e3", 10)
    assert truth == 1000 and found.distinct == pytest.approx(1000, rel=0.02) and found.high < 1200


@pytest.mark.parametrize("name", NAMES)
def test_bounds_are_ordered_and_possible(name: str) -> None:
    for factor in (2, 30, 3000):
        growth = curve(values_of(name, 0), 30_000)
        found = project(growth, 30_000 * factor)
        assert growth.distinct[-1] <= found.low <= found.distinct <= found.high
        assert found.high <= growth.distinct[-1] * 1.01 + 30_000 * (factor - 1)
        assert found.error is not None and math.isfinite(found.error)


def test_checkpoints_are_geometric() -> None:
    points = [checkpoint_after(0)]
    while points[-1] < 10**7:
        points.append(checkpoint_after(points[-1]))
    ratios = np.diff(np.log2(points))
    assert points[0] == 256 and ratios == pytest.approx(0.5, abs=0.01)
