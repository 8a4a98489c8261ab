# SPDX-License-Identifier: Apache-2.0
"""Partition maps: the invariants of rowhouse/placement.py."""

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from rowhouse.error import InvalidRequestError
from rowhouse.limit import PARTITIONS, SHARDS_MAX
from rowhouse.mix import mix64
from rowhouse.placement import PARTITION_SHIFT, PartitionMap, partitions_of

IDS = np.concatenate([np.array([0, 1, 2**63, 2**64 - 1], np.uint64), np.arange(10, 200_010, dtype=np.uint64)])
shard_counts = st.integers(1, SHARDS_MAX)


def test_partition_is_the_high_bits_of_mix64() -> None:
    partitions = partitions_of(IDS)
    assert partitions.dtype == np.uint16
    expected = [int(m) * PARTITIONS >> 64 for m in mix64(IDS[:1000])]
    assert partitions[:1000].tolist() == expected
    assert 1 << (64 - int(PARTITION_SHIFT)) == PARTITIONS


def test_dense_ids_spread_evenly_over_partitions() -> None:
    counts = np.bincount(partitions_of(IDS), minlength=PARTITIONS)
    mean = IDS.size / PARTITIONS
    chi_square = float(((counts - mean) ** 2 / mean).sum())
    assert abs(chi_square - PARTITIONS) < 6 * np.sqrt(2 * PARTITIONS)


@given(shard_counts)
def test_even_map_gives_contiguous_equal_ranges(count: int) -> None:
    """Invariant 2: each partition has a shard below the count."""
    even = PartitionMap.even(count)
    assert even.shard_count == count
    assert (np.diff(even.shards.astype(int)) >= 0).all()
    sizes = np.bincount(even.shards, minlength=count)
    assert sizes.size == count and sizes.max() - sizes.min() <= 1


@given(shard_counts)
def test_shard_of_an_id_follows_its_partition(count: int) -> None:
    """Invariant 1: the number of shards changes the map, never the partition."""
    even = PartitionMap.even(count)
    np.testing.assert_array_equal(even.shards_of(IDS[:500]), even.shards[partitions_of(IDS[:500])])


@given(shard_counts, shard_counts)
def test_versions_are_equal_exactly_when_maps_are(one: int, other: int) -> None:
    """Invariant 3, over a round trip through bytes too."""
    a, b = PartitionMap.even(one), PartitionMap.even(other)
    assert (a.version == b.version) == (one == other)
    assert PartitionMap.from_bytes(a.shards.tobytes()).version == a.version


def test_a_map_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        PartitionMap.even(2).shards[0] = 1


@pytest.mark.parametrize("count", [0, -1, SHARDS_MAX + 1])
def test_impossible_counts_are_refused(count: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"shard count is {count}; it must be 1 to {SHARDS_MAX}"):
        PartitionMap.even(count)


@pytest.mark.parametrize("size", [0, 1, 2 * PARTITIONS - 1, 2 * PARTITIONS + 2])
def test_a_map_of_the_wrong_length_is_refused(size: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"{size} bytes; it must have {2 * PARTITIONS}"):
        PartitionMap.from_bytes(bytes(size))


@given(shard_counts, st.data())
def test_the_first_foreign_id_is_found(count: int, data: st.DataObject) -> None:
    """Against the owners of all ids, for a map of ranges and for one whose shards are scattered."""
    even = PartitionMap.even(count)
    scattered = np.random.default_rng(count).permutation(even.shards).astype("<u2")
    ids = np.random.default_rng(data.draw(st.integers(0, 2**32))).integers(0, 2**64, 5000, np.uint64)
    for found in (even, PartitionMap.from_bytes(scattered.tobytes())):
        shard = data.draw(st.integers(0, count - 1))
        owners = found.shards_of(ids)
        foreign = np.flatnonzero(owners != shard)
        assert found.first_foreign(ids, shard) == (foreign[0] if foreign.size else -1)
        own = ids[owners == shard]
        assert found.first_foreign(own, shard) == -1
        if own.size and count > 1:
            at = data.draw(st.integers(0, own.size - 1))
            own[at] = ids[foreign[0]]
            assert found.first_foreign(own, shard) == at


def test_the_stamp_is_the_clusters_own_and_the_version_is_accepted_too() -> None:
    """Clients that know no cluster ids, and stubs that were written by hand, send the version."""
    one, other, plain = (PartitionMap.even(2, name) for name in ("0f" * 16, "1f" * 16, ""))
    assert one.version == other.version == plain.version == plain.stamp
    assert len({one.stamp, other.stamp, plain.stamp}) == 3
    assert one.stamp == xxhash.xxh3_64_intdigest(one.shards.tobytes() + bytes.fromhex("0f" * 16))
    assert one.accepts(one.stamp) and one.accepts(plain.version) and not one.accepts(other.stamp)
    with pytest.raises(InvalidRequestError, match="cluster id is 'x'; it must be 32 hexadecimal digits"):
        PartitionMap.from_bytes(one.shards.tobytes(), "x")
