# SPDX-License-Identifier: Apache-2.0
"""mix64 against a plain Python oracle, against published outputs, and its invariants."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rowhouse.mix import mix64, mix64_scalar, unmix64, unmix64_scalar

MASK = 2**64 - 1
EDGES = [0, 1, 2, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
ids_lists = st.lists(st.one_of(st.sampled_from(EDGES), st.integers(0, MASK)), max_size=50)


def splitmix64(x: int) -> int:
    """Naive oracle: one step of splitmix64 from state `x`."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_published_outputs_of_splitmix64() -> None:
    """First outputs of splitmix64 for seeds 0 and 1234567, as its reference implementation prints them."""
    seeds = np.array([0, 1234567], np.uint64)
    assert mix64(seeds).tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]


@given(ids_lists)
def test_equals_the_oracle(values: list[int]) -> None:
    mixed = mix64(np.array(values, np.uint64))
    assert mixed.dtype == np.uint64
    assert mixed.tolist() == [splitmix64(v) for v in values]


@given(ids_lists)
def test_unmix_inverts_both_ways(values: list[int]) -> None:
    """Invariant 2, and the other direction, so the map is onto as well (invariant 1)."""
    ids = np.array(values, np.uint64)
    np.testing.assert_array_equal(unmix64(mix64(ids)), ids)
    np.testing.assert_array_equal(mix64(unmix64(ids)), ids)


def test_distinct_ids_have_distinct_images() -> None:
    """Invariant 1 on dense small ids, on which weak mixes collide."""
    assert np.unique(mix64(np.arange(1 << 18, dtype=np.uint64))).size == 1 << 18


def test_scalars_equal_the_arrays() -> None:
    ids = np.array(EDGES, np.uint64)
    assert [int(mix64_scalar(i)) for i in ids] == mix64(ids).tolist()
    assert [int(unmix64_scalar(i)) for i in mix64(ids)] == ids.tolist()


def test_flipping_one_input_bit_flips_half_of_the_output() -> None:
    ids = np.random.default_rng(1).integers(0, MASK, 2000, dtype=np.uint64)
    for bit in range(64):
        changed = mix64(ids) ^ mix64(ids ^ np.uint64(1 << bit))
        share = np.unpackbits(changed.view(np.uint8)).mean()
        assert 0.48 < share < 0.52, f"bit {bit} flips {share:.3f} of the output"
