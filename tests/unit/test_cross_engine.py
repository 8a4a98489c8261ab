# SPDX-License-Identifier: Apache-2.0
"""What the engine takes, gives and refuses: Arrow types, sources, shapes, limits, errors."""

import datetime
import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from feature_cross import CrossBatch, DataError, Engine, LimitError, load
from feature_cross import execution as engine_module
from feature_cross import id_format as f
from feature_cross.limit import BATCH_ROWS_DEFAULT, IDS_PER_ROW_MAX

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


def test_a_stream_halves_a_batch_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "IDS_PER_BATCH_MAX", 10)
    engine = single(INT_LIST)
    table = pa.table({"a": [[n, n + 1, n + 2] for n in range(20)]})
    with pytest.raises(LimitError, match="at most 10"):
        engine.transform(table)
    parts = list(engine.transform_stream(table))
    assert max(len(part["f"][0]) for part in parts) <= 10
    assert sum(len(part) for part in parts) == 20
    with pytest.raises(LimitError):
        list(engine.transform_stream(pa.table({"a": [list(range(11))]})))


def big_table(rows: int) -> pa.Table:
    return pa.table({"a": pa.array(np.arange(rows)), "label": pa.array(np.arange(rows) % 2)})


def test_a_table_longer_than_a_batch_is_one_result() -> None:
    rows = BATCH_ROWS_DEFAULT * 2 + 3
    engine = single({"type": "int"})
    batch = engine.transform(big_table(rows))
    assert len(batch) == rows and batch["f"][1].tolist()[-1] == rows
    again = np.concatenate(
        [part["f"][0] for part in engine.transform_stream(big_table(rows), batch_rows=1000)]
    )
    assert (batch["f"][0] == again).all()
    assert (engine.transform(big_table(rows).to_batches()[0])["f"][0] == batch["f"][0]).all()


def test_a_table_without_rows_gives_empty_features() -> None:
    for data in (big_table(5).slice(0, 0), pa.table({"a": pa.chunked_array([], pa.int64())})):
        batch = single({"type": "int"}).transform(data)
        assert len(batch) == 0 and batch["f"][0].tolist() == [] and batch["f"][1].tolist() == [0]


def test_every_source_gives_the_same_ids(tmp_path: Path) -> None:
    table = big_table(1000)
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    pa.feather.write_feather(table, tmp_path / "t.arrow")
    pa.csv.write_csv(table, tmp_path / "t.csv")
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        pa.parquet.write_table(table.slice(number * 400, 400), folder / f"{number}.parquet")
    engine = single({"type": "int"})
    wanted = engine.transform(table)["f"][0].tolist()
    sources: list[Any] = [tmp_path / "t.parquet", str(tmp_path / "t.arrow"), tmp_path / "t.csv", folder]
    sources += [
        table,
        table.to_reader(),
        table.to_batches(),
        pa.dataset.dataset(table),
        table.to_batches()[0],
    ]
    for source in sources:
        parts = list(engine.transform_stream(source, batch_rows=300))
        assert [i for part in parts for i in part["f"][0].tolist()] == wanted
        assert max(map(len, parts)) <= 300


def test_what_speaks_arrow_is_taken() -> None:
    class Frame:
        def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
            return big_table(3).__arrow_c_stream__(requested_schema)

    assert len(single({"type": "int"}).transform(Frame())) == 3


def test_a_csv_column_has_its_declared_type(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n007\n7\n")
    engine = single({"type": "string"})
    ids = [i for part in engine.transform_stream(tmp_path / "t.csv") for i in part["f"][0].tolist()]
    assert ids == [engine.transform({"a": text})["f"][0][0] for text in ("007", "7")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.parquet", b"not parquet", "cannot be read"),
        ("t.txt", b"a", "cannot tell one format"),
        ("t.csv", b"a\nx\n", "cannot be read"),
        ("t.csv", b"a\n" + b"1\n" * 2_000_000 + b"x\n", "cannot read the data"),
        ("t.csv", b"b\n1\n", "is not in the data"),
    ],
)
def test_an_unreadable_source_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(single({"type": "int"}).transform_stream(tmp_path / name))


def test_other_sources_and_sizes_are_refused() -> None:
    engine = single({"type": "int"})
    with pytest.raises(DataError, match="no such file"):
        list(engine.transform_stream("/nonexistent/x.parquet"))
    with pytest.raises(DataError, match="cannot read batches from a int"):
        list(engine.transform_stream(5))
    with pytest.raises(DataError, match="it must give RecordBatch"):
        list(engine.transform_stream([1]))
    with pytest.raises(DataError, match="batch_rows is 0"):
        list(engine.transform_stream(big_table(1), batch_rows=0))


def test_rows_of_an_error_count_from_the_start_of_the_stream() -> None:
    engine = single({"type": "int", "missing": "error"})
    table = pa.table({"a": pa.array([1] * 25 + [None], pa.int64())})
    for run in (lambda: list(engine.transform_stream(table, batch_rows=4)), lambda: engine.transform(table)):
        with pytest.raises(DataError, match="no value in row 25"):
            run()


def test_jagged_is_the_order_of_keyed_jagged_tensor() -> None:
    features = {
        "l": {"kind": "combination", "form": "single", "of": "e.l"},
        "a": {"kind": "attribute", "of": "e.a"},
    }
    config = {"entities": {"e": {"attributes": {"a": {"type": "int"}, "l": INT_LIST}}}, "features": features}
    batch = Engine(load(config)).transform(pa.table({"a": [1, None], "l": [[], [1, 2]]}))
    keys, values, lengths = batch.jagged()
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


def test_a_column_given_twice_is_refused() -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    engine = single({"type": "int"})
    for data in (table, table.to_batches()[0]):
        runs: list[Callable[[Any], Any]] = [engine.transform, lambda d: list(engine.transform_stream(d))]
        for run in runs:
            with pytest.raises(DataError, match=r"column 'a' \(e.a\) is 2 times in the data"):
                run(data)


@pytest.mark.parametrize("data", [5, "text", object(), [1, 2], None])
def test_what_is_no_table_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="cannot be read as an Arrow table"):
        single({"type": "int"}).transform(data)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_stream_holds_few_batches_however_long_it_is(threads: int) -> None:
    alive: list[weakref.ref[pa.RecordBatch]] = []
    most = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal most
        for number in range(100):
            batch = pa.RecordBatch.from_pydict({"a": np.arange(10) + number * 10})
            alive.append(weakref.ref(batch))
            most = max(most, sum(reference() is not None for reference in alive))
            yield batch

    engine = single({"type": "int"})
    ids = [done["f"][0].copy() for done in engine.transform_stream(batches(), threads=threads)]
    assert (np.concatenate(ids) == engine.transform(pa.table({"a": np.arange(1000)}))["f"][0]).all()
    assert most <= threads + 3


def test_threads_give_the_first_error_in_order() -> None:
    values = [1] * 500 + [None] + [1] * 500 + [None]
    engine = single({"type": "int", "missing": "error"})
    table = pa.table({"a": pa.array(values, pa.int64())})
    with pytest.raises(DataError, match="no value in row 500"):
        list(engine.transform_stream(table, batch_rows=7, threads=3))
    with pytest.raises(DataError, match="threads is 0"):
        list(engine.transform_stream(table, threads=0))


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
    uuids = pa.array([b"0123456789abcdef"], pa.binary(16)).cast(pa.uuid())
    with pytest.raises(DataError, match="type string takes text"):
        single({"type": "string"}).transform(pa.table({"a": uuids}))


def test_an_arrow_column_too_long_for_its_offsets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from feature_cross import batch as batch_module

    monkeypatch.setattr(batch_module, "_ARROW_LIST_MAX", 2)
    with pytest.raises(LimitError, match="f has 3 ids; an Arrow list column holds 2"):
        single({"type": "int"}).transform(big_table(3)).to_arrow()


def test_files_of_one_folder_may_differ_in_width_and_have_more_columns(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"a": pa.array([1, 2], pa.int64())}), tmp_path / "0.parquet")
    pa.parquet.write_table(pa.table({"b": ["x"], "a": pa.array([3], pa.int16())}), tmp_path / "1.parquet")
    engine = single({"type": "int"})
    ids = [i for part in engine.transform_stream(tmp_path) for i in part["f"][0].tolist()]
    assert ids == engine.transform(pa.table({"a": [1, 2, 3]}))["f"][0].tolist()


def test_columns_that_a_path_names_are_read(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"a={day}").mkdir()
        pa.parquet.write_table(pa.table({"b": [day]}), tmp_path / f"a={day}" / "x.parquet")
    source = pa.dataset.dataset(tmp_path, partitioning="hive")
    engine = single({"type": "int"})
    ids = [i for part in engine.transform_stream(source) for i in part["f"][0].tolist()]
    assert ids == engine.transform(pa.table({"a": [1, 2]}))["f"][0].tolist()
