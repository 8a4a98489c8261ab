# SPDX-License-Identifier: Apache-2.0
"""From an Arrow column to value hashes.

It owns the types: which Arrow types an attribute takes, and each value's canonical bytes. A dictionary's
values are normalised and hashed once and gathered; other columns straight from their buffers: a hash costs
3 to 10 ns and a normalisation of ASCII 6 to 9, while to look for duplicates first costs 18 to 50.
Invariant: a value's hash depends on its attribute's declaration and itself only, never on the batch.
Thread safety: pure functions.
"""

import bisect
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_cross.config.attribute import Attribute
from feature_cross.data.cast import converted
from feature_cross.data.moment import date_part, decoded
from feature_cross.data.text import as_text, cast_hint, check_strings, check_utf8, normalise_strings
from feature_cross.data.workspace import Workspace
from feature_cross.error import DataError
from feature_cross.id_format import (
    DATE_PARTS,
    TAG_BIG_INT,
    TAG_BOOL,
    TAG_BUCKET,
    TAG_DATE,
    TAG_INT,
    TAG_STRING,
    int_bytes,
    value_hash,
)
from feature_cross.kernel.jagged import hash_buckets
from feature_cross.kernel.look_up import largest, look_up
from feature_cross.kernel.xxh64 import hash_ascii, hash_integers, hash_strings

__all__ = [
    "ColumnSpec",
    "Hashed",
    "RawColumn",
    "canonical_hashes",
    "canonical_values",
    "column_spec",
    "hash_column",
    "number_column",
]

Hashes = NDArray[np.uint64]
_LISTS = (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray, pa.ListViewArray, pa.LargeListViewArray)
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Hashed:
    """Hashes of flat values; where `nulls` is true the hash means nothing. `nulls` None: there are none.

    With `positions`, (values,) unsigned, the column is a dictionary's: hashes[positions] are the values'.
    """

    hashes: Hashes
    nulls: Mask | None
    positions: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """An attribute as its column is read: what is worked out once and not per batch.

    `label` is what messages call it: `column 'price' (item.price)`. `edges` and `table` are the lower edges
    of its buckets and their hashes, (buckets,) float64 and uint64; empty without buckets.
    """

    attribute: Attribute
    label: str
    edges: NDArray[np.float64]
    table: Hashes


@dataclass(frozen=True, slots=True)
class RawColumn:
    """A column's hashes before any missing policy. `offsets` None: one value per row; else no positions."""

    values: Hashed
    offsets: NDArray[np.int64] | None
    null_rows: Mask | None


def column_spec(attribute: Attribute, label: str) -> ColumnSpec:
    """What `hash_column` needs to know of an attribute; `label` is for messages."""
    lower = attribute.buckets.lower_edges if attribute.buckets is not None else ()
    edges = np.array(lower, np.float64)
    hashes = [value_hash(bytes([TAG_BUCKET]) + struct.pack("<d", edge)) for edge in lower]
    return ColumnSpec(attribute, label, edges, np.array(hashes, np.uint64))


def hash_column(array: pa.Array, spec: ColumnSpec, workspace: Workspace | None = None) -> RawColumn:
    """Hash a column.

    Parameters
    ----------
    array
        The column, of any Arrow type that the attribute takes.
    spec
        From `column_spec`.
    workspace
        The stream's; None: of this call.

    Raises
    ------
    DataError
        Another type, or a value that is invalid; names the column.
    """
    workspace = Workspace() if workspace is None else workspace
    if not spec.attribute.list:
        return RawColumn(_hash_flat(array, spec, workspace), None, None)
    kind = array.type
    if pa.types.is_null(kind):
        nothing = Hashed(np.empty(0, np.uint64), None)
        return RawColumn(nothing, np.zeros(len(array) + 1, np.int64), np.ones(len(array), np.bool_))
    if not isinstance(array, _LISTS):
        raise DataError(f"{spec.label} has Arrow type {array.type}; it is declared as a list")
    # Lengths and flattened values fit every kind of list. A cast would not: Arrow 26 loses the last row of
    # a list view when it is cast to a list.
    lengths = pc.list_value_length(array)
    null_rows = _null_mask(lengths)
    lengths = pc.fill_null(lengths, 0) if null_rows is not None else lengths
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(lengths.to_numpy(zero_copy_only=False), out=offsets[1:])
    values = _hash_flat(array.flatten(), spec, workspace)
    if values.positions is not None:
        hashes = workspace.numbers(len(values.positions))
        look_up(values.hashes, values.positions, hashes)
        values = Hashed(hashes, values.nulls)
    return RawColumn(values, offsets, null_rows)


def _null_mask(array: pa.Array) -> Mask | None:
    if array.null_count == 0:
        return None
    mask: Mask = pc.is_null(array).to_numpy(zero_copy_only=False)
    return mask


def _either(left: Mask | None, right: Mask | None) -> Mask | None:
    if left is None or right is None:
        return right if left is None else left
    return left | right


def _hash_flat(array: pa.Array, spec: ColumnSpec, workspace: Workspace) -> Hashed:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    kind = array.type
    if pa.types.is_null(kind):
        return Hashed(np.zeros(len(array), np.uint64), np.ones(len(array), np.bool_))
    if pa.types.is_dictionary(kind):
        return _hash_dictionary(array, spec, workspace)
    return _hash_values(array, spec, workspace)


def _hash_values(array: pa.Array, spec: ColumnSpec, workspace: Workspace) -> Hashed:
    """Of a column that is no dictionary, or of a dictionary's values."""
    array = converted(array, spec.attribute, spec.label)
    return _HASHERS["bucket" if spec.attribute.buckets else spec.attribute.type](array, spec, workspace)


def _hash_dictionary(array: pa.DictionaryArray, spec: ColumnSpec, workspace: Workspace) -> Hashed:
    values, indices = array.dictionary, array.indices
    unique = workspace.dictionary(spec.label, values, lambda: _hash_values(values, spec, workspace))
    if len(values) == 0:
        return Hashed(np.zeros(len(array), np.uint64), np.ones(len(array), np.bool_))
    nulls = _null_mask(indices)
    indices = pc.fill_null(indices, 0) if nulls is not None else indices
    positions = _unsigned(indices)
    if largest(positions) >= len(values):
        row = int(np.flatnonzero(positions >= len(values))[0])
        raise DataError(
            f"{spec.label} has dictionary index {indices[row]} at its value {row}; its dictionary has"
            f" {len(values)} values"
        )
    if unique.nulls is not None:
        nulls = _either(nulls, unique.nulls[positions])
    return Hashed(unique.hashes, nulls, positions)


def _unsigned(indices: pa.Array) -> NDArray[Any]:
    """Integers without nulls, seen as unsigned: a negative one is past every end."""
    if len(indices) == 0:
        return np.empty(0, np.uint8)
    size = indices.type.bit_width // 8
    return np.frombuffer(indices.buffers()[1], f"u{size}", len(indices), indices.offset * size)


def _mistyped(array: pa.Array, spec: ColumnSpec, takes: str) -> DataError:
    return DataError(
        f"{spec.label} has Arrow type {array.type}; type {spec.attribute.type} takes {takes}"
        f"{cast_hint(array.type, spec.attribute)}"
    )


def _plain(array: pa.Array) -> NDArray[Any]:
    """Values as NumPy, whatever stands where a null is: its hash is masked, so nothing needs filling in."""
    values: NDArray[Any]
    if array.null_count == 0 or pa.types.is_boolean(array.type):
        array = array.fill_null(False) if array.null_count else array
        values = array.to_numpy(zero_copy_only=False)
        return values
    dtype = array[:0].to_numpy().dtype  # to_pandas_dtype needs pandas in every Arrow before 26
    values = np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)
    return values


def _hash_strings(array: pa.Array, spec: ColumnSpec, workspace: Workspace) -> Hashed:
    array = as_text(array, spec.attribute, spec.label)
    out = workspace.numbers(len(array))
    nulls = _null_mask(array)
    if len(array) == 0:
        return Hashed(out, nulls)
    _, offset_buffer, data_buffer = array.buffers()
    width = np.int64 if pa.types.is_large_string(array.type) else np.int32
    offsets = np.frombuffer(offset_buffer, width, len(array) + 1, array.offset * np.dtype(width).itemsize)
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    done = hash_ascii(data, offsets, TAG_STRING, out)
    if done < len(out):
        check_utf8(array, spec.label)
        hash_strings(data, offsets[done:], TAG_STRING, out[done:])
    if spec.attribute.empty_is_missing:
        empty = offsets[1:] == offsets[:-1]
        nulls = _either(nulls, empty) if empty.any() else nulls
    return Hashed(out, nulls)


def _hash_integers(values: NDArray[Any], prefix: int, prefix_bytes: int, workspace: Workspace) -> Hashes:
    out = workspace.numbers(len(values))
    wide = np.ascontiguousarray(values, np.int64 if values.dtype != np.uint64 else np.uint64)
    hash_integers(wide.view(np.uint64), prefix, prefix_bytes, out)
    return out


def _hash_ints(array: pa.Array, spec: ColumnSpec, workspace: Workspace) -> Hashed:
    if not pa.types.is_integer(array.type):
        raise _mistyped(array, spec, "integers")
    values = _plain(array)
    hashes = _hash_integers(values, TAG_INT, 1, workspace)
    if values.dtype == np.uint64:
        big = values >= np.uint64(1 << 63)
        if big.any():
            hashes[big] = _hash_integers(values[big], TAG_BIG_INT, 1, workspace)
    return Hashed(hashes, _null_mask(array))


def _hash_bools(array: pa.Array, spec: ColumnSpec, workspace: Workspace) -> Hashed:
    if not pa.types.is_boolean(array.type):
        raise _mistyped(array, spec, "bools")
    table = np.array([value_hash(bytes([TAG_BOOL, bit])) for bit in (0, 1)], np.uint64)
    return Hashed(table[_plain(array).astype(np.intp)], _null_mask(array))


def _check_numbers(array: pa.Array, spec: ColumnSpec) -> None:
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise _mistyped(array, spec, "numbers")
    if spec.attribute.type == "int" and not pa.types.is_integer(array.type):
        raise _mistyped(array, spec, "integers")


def _hash_buckets(array: pa.Array, spec: ColumnSpec, workspace: Workspace) -> Hashed:
    _check_numbers(array, spec)
    values = np.ascontiguousarray(_plain(array), np.float64)
    out, unknown = workspace.numbers(len(values)), np.zeros(len(values), np.bool_)
    any_unknown = hash_buckets(values, spec.edges, spec.table, out, unknown)
    return Hashed(out, _either(_null_mask(array), unknown if any_unknown else None))


def _hash_dates(array: pa.Array, spec: ColumnSpec, workspace: Workspace) -> Hashed:
    part = spec.attribute.part
    assert part is not None, "an age was worked out before, and is cut by buckets"
    values = _plain(date_part(array, part, spec.label))
    prefix = TAG_DATE | DATE_PARTS[part] << 8
    return Hashed(_hash_integers(values, prefix, 2, workspace), _null_mask(array))


def canonical_hashes(values: tuple[Any, ...], spec: ColumnSpec) -> Hashes:
    """Hashes of plain values of the attribute's type, normalised as its column is; (values,) uint64."""
    if spec.attribute.type == "string":
        values = tuple(
            normalise_strings(pa.array(values, pa.string()), spec.attribute, spec.label).to_pylist()
        )
    return np.array([value_hash(_canonical(value, spec.attribute)) for value in values], np.uint64)


def number_column(array: pa.Array, spec: ColumnSpec) -> tuple[NDArray[Any], Mask | None]:
    """Flat numbers before any bucket, and where there are none: ints, floats, parts of dates, ages.

    Raises
    ------
    DataError
        The column has another type; names it.
    """
    array = decoded(array)
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.float64), np.ones(len(array), np.bool_)
    array = converted(array, spec.attribute, spec.label)
    if spec.attribute.part is not None:
        array = date_part(array, spec.attribute.part, spec.label)
    _check_numbers(array, spec)
    values = _plain(array)
    nulls = _null_mask(array)
    if values.dtype.kind == "f":
        values = values.astype(np.float64, copy=False)  # as buckets compare them
        unknown = np.isnan(values)
        nulls = _either(nulls, unknown) if unknown.any() else nulls
    return values, nulls


def canonical_values(array: pa.Array, spec: ColumnSpec) -> list[tuple[Any, bytes | None]]:
    """Each flat value as it is meant, and its canonical bytes, in plain Python: None for a null.

    It serves explanations, where a person reads the steps; `hash_column` takes the same steps for hashes.
    """
    array = decoded(array)
    array = converted(array, spec.attribute, spec.label)
    if spec.attribute.part is not None and not pa.types.is_null(array.type):
        array = date_part(array, spec.attribute.part, spec.label)
    if spec.attribute.type == "string" and not pa.types.is_null(array.type):
        array = check_strings(array, spec.attribute, spec.label)
    edges = [*spec.edges.tolist(), np.inf]
    found: list[tuple[Any, bytes | None]] = []
    for value in array.to_pylist():
        if value is None or value != value or (spec.attribute.empty_is_missing and value == ""):  # noqa: PLR0124  # NaN
            found.append((None, None))
        elif spec.attribute.buckets is not None:
            position = bisect.bisect_right(edges, value, hi=len(spec.edges)) - 1
            shown = f"[{edges[position]:g}, {edges[position + 1]:g})"
            found.append((shown, bytes([TAG_BUCKET]) + struct.pack("<d", edges[position])))
        else:
            found.append((value, _canonical(value, spec.attribute)))
    return found


def _canonical(value: Any, attribute: Attribute) -> bytes:
    if attribute.type == "string":
        return bytes([TAG_STRING]) + str(value).encode()
    if attribute.type == "bool":
        return bytes([TAG_BOOL, value])
    if attribute.part is not None:
        return bytes([TAG_DATE, DATE_PARTS[attribute.part]]) + int(value).to_bytes(8, "little", signed=True)
    return int_bytes(value) if attribute.type == "int" else b""  # a raw float: see _hash_floats


def _hash_floats(array: pa.Array, spec: ColumnSpec, workspace: Workspace) -> Hashed:
    """A raw float serves conditions only and has no id, so all that counts is whether it is there."""
    values, nulls = number_column(array, spec)
    return Hashed(np.zeros(len(values), np.uint64), nulls)


_HASHERS: Final[dict[str, Callable[[pa.Array, ColumnSpec, Workspace], Hashed]]] = {
    "int": _hash_ints,
    "string": _hash_strings,
    "bool": _hash_bools,
    "float": _hash_floats,
    "bucket": _hash_buckets,
    "date": _hash_dates,
}
