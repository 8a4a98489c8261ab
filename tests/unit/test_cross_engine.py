# SPDX-License-Identifier: Apache-2.0
"""What the engine takes, gives and refuses: Arrow types, sources, shapes, limits, errors."""

import datetime
import itertools
import math
import pickle
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from feature_cross import CrossBatch, DataError, Engine, LimitError, load
from feature_cross import id_format as f
from feature_cross.limit import IDS_PER_ROW_MAX

INT_LIST = {"type": "int", "list": True}


def single(attribute: dict[str, Any], **feature: Any) -> Engine:
    kind = {"kind": "combination", "form": "single"} if attribute.get("list") else {"kind": "attribute"}
    declared = {"f": {"of": "e.a", **kind, **feature}}
    return Engine(load({"entities": {"e": {"attributes": {"a": attribute}}}, "features": declared}))


def ids_of(engine: Engine, array: pa.Array) -> list[list[int]]:
    ids, offsets = engine.transform(pa.table({"a": array}))["f"]
    return [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]


LISTS = [
    pa.list_(pa.int16()), pa.large_list(pa.int64()), pa.list_(pa.int32(), 2), pa.list_view(pa.int8()),
    pa.large_list_view(pa.uint64()), pa.list_(pa.dictionary(pa.int8(), pa.int64())),
]  # fmt: skip


@pytest.mark.parametrize("arrow", LISTS, ids=str)
def test_every_list_type_gives_the_same_ids(arrow: pa.DataType) -> None:
    rows = [[1, 2], None, [3, None], [4, 5]]
    if pa.types.is_dictionary(arrow.value_type):
        flat = pa.array([1, 2, 3, None, 4, 5]).dictionary_encode()
        array = pa.ListArray.from_arrays(
            pa.array([0, 2, 2, 4, 6]), flat, mask=pa.array([False, True, False, False])
        )
    else:
        array = pa.array(rows, arrow)
    wanted = ids_of(single(INT_LIST), pa.array(rows, pa.list_(pa.int64())))
    assert [len(row) for row in wanted] == [2, 0, 1, 2]
    assert ids_of(single(INT_LIST), array) == wanted
    assert ids_of(single(INT_LIST), array.slice(2)) == wanted[2:]


WRONG = [
    ({"type": "int"}, pa.array([1.5]), "type int takes integers"),
    ({"type": "int"}, pa.array(["1"]), "set cast: true to read numbers from text"),
    ({"type": "int"}, pa.array([True]), "Arrow type bool"),
    ({"type": "int", "buckets": {"edges": [1]}}, pa.array([1.5]), "type int takes integers"),
    ({"type": "string"}, pa.array([1]), "set cast: true for their decimal text"),
    ({"type": "string"}, pa.array([b"a"]), "type string takes text"),
    ({"type": "bool"}, pa.array([1]), "type bool takes bools"),
    ({"type": "float", "buckets": {"edges": [1]}}, pa.array(["1"]), "takes numbers"),
    ({"type": "date", "part": "hour"}, pa.array(["2020-01-01"]), "set cast: true to read dates"),
    ({"type": "date", "part": "hour"}, pa.array([datetime.date(2020, 1, 1)]), "has no time of day"),
    ({"type": "int", "cast": True}, pa.array(["1", "x"]), "cannot be converted to int"),
    ({"type": "int"}, pa.array([1.0, None]), "set cast: true to take whole numbers as integers"),
    ({"type": "int"}, pa.array([Decimal(7)]), "set cast: true to take whole numbers as integers"),
    ({"type": "string"}, pa.array([7.0, None]), "set cast: true for their decimal text"),
    ({"type": "float", "buckets": {"edges": [1]}}, pa.array([Decimal("1.5")]), "take decimals as floats"),
    ({"type": "int", "cast": True}, pa.array([1.0, 7.5]), "has 7.5 at its value 1; an integer must be whole"),
    ({"type": "int", "cast": True}, pa.array([2.0**53]), "below 2^53"),
    ({"type": "int", "cast": True}, pa.array([math.inf]), "has inf at its value 0"),
    ({"type": "int", "cast": True}, pa.array([Decimal("1.5")]), "type int takes integers"),
    ({"type": "int", "cast": True}, pa.array([Decimal(1 << 64)]), "cannot be converted to int"),
    (INT_LIST, pa.array([1]), "declared as a list"),
    ({"type": "int"}, pa.array([[1]]), "Arrow type list"),
    (
        {"type": "int", "missing": "error"},
        pa.array([1, None]),
        "no value in row 1; its missing policy is error",
    ),
    (INT_LIST | {"missing": "error"}, pa.array([[1], [], [1, None]]), "no value in row 2"),
    (INT_LIST | {"missing": "error"}, pa.array([[1], None]), "no value in row 1"),
]


@pytest.mark.parametrize(("attribute", "array", "message"), WRONG)
def test_a_wrong_column_is_named(attribute: dict[str, Any], array: pa.Array, message: str) -> None:
    with pytest.raises(DataError, match=r"column 'a' \(e.a\)") as caught:
        single(attribute).transform(pa.table({"a": array}))
    assert message in str(caught.value)


@pytest.mark.parametrize("missing", ["drop", "own_id"])
@pytest.mark.parametrize("kind", [{"type": "int"}, {"type": "string"}, {"type": "int", "buckets": {"log": {
    "base": 2, "start": 1, "stop": 1e9}}}], ids=str)  # fmt: skip
def test_whole_numbers_of_other_types_are_taken_with_cast(missing: str, kind: dict[str, Any]) -> None:
    engine = single({**kind, "cast": True, "missing": missing})
    whole = pa.array([7, None, -3, (1 << 53) - 1])
    wanted = ids_of(engine, whole)
    decimals = pa.array([Decimal(7), None, Decimal(-3), Decimal((1 << 53) - 1)], pa.decimal128(20, 0))
    floats = pa.array([7.0, math.nan, -3.0, float((1 << 53) - 1)])
    taken = [decimals, decimals.cast(pa.decimal256(38, 0)), floats, whole.cast(pa.float64())]
    for array in [
        *taken,
        *[one.dictionary_encode() for one in taken],
        whole.cast(pa.string()).cast(pa.string_view()),
    ]:
        assert ids_of(engine, array) == wanted, array.type
    big = pa.array([Decimal((1 << 64) - 1), Decimal(7)], pa.decimal128(20, 0))
    if kind == {"type": "int"}:
        assert ids_of(engine, big) == ids_of(engine, pa.array([(1 << 64) - 1, 7], pa.uint64()))


@pytest.mark.parametrize("part", ["year", "date", "weekday", "hour", "minute"])
def test_dates_of_text_may_have_an_offset(part: str) -> None:
    texts = [
        "2026-01-01T01:30:00+02:00",
        "2025-12-31 23:30:00Z",
        "2025-12-31 23:30:00",
        "2025-12-31T18:30:00-0500",
        None,
    ]
    moment = datetime.datetime(2025, 12, 31, 23, 30)
    wanted = ids_of(single({"type": "date", "part": part}), pa.array([moment] * 4 + [None]))
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        assert ids_of(single({"type": "date", "part": part, "cast": True}), pa.array(texts, kind)) == wanted


def test_a_missing_column_is_named() -> None:
    for data in (pa.table({"b": [1]}), pa.RecordBatch.from_pydict({"b": [1]}), {"b": 1}):
        with pytest.raises(DataError, match=r"column 'a' \(e.a\) is not in the"):
            single({"type": "int"}).transform(data)


def test_invalid_utf8_is_refused() -> None:
    data = pa.py_buffer(b"ok\xff\xfe")
    offsets = pa.py_buffer(np.array([0, 2, 4], np.int32))
    array = pa.StringArray.from_buffers(2, offsets, data)
    for attribute in ({"type": "string"}, {"type": "string", "normalise": ["lower"]}):
        with pytest.raises(DataError, match="is not valid text"):
            single(attribute).transform(pa.table({"a": array}))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_text_far_into_a_column_is_checked_and_hashed_like_the_first(kind: pa.DataType) -> None:
    names, engine = [f"name {i}" for i in range(9_001)], single({"type": "string"})
    names[4_999] = names[9_000] = "Åse"
    wanted = [engine.transform({"a": name})["f"][0].tolist() for name in names]
    assert ids_of(engine, pa.array(names, kind)) == wanted
    wrong = pa.array([name.encode() for name in names[:9_000]] + [b"\xc5"])
    text = pa.string() if kind == pa.string() else pa.large_string()
    array = wrong if kind == pa.string() else wrong.cast(pa.large_binary())
    with pytest.raises(DataError, match="is not valid text"):
        engine.transform(pa.table({"a": array.view(text)}))


@pytest.mark.parametrize(
    "value", [[1, "a"], ["a", 1], 1, "ab", {"x": 1}, [[1]], object(), [2**64], [-(2**63) - 1]]
)
def test_a_wrong_value_in_a_row_is_named(value: Any) -> None:
    with pytest.raises(DataError, match=r"column 'a' \(e.a\)"):
        single(INT_LIST).transform({"a": value})


def test_dates_are_read_on_the_clock_of_utc() -> None:
    moment = datetime.datetime(1969, 12, 29, 23, 45, tzinfo=datetime.timezone(datetime.timedelta(hours=-3)))
    utc = moment.astimezone(datetime.UTC)  # Tuesday 1969-12-30 02:45
    parts = {
        "year": 1969, "month": 12, "day": 30, "date": -2,
        "weekday": 1, "hour": 2, "minute": 45, "hour_of_week": 26,
    }  # fmt: skip
    for part, value in parts.items():
        engine = single({"type": "date", "part": part}, seed=1)
        canonical = bytes([6, f.DATE_PARTS[part]]) + value.to_bytes(8, "little", signed=True)
        wanted = [[f.feature_hash(1, 1, [f.value_hash(canonical)])]]
        for arrow in (pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "America/Sao_Paulo")):
            plain = pa.array([utc.replace(tzinfo=None)], pa.timestamp("us"))
            array = (
                plain.cast(arrow) if arrow.tz is None else plain.cast(pa.timestamp("us", "UTC")).cast(arrow)
            )
            assert ids_of(engine, array) == wanted, (part, arrow)
        if part not in ("hour", "minute", "hour_of_week"):
            assert ids_of(engine, pa.array([utc.date()], pa.date32())) == wanted
            assert ids_of(engine, pa.array([utc.date()], pa.date64())) == wanted
    cast = single({"type": "date", "part": "hour", "cast": True})
    assert ids_of(cast, pa.array(["2020-01-01T05:00:00"])) == ids_of(
        cast, pa.array([datetime.datetime(2021, 1, 1, 5)])
    )


def test_normalisation_is_explicit() -> None:
    texts = pa.array([" ÄB ", "äb", " äb", "ÄB"])
    plain = ids_of(single({"type": "string"}), texts)
    assert len({row[0] for row in plain}) == 4
    for encoded in (texts, texts.dictionary_encode()):
        clean = ids_of(single({"type": "string", "normalise": ["strip", "lower"]}), encoded)
        assert {row[0] for row in clean} == {plain[1][0]}
    ascii_only = ids_of(single({"type": "string", "normalise": ["strip", "ascii_lower"]}), texts)
    assert len({row[0] for row in ascii_only}) == 2
    wide = ids_of(single({"type": "string", "normalise": ["nfkc"]}), pa.array(["\uff21", "A"]))
    assert wide[0] == wide[1]


def test_a_feature_may_override_the_missing_policy() -> None:
    features = {
        "dropped": {"kind": "attribute", "of": "e.a"},
        "named": {"kind": "attribute", "of": "e.a", "missing": "own_id"},
    }
    engine = Engine(load({"entities": {"e": {"attributes": {"a": {"type": "int"}}}}, "features": features}))
    batch = engine.transform(pa.table({"a": pa.array([None, 1], pa.int64())}))
    assert batch["dropped"][1].tolist() == [0, 0, 1] and batch["named"][1].tolist() == [0, 1, 2]


def test_dictionary_values_that_are_null_are_missing() -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["x", None]))
    assert [len(row) for row in ids_of(single({"type": "string"}), array)] == [1, 0, 0]
    empty = pa.DictionaryArray.from_arrays(pa.array([None], pa.int8()), pa.array([], pa.string()))
    assert ids_of(single({"type": "string"}), empty) == [[]]


def test_a_long_list_is_an_error_or_is_cut() -> None:
    row = {"a": list(range(100_000))}
    with pytest.raises(LimitError, match=f"f gives more than {IDS_PER_ROW_MAX} ids for row 0"):
        single(INT_LIST).transform(row)
    with pytest.raises(LimitError, match="f gives more than 10 ids"):
        single(INT_LIST, limit=10).transform(row)
    assert len(single(INT_LIST, limit=10, past_limit="cut").transform(row)["f"][0]) == 10
    assert len(single(INT_LIST | {"max_length": 7}).transform(row)["f"][0]) == 7
    triples = single(INT_LIST, form="sorted", size=3)
    with pytest.raises(LimitError):
        triples.transform(row)
    cut = single(INT_LIST, form="sorted", size=3, limit=5, past_limit="cut")
    assert len(cut.transform(row)["f"][0]) == 5


def test_a_product_of_lists_is_bounded() -> None:
    def cross(**feature: Any) -> Engine:
        attributes = dict.fromkeys("abc", INT_LIST)
        features = {"f": {"kind": "weak", "of": ["e.a", "e.b", "e.c"], **feature}}
        return Engine(load({"entities": {"e": {"attributes": attributes}}, "features": features}))

    table = pa.table({"a": [[1], list(range(300))], "b": [[1], list(range(300))], "c": [[1], [5]]})
    with pytest.raises(LimitError, match="for row 1"):
        cross().transform(table)
    assert cross(limit=4, past_limit="cut").transform(table)["f"][1].tolist() == [0, 1, 5]
    empty = pa.table(
        {"a": [list(range(300))], "b": [list(range(300))], "c": pa.array([[]], pa.list_(pa.int64()))}
    )
    assert cross().transform(empty)["f"][1].tolist() == [0, 0], "no product, so nothing to bound"


def big_table(rows: int) -> pa.Table:
    return pa.table({"a": pa.array(np.arange(rows)), "label": pa.array(np.arange(rows) % 2)})


def test_jagged_is_the_order_of_keyed_jagged_tensor() -> None:
    features = {
        "l": {"kind": "combination", "form": "single", "of": "e.l"},
        "a": {"kind": "attribute", "of": "e.a"},
    }
    config = {"entities": {"e": {"attributes": {"a": {"type": "int"}, "l": INT_LIST}}}, "features": features}
    batch = Engine(load(config)).transform(pa.table({"a": [1, None], "l": [[], [1, 2]]}))
    keys, values, lengths = batch.jagged()
    assert values.flags.writeable and lengths.flags.writeable  # torch.from_numpy may share them
    assert keys == ("l", "a") and values.dtype == np.int64 and lengths.dtype == np.int32
    assert lengths.tolist() == [0, 2, 1, 0]
    assert values.view(np.uint64).tolist() == [*batch["l"][0], *batch["a"][0]]


def test_a_batch_cannot_be_changed_by_accident() -> None:
    batch = single({"type": "int"}).transform(big_table(3))
    assert isinstance(batch, CrossBatch)
    for array in batch["f"]:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(KeyError):
        batch["g"]


def test_hidden_features_have_no_output() -> None:
    features = {
        "ab": {"kind": "categorical", "of": ["e.a", "e.b"], "emit": False},
        "abc": {"kind": "weak", "of": ["ab", "e.c"], "slot": 1},
    }
    attributes = {name: {"type": "int"} for name in "abc"}
    config = load(
        {"ids": {"slot_bits": 2}, "entities": {"e": {"attributes": attributes}}, "features": features}
    )
    batch = Engine(config).transform({"a": 1, "b": 2, "c": 3})
    assert batch.features == ("abc",)


def test_features_may_share_ids_on_purpose() -> None:
    features = {
        "seen": {"kind": "combination", "form": "single", "of": "e.l", "share": "item"},
        "item": {"kind": "attribute", "of": "e.a", "slot": 3},
    }
    config = {
        "ids": {"slot_bits": 4},
        "entities": {"e": {"attributes": {"a": {"type": "int"}, "l": INT_LIST}}},
        "features": features,
    }
    batch = Engine(load(config)).transform({"a": 7, "l": [8, 7]})
    assert batch["seen"][0][1] == batch["item"][0][0] != batch["seen"][0][0]
    fields = batch.to_arrow().schema
    assert fields.field("seen").metadata == fields.field("item").metadata


def test_a_column_of_nulls_only_is_missing_whatever_its_type() -> None:
    assert ids_of(single(INT_LIST), pa.nulls(2)) == [[], []]
    assert ids_of(single(INT_LIST), pa.array([[None], None, []], pa.list_(pa.null()))) == [[], [], []]
    assert ids_of(single({"type": "string", "normalise": ["strip"]}), pa.nulls(2)) == [[], []]
    named = ids_of(single(INT_LIST | {"missing": "own_id"}), pa.nulls(2))
    assert named[0] == named[1] and len(named[0]) == 1


def test_a_dictionary_of_text_is_cast_and_an_extension_is_its_storage() -> None:
    wanted = ids_of(single({"type": "int"}), pa.array([7, 8, 7]))
    texts = pa.array(["7", "8", "7"])
    assert ids_of(single({"type": "int", "cast": True}), texts.dictionary_encode()) == wanted
    runs = pc.run_end_encode(pa.array([7, 7, 8]))
    assert ids_of(single({"type": "int"}), runs) == [wanted[0], wanted[0], wanted[1]]
    uuids = pa.array([b"0123456789abcdef"], pa.binary(16)).cast(pa.uuid())
    with pytest.raises(DataError, match="type string takes text"):
        single({"type": "string"}).transform(pa.table({"a": uuids}))


def test_an_arrow_column_too_long_for_its_offsets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from feature_cross.engine import batch as batch_module

    monkeypatch.setattr(batch_module, "_ARROW_LIST_MAX", 2)
    with pytest.raises(LimitError, match="f has 3 ids; an Arrow list column holds 2"):
        single({"type": "int"}).transform(big_table(3)).to_arrow()


def test_an_engine_travels_to_another_process() -> None:
    features = {
        "f": {"kind": "attribute", "of": "e.a"},
        "l": {"kind": "combination", "of": "e.l", "size": 2},
    }
    price = {"type": "float", "buckets": {"log": {"base": 2, "start": 1, "stop": 9}}}
    engine = Engine(
        load({"entities": {"e": {"attributes": {"a": price, "l": INT_LIST}}}, "features": features})
    )
    copy = pickle.loads(pickle.dumps(engine))
    row = {"a": 5.5, "l": [1, 2, 3]}
    for name in engine.plan.outputs:
        assert copy.transform(row)[name][0].tolist() == engine.transform(row)[name][0].tolist()
    assert copy.schema.equals(engine.schema, check_metadata=True)


def test_a_cross_drops_a_row_where_any_operand_is_null() -> None:
    attributes = {name: {"type": "int"} for name in "abc"}
    features = {"f": {"kind": "categorical", "of": ["e.a", "e.b", "e.c"]}}
    engine = Engine(load({"entities": {"e": {"attributes": attributes}}, "features": features}))
    table = pa.table({"a": [1, None, 3, 4], "b": [1, 2, None, 4], "c": [1, 2, 3, None]})
    ids, offsets = engine.transform(table)["f"]
    assert offsets.tolist() == [0, 1, 1, 1, 1]
    assert ids.tolist() == engine.transform({"a": 1, "b": 1, "c": 1})["f"][0].tolist()
