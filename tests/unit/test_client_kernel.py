# SPDX-License-Identifier: Apache-2.0
"""The client's kernels against naive oracles (ps_client/kernel.py, invariants 1 and 2)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from rowhouse.kernel import deduplicate, sum_groups
from rowhouse.placement import PartitionMap

from ps_client import kernel

IDS = hnp.arrays(
    np.uint64, st.integers(0, 200), elements=st.integers(0, 40) | st.integers(2**64 - 3, 2**64 - 1)
)


@given(IDS, st.integers(1, 9))
def test_group_by_shard_is_a_stable_sort_by_owner(ids: NDArray[np.uint64], shard_count: int) -> None:
    partition_map = PartitionMap.even(shard_count)
    positions, bounds = kernel.group_by_shard(ids, partition_map.shards, shard_count)
    owners = partition_map.shards_of(ids)
    np.testing.assert_array_equal(positions, np.argsort(owners, kind="stable"))
    np.testing.assert_array_equal(np.diff(bounds), np.bincount(owners, minlength=shard_count))


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
    count = deduplicate(ids, inverse).shape[0]
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
def test_sum_pooled_of_single_ids_has_the_bits_of_sum_groups(
    ids: NDArray[np.uint64], dim: int, seed: int
) -> None:
    gradients = np.random.default_rng(seed).normal(size=(ids.shape[0], dim)).astype(np.float32)
    inverse = np.empty(ids.shape, np.int64)
    count = deduplicate(ids, inverse).shape[0]
    sums, none = np.full((count, dim), np.nan, np.float32), np.empty(0, np.int64)
    kernel.sum_pooled(gradients, none, inverse, np.empty(0, np.float32), False, 0, sums)
    np.testing.assert_array_equal(sums, sum_groups(gradients, inverse, count))


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
