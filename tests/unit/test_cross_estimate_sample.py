# SPDX-License-Identifier: Apache-2.0
"""The id sample and the sketches against exact counts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from feature_cross.author.estimate.sample import IdSample
from feature_cross.author.estimate.sketch import Sketch

Ids = NDArray[np.uint64]


def spread(values: NDArray[np.int64]) -> Ids:
    """Ids as the engine gives them: every bit of them looks random."""
    return values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def feed(sample: IdSample, ids: Ids, batch: int, checks: Ids | None = None) -> None:
    """One id per row, `batch` rows at a time."""
    second = ids if checks is None else checks
    for first in range(0, len(ids), batch):
        part, other = ids[first : first + batch], second[first : first + batch]
        sample.add(part, other, np.arange(len(part) + 1), (0, len(part)), first)


@given(st.lists(st.integers(0, 60), max_size=400), st.integers(1, 50))
def test_without_a_full_table_every_count_and_first_row_is_exact(values: list[int], batch: int) -> None:
    ids = spread(np.array(values, np.int64))
    sample = IdSample(64)
    feed(sample, ids, batch)
    assert sample.level == 0
    assert dict(zip(sample.ids.tolist(), sample.counts.tolist(), strict=True)) == Counter(ids.tolist())
    firsts = dict(zip(sample.ids.tolist(), sample.firsts.tolist(), strict=True))
    assert firsts == {id_: ids.tolist().index(id_) for id_ in ids.tolist()}


@pytest.mark.parametrize("batch", [1000, 7919, 100_000])
def test_a_full_table_keeps_exact_counts_of_a_part_of_the_ids(batch: int) -> None:
    """Invariants 1 and 2 of the module, whatever the batches."""
    ids = spread(np.random.default_rng(3).zipf(1.2, 100_000).clip(0, 2**50))
    sample = IdSample(1024)
    feed(sample, ids, batch)
    assert sample.level > 0 and sample.used <= 1024
    truth = Counter(ids.tolist())
    assert all(
        truth[id_] == count for id_, count in zip(sample.ids.tolist(), sample.counts.tolist(), strict=True)
    )
    again = IdSample(1024)
    feed(again, ids, 50_000)
    assert sorted(again.ids.tolist()) == sorted(sample.ids.tolist())
    # 512 to 1024 ids: 4.4 % standard error at most, so 18 % is four of them.
    assert sample.used / sample.fraction == pytest.approx(len(truth), rel=0.18)


def test_ids_are_scaled_up_into_a_spectrum() -> None:
    values = np.repeat(np.arange(60_000), np.tile([1, 1, 2, 5], 15_000))
    sample = IdSample(1 << 13)
    feed(sample, spread(values), 10_000)
    once, twice, thrice, four, five = sample.spectrum(5)
    assert once == pytest.approx(30_000, rel=0.1)
    assert twice == pytest.approx(15_000, rel=0.15)
    assert five == pytest.approx(15_000, rel=0.15)
    assert thrice == four == 0


def test_rows_with_many_ids_and_rows_with_none() -> None:
    ids = spread(np.array([5, 5, 6, 7, 5]))
    sample = IdSample(64)
    sample.add(ids, ids, np.array([0, 0, 3, 3, 5]), (0, 2), 100)
    sample.add(ids, ids, np.array([0, 0, 3, 3, 5]), (2, 4), 100)
    found = {
        int(i): (int(c), int(f)) for i, c, f in zip(sample.ids, sample.counts, sample.firsts, strict=True)
    }
    assert found == {int(ids[0]): (3, 101), int(ids[2]): (1, 101), int(ids[3]): (1, 103)}


def test_two_values_of_one_id_are_two_entries() -> None:
    ids = np.array([9, 9, 9, 8], np.uint64)
    sample = IdSample(64)
    feed(sample, ids, 4, np.array([1, 2, 1, 1], np.uint64))
    assert sorted(zip(sample.ids.tolist(), sample.counts.tolist(), strict=True)) == [(8, 1), (9, 1), (9, 2)]


@pytest.mark.parametrize("ids_max", [0, 3, 1000])
def test_a_size_that_is_no_power_of_two_is_refused(ids_max: int) -> None:
    with pytest.raises(ValueError, match=f"ids_max is {ids_max}"):
        IdSample(ids_max)


@pytest.mark.parametrize("distinct", [1, 100, 30_000, 400_000])
def test_distinct_ids_are_estimated_within_their_bounds(distinct: int) -> None:
    sketch = Sketch()
    ids = spread(np.arange(distinct))
    for _ in range(2):
        for first in range(0, distinct, 50_000):
            sketch.add(ids[first : first + 50_000])
    count, low, high = sketch.distinct(3)
    assert low <= distinct <= high
    assert count == pytest.approx(distinct, rel=0.012)


def test_heavy_ids_are_within_their_bounds_and_none_is_missed() -> None:
    random = np.random.default_rng(5)
    ids = spread(random.zipf(1.3, 400_000).clip(0, 2**50))
    sketch = Sketch()
    for first in range(0, len(ids), 65_536):
        sketch.add(ids[first : first + 65_536])
    truth = Counter(ids.tolist())
    found = {one.id: one for one in sketch.heavy(1000)}
    assert all(one.low <= truth[one.id] <= one.high for one in found.values())
    assert {id_ for id_, count in truth.items() if count >= len(ids) / 500} <= set(found)
    order = [one.low for one in sketch.heavy(50)]
    assert order == sorted(order, reverse=True) and len(order) == 50


def test_where_no_id_is_frequent_none_is_called_so() -> None:
    sketch = Sketch()
    sketch.add(spread(np.arange(200_000)))
    assert sketch.heavy(10) == []


def test_no_ids_are_no_ids() -> None:
    sketch = Sketch()
    sketch.add(np.empty(0, np.uint64))
    assert sketch.distinct() == (0.0, 0.0, 0.0) and sketch.heavy(3) == []
