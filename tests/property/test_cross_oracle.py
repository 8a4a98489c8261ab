# SPDX-License-Identifier: Apache-2.0
"""The engine against a dumb second version: itertools and pure-Python hashing over random schemas and rows.

The oracle is written from docs/id_format.md and shares no code with the package: its own mixer, its own
order of features, its own limits.
"""

import itertools
import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_cross import Engine, load

M = (1 << 64) - 1
TYPES = {
    "int": (pa.int64(), st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2)),
    "string": (pa.string(), st.text(max_size=40) | st.sampled_from(["", "a", "b", "ß", "7"])),
    "bool": (pa.bool_(), st.booleans()),
    "float": (pa.float64(), st.floats() | st.sampled_from([0.0, -0.0, 1.0, 2.5])),
}
EDGES = [0.0, 1.0, 2.5]
LIST_MAX = 6
SUBSETS_MAX = 2**LIST_MAX
Row = dict[str, Any]


def mixed(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & M
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M
    return x ^ x >> 31


def folded(seed: int, operation: int, hashes: tuple[int, ...]) -> int:
    state = mixed(mixed(seed) ^ (operation << 32 | len(hashes)))
    for h in hashes:
        state = mixed(state ^ h)
    return state


def hashed(kind: str, value: Any) -> int:
    if value is None:
        data = b"\x00"
    elif kind == "int":
        data = b"\x01" + struct.pack("<q", value)
    elif kind == "string":
        data = b"\x03" + value.encode()
    elif kind == "bool":
        data = b"\x04" + (b"\x01" if value else b"\x00")
    else:
        data = b"\x05" + struct.pack("<d", max([-float("inf"), *(edge for edge in EDGES if edge <= value)]))
    return xxhash.xxh64_intdigest(data)


def operand_hashes(config: Row, row: Row, reference: str, policy: str | None) -> list[int]:
    entity, _, name = reference.partition(".")
    if entity not in config["entities"]:
        return feature_hashes(config, row, reference)
    attribute = config["entities"][entity]["attributes"][name]
    policy = policy or attribute.get("missing", "drop")
    value = row[attribute["column"]]
    values = value if attribute["list"] and value is not None else [value]
    values = [None if isinstance(v, float) and math.isnan(v) else v for v in values]
    values = [v for v in values if v is not None or policy == "own_id"]
    if "max_length" in attribute:
        most = attribute["max_length"]
        values = values[:most] if attribute["keep"] == "first" else values[max(0, len(values) - most) :]
    return [hashed(attribute["type"], v) for v in values]


def feature_hashes(config: Row, row: Row, full_name: str) -> list[int]:
    most = config["features"][full_name.partition(".")[0]].get("limit")
    return list(itertools.islice(every_hash(config, row, full_name), most))


def every_hash(config: Row, row: Row, full_name: str) -> Iterable[int]:
    name, _, form = full_name.partition(".")
    feature = config["features"][name]
    seed = feature.get("seed", full_name)
    seed = seed if isinstance(seed, int) else xxhash.xxh64_intdigest(seed.encode())
    references = [feature["of"]] if isinstance(feature["of"], str) else feature["of"]
    operands = [operand_hashes(config, row, r, feature.get("missing")) for r in references]
    if feature["kind"] != "combination":
        return (folded(seed, 1, chosen) for chosen in itertools.product(*operands))
    form, items = form or feature["form"], operands[0]
    if form == "single":
        return [folded(seed, 1, (item,)) for item in items]
    if form == "permutation":
        return [folded(seed, 2, tuple(items))] if items else []
    items = sorted(items if feature.get("multiset") else set(items))
    size = feature.get("size", "all")
    if size == "all":
        return [folded(seed, 3, tuple(items))] if items else []
    sizes = [size] if isinstance(size, int) else size
    chosen = [sorted(set(itertools.combinations(items, k))) for k in sizes]
    return [folded(seed, 3, subset) for subset in itertools.chain(*chosen)]


def expected(config: Row, row: Row, full_name: str) -> list[int]:
    hashes = feature_hashes(config, row, full_name)
    bits = config["ids"].get("slot_bits")
    if bits is None:
        return hashes
    name, _, form = full_name.partition(".")
    feature = config["features"][name]
    slot = feature["slots"][form] if form else feature["slot"]
    return [slot * 2 ** (64 - bits) + h % 2 ** (64 - bits) for h in hashes]


@st.composite
def attributes(draw: st.DrawFn, column: str) -> Row:
    kind = draw(st.sampled_from(sorted(TYPES)))
    attribute: Row = {"type": kind, "column": column, "list": draw(st.booleans())}
    attribute["missing"] = draw(st.sampled_from(["drop", "own_id"]))
    if kind == "float":
        attribute["buckets"] = {"edges": EDGES}
    if attribute["list"] and draw(st.booleans()):
        keep = draw(st.sampled_from(["first", "last"]))
        attribute |= {"max_length": draw(st.integers(1, 3)), "keep": keep}
    return attribute


def cross(draw: st.DrawFn, usable: dict[str, int]) -> Row:
    of = draw(st.lists(st.sampled_from(sorted(usable)), min_size=2, max_size=3, unique=True))
    made = {label.partition(".")[0] for label in of}
    kind = "weak"
    if made <= {"user", "item"} and draw(st.booleans()):
        kind = "categorical" if len(made) == 1 else "interaction"
    most = math.prod(usable[label] for label in of)
    feature: Row = {"kind": kind, "of": of}
    if most > 1000 or (most > 1 and draw(st.booleans())):
        feature |= {"limit": draw(st.integers(1, 50)), "past_limit": "cut"}
    return feature


def combination(draw: st.DrawFn, lists: list[str]) -> Row:
    form = draw(st.sampled_from(["all", "permutation", "single", "sorted"]))
    feature: Row = {"kind": "combination", "of": draw(st.sampled_from(lists)), "form": form}
    if form in ("all", "sorted"):
        sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)
        feature["size"] = draw(st.just("all") | st.integers(1, 3) | sizes)
        feature["multiset"] = draw(st.booleans())
    if form in ("all", "single") and draw(st.booleans()):
        feature |= {"limit": draw(st.integers(1, 4)), "past_limit": "cut"}
    return feature


def most_values(name: str, feature: Row) -> dict[str, int]:
    """Most ids for one row of each feature that a combination gives."""
    if feature["form"] == "all":
        forms = ("permutation", "single", "sorted")
        return {f"{name}.{form}": most_values("", feature | {"form": form})[""] for form in forms}
    subsets = 1 if feature.get("size", "all") == "all" else SUBSETS_MAX
    many = {"permutation": 1, "single": LIST_MAX, "sorted": subsets}
    return {name: min(many[feature["form"]], feature.get("limit", SUBSETS_MAX))}


@st.composite
def configs(draw: st.DrawFn) -> Row:
    entities: Row = {}
    for entity in ("user", "item"):
        names = range(draw(st.integers(1, 3)))
        entities[entity] = {"attributes": {f"a{n}": draw(attributes(f"{entity}{n}")) for n in names}}
    labels = [(f"{e}.{n}", a["list"]) for e in entities for n, a in entities[e]["attributes"].items()]
    scalars, lists = [label for label, many in labels if not many], [label for label, many in labels if many]
    usable = dict.fromkeys(scalars, 1) | dict.fromkeys(lists, LIST_MAX)  # most values for one row
    slots = iter(draw(st.permutations(range(60))))
    features: Row = {}
    for number in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(["cross"] + ["attribute"] * bool(scalars) + ["combination"] * bool(lists))
        )
        if kind == "cross":
            feature = cross(draw, usable)
            most = math.prod(usable[label] for label in feature["of"])
            usable[f"f{number}"] = min(most, feature.get("limit", most))
        elif kind == "attribute":
            feature = {"kind": kind, "of": draw(st.sampled_from(scalars))}
        else:
            feature = combination(draw, lists)
            usable |= most_values(f"f{number}", feature)
        if feature.get("form") == "all":
            feature["slots"] = {form: next(slots) for form in ("permutation", "single", "sorted")}
        else:
            feature["slot"] = next(slots)
            if draw(st.booleans()):
                feature["seed"] = draw(st.integers(0, M) | st.text(min_size=1, max_size=5))
        if draw(st.booleans()):
            feature["missing"] = draw(st.sampled_from(["drop", "own_id"]))
        features[f"f{number}"] = feature
    bits = draw(st.none() | st.integers(6, 32))
    return {"ids": {"slot_bits": bits} if bits else {}, "entities": entities, "features": features}


@st.composite
def tables(draw: st.DrawFn) -> tuple[Row, list[Row], pa.Table]:
    config = draw(configs())
    rows = draw(st.integers(0, 5))
    columns: Row = {}
    for entity in config["entities"].values():
        for attribute in entity["attributes"].values():
            arrow, values = TYPES[attribute["type"]]
            cell: st.SearchStrategy[Any] = st.none() | values
            if attribute["list"]:
                cell, arrow = st.none() | st.lists(cell, max_size=LIST_MAX), pa.list_(arrow)
            drawn = draw(st.lists(cell, min_size=rows, max_size=rows))
            columns[attribute["column"]] = pa.array(drawn, arrow)
    table = pa.table(columns)
    return config, table.to_pylist(), table


@given(tables())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_engine_equals_the_oracle(case: tuple[Row, list[Row], pa.Table]) -> None:
    config, rows, table = case
    engine = Engine(load(config))
    batch = engine.transform(table)
    singles = [engine.transform(row) for row in rows]
    keys, values, lengths = batch.jagged()
    assert keys == batch.features and len(lengths) == len(keys) * len(rows)
    wanted_values: list[int] = []
    for name in batch.features:
        ids, offsets = batch[name]
        assert ids.dtype == np.uint64 and offsets.dtype == np.int64 and len(offsets) == len(rows) + 1
        for number, row in enumerate(rows):
            wanted = expected(config, row, name)
            assert ids[offsets[number] : offsets[number + 1]].tolist() == wanted, (name, row)
            assert singles[number][name][0].tolist() == wanted, (name, row)
            wanted_values += wanted
    assert values.view(np.uint64).tolist() == wanted_values
    assert batch.to_arrow().num_rows == len(rows)


@given(tables(), st.integers(0, 5), st.integers(1, 3))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_slices_and_streams_change_nothing(
    case: tuple[Row, list[Row], pa.Table], first: int, size: int
) -> None:
    config, _, table = case
    engine = Engine(load(config))
    whole = engine.transform(table).to_arrow().to_pylist()
    assert engine.transform(table.slice(first)).to_arrow().to_pylist() == whole[first:]
    streamed = [r for b in engine.transform_stream(table, batch_rows=size) for r in b.to_arrow().to_pylist()]
    assert streamed == whole


@given(tables(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_order_of_declaration_is_not_in_the_ids(case: tuple[Row, list[Row], pa.Table], random: Any) -> None:
    config, _, table = case
    names = list(config["features"])
    random.shuffle(names)
    other = config | {"features": {name: config["features"][name] for name in names}}
    before, after = Engine(load(config)).transform(table), Engine(load(other)).transform(table)
    for name in before.features:
        assert before[name][0].tolist() == after[name][0].tolist()
