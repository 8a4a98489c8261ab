# SPDX-License-Identifier: Apache-2.0
"""What the batches of a stream share, and that nobody sees it: invariants of data/workspace.py."""

import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.ipc
import pytest

from feature_cross import DataError, Engine, load
from feature_cross.data import column
from feature_cross.data.workspace import Workspace
from feature_cross.limit import BATCH_ROWS_DEFAULT, KEPT_BYTES_MAX

ROWS = 4 * BATCH_ROWS_DEFAULT + 17
INDICES = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]


def engine(**features: Any) -> Engine:
    attributes = {name: {"type": "int" if name == "n" else "string"} for name in "abcn"}
    return Engine(load({"ids": {"slot_bits": 8}, "entities": {"e": {"attributes": attributes}},
                        "features": features}))  # fmt: skip


CROSSES = {
    "one": {"kind": "attribute", "slot": 1, "of": "e.a"},
    "two": {"kind": "categorical", "slot": 2, "of": ["e.a", "e.b"]},
    "mixed": {"kind": "categorical", "slot": 3, "of": ["e.n", "e.a"]},
    "reverse": {"kind": "categorical", "slot": 4, "of": ["e.a", "e.n", "e.b"]},
    "three": {"kind": "categorical", "slot": 5, "of": ["e.a", "e.b", "e.c"]},
    "derived": {"kind": "categorical", "slot": 6, "of": ["two", "e.n"]},
    "own": {"kind": "categorical", "slot": 7, "of": ["e.b", "e.a"], "missing": "own_id"},
    "when": {"kind": "attribute", "slot": 8, "of": "e.b", "when": {"e.a": {"any_of": ["a1", "a3"]}}},
}


def table(rows: int, distinct: int = 100, index: pa.DataType | None = None, nulls: bool = True) -> pa.Table:
    random = np.random.default_rng(rows)
    columns = {}
    for name in ("a", "b", "c"):
        mask = random.random(rows) < 0.1 if nulls else None
        indices = pa.array(random.integers(0, distinct, rows), index or pa.int32(), mask=mask)
        columns[name] = pa.DictionaryArray.from_arrays(indices, [f"{name}{i}" for i in range(distinct)])
    columns["n"] = pa.array(random.integers(0, 50, rows))
    return pa.table(columns)


def plain(encoded: pa.Table) -> pa.Table:
    return pa.table(
        {n: encoded[n].cast(pa.string()) if n != "n" else encoded[n] for n in encoded.column_names}
    )


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("nulls", [False, True])
def test_a_dictionary_gives_the_ids_of_its_values(index: pa.DataType, nulls: bool) -> None:
    crossing = engine(**CROSSES)
    for rows, distinct in ((0, 5), (1, 1), (9, 100), (999, 100)):
        data = table(rows, distinct, index, nulls)
        wanted, found = crossing.transform(plain(data)), crossing.transform(data)
        for name in CROSSES:
            assert found[name][0].tolist() == wanted[name][0].tolist(), name
            assert found[name][1].tolist() == wanted[name][1].tolist(), name


HOLDERS = {
    "view": lambda ids: ids[::1],
    "arrow": pa.array,
    "buffer": pa.py_buffer,
    "memoryview": memoryview,
    "other type": lambda ids: np.frombuffer(ids, np.int64),
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_ids_that_somebody_holds_stay_as_they_are(hold: Any, threads: int) -> None:
    crossing, data = engine(**CROSSES), table(ROWS)
    wanted = crossing.transform(plain(data))
    for name in ("one", "two", "derived"):
        held = []
        for done in crossing.transform_stream(data, threads=threads):
            held.append(hold(done[name][0]))
            del done
        parts = [np.frombuffer(p.buffers()[1] if isinstance(p, pa.Array) else p, np.uint64) for p in held]
        assert np.concatenate(parts).tolist() == wanted[name][0].tolist()


@pytest.mark.parametrize("threads", [1, 3])
def test_whole_batches_that_are_held_stay_as_they_are(threads: int) -> None:
    crossing, data = engine(**CROSSES), table(ROWS)
    wanted = crossing.transform(plain(data))
    held = list(crossing.transform_stream(data, threads=threads))
    for name in CROSSES:
        assert np.concatenate([done[name][0] for done in held]).tolist() == wanted[name][0].tolist()
        assert all(not array.flags.writeable for done in held for array in done[name])


def test_a_stream_writes_again_in_what_nobody_holds() -> None:
    places = set()
    for done in engine(two=CROSSES["two"]).transform_stream(table(ROWS, nulls=False)):
        places.add(done["two"][0].ctypes.data)
        del done
    assert len(places) <= 3  # five batches, of which the last is small


def test_a_stream_writes_where_the_one_before_did_and_keeps_nothing_of_its_dictionaries() -> None:
    crossing, places, wanted = engine(**CROSSES), [], []
    for number in range(3):
        data = table(ROWS, 20 + number, nulls=False)
        found = [done["two"][0] for done in crossing.transform_stream(data)]
        places.append({array.ctypes.data for array in found})
        wanted.append(crossing.transform(plain(data))["two"][0].tolist() == np.concatenate(found).tolist())
        del found
    assert all(wanted) and places[0] & places[1] & places[2]
    with crossing.workspace(True) as one, crossing.workspace(True) as other:
        assert one is not other and not one._dictionaries and not other._dictionaries
    assert len(crossing._spare) == 1
    assert pickle.loads(pickle.dumps(crossing))._spare == []


def test_numbers_are_never_somebody_elses() -> None:
    workspace, held = Workspace(), []
    for _ in range(40):
        held.append(workspace.numbers(1 << 18))
        held[-1][:] = len(held)
    assert [set(array.tolist()) for array in held] == [{number} for number in range(1, 41)]
    kept = {array.ctypes.data for array in held}
    held.clear()
    again = [workspace.numbers(1 << 18) for _ in range(40)]
    reused = kept & {array.ctypes.data for array in again[: KEPT_BYTES_MAX >> 21]}
    assert len(reused) == KEPT_BYTES_MAX >> 21
    assert workspace.numbers(3).shape == (3,)


def test_a_generator_may_fill_the_same_memory_again() -> None:
    crossing = engine(one=CROSSES["one"], n={"kind": "attribute", "slot": 9, "of": "e.n"})
    letters, numbers = bytearray(b"abcd"), bytearray(np.arange(4).tobytes())
    offsets = pa.py_buffer(np.arange(5, dtype=np.int32).tobytes())
    indices = pa.array([3, 2, 1, 0], pa.int8())

    def batches() -> Iterator[pa.RecordBatch]:
        for word in (b"abcd", b"efgh", b"ijkl"):
            letters[:] = word
            numbers[:] = np.frombuffer(word, np.uint8).astype(np.int64).tobytes()
            texts = pa.StringArray.from_buffers(4, offsets, pa.py_buffer(letters))
            ints = pa.Array.from_buffers(pa.int64(), 4, [None, pa.py_buffer(numbers)])
            columns = [pa.DictionaryArray.from_arrays(indices, values) for values in (texts, ints)]
            yield pa.RecordBatch.from_arrays(columns, names=["a", "n"])

    wanted = [
        [crossing.transform({"a": chr(c), "n": c}) for c in reversed(w)] for w in (b"abcd", b"efgh", b"ijkl")
    ]
    reader = pa.RecordBatchReader.from_batches(next(batches()).schema, batches())
    for source in (batches(), reader):
        for done, rows in zip(crossing.transform_stream(source), wanted, strict=True):
            for name in ("one", "n"):
                assert done[name][0].tolist() == [int(row[name][0][0]) for row in rows]


def test_dictionaries_that_change_within_a_table_are_told_apart() -> None:
    crossing, parts = engine(**CROSSES), []
    for number in range(6):
        part = table(500 + number, 20 + number, nulls=False)
        parts.append(part.slice(number, 300))
    data = pa.concat_tables(parts)
    wanted = crossing.transform(plain(data))
    streamed = list(crossing.transform_stream(data, batch_rows=100))
    for name in CROSSES:
        assert np.concatenate([done[name][0] for done in streamed]).tolist() == wanted[name][0].tolist()


def test_a_steady_source_has_its_dictionary_made_once() -> None:
    calls: list[int] = []
    values = pa.array(["x", "y"])
    for steady, made in ((True, 1), (False, 3)):
        workspace = Workspace(steady)
        calls.clear()
        for _ in range(3):
            workspace.dictionary("k", values.slice(0), lambda: calls.append(1))
        assert len(calls) == made
        workspace.dictionary("other", values, lambda: calls.append(1))
        workspace.dictionary("k", values.slice(1), lambda: calls.append(1))
        assert len(calls) == made + 2


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the dictionaries that were hashed."""
    lengths: list[int] = []
    made = column._hash_values

    def hash_values(array: pa.Array, *rest: Any) -> Any:
        lengths.append(len(array))
        return made(array, *rest)

    monkeypatch.setattr(column, "_hash_values", hash_values)
    return lengths


def batches_of_one_dictionary(parts: int = 4, rows: int = 1000) -> list[pa.RecordBatch]:
    """Each batch has an array of its own over the same dictionary, as the readers of Arrow make them."""
    random, values = np.random.default_rng(1), pa.array([f"v{i}" for i in range(5000)])
    found = []
    for _ in range(parts):
        shared = pa.Array.from_buffers(values.type, len(values), values.buffers())
        indices = pa.array(random.integers(0, len(values), rows, np.int32))
        found.append(pa.RecordBatch.from_arrays([pa.DictionaryArray.from_arrays(indices, shared)], ["a"]))
    return found


SOURCES = ("table", "file", "dataset", "IPC stream", "batch", "reader", "list", "generator")


def sources(folder: Path) -> dict[str, tuple[Any, int]]:
    """The same rows as each source has them, and how often their dictionary must be hashed."""
    parts = batches_of_one_dictionary()
    schema, path = parts[0].schema, folder / "rows.arrow"
    with pa.ipc.new_file(path, schema) as file:
        for part in parts:
            file.write_batch(part)
    written = pa.BufferOutputStream()
    with pa.ipc.new_stream(written, schema) as stream:
        for part in parts:
            stream.write_batch(part)
    return {
        "table": (pa.Table.from_batches(parts), 1), "file": (path, 1),
        "dataset": (pa.dataset.dataset(path, format="ipc"), 1),
        "IPC stream": (pa.ipc.open_stream(written.getvalue()), 1), "batch": (parts[0], 1),
        "reader": (pa.RecordBatchReader.from_batches(schema, parts), 4), "list": (parts, 4),
        "generator": ((part for part in parts), 4),
    }  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_a_dictionary_that_batches_share_is_hashed_once(name: str, tmp_path: Path, hashed: list[int]) -> None:
    crossing = engine(one=CROSSES["one"])
    source, times = sources(tmp_path)[name]
    found = [done["one"][0].tolist() for done in crossing.transform_stream(source, batch_rows=130)]
    assert hashed == [5000] * times
    wanted = [
        crossing.transform(pa.table({"a": part["a"].cast(pa.string())}))["one"][0].tolist()
        for part in batches_of_one_dictionary()
    ]
    assert list(itertools.chain(*found)) == list(itertools.chain(*wanted[: 1 if name == "batch" else None]))


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_an_index_past_its_dictionary_is_an_error(index: pa.DataType) -> None:
    crossing = engine(one=CROSSES["one"])
    for wrong in (3, -1) if str(index)[0] == "i" else (3, 255):
        indices = pa.array([0, 1, 2, wrong, 0], pa.int64()).cast(index, safe=False)
        array = pa.DictionaryArray.from_arrays(indices, ["x", "y", "z"], safe=False)
        with pytest.raises(
            DataError, match=r"column 'a' \(e.a\) has dictionary index (3|-1|255) at its value 3"
        ):
            crossing.transform(pa.table({"a": array}))
