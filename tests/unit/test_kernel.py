# SPDX-License-Identifier: Apache-2.0
"""Kernels that client and server share, against naive oracles (rowhouse/kernel.py, invariants 1 and 2)."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from rowhouse.kernel import ascend, deduplicate, first_not_below, places_among, sum_groups
from rowhouse.mix import unmix64
from rowhouse.placement import PartitionMap

from ps_server.table.push import sum_duplicates

IDS = hnp.arrays(
    np.uint64, st.integers(0, 200), elements=st.integers(0, 40) | st.integers(2**64 - 3, 2**64 - 1)
)


def naive_distinct(ids: list[int]) -> list[list[int]]:
    """Invariant 1: the order of first appearance, which a dict keeps."""
    position = {row_id: i for i, row_id in enumerate(dict.fromkeys(ids))}
    return [list(position), [position[row_id] for row_id in ids]]


@pytest.mark.parametrize("kind", [np.int64, np.int32])
@given(ids=IDS)
def test_deduplicate_equals_a_dict(kind: type[np.int64], ids: NDArray[np.uint64]) -> None:
    inverse = np.full(ids.shape, -7, kind)
    distinct = deduplicate(ids, inverse)
    assert [distinct.tolist(), inverse.tolist()] == naive_distinct(ids.tolist())


def test_deduplicate_of_a_zipf_batch_and_of_a_full_table() -> None:
    rng = np.random.default_rng(7)
    for ids in (
        rng.zipf(1.2, 26_624).astype(np.uint64),
        np.arange(1 << 16, dtype=np.uint64) << np.uint64(48),
    ):
        inverse = np.empty(ids.shape, np.int64)
        distinct = deduplicate(ids, inverse)
        assert [distinct.tolist(), inverse.tolist()] == naive_distinct(ids.tolist())


@given(IDS, st.lists(IDS, max_size=3), st.sampled_from([0, 1, 2**63 + 5]))
def test_places_among_others(ids: NDArray[np.uint64], others: list[NDArray[np.uint64]], salt: int) -> None:
    known = {value for some in others for value in some.tolist()}
    want = [place for place, value in enumerate(ids.tolist()) if value in known]
    assert places_among(ids, others, np.uint64(salt)).tolist() == want


def least_s(call: Callable[[], object]) -> float:
    """CPU time of this thread for a call, the least of some: a busy machine does not change it much."""
    taken_s = []
    for _ in range(5):
        began_s = time.thread_time()
        call()
        taken_s.append(time.thread_time() - began_s)
    return min(taken_s)


def test_the_ids_of_one_shard_take_no_longer_than_any_others() -> None:
    """They share the high bits of their hash; a table that goes by those takes a thousand times as long."""
    ids = np.random.default_rng(3).integers(0, 2**64, 320_000, dtype=np.uint64)
    taken_s = []
    for chosen in (ids[:20_000], ids[PartitionMap.even(16).shards_of(ids) == 5][:19_000]):
        inverse = np.empty(chosen.shape, np.int64)
        taken_s.append(least_s(partial(deduplicate, chosen, inverse)))
    assert taken_s[1] < 50 * taken_s[0]


def test_ids_that_a_stranger_chose_to_crowd_take_a_shard_no_longer_than_any_others() -> None:
    """Without a salt these have one place: the ratio is in the thousands."""
    crowd = unmix64(np.arange(1, 20_001, dtype=np.uint64) << np.uint64(30))
    plain = np.random.default_rng(5).integers(0, 2**64, 20_000, dtype=np.uint64)
    taken_s = []
    for chosen in (plain, crowd):
        gradients = np.ones((chosen.shape[0], 1), np.float32)
        ids, _ = sum_duplicates(chosen, gradients)
        assert ids is chosen, "all are distinct"
        taken_s.append(least_s(partial(sum_duplicates, chosen, gradients)))
    assert taken_s[1] < 100 * taken_s[0]
    inverse = np.empty(200, np.int32)
    for salt in (0, 1, 2**63 + 5):
        distinct = deduplicate(crowd[:200], inverse, np.uint64(salt))
        assert [distinct.tolist(), inverse.tolist()] == naive_distinct(crowd[:200].tolist())


@given(IDS, st.integers(1, 5), st.integers(0, 2**32))
def test_sum_groups_adds_in_the_order_of_appearance(ids: NDArray[np.uint64], dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(ids.shape[0], dim)).astype(np.float32) * np.float32(1e3)
    inverse = np.empty(ids.shape, np.int64)
    count = deduplicate(ids, inverse).shape[0]
    naive: dict[int, NDArray[np.float32]] = {}
    for row_id, gradient in zip(ids.tolist(), gradients, strict=True):
        naive[row_id] = naive[row_id] + gradient if row_id in naive else gradient
    sums = sum_groups(gradients, inverse, count)
    np.testing.assert_array_equal(sums, np.array(list(naive.values()), np.float32).reshape(count, dim))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -np.nan])
@pytest.mark.parametrize("place", [0, 1, 4095, 4096, 9998])
def test_the_first_bad_gradient_is_found(bad: float, place: int) -> None:
    gradients = np.full((3333, 3), 3.4e38, np.float32)
    assert first_not_below(gradients, np.inf) == -1
    gradients.reshape(-1)[[place, 9998]] = bad
    assert first_not_below(gradients, np.inf) == place


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_first_gradient_that_is_not_below_a_bound_is_found(sign: float) -> None:
    gradients = np.full((2000, 3), np.nextafter(np.float32(2.0), np.float32(0)) * np.float32(sign))
    assert first_not_below(gradients, 2.0) == -1
    gradients[1500:, 1] = 2.0 * sign
    assert first_not_below(gradients, 2.0) == 4501
    gradients[100, 0] = np.nan
    assert first_not_below(gradients, 2.0) == 300


def test_no_gradients_are_finite() -> None:
    assert first_not_below(np.empty((0, 16), np.float32), 1.0) == -1


@pytest.mark.parametrize("count", [0, 1, 2, 256, 257, 258, 1000])
def test_ascending_ids_are_told_from_others(count: int) -> None:
    ids = np.arange(count, dtype=np.uint64) + np.uint64(2**64 - 1 - count)
    assert ascend(ids)
    for place in {1, 255, 256, 257, count - 1} & set(range(1, count)):
        for wrong in (ids[place - 1], np.uint64(0)):
            other = ids.copy()
            other[place] = wrong
            assert not ascend(other)
