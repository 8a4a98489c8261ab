# SPDX-License-Identifier: Apache-2.0
"""Conditions, ages, recency and weights: what they say about wrong data, and where rows are left alone."""

import datetime
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_cross import ConfigError, DataError, Engine, LimitError, load

DAY = {"unit": "day"}
AGE = {"type": "date", "age": {"column": "now", **DAY}, "buckets": {"edges": [0, 1, 7]}}
RECENT = {"type": "int", "list": True, "recency": {"times": "at", "column": "now", "within": 7, **DAY}}
NOW = datetime.datetime(2024, 3, 1, 12)


def single(attribute: dict[str, Any], more: dict[str, Any] | None = None, **feature: Any) -> Engine:
    kind = {"kind": "combination", "form": "single"} if attribute.get("list") else {"kind": "attribute"}
    attributes = {"a": attribute, **(more or {})}
    features = {"f": {"of": "e.a", **kind, **feature}}
    return Engine(load({"entities": {"e": {"attributes": attributes}}, "features": features}))


def lengths(engine: Engine, table: pa.Table) -> list[int]:
    _, offsets = engine.transform(table)["f"]
    return [int(b - a) for a, b in itertools.pairwise(offsets)]


def days(*ages: float | None) -> pa.Array:
    values = [None if age is None else NOW - datetime.timedelta(days=age) for age in ages]
    return pa.array(values, pa.timestamp("us"))


@pytest.mark.parametrize(
    "arrow",
    [pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.date32()],
)
def test_an_age_is_the_same_of_every_type_of_date(arrow: pa.DataType) -> None:
    midnight = datetime.datetime(2024, 3, 1)
    born = pa.array(
        [midnight - datetime.timedelta(days=n) for n in (-1, 0, 1, 6, 7, 400)], pa.timestamp("us")
    )
    now = pa.array([midnight] * 6, pa.timestamp("us"))
    wanted = single(AGE).transform(pa.table({"a": born, "now": now}))["f"][0].tolist()
    assert [wanted.index(i) for i in wanted] == [0, 1, 2, 2, 4, 4]
    table = pa.table({"a": born.cast(arrow), "now": now.cast(arrow)})
    assert single(AGE).transform(table)["f"][0].tolist() == wanted
    fixed = AGE | {"age": {"date": "2024-03-01", **DAY}}
    assert single(fixed).transform(table.select(["a"]))["f"][0].tolist() == wanted
    zoned = AGE | {"age": {"date": "2024-03-01T02:00:00+02:00", **DAY}}
    assert single(zoned).transform(table.select(["a"]))["f"][0].tolist() == wanted


def test_dates_before_1970_and_nanoseconds_are_rounded_down() -> None:
    attribute = {
        "type": "date",
        "age": {"date": "1970-01-01", "unit": "second"},
        "buckets": {"edges": [1e-6, 2e-6]},
    }
    array = pa.array([-1, -1000, -1001, 0, 1], pa.timestamp("ns"))
    ids = single(attribute).transform(pa.table({"a": array}))["f"][0].tolist()
    assert [ids.index(i) for i in ids] == [0, 0, 2, 3, 3]  # 1, 1, 2, 0 and 0 microseconds before 1970


def test_text_is_read_as_a_moment_with_cast() -> None:
    table = pa.table({"a": ["2024-02-29"], "now": ["2024-03-01T00:00:00"]})
    whole = single(AGE | {"cast": True}).transform(table)["f"][0]
    assert whole.tolist() == single(AGE).transform(pa.table({"a": days(1), "now": [NOW]}))["f"][0].tolist()
    with pytest.raises(DataError, match=r"column 'a' \(e.a\) has Arrow type string.*set cast: true"):
        single(AGE).transform(table)


WRONG = [
    (AGE, {"a": days(1), "now": ["x"]}, r"column 'now' \(e.a, age.column\) has Arrow type string"),
    (AGE, {"a": [5], "now": [NOW]}, r"column 'a' \(e.a\) has Arrow type int64; it takes timestamps or dates"),
    (
        AGE | {"cast": True},
        {"a": ["never"], "now": [NOW]},
        r"column 'a' \(e.a\) cannot be converted to date",
    ),
    (AGE, {"a": pa.array([2**62], pa.timestamp("s")), "now": [NOW]}, "73,000 years"),
    (AGE, {"a": pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), "now": [NOW]}, "73,000 years"),
    (AGE, {"a": days(1)}, r"column 'now' \(e.a\) is not in the data"),
    (
        RECENT,
        {"a": [[1], [1, 2]], "at": [[NOW], [NOW]], "now": [NOW, NOW]},
        r"column 'at' \(e.a, recency.times\) has 1 elements in row 1, and column 'a' has 2",
    ),
    (RECENT, {"a": [[1]], "at": [NOW], "now": [NOW]}, r"column 'at' .* it is declared as a list"),
    (
        {"type": "int", "weights": "w"},
        {"a": [1, 2, None], "w": [1.0, None, None]},
        r"column 'w' \(e.a, weights\) is nan in row 1",
    ),
    (
        {"type": "int", "weights": "w"},
        {"a": [1], "w": [1e300]},
        "is inf in row 0; a weight is a finite float32",
    ),
    ({"type": "int", "weights": "w"}, {"a": [1], "w": ["x"]}, "has Arrow type string; weights are numbers"),
    (
        {"type": "int", "list": True, "weights": "w"},
        {"a": [[], [1, 2]], "w": [[], [1.0, float("nan")]]},
        "is nan in row 1",
    ),
    (
        {"type": "int", "list": True, "weights": "w"},
        {"a": [[1]], "w": [[1.0, 2.0]]},
        "has 2 elements in row 0, and column 'a' has 1",
    ),
]


@pytest.mark.parametrize(("attribute", "columns", "message"), WRONG)
def test_a_wrong_further_column_is_named(
    attribute: dict[str, Any], columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        single(attribute).transform(pa.table(columns))


def test_a_row_of_an_error_counts_from_the_start_of_the_stream() -> None:
    engine = single({"type": "int", "weights": "w"})
    table = pa.table({"a": list(range(10)), "w": [1.0] * 9 + [float("nan")]})
    with pytest.raises(DataError, match="in row 9"):
        list(engine.transform_stream(table, batch_rows=4))
    with pytest.raises(DataError, match=r"column 'w' \(e.a, weights\) is not in the row"):
        engine.transform({"a": 1})
    with pytest.raises(
        DataError, match=r"column 'w' \(e.a, weights\) is 'x', not number|weights are numbers"
    ):
        engine.transform({"a": 1, "w": "x"})


def test_recency_leaves_out_the_old_the_future_and_the_unknown() -> None:
    table = pa.table(
        {
            "a": [[1, 2, 3, 4, 5], None, []],
            "at": pa.array([days(7, 7.01, 0, -0.01, None).to_pylist(), [], []], pa.list_(pa.timestamp("us"))),
            "now": [NOW] * 3,
        }
    )
    ids, offsets = single(RECENT).transform(table)["f"]
    assert offsets.tolist() == [0, 2, 2, 2]
    plain = single({"type": "int", "list": True}).transform(pa.table({"a": [[1, 3]]}))["f"][0]
    assert ids.tolist() == plain.tolist()
    nobody = table.set_column(2, "now", pa.nulls(3, pa.timestamp("us")))
    assert lengths(single(RECENT), nobody) == [0, 0, 0]


def test_where_conditions_do_not_hold_nothing_is_worked_out() -> None:
    table = pa.table({"a": [list(range(300)), [1]], "b": [0, 1]})
    more = {"b": {"type": "int"}}
    with pytest.raises(LimitError, match="for row 0"):
        single({"type": "int", "list": True}, more, limit=5).transform(table)
    when = {"e.b": {"any_of": [1]}}
    assert lengths(single({"type": "int", "list": True}, more, limit=5, when=when), table) == [0, 1]
    strict = single({"type": "int", "missing": "error"}, more, when=when)
    assert lengths(strict, pa.table({"a": [None, 1], "b": [0, 1]})) == [0, 1]
    with pytest.raises(DataError, match="no value in row 1"):
        strict.transform(pa.table({"a": pa.array([1, None], pa.int64()), "b": [0, 1]}))


def test_conditions_change_rows_and_never_ids() -> None:
    more = {"b": {"type": "int"}}
    table = pa.table({"a": list(range(50)), "b": [n % 5 for n in range(50)]})
    whole = single({"type": "int"}).transform(table)["f"][0]
    some = single({"type": "int"}, more, when={"e.b": {"at_least": 1.5, "below": 3.5}}).transform(table)["f"][
        0
    ]
    assert some.tolist() == whole[np.isin(np.arange(50) % 5, [2, 3])].tolist()


@pytest.mark.parametrize("arrow", [pa.int8(), pa.uint8(), pa.int64(), pa.uint64()])
def test_bounds_past_a_columns_type_are_compared_as_numbers(arrow: pa.DataType) -> None:
    table = pa.table({"a": pa.array([1, 100], arrow)})
    assert lengths(single({"type": "int"}, when={"e.a": {"at_least": -5}}), table) == [1, 1]
    assert lengths(single({"type": "int"}, when={"e.a": {"below": 2**63}}), table) == [1, 1]
    assert lengths(single({"type": "int"}, when={"e.a": {"at_least": 2**63 + 5}}), table) == [0, 0]
    assert lengths(single({"type": "int"}, when={"e.a": {"below": 1.5}}), table) == [1, 0]
    big = pa.table({"a": pa.array([2**53, 2**53 + 1])})
    assert lengths(single({"type": "int"}, when={"e.a": {"at_least": 2**53 + 1}}), big) == [0, 1]


def test_a_float_column_is_compared_as_float64_like_its_buckets() -> None:
    for value, held in ((0.7, 0), (0.3, 1)):  # as float32 0.699999988 and 0.300000012
        table = pa.table({"a": pa.array([value], pa.float32()), "b": [1]})
        engine = single({"type": "int", "column": "b"}, {"x": {"type": "float", "column": "a"}}, when={
            "e.x": {"at_least": value}
        })  # fmt: skip
        assert lengths(engine, table) == [held]


def test_dictionaries_and_run_ends_meet_conditions_alike() -> None:
    texts = pa.array(["Oslo ", "rome", None, "oslo"])
    engine = single({"type": "string", "normalise": ["strip", "lower"]}, when={"e.a": {"any_of": ["OSLO"]}})
    for array in (
        texts,
        texts.dictionary_encode(),
        texts.cast(pa.large_string()),
        texts.cast(pa.string_view()),
    ):
        assert lengths(engine, pa.table({"a": array})) == [1, 0, 0, 1]
    numbers = pa.array([1, 2, None, 3])
    engine = single({"type": "int"}, when={"e.a": {"at_least": 2}})
    for array in (numbers, numbers.dictionary_encode(), numbers.cast(pa.int8())):
        assert lengths(engine, pa.table({"a": array})) == [0, 1, 0, 1]
    assert lengths(engine, pa.table({"a": pa.nulls(2)})) == [0, 0]


def test_one_id_of_several_elements_refuses_weights() -> None:
    for form in ({"form": "sorted"}, {"form": "permutation"}, {"form": "sorted", "size": 2}, {"form": "all"}):
        with pytest.raises(
            ConfigError, match="makes one id of several elements, and no one weight is its own"
        ):
            single({"type": "int", "list": True, "weights": "w"}, **form)


def test_weights_travel_past_a_batch_and_are_read_only() -> None:
    rows = 70_000
    table = pa.table({"a": np.arange(rows), "w": np.arange(rows, dtype=np.float64)})
    batch = single({"type": "int", "weights": "w"}).transform(table)
    assert batch.weights["f"].tolist() == list(range(rows)) and batch.weights["f"].dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        batch.weights["f"][0] = 1
    assert single({"type": "int"}).transform({"a": 1}).jagged_weights() is None
