# SPDX-License-Identifier: Apache-2.0
"""The client's kernels against naive oracles (ps_client/kernel.py, invariants 1 to 3)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from rowhouse.placement import PartitionMap

from ps_client import kernel

IDS = hnp.arrays(
    np.uint64, st.integers(0, 200), elements=st.integers(0, 40) | st.integers(2**64 - 3, 2**64 - 1)
)


def naive_distinct(ids: list[int]) -> list[list[int]]:
    """Invariant 1: the order of first appearance, which a dict keeps."""
    position = {row_id: i for i, row_id in enumerate(dict.fromkeys(ids))}
    return [list(position), [position[row_id] for row_id in ids]]


@given(IDS)
def test_deduplicate_equals_a_dict(ids: NDArray[np.uint64]) -> None:
    inverse = np.full(ids.shape, -7, np.int64)
    distinct = kernel.deduplicate(ids, inverse)
    assert [distinct.tolist(), inverse.tolist()] == naive_distinct(ids.tolist())


def test_deduplicate_of_a_zipf_batch_and_of_a_full_table() -> None:
    rng = np.random.default_rng(7)
    for ids in (
        rng.zipf(1.2, 26_624).astype(np.uint64),
        np.arange(1 << 16, dtype=np.uint64) << np.uint64(48),
    ):
        inverse = np.empty(ids.shape, np.int64)
        distinct = kernel.deduplicate(ids, inverse)
        assert [distinct.tolist(), inverse.tolist()] == naive_distinct(ids.tolist())


@given(IDS, st.integers(1, 9))
def test_group_by_shard_is_a_stable_sort_by_owner(ids: NDArray[np.uint64], shard_count: int) -> None:
    partition_map = PartitionMap.even(shard_count)
    positions, bounds = kernel.group_by_shard(ids, partition_map.shards, shard_count)
    owners = partition_map.shards_of(ids)
    np.testing.assert_array_equal(positions, np.argsort(owners, kind="stable"))
    np.testing.assert_array_equal(np.diff(bounds), np.bincount(owners, minlength=shard_count))


@given(IDS, st.integers(1, 5), st.integers(0, 2**32))
def test_sum_duplicates_adds_in_the_order_of_appearance(ids: NDArray[np.uint64], dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(ids.shape[0], dim)).astype(np.float32) * np.float32(1e3)
    inverse = np.empty(ids.shape, np.int64)
    count = kernel.deduplicate(ids, inverse).shape[0]
    naive: dict[int, NDArray[np.float32]] = {}
    for row_id, gradient in zip(ids.tolist(), gradients, strict=True):
        naive[row_id] = naive[row_id] + gradient if row_id in naive else gradient
    sums = kernel.sum_duplicates(gradients, inverse, count)
    np.testing.assert_array_equal(sums, np.array(list(naive.values()), np.float32).reshape(count, dim))


def bags_of(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Where bags of 0 to 3 ids start, and `count`, where the last one ends."""
    starts = [0]
    while starts[-1] < count:
        starts.append(min(count, starts[-1] + int(rng.integers(0, 4))))
    return np.array(starts, np.int64)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@given(ids=IDS, dim=st.integers(1, 5), pieces=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_sum_pooled_adds_what_each_bag_gives(
    weighted: bool, mean: bool, ids: NDArray[np.uint64], dim: int, pieces: int, seed: int
) -> None:
    """The ids in `pieces` outputs, into fresh sums in order, and onto ones that are there."""
    rng = np.random.default_rng(seed)
    inverse = np.empty(ids.shape, np.int64)
    count = kernel.deduplicate(ids, inverse).shape[0]
    fresh, onto = np.full((count, dim), np.nan, np.float32), np.ones((count, dim), np.float32)
    naive = np.zeros((count, dim))
    seen = 0
    for part in np.array_split(inverse, pieces):
        starts = bags_of(rng, part.shape[0])
        assert kernel.are_bags(starts, part.shape[0])
        gradients = rng.normal(size=(starts.shape[0] - 1, dim)).astype(np.float32)
        weights = rng.normal(size=part.shape[0] * weighted).astype(np.float32)
        for bag in range(starts.shape[0] - 1):
            for i in range(starts[bag], starts[bag + 1]):
                factor = weights[i] if weighted else 1.0
                naive[part[i]] += factor * gradients[bag] / (starts[bag + 1] - starts[bag] if mean else 1)
        seen = kernel.sum_pooled(gradients, starts, part, weights, mean, seen, fresh)
        assert kernel.sum_pooled(gradients, starts, part, weights, mean, -1, onto) == -1
    assert seen == count
    np.testing.assert_allclose(fresh, naive, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(onto, naive + 1, rtol=1e-4, atol=1e-5)


@given(IDS, st.integers(1, 5), st.integers(0, 2**32))
def test_sum_pooled_of_single_ids_has_the_bits_of_sum_duplicates(
    ids: NDArray[np.uint64], dim: int, seed: int
) -> None:
    gradients = np.random.default_rng(seed).normal(size=(ids.shape[0], dim)).astype(np.float32)
    inverse = np.empty(ids.shape, np.int64)
    count = kernel.deduplicate(ids, inverse).shape[0]
    sums, none = np.full((count, dim), np.nan, np.float32), np.empty(0, np.int64)
    kernel.sum_pooled(gradients, none, inverse, np.empty(0, np.float32), False, 0, sums)
    np.testing.assert_array_equal(sums, kernel.sum_duplicates(gradients, inverse, count))


def test_what_are_bags() -> None:
    for starts, count in (([], 0), ([1, 2], 2), ([0, 3], 2), ([0, 2, 1, 3], 3)):
        assert not kernel.are_bags(np.array(starts, np.int64), count), (starts, count)
    for starts, count in (([0], 0), ([0, 0], 0), ([0, 1], 2), ([0, 2, 2, 3], 3)):
        assert kernel.are_bags(np.array(starts, np.int64), count), (starts, count)


def test_gather_and_scatter_are_inverse_and_take_unaligned_views() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    positions = np.array([2, 0, 3, 1], np.int64)
    answer = np.frombuffer(b"x" + rows.tobytes(), np.float32, offset=1).reshape(4, 3)
    assert not answer.flags.aligned, "the test must give what a decoded message gives"
    out = np.zeros_like(rows)
    kernel.gather(answer, positions, out)
    np.testing.assert_array_equal(out, rows[positions])
    back = np.zeros_like(rows)
    kernel.scatter(out, positions, back)
    np.testing.assert_array_equal(back, rows)


def test_the_bound_of_magnitudes_is_the_next_power_of_two() -> None:
    for value, bound in ((0.0, 2.0**-126), (1.0, 2.0), (-1.9, 2.0), (2.0, 4.0), (-(2.0**51), 2.0**52)):
        assert kernel.magnitude_bound(np.array([0.5 * value, value], np.float32)) == bound
    below = np.nextafter(np.float32(2.0**51), np.float32(0))
    assert kernel.magnitude_bound(np.array([below], np.float32)) == 2.0**51


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, 9_999])
def test_the_bound_sees_one_bad_element(bad: float, place: int) -> None:
    values = np.full(10_000, np.finfo(np.float32).max, np.float32)
    assert np.isfinite([kernel.magnitude_bound(values), kernel.magnitude_bound(values[:0])]).all()
    values[place] = bad
    assert kernel.magnitude_bound(values) == np.inf
