# SPDX-License-Identifier: Apache-2.0
"""Whatever the config's text and the row's values are, the answer is an id or an error of ours."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rowhouse.placement import PartitionMap

from feature_cross import ConfigError, CrossConfig, DataError, Engine, load
from feature_cross.config.loader import load_text

GOOD: dict[str, Any] = {
    "version": 1,
    "ids": {"slot_bits": 5},
    "entities": {
        "user": {
            "key": "id",
            "attributes": {
                "id": {"type": "int", "column": "i"},
                "name": {"type": "string", "normalise": ["strip", "lower", "nfc"], "column": "s"},
                "seen": {"type": "int", "list": True, "max_length": 3, "keep": "first", "column": "l"},
            },
        },
        "item": {
            "attributes": {
                "price": {"type": "float", "buckets": {"edges": [0.0, 1.0]}, "column": "f"},
                "time": {"type": "date", "part": "hour", "cast": True, "column": "d"},
                "new": {"type": "bool", "missing": "own_id", "column": "b"},
            }
        },
    },
    "features": {
        "a": {"kind": "attribute", "slot": 1, "of": "user.id"},
        "b": {"kind": "categorical", "slot": 2, "of": ["user.name", "user.id"]},
        "c": {"kind": "interaction", "slot": 3, "of": ["b", "item.price", "item.new"]},
        "d": {
            "kind": "combination",
            "slots": {"permutation": 4, "single": 5, "sorted": 6},
            "of": "user.seen",
        },
        "e": {"kind": "weak", "slot": 7, "of": ["d.single", "item.time"], "limit": 2, "past_limit": "cut"},
    },
}
ENGINE = Engine(load(GOOD))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
    | st.dates() | st.datetimes() | st.just(2**70) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    )
    return [path, *(deeper for key, child in children for deeper in paths(child, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, dict):
        return {
            key: replaced(child, path[1:], new) if key == path[0] else child for key, child in value.items()
        }
    return [replaced(child, path[1:], new) if n == path[0] else child for n, child in enumerate(value)]


@given(st.text(alphabet="abc:{}[]&*!-?|>#'\",\n \t%@0\ufeff\u2028\x00", max_size=200) | st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(load_text(text), CrossConfig)


def config_error_of(make: Callable[[], Any]) -> ConfigError | None:
    try:
        make()
    except ConfigError as error:
        return error
    return None


@given(st.sampled_from([p for p in paths(GOOD) if p]), ANYTHING)
@settings(max_examples=300, deadline=None)
def test_any_value_anywhere_in_a_config_is_taken_or_named(path: tuple[Any, ...], value: Any) -> None:
    error = config_error_of(lambda: Engine(load(replaced(GOOD, path, value))))
    assert error is None or (error.problems and str(error))


@given(
    st.sampled_from([p for p in paths(GOOD) if p]),
    st.integers() | st.text(max_size=5) | st.none() | st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_fault_in_a_file_has_a_line(path: tuple[Any, ...], value: Any) -> None:
    text = json.dumps(replaced(GOOD, path, value), indent=1)
    error = config_error_of(lambda: load_text(text))
    assert error is None or all(problem.line for problem in error.problems), error


ROW: dict[str, Any] = {"i": 7, "s": "Oslo", "l": [1, 2], "f": 0.5, "d": "2020-01-01T00:00:00", "b": True}


@given(st.dictionaries(st.sampled_from(sorted(ROW)), ANYTHING, min_size=1, max_size=2))
@settings(max_examples=400, deadline=None)
def test_any_value_in_a_row_gives_ids_or_a_data_error(strange: dict[str, Any]) -> None:
    try:
        batch = ENGINE.transform(ROW | strange)
    except DataError as error:
        message = str(error)
        assert any(f"column {name!r}" in message for name in strange)  # both ways are right
        return
    assert batch.features == ENGINE.plan.outputs
    for name in batch.features:
        ids, offsets = batch[name]
        assert len(offsets) == 2 and offsets[1] == len(ids)


@pytest.mark.parametrize("shards", [2, 3, 4, 7, 8, 16, 32, 64, 100, 128, 256, 512, 1000, 1024])
@pytest.mark.parametrize("kind", ["sequential", "zipf"])
def test_ids_spread_evenly_over_shards(shards: int, kind: str) -> None:
    random = np.random.default_rng(11)
    count = 400_000
    values = np.arange(count) if kind == "sequential" else np.unique(random.zipf(1.05, count) & (2**62 - 1))
    attributes = {"a": {"type": "int"}, "b": {"type": "int"}}
    for bits in (None, 12):
        feature = {"kind": "categorical", "of": ["e.a", "e.b"], "slot": 5}
        config = {
            "ids": {"slot_bits": bits},
            "entities": {"e": {"attributes": attributes}},
            "features": {"f": feature},
        }
        ids, _ = Engine(load(config)).transform(pa.table({"a": values, "b": values % 3}))["f"]
        counts = np.bincount(PartitionMap.even(shards).shards_of(ids.copy()), minlength=shards)
        widths = np.bincount(PartitionMap.even(shards).shards, minlength=shards) / 4096
        expected = len(ids) * widths
        deviations = (counts - expected) / np.sqrt(expected)
        assert np.abs(deviations).max() < 6, "further than 6 deviations of a fair draw"
