# SPDX-License-Identifier: Apache-2.0
"""From an id back to names: a table of the ids of sampled rows, with the values behind each.

A row is in the sample when the mixed bits of its number begin with `level` zeros; past `rows_max` rows the
level rises and half of them leave, so the sample is uniform over any number of rows, the same in every run,
and finds frequent ids first. Each row's ids are named by author/explain.py, which recomputes them.

The file is Parquet, sorted by id: `id` (uint64), `feature`, `names` (JSON: [[operand, value], ...]) and
`count` (occurrences in the sampled rows). Its schema's metadata says how many rows were read and sampled, and
which slot is whose. Thread safety: pure functions, but for files.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from feature_cross.author.explain import Explanation, explain
from feature_cross.author.interrupt import Interrupt
from feature_cross.data.sink import Sink
from feature_cross.data.source import read_batches
from feature_cross.engine.bag import PLAIN
from feature_cross.engine.engine import Engine
from feature_cross.error import DataError, FlagError
from feature_cross.id_format import FORMAT_VERSION, METADATA_FORMAT
from feature_cross.kernel.fold import fold_first
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["NAMES_MAX", "DictionaryReport", "Named", "look_up", "parse_id", "write_dictionary"]

NAMES_MAX: Final = 1_000_000
"""Entries of a dictionary: 100 to 200 MB while it is made."""

_VALUE_CHARACTERS_MAX: Final = 200
"""Of one value in `names`; a longer one is cut, and ends in an ellipsis."""

_METADATA: Final = b"feature_cross.dictionary"
_SCHEMA: Final = pa.schema(
    [("id", pa.uint64()), ("feature", pa.string()), ("names", pa.string()), ("count", pa.int64())]
)
_WRITTEN: Final = 65_536

_Found = dict[tuple[int, str, str], int]
"""(id, feature, names) to occurrences."""


@dataclass(frozen=True, slots=True)
class Named:
    """An id's feature, the operands and values behind it, and how often the sampled rows have it."""

    id: int
    feature: str
    names: tuple[tuple[str, Any], ...]
    count: int


@dataclass(frozen=True, slots=True)
class DictionaryReport:
    """What was written.

    Attributes
    ----------
    rows_read, rows_sampled
        Rows of the data, and those whose ids were named.
    names
        Entries.
    stopped
        `interrupt` or `names` (NAMES_MAX was reached), or None.
    """

    rows_read: int
    rows_sampled: int
    names: int
    stopped: str | None


class _RowSample:
    """At most `rows_max` rows of a stream."""

    def __init__(self, rows_max: int) -> None:
        self.rows_max = rows_max
        self.read = 0
        self._level = 0
        self._kept: list[pa.RecordBatch] = []
        self._mixed: list[NDArray[np.uint64]] = []

    def add(self, batch: pa.RecordBatch) -> None:
        mixed = np.empty(len(batch), np.uint64)
        numbers = np.arange(self.read, self.read + len(batch), dtype=np.uint64)
        fold_first(np.uint64(0), numbers, mixed, *PLAIN)
        self.read += len(batch)
        self._kept.append(batch)
        self._mixed.append(mixed)
        self._thin(len(self._kept) - 1)
        while sum(map(len, self._mixed)) > self.rows_max:
            self._level += 1
            self._thin(0)

    def _thin(self, first: int) -> None:
        """Leave out, of the batches from `first` on, the rows that are not sampled."""
        bound = np.uint64(1 << (64 - self._level)) if self._level else None
        for index in range(first, len(self._kept)):
            chosen = np.arange(len(self._mixed[index]))
            if bound is not None:
                chosen = np.flatnonzero(self._mixed[index] < bound)
            # `take` copies, so that the batch that it was taken from can go
            self._kept[index] = self._kept[index].take(pa.array(chosen))
            self._mixed[index] = self._mixed[index][chosen]
        alive = [index for index, mixed in enumerate(self._mixed) if len(mixed)]
        self._kept = [self._kept[index] for index in alive]
        self._mixed = [self._mixed[index] for index in alive]

    def batches(self) -> list[pa.RecordBatch]:
        return self._kept


def write_dictionary(
    engine: Engine,
    source: Any,
    out: str | os.PathLike[str],
    *,
    rows_max: int = 10_000,
    batch_rows: int = BATCH_ROWS_DEFAULT,
    progress: Callable[[str, int], None] = lambda step, rows: None,
) -> DictionaryReport:
    """Name the ids of a sample of rows, in a Parquet file.

    Parameters
    ----------
    engine
        Whose ids.
    source
        As `Engine.transform_stream` takes it.
    out
        A .parquet file; it appears when it is whole.
    rows_max
        Rows of the sample: between half of it and all of it, where the data has so many.
    batch_rows
        Rows read at once.
    progress
        Called with `read` and the rows read so far, then with `name` and the rows named so far.

    Raises
    ------
    FlagError
        `out` is no .parquet file.
    DataError, LimitError
        As `Engine.transform`; also when there is no row at all.
    """
    if not os.fspath(out).lower().endswith((".parquet", ".pq")):
        raise FlagError(f"--out is {os.fspath(out)}; a dictionary is a .parquet file")
    sample = _RowSample(rows_max)
    found: _Found = {}
    stopped, named = None, 0
    with Interrupt() as stop:
        for batch in read_batches(source, engine.plan, batch_rows):
            sample.add(batch)
            progress("read", sample.read)
            if stop.wanted:
                stopped = "interrupt"
                break
        if not sample.read:
            raise DataError("the data has no rows, so there is nothing to name")
        stop.wanted = False  # a second Ctrl-C ends the naming
        for batch in sample.batches():
            for row in range(len(batch)):
                _name_row(engine, batch, row, found)
                named += 1
                progress("name", named)
                if stop.wanted or len(found) >= NAMES_MAX:
                    stopped = "interrupt" if stop.wanted else "names"
                    break
            else:
                continue
            break
    _write(engine, found, os.fspath(out), sample.read, named)
    return DictionaryReport(sample.read, named, len(found), stopped)


def _name_row(engine: Engine, batch: pa.RecordBatch, row: int, found: _Found) -> None:
    for step in explain(engine, batch, row):
        key = step.id, step.feature, _names(step)
        if key in found or len(found) < NAMES_MAX:
            found[key] = found.get(key, 0) + 1


def _names(step: Explanation) -> str:
    """Operands and values as JSON, the values in their order."""
    pairs = [[operand.label, _short(operand.value)] for operand in step.operands]
    return json.dumps(pairs, ensure_ascii=False, default=str)


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _VALUE_CHARACTERS_MAX:
        return value[: _VALUE_CHARACTERS_MAX - 1] + "…"
    if isinstance(value, list | tuple):
        return [_short(part) for part in value]
    return value


def _write(engine: Engine, found: _Found, out: str, read: int, sampled: int) -> None:
    slots = {name: engine.plan.node(name).slot for name in engine.plan.outputs}
    about = {"rows_read": read, "rows_sampled": sampled, "slot_bits": engine.plan.slot_bits, "slots": slots}
    metadata = {_METADATA: json.dumps(about), METADATA_FORMAT: str(FORMAT_VERSION)}
    schema = _SCHEMA.with_metadata(metadata)
    entries = sorted(found.items())
    with Sink(out, schema) as sink:
        for first in range(0, len(entries), _WRITTEN):
            part = entries[first : first + _WRITTEN]
            rows = [(*key, count) for key, count in part]
            columns = [
                pa.array(column, kind)
                for column, kind in zip(zip(*rows, strict=True), _SCHEMA.types, strict=True)
            ]
            sink.write(pa.RecordBatch.from_arrays(columns, schema=schema))


def parse_id(text: str) -> int:
    """An id as people have it: decimal, 0x and hexadecimal, or torch's negative int64; FlagError if none."""
    try:
        value = int(text, 16) if text.lower().startswith("0x") else int(text)
    except ValueError:
        raise FlagError(
            f"{text!r} is not an id; give it in decimal, or as 0x and hexadecimal digits"
        ) from None
    if not -(1 << 63) <= value < 1 << 64:
        raise FlagError(f"{text} is not an id: it has more than 64 bits")
    return value % (1 << 64)


def look_up(path: str | os.PathLike[str], ids: Iterable[int]) -> list[Named]:
    """Every entry of some ids, in the order of the ids; two of one feature and id are a collision.

    Parameters
    ----------
    path
        A dictionary.
    ids
        64-bit ids.

    Raises
    ------
    DataError
        The file is no dictionary, or an id is not in it; the message says which feature's slot it has.
    """
    about = _about(os.fspath(path))
    found: list[Named] = []
    for id_ in ids:
        try:
            value = pa.scalar(id_, pa.uint64())
            table = pa.parquet.read_table(path, filters=pa.compute.field("id") == value)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{os.fspath(path)}: cannot be read: {str(error).splitlines()[0]}") from error
        if not len(table):
            raise DataError(f"id 0x{id_:016x} is not in {os.fspath(path)}, {_slot_hint(id_, about)}")
        for row in table.to_pylist():
            names = tuple((label, value) for label, value in json.loads(row["names"]))
            found.append(Named(row["id"], row["feature"], names, row["count"]))
    return found


def _about(path: str) -> dict[str, Any]:
    try:
        schema = pa.parquet.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    if _METADATA not in (schema.metadata or {}) or schema.names != _SCHEMA.names:
        raise DataError(f"{path}: not a dictionary; `feature-cross dictionary` makes one")
    about: dict[str, Any] = json.loads(schema.metadata[_METADATA])
    return about


def _slot_hint(id_: int, about: dict[str, Any]) -> str:
    hint = f"which names the ids of {about['rows_sampled']:,} of {about['rows_read']:,} rows"
    if about["slot_bits"] is None:
        return hint
    slot = id_ >> (64 - about["slot_bits"])
    owners = [name for name, own in about["slots"].items() if own == slot]
    return f"{hint}; its slot is {slot}, {'of ' + ', '.join(owners) if owners else 'of no feature there'}"
