# SPDX-License-Identifier: Apache-2.0
"""ArrowMap: what other systems call, as a table, as a stream, and in another process."""

import multiprocessing
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_cross import ArrowMap, DataError, Engine, load

CONFIG: dict[str, Any] = {
    "ids": {"slot_bits": 4},
    "entities": {
        "e": {
            "attributes": {
                "a": {"type": "int", "weights": "w"},
                "l": {"type": "string", "list": True, "max_length": 2},
            }
        }
    },
    "features": {
        "a": {"kind": "attribute", "of": "e.a", "slot": 1},
        "l": {"kind": "combination", "of": "e.l", "slots": {"permutation": 2, "single": 3, "sorted": 4}},
    },
}
ROWS = pa.table(
    {
        "other": ["x"] * 50,
        "l": [[f"t{n % 3}", f"t{n % 7}", "z"][: n % 4] for n in range(50)],
        "label": pa.array(np.arange(50) % 2, pa.int8()),
        "a": pa.array([None if n % 9 == 0 else n for n in range(50)], pa.int64()),
        "w": np.arange(50.0),
    }
)


def wanted() -> list[dict[str, Any]]:
    ids = Engine(load(CONFIG)).transform(ROWS).to_arrow().to_pylist()
    labels = ROWS["label"].to_pylist()
    return [{"label": label, **row} for label, row in zip(labels, ids, strict=True)]


def test_a_table_and_a_stream_give_the_engines_ids_beside_what_is_kept() -> None:
    ids = ArrowMap(load(CONFIG), keep=["label"])
    made = ids(ROWS)
    assert made.to_pylist() == wanted() and made.schema == ids.schema(ROWS.schema)
    assert made.schema.names == ["label", "a", "l.permutation", "l.single", "l.sorted", "a.weight"]
    assert made.schema.metadata[b"feature_cross.id_format"] == b"1"
    parts = list(ids.stream(ROWS.to_batches(max_chunksize=7)))
    assert [len(part) for part in parts] == [7] * 7 + [1]
    assert [row for part in parts for row in part.to_pylist()] == wanted()
    assert set(ids.columns) == {"label", "a", "l", "w"}
    assert ids(ROWS.select(ids.columns)).to_pylist() == wanted()


def _in_another_process(pickled: bytes) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = pickle.loads(pickled)(ROWS).to_pylist()
    return made


def test_another_process_gives_the_same_ids() -> None:
    pickled = pickle.dumps(ArrowMap(load(CONFIG), keep=["label"]))
    assert len(pickled) < 20_000, "it travels as its config, without kernels or tables"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_in_another_process, (pickled,)) == wanted()


def test_the_lines_for_spark_keep_every_bit() -> None:
    ids = ArrowMap(load(CONFIG), keep=["label"])
    for batch in ids.stream(ROWS.to_batches()):
        for name in ("a", "l.single", "l.sorted"):
            column = batch.column(name)
            signed = pa.ListArray.from_arrays(column.offsets, column.values.view(pa.int64()))
            assert [[i % 2**64 for i in row] for row in signed.to_pylist()] == column.to_pylist()


def test_columns_to_keep_are_checked() -> None:
    with pytest.raises(DataError, match=r"column 'a' \(keep\) has the name of a feature"):
        ArrowMap(load(CONFIG), keep=["a"])
    with pytest.raises(DataError, match=r"column 'lable' \(keep\) is not in the data"):
        ArrowMap(load(CONFIG), keep=["lable"])(ROWS)
    with pytest.raises(DataError, match=r"column 'w' \(e.a\) is not in the data"):
        ArrowMap(load(CONFIG))(ROWS.drop_columns(["w"]))
