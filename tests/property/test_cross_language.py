# SPDX-License-Identifier: Apache-2.0
"""Conditions, ages, recency and weights against plain Python: rows alone, in batches, streamed, explained."""

import datetime
import itertools
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_cross import Engine, load
from feature_cross.author.explain import explain
from feature_cross.data.row import row_to_batch
from tests.cross_naive import Row, bucket_hash, folded, int_hash, null_hash, part_hash, text_hash

WEEKDAY = 5
EDGES = [-1.0, 0.0, 0.5, 1.0, 7.0, 30.0]
DAY_US = 86_400 * 10**6
START = datetime.datetime(2024, 1, 1)
MOMENTS = st.integers(-40 * DAY_US, 40 * DAY_US) | st.sampled_from([n * DAY_US for n in range(-9, 10)])
WHEN = MOMENTS.map(lambda us: START + datetime.timedelta(microseconds=us))
WEIGHTS = st.floats(-1e6, 1e6, width=32)

ENTITIES: Row = {
    "user": {
        "attributes": {
            "number": {"type": "int"},
            "city": {"type": "string", "normalise": ["strip", "lower"]},
            "new": {"type": "bool"},
            "score": {"type": "float"},
            "joined": {"type": "date", "part": "weekday"},
            "days": {
                "type": "date", "column": "joined", "age": {"column": "now", "unit": "day"},
                "buckets": {"edges": EDGES},
            },
            "fixed": {
                "type": "date", "column": "joined", "age": {"date": "2024-01-05", "unit": "day"},
                "buckets": {"edges": EDGES},
            },
            "seen": {
                "type": "int", "list": True, "max_length": 3,
                "recency": {"times": "seen_at", "column": "now", "unit": "day", "within": 7},
                "weights": "seen_weight", "missing": "own_id",
            },
        },
    },
    "item": {
        "attributes": {
            "id": {"type": "int", "weights": "id_weight"},
            "tags": {"type": "string", "list": True},
        },
    },
}  # fmt: skip

Test = tuple[str, Row, Callable[[Row], bool]]


def values_of(row: Row, name: str) -> list[Any]:
    """An attribute's values as the config means them, missing ones left out."""
    if name == "user.seen":
        return [v for v, _ in recent(row) if v is not None]
    if name == "item.tags":
        return [v for v in row["tags"] or [] if v is not None]
    value = row[name.partition(".")[2]]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    return [value.strip().lower() if name == "user.city" else value]


def recent(row: Row) -> list[tuple[int | None, float]]:
    """(value, weight) of the elements that count, nulls included."""
    found = []
    for value, weight, at in zip(
        row["seen"] or [], row["seen_weight"] or [], row["seen_at"] or [], strict=True
    ):
        if at is not None and row["now"] is not None and 0 <= (row["now"] - at) / datetime.timedelta(1) <= 7:
            found.append((value, 1.0 if value is None else weight))
    if row["seen"] is None:
        return [(None, 1.0)]
    return found[-3:]


@st.composite
def conditions_asked(draw: st.DrawFn) -> Test:
    """A condition as an attribute, as YAML, and as Python."""
    kind = draw(st.sampled_from(["number", "city", "new", "score", "joined", "tags", "seen", "present"]))
    if kind == "present":
        name = draw(st.sampled_from(["user.city", "user.score", "user.seen", "item.tags", "user.joined"]))
        wanted = draw(st.booleans())
        return name, {"present": wanted}, lambda row: bool(values_of(row, name)) is wanted
    if kind in ("number", "score"):
        low, high = sorted(draw(st.tuples(st.floats(-3, 3), st.floats(-3, 3))))
        name = f"user.{kind}"
        bounds = {"at_least": low, "below": high + 1}
        return name, bounds, lambda row: any(low <= v < high + 1 for v in values_of(row, name))
    choices: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
        "city": ("user.city", st.sampled_from([" OSLO", "rome", "Ä", ""])),
        "new": ("user.new", st.booleans()),
        "joined": ("user.joined", st.integers(0, 6)),
        "tags": ("item.tags", st.sampled_from(["a", "b"])),
        "seen": ("user.seen", st.integers(-1, 2)),
    }
    name, values = choices[kind]
    given_values = draw(st.lists(values, min_size=1, max_size=3))
    none = draw(st.booleans())

    def holds(row: Row) -> bool:
        wanted = {v.strip().lower() if kind == "city" else v for v in given_values}
        found = values_of(row, name)
        found = [v.weekday() for v in found] if kind == "joined" else found
        return bool(found) and (not set(found) & wanted if none else bool(set(found) & wanted))

    return name, {"none_of" if none else "any_of": given_values}, holds


@st.composite
def rows(draw: st.DrawFn) -> Row:
    seen = draw(st.none() | st.lists(st.none() | st.integers(-1, 2), max_size=5))
    length = len(seen or [])
    return {
        "number": draw(st.none() | st.integers(-4, 4) | st.integers(-(2**63), 2**63 - 1)),
        "city": draw(st.none() | st.sampled_from(["Oslo ", "oslo", "Rome", "ä", "", "x"])),
        "new": draw(st.none() | st.booleans()),
        "score": draw(st.none() | st.floats(-4, 4) | st.just(math.nan)),
        "joined": draw(st.none() | WHEN),
        "now": draw(st.none() | WHEN),
        "seen": seen,
        "seen_at": draw(st.lists(st.none() | WHEN, min_size=length, max_size=length)),
        "seen_weight": draw(st.lists(WEIGHTS, min_size=length, max_size=length)),
        "id": draw(st.none() | st.integers(0, 3)),
        "id_weight": draw(WEIGHTS),
        "tags": draw(st.none() | st.lists(st.none() | st.sampled_from(["a", "b", "c"]), max_size=3)),
    }


SCHEMA = pa.schema(
    {
        "number": pa.int64(), "city": pa.string(), "new": pa.bool_(), "score": pa.float64(),
        "joined": pa.timestamp("us"), "now": pa.timestamp("us"), "seen": pa.list_(pa.int64()),
        "seen_at": pa.list_(pa.timestamp("us")), "seen_weight": pa.list_(pa.float32()), "id": pa.int64(),
        "id_weight": pa.float32(), "tags": pa.list_(pa.string()),
    }
)  # fmt: skip

FEATURES: Row = {
    "days": {"kind": "attribute", "of": "user.days"},
    "fixed": {"kind": "attribute", "of": "user.fixed"},
    "weekday": {"kind": "attribute", "of": "user.joined"},
    "id": {"kind": "attribute", "of": "item.id"},
    "seen": {"kind": "combination", "form": "single", "of": "user.seen"},
    "pair": {"kind": "interaction", "of": ["user.number", "item.id"]},
    "cross": {"kind": "weak", "of": ["user.seen", "item.tags", "item.id"]},
    "deep": {"kind": "weak", "of": ["cross", "user.city"], "emit": True},
    "tags": {"kind": "combination", "form": "sorted", "size": [1, 2], "of": "item.tags"},
    "order": {"kind": "combination", "form": "permutation", "of": "item.tags"},
}

Ids = list[tuple[int, float]]


def operand(row: Row, name: str) -> Ids:
    """(hash, weight) of each value of an attribute."""
    if name == "user.seen":
        return [(null_hash() if v is None else int_hash(v), w) for v, w in recent(row)]
    if name in ("user.days", "user.fixed"):
        moment = row["now"] if name == "user.days" else datetime.datetime(2024, 1, 5)
        if moment is None or row["joined"] is None:
            return []
        return [(bucket_hash((moment - row["joined"]) / datetime.timedelta(1), EDGES), 1.0)]
    values = values_of(row, name)
    if name == "user.joined":
        return [(part_hash(WEEKDAY, v.weekday()), 1.0) for v in values]
    hasher: Callable[[Any], int] = text_hash if name in ("user.city", "item.tags") else int_hash
    return [(hasher(v), row["id_weight"] if name == "item.id" else 1.0) for v in values]


def all_of(checks: list[Callable[[Row], bool]]) -> Callable[[Row], bool]:
    return lambda row: all(check(row) for check in checks)


def float32(value: float) -> float:
    return float(np.float32(value))


def expected(config: Row, row: Row, name: str, holds: dict[str, Callable[[Row], bool]]) -> Ids:
    feature = config["features"][name]
    if name in holds and not holds[name](row):
        return []
    references = [feature["of"]] if isinstance(feature["of"], str) else feature["of"]
    columns = [operand(row, r) if "." in r else expected(config, row, r, holds) for r in references]
    if feature["kind"] == "combination" and feature["form"] != "single":
        items = [h for h, _ in columns[0]]
        if feature["form"] == "permutation":
            return [(folded(name, 2, tuple(items)), 1.0)] if items else []
        chosen = [c for k in feature["size"] for c in sorted(itertools.combinations(sorted(set(items)), k))]
        return [(folded(name, 3, c), 1.0) for c in chosen]
    found = []
    for several in itertools.product(*columns):
        weight = 1.0
        for _, w in several:
            weight = float32(weight * w)
        found.append((folded(name, 1, tuple(h for h, _ in several)), weight))
    return found


@given(
    st.lists(rows(), max_size=6),
    st.dictionaries(
        st.sampled_from(sorted(FEATURES)), st.lists(conditions_asked(), min_size=1, max_size=2), max_size=6
    ),
)
@settings(max_examples=200, deadline=None)
def test_the_language_equals_the_oracle(data: list[Row], conditions: dict[str, list[Test]]) -> None:
    features, holds = dict(FEATURES), {}
    for name, asked in conditions.items():
        unique = {reference: (made, check) for reference, made, check in asked}
        features[name] = FEATURES[name] | {"when": {r: made for r, (made, _) in unique.items()}}
        holds[name] = all_of([check for _, check in unique.values()])
    config: Row = {"entities": ENTITIES, "features": features}
    engine = Engine(load(config))
    batch = engine.transform(pa.Table.from_pylist(data, schema=SCHEMA))
    wanted_weights: list[float] = []
    for name in batch.features:
        ids, offsets = batch[name]
        weights = batch.weights.get(name, np.ones(len(ids), np.float32))
        assert (name in batch.weights) == (name in ("id", "seen", "pair", "cross", "deep"))
        for number, row in enumerate(data):
            wanted = expected(config, row, name, holds)
            first, last = offsets[number], offsets[number + 1]
            assert ids[first:last].tolist() == [i for i, _ in wanted], (name, row)
            assert weights[first:last].tolist() == [w for _, w in wanted], (name, row)
            wanted_weights += [w for _, w in wanted]
    jagged = batch.jagged_weights()
    assert jagged is not None and jagged.tolist() == wanted_weights
    arrow = batch.to_arrow()
    assert arrow.schema.names == [*FEATURES, *(f"{name}.weight" for name in batch.weights)]
    for number, row in enumerate(data):
        alone = engine.transform(row)
        explained = explain(engine, row_to_batch(row, engine.plan.attributes))
        for name in batch.features:
            assert arrow[name][number].as_py() == alone[name][0].tolist()
            assert [step.id for step in explained if step.feature == name] == alone[name][0].tolist()
        for name in batch.weights:
            assert arrow[f"{name}.weight"][number].as_py() == alone.weights[name].tolist()
    for size in (1, 4):
        table = pa.Table.from_pylist(data, schema=SCHEMA)
        streamed = [
            r for b in engine.transform_stream(table, batch_rows=size) for r in b.to_arrow().to_pylist()
        ]
        assert streamed == arrow.to_pylist()


def test_bytes_of_an_age_are_those_of_a_bucket() -> None:
    engine = Engine(load({"entities": ENTITIES, "features": {"days": FEATURES["days"]}}))
    ids, _ = engine.transform({"joined": START, "now": START + datetime.timedelta(days=7)})["days"]
    assert bucket_hash(7.0, EDGES) == __import__("xxhash").xxh64_intdigest(b"\x05" + struct.pack("<d", 7.0))
    assert ids.tolist() == [folded("days", 1, (bucket_hash(7.0, EDGES),))]
