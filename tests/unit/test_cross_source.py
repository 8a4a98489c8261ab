# SPDX-License-Identifier: Apache-2.0
"""Where the engine's rows come from: tables, files, folders, streams, threads; and errors on the way."""

import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.feather
import pyarrow.parquet
import pytest

from feature_cross import DataError, Engine, LimitError, load
from feature_cross.engine import execution as engine_module
from feature_cross.limit import BATCH_ROWS_DEFAULT

INT_LIST = {"type": "int", "list": True}


def single(attribute: dict[str, Any], **feature: Any) -> Engine:
    kind = {"kind": "combination", "form": "single"} if attribute.get("list") else {"kind": "attribute"}
    declared = {"f": {"of": "e.a", **kind, **feature}}
    return Engine(load({"entities": {"e": {"attributes": {"a": attribute}}}, "features": declared}))


def big_table(rows: int) -> pa.Table:
    return pa.table({"a": pa.array(np.arange(rows)), "label": pa.array(np.arange(rows) % 2)})


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
        (
            "t.csv",
            b"a\n" + b"1\n" * 2_000_000 + b"x\n",
            "t.csv: cannot be read: row 2000002, counting the header, column 'a'",
        ),
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
    with pytest.raises(DataError, match="cannot read batches from an int"):
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


WORDS = ["NA", "NULL", "nan", "N/A", "null", "None", "#N/A", "", " ", "NaN", "-nan", "1.#IND", "n", "Oslo"]


@pytest.mark.parametrize("missing", ["drop", "own_id"])
@pytest.mark.parametrize("nulls", [[], ["NA"], ["", "null"]])
@pytest.mark.parametrize("quoted", [False, True])
def test_a_text_is_one_value_whatever_it_came_in(
    tmp_path: Path, missing: str, nulls: list[str], quoted: bool
) -> None:
    engine = single({"type": "string", "missing": missing, "nulls": nulls})
    table = pa.table({"a": WORDS, "b": list(range(len(WORDS)))})
    lines = [f'"{word}",{n}' if quoted else f"{word},{n}" for n, word in enumerate(WORDS)]
    (tmp_path / "t.csv").write_text("a,b\n" + "\n".join(lines) + "\n")
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    rows = [engine.transform({"a": word})["f"][0].tolist() for word in WORDS]
    wanted = engine.transform(table)
    assert rows == [wanted["f"][0].tolist()[a:b] for a, b in itertools.pairwise(wanted["f"][1])]
    assert [bool(ids) for ids in rows] == [missing == "own_id" or word not in nulls for word in WORDS]
    dictionary = pa.table({"a": pa.array(WORDS).dictionary_encode()})
    for source in (tmp_path / "t.csv", tmp_path / "t.parquet", dictionary):
        for found in engine.transform_stream(source):
            assert found["f"][0].tolist() == wanted["f"][0].tolist()
            assert found["f"][1].tolist() == wanted["f"][1].tolist()


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ({"type": "int"}, ["7", "", "-1"]),
        ({"type": "int", "cast": True}, ["7", "", "7.0", "-3.00"]),
        ({"type": "int", "cast": True}, ["18446744073709551615", "", "7"]),
        ({"type": "int", "cast": True, "nulls": ["NA", "-"]}, ["7", "NA", "", "-"]),
        ({"type": "float", "buckets": {"edges": [1]}}, ["0.5", "", "2", "nan"]),
        ({"type": "float", "buckets": {"edges": [1]}, "cast": True, "nulls": ["NA"]}, ["0.5", "NA", "2"]),
        ({"type": "bool"}, ["true", "", "false"]),
        ({"type": "bool", "cast": True, "nulls": ["?"]}, ["true", "?", "false"]),
        ({"type": "date", "part": "hour", "cast": True, "nulls": ["NULL"]},
         ["2026-01-01 10:00:00", "NULL", "", "2026-01-01T10:00:00+02:00", "2026-01-01 10:00:00.5Z"]),
        ({"type": "date", "age": {"date": "2026-02-01", "unit": "day"}, "buckets": {"edges": [0, 30]},
          "cast": True, "nulls": ["NULL"]}, ["2026-01-01", "NULL", "2026-01-20T00:00:00-05:00", ""]),
    ],
)  # fmt: skip
def test_a_csv_field_of_another_type_means_what_its_text_and_its_number_mean(
    tmp_path: Path, attribute: dict[str, Any], words: list[str]
) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{word},1\n" for word in words))
    engine = single({"missing": "own_id", **attribute})
    found = engine.transform_stream(tmp_path / "t.csv").__next__()["f"][0].tolist()
    text = single({"missing": "own_id", **attribute, "cast": True})
    assert found == text.transform(pa.table({"a": words}))["f"][0].tolist()
    nothing = text.transform({"a": None})["f"][0].tolist()[0]
    nulls = {"", "nan", *attribute.get("nulls", ())}
    assert [one == nothing for one in found] == [word in nulls for word in words]


def test_a_word_in_a_number_column_of_csv_is_an_error_that_says_how_to_declare_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n7\nNA\n")
    with pytest.raises(DataError, match=r"row 3, .*'NA' for int64; .*declare it: nulls: \[NA\], cast: true"):
        list(single({"type": "int"}).transform_stream(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("a\n7.0\n")
    with pytest.raises(DataError, match=r"row 2, .*'7.0' for int64; set cast: true to take whole numbers"):
        list(single({"type": "int"}).transform_stream(tmp_path / "t.csv"))
