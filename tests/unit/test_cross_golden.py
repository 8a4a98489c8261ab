# SPDX-License-Identifier: Apache-2.0
"""The vectors of docs/id_format.md, frozen, against the definition, the engine and the page itself."""

import re
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_cross import Engine, load
from feature_cross import id_format as f

PAGE = Path(__file__).resolve().parents[2] / "docs" / "id_format.md"

VALUES = [
    ("00", 0xE934A84ADB052768),
    ("01 00 00 00 00 00 00 00 00", 0xA2443C71157CB676),
    ("01 07 00 00 00 00 00 00 00", 0x5723628964382A87),
    ("01 ff ff ff ff ff ff ff ff", 0xE4A42358FE73E0B6),
    ("01 00 00 00 00 00 00 00 80", 0x07A7E2FEA9675861),
    ("02 00 00 00 00 00 00 00 80", 0x7B1F4ED8978445B4),
    ("02 ff ff ff ff ff ff ff ff", 0x0C72A2D6ABB7C8FF),
    ("03", 0x1F25C8D0BC1F4BB6),
    ("03 37", 0x3BB33645D5EDCE98),
    ("03 5a c3 bc 72 69 63 68", 0x091466F9F38B006E),
    ("03" + " 61" * 40, 0x80F7AF4F3B58CAA4),
    ("04 01", 0xC06DBB2C26DCC6D6),
    ("05 00 00 00 00 00 00 f8 3f", 0x6FEE0C5AD59D70B6),
    ("05 00 00 00 00 00 00 f0 ff", 0xA4BF84808A1B8856),
    ("06 06 17 00 00 00 00 00 00 00", 0x64A02FBFAFE783EB),
]

COLUMNS = [
    ({"type": "int"}, [0, 7, -1, -(2**63)], pa.int64(), [1, 2, 3, 4]),
    ({"type": "int"}, [7, 2**63, 2**64 - 1], pa.uint64(), [2, 5, 6]),
    ({"type": "int"}, [7, -1], pa.int8(), [2, 3]),
    ({"type": "int"}, [7], pa.uint16(), [2]),
    ({"type": "string"}, ["", "7", "Zürich", "a" * 40], pa.string(), [7, 8, 9, 10]),
    ({"type": "string"}, ["", "7", "Zürich", "a" * 40], pa.large_string(), [7, 8, 9, 10]),
    ({"type": "string"}, ["", "7", "Zürich", "a" * 40], pa.string_view(), [7, 8, 9, 10]),
    ({"type": "string"}, ["7", ""], pa.dictionary(pa.int8(), pa.string()), [8, 7]),
    ({"type": "bool"}, [True], pa.bool_(), [11]),
    ({"type": "float", "buckets": {"edges": [1.5, 9.0]}}, [1.5, 8.99, 1.4], pa.float64(), [12, 12, 13]),
    ({"type": "float", "buckets": {"edges": [1.5]}}, [2, -3], pa.int32(), [12, 13]),
    ({"type": "date", "part": "hour"}, [23 * 3600 + 5, -1], pa.timestamp("s"), [14, 14]),
    ({"type": "string", "missing": "own_id"}, [None, "7"], pa.string(), [0, 8]),
    ({"type": "int", "missing": "own_id"}, [None, 7], pa.int64(), [0, 2]),
    (
        {"type": "float", "missing": "own_id", "buckets": {"edges": [1.5]}},
        [float("nan"), 2.0],
        pa.float64(),
        [0, 12],
    ),
    ({"type": "string", "missing": "own_id", "empty_is_missing": True}, ["", "7"], pa.string(), [0, 8]),
    ({"type": "string", "normalise": ["strip", "nfc"]}, [" Zu\u0308rich\t"], pa.string(), [9]),
    ({"type": "string", "cast": True}, [7], pa.int64(), [8]),
    ({"type": "int", "cast": True}, ["7", "-1"], pa.string(), [2, 3]),
]

FEATURES = [
    (0, 1, [1], 0x6F10FFEB6A1BE38B),
    (0, 1, [1, 2], 0xFA5BAEAC49D11707),
    (0, 1, [2, 1], 0xF65B0FABBB3287BE),
    (0, 1, [1, 1], 0xE256235478937AB6),
    (0, 1, [1, 2, 3], 0x5E7F7BB37AF91702),
    (0, 2, [3, 1, 2], 0x52015BE13750888A),
    (0, 3, [3, 1, 2], 0x01FDCFF0D6DB5096),
    (2**64 - 1, 1, [1, 2], 0x47D0FFB95A24AD5F),
]


def one_feature(attribute: dict[str, object], feature: dict[str, object], **ids: object) -> Engine:
    entities = {"e": {"attributes": {"a": attribute}}}
    return Engine(load({"ids": ids, "entities": entities, "features": {"f": {"of": "e.a", **feature}}}))


@pytest.mark.parametrize(("text", "expected"), VALUES)
def test_value_hash_is_frozen(text: str, expected: int) -> None:
    assert f.value_hash(bytes.fromhex(text)) == expected


@pytest.mark.parametrize(("attribute", "values", "arrow", "vectors"), COLUMNS)
def test_a_column_of_each_type_has_the_frozen_bytes(
    attribute: dict[str, object], values: list[object], arrow: pa.DataType, vectors: list[int]
) -> None:
    engine = one_feature(attribute, {"kind": "attribute", "seed": 5})
    array = (
        pa.array(values, pa.string()).cast(arrow)
        if pa.types.is_dictionary(arrow)
        else pa.array(values, arrow)
    )
    ids, offsets = engine.transform(pa.table({"a": array}))["f"]
    assert [int(i) for i in ids] == [f.feature_hash(5, 1, [VALUES[v][1]]) for v in vectors]
    assert offsets.tolist() == list(range(len(values) + 1))


@pytest.mark.parametrize(("seed", "operation", "values", "expected"), FEATURES)
def test_feature_hash_is_frozen(seed: int, operation: int, values: list[int], expected: int) -> None:
    hashes = [f.value_hash(f.int_bytes(value)) for value in values]
    hashes = sorted(hashes) if operation == f.OPERATION_SUBSET else hashes
    assert f.feature_hash(seed, operation, hashes) == expected
    attributes: dict[str, object] = {f"a{n}": {"type": "int"} for n in range(len(values))}
    row: dict[str, object] = {f"a{n}": value for n, value in enumerate(values)}
    feature: dict[str, object] = {"kind": "weak", "of": [f"e.a{n}" for n in range(len(values))], "seed": seed}
    if len(values) == 1:
        feature |= {"kind": "attribute", "of": "e.a0"}
    if operation != f.OPERATION_TUPLE:
        attributes, row = {"a": {"type": "int", "list": True}}, {"a": values}
        form = "permutation" if operation == f.OPERATION_ARRANGEMENT else "sorted"
        feature = {"kind": "combination", "form": form, "of": "e.a", "seed": seed}
    engine = Engine(load({"entities": {"e": {"attributes": attributes}}, "features": {"f": feature}}))
    assert engine.transform(row)["f"][0].tolist() == [expected]


def test_worked_example_of_the_page() -> None:
    attributes = {"city": {"type": "string"}, "age": {"type": "int"}}
    config = {
        "ids": {"slot_bits": 10},
        "entities": {"user": {"attributes": attributes}},
        "features": {"city_x_age": {"kind": "categorical", "slot": 10, "of": ["user.city", "user.age"]}},
    }
    ids, _ = Engine(load(config)).transform({"city": "Oslo", "age": 7})["city_x_age"]
    assert ids.tolist() == [185476215484376745]
    assert f.name_seed("city_x_age") == 0xE3B4B6AE13F74A8D


def test_the_page_shows_the_frozen_vectors() -> None:
    page = PAGE.read_text()
    shown = {int(text, 16) for text in re.findall(r"0x[0-9a-f]{16}", page)}
    for vector in [*(v for _, v in VALUES), *(v for *_, v in FEATURES)]:
        assert vector in shown, hex(vector)
    assert "185476215484376745" in page


def test_outputs_are_stamped_with_the_version() -> None:
    engine = one_feature({"type": "int"}, {"kind": "attribute", "slot": 3}, slot_bits=4)
    schema = engine.transform({"a": 1}).to_arrow().schema
    assert schema.metadata == {b"feature_cross.id_format": b"1", b"feature_cross.slot_bits": b"4"}
    assert schema.field("f").metadata == {
        b"feature_cross.seed": str(f.name_seed("f")).encode(),
        b"feature_cross.slot": b"3",
    }


def test_log_edges_are_each_rounded_once() -> None:
    engine = one_feature(
        {"type": "float", "buckets": {"log": {"base": 10, "start": 1e-3, "stop": 1e6}}},
        {"kind": "attribute", "seed": 0},
    )
    exact = float(Fraction(1e-3) * 10**5)
    repeated = 1e-3 * 10 * 10 * 10 * 10 * 10
    ids, _ = engine.transform(pa.table({"a": [exact, np.nextafter(exact, 0)]}))["f"]
    lower = f.value_hash(b"\x05" + struct.pack("<d", exact))
    below = f.value_hash(b"\x05" + struct.pack("<d", float(Fraction(1e-3) * 10**4)))
    assert ids.tolist() == [f.feature_hash(0, 1, [lower]), f.feature_hash(0, 1, [below])]
    assert exact == pytest.approx(repeated)
