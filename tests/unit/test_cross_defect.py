# SPDX-License-Identifier: Apache-2.0
"""One test for each defect that other systems' crosses have (docs/id_format.md, "Why it is so")."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_cross import ConfigError, Engine, load

INT = {"type": "int"}
STRING = {"type": "string"}


def engine(attributes: dict[str, Any], features: dict[str, Any], **ids: Any) -> Engine:
    return Engine(load({"ids": ids, "entities": {"e": {"attributes": attributes}}, "features": features}))


def pair(left: Any, right: Any) -> Engine:
    return engine({"a": left, "b": right}, {"f": {"kind": "categorical", "of": ["e.a", "e.b"]}})


def test_a_cross_is_not_symmetric() -> None:
    ids, _ = pair(INT, INT).transform(pa.table({"a": [1, 2], "b": [2, 1]}))["f"]
    assert ids[0] != ids[1]


def test_equal_values_do_not_cancel() -> None:
    ids, _ = pair(INT, INT).transform(pa.table({"a": range(10_000), "b": range(10_000)}))["f"]
    assert len(set(ids.tolist())) == 10_000


def test_no_hash_leaks_into_the_slot() -> None:
    values = np.arange(100_000)
    for bits in (1, 7, 10, 31, 32):
        for slot in (0, (1 << bits) - 1):
            features = {"f": {"kind": "attribute", "of": "e.a", "slot": slot}}
            ids, _ = engine({"a": INT}, features, slot_bits=bits).transform(pa.table({"a": values}))["f"]
            assert (ids >> np.uint64(64 - bits) == slot).all(), (bits, slot)
            low = np.bitwise_or.reduce(ids) & np.uint64((1 << (64 - bits)) - 1)
            assert int(low) == (1 << (64 - bits)) - 1, "every bit under the slot is used"


def test_no_delimiter_is_ambiguous() -> None:
    table = pa.table({"a": ["a_b", "a", "", "ab"], "b": ["c", "b_c", "abc", "c"]})
    ids, _ = pair(STRING, STRING).transform(table)["f"]
    assert len(set(ids.tolist())) == 4


def test_a_million_pairs_of_small_integers_are_a_million_ids() -> None:
    left, right = np.divmod(np.arange(1_000_000), 1000)
    for bits in (None, 12):
        features = {"f": {"kind": "categorical", "of": ["e.a", "e.b"], "slot": 1}}
        built = engine({"a": INT, "b": INT}, features, slot_bits=bits)
        ids, _ = built.transform(pa.table({"a": left, "b": right}))["f"]
        assert len(np.unique(ids)) == 1_000_000


def test_arity_keeps_groupings_apart() -> None:
    attributes = dict.fromkeys("abc", INT)
    features = {
        "ab": {"kind": "categorical", "of": ["e.a", "e.b"], "seed": 1},
        "abc": {"kind": "categorical", "of": ["e.a", "e.b", "e.c"], "seed": 1},
        "ab_c": {"kind": "categorical", "of": ["ab", "e.c"], "seed": 1},
    }
    batch = engine(attributes, features).transform({"a": 1, "b": 2, "c": 3})
    assert len({int(batch[name][0][0]) for name in features}) == 3


def test_seven_and_the_text_seven_differ_and_nothing_is_guessed() -> None:
    assert (
        pair(INT, INT).transform({"a": 7, "b": 7})["f"][0]
        != pair(INT, STRING).transform({"a": 7, "b": "7"})["f"][0]
    )
    for row in ({"a": "7", "b": 7}, {"a": 7.5, "b": 7}, {"a": True, "b": 7}):
        with pytest.raises(ValueError, match=r"column 'a' \(e.a\)"):
            pair(INT, INT).transform(row)


def test_order_insertion_and_removal_of_features_change_nobody_elses_ids() -> None:
    attributes = {"a": INT, "b": INT, "l": INT | {"list": True}}
    features: dict[str, Any] = {
        "a": {"kind": "attribute", "of": "e.a", "slot": 3},
        "ab": {"kind": "categorical", "of": ["e.a", "e.b"], "slot": 9},
        "l": {"kind": "combination", "of": "e.l", "slots": {"permutation": 4, "single": 1, "sorted": 2}},
    }
    row = {"a": 5, "b": 6, "l": [1, 2]}
    whole = engine(attributes, features, slot_bits=5).transform(row)
    for order in itertools.permutations(features):
        for count in range(1, 4):
            some = {name: features[name] for name in order[:count]}
            batch = engine(attributes, some, slot_bits=5).transform(row)
            for name in batch.features:
                assert batch[name][0].tolist() == whole[name][0].tolist()


def test_moving_a_slot_leaves_derived_features_as_they_are() -> None:
    def derived(slot: int) -> Any:
        features = {
            "ab": {"kind": "categorical", "of": ["e.a", "e.b"], "slot": slot},
            "abc": {"kind": "categorical", "of": ["ab", "e.c"], "slot": 7},
        }
        built = engine(dict.fromkeys("abc", INT), features, slot_bits=4)
        return built.transform({"a": 1, "b": 2, "c": 3})["abc"][0].tolist()

    assert derived(1) == derived(2)


def test_permutation_and_combination_never_share_ids_even_with_one_seed() -> None:
    features: dict[str, Any] = {
        form: {"kind": "combination", "form": form, "of": "e.l", "seed": 1}
        for form in ("permutation", "single", "sorted")
    }
    features["pairs"] = {"kind": "combination", "form": "sorted", "size": [1, 2], "of": "e.l", "seed": 1}
    built = engine({"l": INT | {"list": True}}, features)
    rows = [list(p) for n in range(1, 5) for p in itertools.product(range(4), repeat=n)]
    batch = built.transform(pa.table({"l": rows}))
    permuted = set(batch["permutation"][0].tolist())
    assert len(permuted) == len(rows), "every arrangement has its own id"
    assert not permuted & set(batch["sorted"][0].tolist())
    assert not permuted & set(batch["pairs"][0].tolist())
    assert not permuted & set(batch["single"][0].tolist())


def test_sorted_ignores_order_and_permutation_does_not() -> None:
    features = {"l": {"kind": "combination", "of": "e.l"}}
    batch = engine({"l": INT | {"list": True}}, features).transform(pa.table({"l": [[3, 1, 2], [2, 3, 1]]}))
    assert batch["l.sorted"][0][0] == batch["l.sorted"][0][1]
    assert batch["l.permutation"][0][0] != batch["l.permutation"][0][1]
    assert sorted(batch["l.single"][0][:3]) == sorted(batch["l.single"][0][3:])


def test_one_slot_for_permutation_and_combination_is_refused() -> None:
    features = {
        "l": {"kind": "combination", "of": "e.l", "slots": {"permutation": 1, "single": 2, "sorted": 1}}
    }
    with pytest.raises(ConfigError, match=r"slot 1 of l.sorted is already l.permutation's"):
        engine({"l": INT | {"list": True}}, features, slot_bits=4)


@pytest.mark.parametrize("values", ["sequential", "zipf", "strings", "strided"])
@pytest.mark.parametrize("slot_bits", [None, 8])
@pytest.mark.parametrize("form", ["attribute", "cross", "sorted"])
def test_high_and_low_bits_are_even(values: str, slot_bits: int | None, form: str) -> None:
    """Chi-square of every byte of the hash, over 256 cells each, and of adjacent ids' difference."""
    random = np.random.default_rng(7)
    made: dict[str, Any] = {
        "sequential": np.arange(200_000),
        "zipf": np.unique(random.zipf(1.1, 400_000) & 0x7FFFFFFFFFFF),
        "strings": pa.array([f"user_{n}" for n in range(200_000)]),
        "strided": np.arange(200_000) << 32,
    }
    column = made[values]
    kind = STRING if values == "strings" else INT
    ids_of = {"slot_bits": slot_bits} if slot_bits else {}
    features: dict[str, Any] = {
        "attribute": {"kind": "attribute", "of": "e.a"},
        "cross": {"kind": "categorical", "of": ["e.a", "e.b"]},
        "sorted": {"kind": "combination", "form": "sorted", "of": "e.l"},
    }
    attributes = {"a": kind, "b": INT, "l": kind | {"list": True}}
    built = engine(attributes, {"f": features[form] | {"slot": 3}}, **ids_of)
    lists = pa.ListArray.from_arrays(np.arange(0, len(column) + 1, dtype=np.int32), pa.array(column))
    table = pa.table({"a": column, "b": np.arange(len(column)) % 7, "l": lists})
    ids = built.transform(table)["f"][0]
    hash_bits = 64 - (slot_bits or 0)
    for shift in (*range(0, hash_bits - 8, 8), hash_bits - 8):
        cells = ((ids >> np.uint64(shift)) & np.uint64(255)).astype(np.intp)
        for counted in (cells, (cells[1:] - cells[:-1]) & 255):
            counts = np.bincount(counted, minlength=256)
            chi_square = ((counts - len(counted) / 256) ** 2).sum() / (len(counted) / 256)
            # 255 degrees of freedom: mean 255, deviation 22.6; 6 deviations are one chance in hundreds of
            # millions for a normal, and in millions for this distribution's longer upper tail.
            assert abs(chi_square - 255) < 6 * 22.6, (shift, chi_square)
