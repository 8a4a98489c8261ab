# SPDX-License-Identifier: Apache-2.0
"""One row (a mapping) as a RecordBatch, for the engine's one path.

Arrow infers a value's type, and the engine holds it to the config as it does a column's: 7 for a string
attribute, or True for an int, is an error here as it is there.
Thread safety: pure functions.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from feature_cross.config.node import AttributeUse
from feature_cross.error import DataError, shortened

__all__ = ["row_to_batch"]


def row_to_batch(row: Mapping[str, Any], uses: Iterable[AttributeUse]) -> pa.RecordBatch:
    """A batch of one row with the columns of `uses`.

    Raises
    ------
    DataError
        A column is not in the row, or a value is not of the declared type.
    """
    arrays: dict[str, pa.Array] = {}
    for use in uses:
        attribute = use.attribute
        wanted: list[tuple[str, str, bool, str]] = [(use.column, use.label, attribute.list, attribute.type)]
        for key, column in attribute.columns.items():
            many = attribute.list and key in ("recency.times", "weights")
            kind = "number" if key == "weights" else "date"
            wanted.append((column, f"{use.label}, {key}", many, kind))
        for column, name, many, kind in wanted:
            if column in arrays:
                continue
            label = f"column {column!r} ({name})"
            if column not in row:
                raise DataError(f"{label} is not in the row, which has {sorted(map(str, row))[:50]}")
            arrays[column] = _array(row[column], many, kind, label)
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def _array(value: Any, many: bool, kind: str, label: str) -> pa.Array:
    values = value
    if many:
        if isinstance(value, str | bytes) or (value is not None and not hasattr(value, "__len__")):
            raise DataError(f"{label} is {value!r}; it is declared as a list")
        values = [] if value is None else list(value)
    else:
        values = [value]
    flat = _flat(values, many, kind, label)
    if not many:
        return flat
    offsets = pa.array([0, len(flat)], pa.int64())
    mask = pa.array([value is None])
    return pa.LargeListArray.from_arrays(offsets, flat, mask=mask)


def _flat(values: list[Any], many: bool, kind: str, label: str) -> pa.Array:
    try:
        big = any(isinstance(value, int) and value >= 1 << 63 for value in values)
        return pa.array(values, pa.uint64() if big else None, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
        shown = shortened(repr(values if many else values[0]), 80)
        raise DataError(f"{label} is {shown}, not {kind}: {error}") from error
