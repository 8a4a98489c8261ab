# SPDX-License-Identifier: Apache-2.0
"""Golden vectors of an author's own config: rows with the ids that they must always have.

The file is JSON with one line per column and per feature, so that a change shows in a review; it holds the
rows themselves, so a check needs no data. docs/feature_cross.md, "Golden vectors", is its page.
Invariants: 1. a file reads back to the very columns that were frozen, types included; 2. a file whose
checksum does not fit its text is refused. Thread safety: pure functions, but for files.
"""

import itertools
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from feature_cross.config.node import AttributeUse, NodeUse, Plan
from feature_cross.engine.batch import CrossBatch
from feature_cross.engine.engine import Engine
from feature_cross.error import DataError, shortened
from feature_cross.id_format import FORMAT_VERSION

__all__ = ["GOLDEN_BYTES_MAX", "Golden", "GoldenCheck", "Mismatch", "check_golden", "freeze", "read_golden"]

_KIND: Final = "feature_cross.golden"
_VERSION: Final = 1

GOLDEN_BYTES_MAX: Final = 64 * 1024 * 1024
"""One golden file: 10,000 rows of 300 ids are 60 MB as text, and a reviewed file is far smaller."""

_SPECIAL: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""Floats that JSON has no number for."""


@dataclass(frozen=True, slots=True)
class Golden:
    """Frozen rows.

    Attributes
    ----------
    batch
        The rows.
    features
        Per feature, per row, its ids.
    id_format, slot_bits
        Of the config that they were frozen with.
    """

    batch: pa.RecordBatch
    features: dict[str, list[list[int]]]
    id_format: int
    slot_bits: int | None

    def text(self) -> str:
        """The file."""
        body: dict[str, Any] = {
            "kind": _KIND, "version": _VERSION, "id_format": self.id_format, "slot_bits": self.slot_bits,
            "rows": len(self.batch),
            "columns": {n: _column_json(self.batch.column(n)) for n in self.batch.schema.names},
            "features": {
                name: [[f"0x{made:016x}" for made in ids] for ids in rows]
                for name, rows in self.features.items()
            },
        }  # fmt: skip
        return _dump({**body, "checksum": _checksum(body)})


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One row of one feature whose ids are no longer what was frozen; `values` are the columns it reads."""

    feature: str
    row: int
    frozen: tuple[int, ...]
    found: tuple[int, ...]
    values: dict[str, Any]

    def text(self) -> str:
        """The feature, the row, its values, and both lists of ids."""
        shown = ", ".join(f"{name}={_short(value)}" for name, value in self.values.items())
        frozen, found = (_short([f"0x{made:016x}" for made in ids]) for ids in (self.frozen, self.found))
        return f"{self.feature}: row {self.row} ({shown}): frozen {frozen}, found {found}"


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """Outcome of a check.

    Attributes
    ----------
    rows
        Rows that were checked.
    mismatches
        Every row of every feature that differs.
    absent
        Frozen features that the config no longer gives out.
    new
        Features of the config that the file does not have.
    """

    rows: int
    mismatches: tuple[Mismatch, ...]
    absent: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Every frozen feature is there, with every id."""
        return not self.mismatches and not self.absent


def freeze(engine: Engine, batch: pa.RecordBatch) -> Golden:
    """The ids of a batch, to keep. DataError: as the engine, or a column's type cannot be written."""
    columns = {name: _storable(name, batch.column(name)) for name in engine.columns}
    kept = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    made = engine.transform(kept)
    features = {name: _rows(made, name) for name in made.features}
    return Golden(kept, features, FORMAT_VERSION, engine.plan.slot_bits)


def check_golden(engine: Engine, golden: Golden) -> GoldenCheck:
    """Hold a config's ids to frozen ones, the batch as a whole and each row alone.

    Raises
    ------
    DataError
        The config reads a column that the file does not have, or no longer takes a value of it.
    """
    whole, engine = engine, _frozen_part(engine, golden)
    made = engine.transform(golden.batch)
    shown = {name: _values(golden.batch.column(name)) for name in golden.batch.schema.names}
    alone = [engine.transform(golden.batch.slice(row, 1)) for row in range(len(golden.batch))]
    mismatches = []
    for name, frozen in golden.features.items():
        if name not in made.features:
            continue
        for row, (ids, found) in enumerate(zip(frozen, _rows(made, name), strict=True)):
            single = alone[row][name][0].tolist()
            if ids != found or ids != single:
                values = {column: shown[column][row] for column in _columns_of(engine.plan, name)}
                wrong = found if ids != found else single
                mismatches.append(Mismatch(name, row, tuple(ids), tuple(wrong), values))
    absent = tuple(name for name in golden.features if name not in made.features)
    new = tuple(name for name in whole.plan.outputs if name not in golden.features)
    return GoldenCheck(len(golden.batch), tuple(mismatches), absent, new)


def _frozen_part(engine: Engine, golden: Golden) -> Engine:
    """The frozen features and what they need: a new feature may read columns that the file does not have."""
    plan, config = engine.plan, engine.config
    wanted = [name for name in plan.outputs if name in golden.features]
    declared: set[str] = set()
    while wanted:
        node = plan.node(wanted.pop())
        declared.add(str(node.path[1]))
        wanted += [operand.name for operand in node.operands if isinstance(operand, NodeUse)]
        share = config.features[str(node.path[1])].share
        wanted += [share] if share is not None else []
    if not declared:  # nothing that was frozen is left, so any part will do
        return engine
    features = {name: feature for name, feature in config.features.items() if name in declared}
    return Engine(config.model_copy(update={"features": features}))


def read_golden(path: str | os.PathLike[str]) -> Golden:
    """Read a golden file; DataError if it is no such file, of another version, or was changed by hand."""
    name = os.fspath(path)
    try:
        size = Path(name).stat().st_size
        if size > GOLDEN_BYTES_MAX:
            raise DataError(f"{name}: has {size} bytes; at most {GOLDEN_BYTES_MAX}")
        body = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: is not a golden file: {error}") from error
    if not isinstance(body, dict) or body.get("kind") != _KIND:
        raise DataError(f"{name}: is not a golden file: its kind is not {_KIND}")
    if body.get("version") != _VERSION:
        raise DataError(f"{name}: has version {body.get('version')!r}; this package reads {_VERSION}")
    written = body.pop("checksum", None)
    if written != _checksum(body):
        raise DataError(f"{name}: checksum {written} does not fit its text; it was changed: freeze it again")
    columns = {column: _array(spec) for column, spec in body["columns"].items()}
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    features = {
        feature: [[int(made, 16) for made in ids] for ids in rows]
        for feature, rows in body["features"].items()
    }
    return Golden(batch, features, body["id_format"], body["slot_bits"])


def _rows(made: CrossBatch, name: str) -> list[list[int]]:
    ids, offsets = made[name]
    flat, bounds = ids.tolist(), offsets.tolist()
    return [flat[first:last] for first, last in itertools.pairwise(bounds)]


def _columns_of(plan: Plan, name: str) -> list[str]:
    found: list[str] = []
    for operand in plan.node(name).operands:
        found += operand.columns if isinstance(operand, AttributeUse) else _columns_of(plan, operand.name)
    found += [column for condition in plan.node(name).conditions for column in condition.use.columns]
    return list(dict.fromkeys(found))


def _storable(name: str, array: pa.Array) -> pa.Array:
    """The same values in a type that the file can name: no dictionaries, views or time zones."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _storable(name, array.dictionary_decode())
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return array.cast(pa.string())
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return array.cast(pa.timestamp(kind.unit))  # on UTC's clock, as the engine reads it
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        flat = _storable(name, array.flatten())  # without what lies under null lists
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pc.is_null(array))
    if pa.types.is_null(kind) or _alias(kind) is not None:
        return array
    raise DataError(f"column {name!r} has Arrow type {kind}, which a golden file cannot hold")


def _alias(kind: pa.DataType) -> str | None:
    try:
        return str(kind) if pa.type_for_alias(str(kind)) == kind else None
    except ValueError:
        return None


def _column_json(array: pa.Array) -> dict[str, Any]:
    is_list = pa.types.is_list(array.type)
    kind = array.type.value_type if is_list else array.type
    return {"type": str(kind), "list": is_list, "values": _values(array)}


def _values(array: pa.Array) -> list[Any]:
    """As JSON takes them; times as text, for Python's own have no nanoseconds."""
    is_list = pa.types.is_list(array.type)
    if pa.types.is_temporal(array.type.value_type if is_list else array.type):
        array = array.cast(pa.list_(pa.string()) if is_list else pa.string())
    return [_plain(value) for value in array.to_pylist()]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(element) for element in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _array(spec: dict[str, Any]) -> pa.Array:
    kind = pa.type_for_alias(spec["type"])
    values = spec["values"]
    if pa.types.is_floating(kind):
        values = [_float(value) for value in values]
    stored = pa.string() if pa.types.is_temporal(kind) else kind
    if not spec["list"]:
        return pa.array(values, stored).cast(kind)
    return pa.array(values, pa.list_(stored)).cast(pa.list_(kind))


def _float(value: Any) -> Any:
    if isinstance(value, list):
        return [_float(element) for element in value]
    return _SPECIAL[value] if isinstance(value, str) else value


def _checksum(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"0x{xxhash.xxh64_intdigest(text.encode()):016x}"


def _dump(body: dict[str, Any]) -> str:
    """One line per key, and one per column and feature."""
    lines = []
    for key, value in body.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f"{json.dumps(key)}: {{\n{inner}\n}}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _short(value: Any) -> str:
    names = isinstance(value, list) and value and isinstance(value[0], str)
    return shortened(", ".join(value) if names else repr(value), 80)


def rows_of(batches: Iterable[pa.RecordBatch], wanted: int) -> pa.RecordBatch:
    """At most `wanted` rows, evenly from the first batch; DataError if there is no row."""
    for batch in batches:
        if len(batch):
            step = max(len(batch) // wanted, 1)
            return batch.take(pa.array(range(0, len(batch), step)[:wanted], pa.int64()))
    raise DataError("the data has no rows to freeze")
