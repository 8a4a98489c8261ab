# SPDX-License-Identifier: Apache-2.0
"""Rows as columns: NumPy arrays or Arrow record batches in, Arrow record batches out.

Arrow column    type                                      what
`id`            uint64 (int64 is taken bit for bit)       the id
`weights`       fixed-size list of dim floats             any float width is taken; float16 is given for fp16
`state`         fixed-size list of state_size floats      optimizer state, where there is any
`lsn`           uint64                                    given, not taken

Thread safety: pure functions.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.error import InvalidRequestError
from rowhouse.mix import unmix64

from ps_server.disk.row import RowLayout, get_lsn
from ps_server.disk.store import Keys, Values

Floats = NDArray[np.float32]
LoadArrays = tuple[NDArray[np.uint64], Floats] | tuple[NDArray[np.uint64], Floats, Floats | None]
LoadBatch: TypeAlias = "LoadArrays | pa.RecordBatch"
"""What a load takes: (ids, weights[, state]) or a record batch."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of a batch, checked; views where possible.

    Attributes
    ----------
    ids
        (n,) uint64.
    weights
        (n, dim) in the table's storage dtype, finite.
    state
        (n, state_size) float32, finite, or None.
    skipped
        Ids of rows that were left out, because they are not finite; (m,) uint64.
    """

    ids: NDArray[np.uint64]
    weights: NDArray[Any]
    state: Floats | None
    skipped: NDArray[np.uint64]


def columns_of(batch: LoadBatch, layout: RowLayout, table: str, *, skip_not_finite: bool = False) -> Columns:
    """Columns of a batch. InvalidRequestError names the table, the column and what is wrong with it; a row
    that is not finite is left out with `skip_not_finite`."""
    if isinstance(batch, pa.RecordBatch):
        ids, weights, state = _from_arrow(batch, layout, table)
    else:
        ids, weights, state = (*batch, None)[:3]
    _check(ids, (len(ids),), np.uint64, f"table {table!r}: ids")
    _check(weights, (len(ids), layout.dim), np.float32, f"table {table!r}: weights")
    with np.errstate(over="ignore"):  # too large for the table's dtype: found below
        packed = dtype.narrow(weights, layout.dtype)
    parts = {"weights": dtype.widen(packed, layout.dtype)}
    if state is not None:
        _check(state, (len(ids), layout.state_size), np.float32, f"table {table!r}: state")
        parts["state"] = state
    if all(np.isfinite(values).all() for values in parts.values()):
        return Columns(ids, packed, state, ids[:0])
    good = np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in parts.values()])
    if not skip_not_finite:
        raise _not_finite(ids, parts, int((~good).sum()), table, layout)
    return Columns(ids[good], packed[good], None if state is None else state[good], ids[~good])


def _not_finite(
    ids: NDArray[np.uint64], parts: dict[str, Floats], count: int, table: str, layout: RowLayout
) -> InvalidRequestError:
    """The error that names the first of `count` rows which are not finite."""
    what, values = next((what, values) for what, values in parts.items() if not np.isfinite(values).all())
    row, column = np.argwhere(~np.isfinite(values))[0].tolist()
    return InvalidRequestError(
        f"table {table!r}: the {what} of id {int(ids[row])}, column {column}, is {values[row, column]} as "
        f"{dtype.NAMES[layout.dtype]}; it must be finite. {count} of {len(ids)} rows of this batch are not: "
        "load with skip_not_finite (psctl load --skip-not-finite) to leave them out"
    )


def _check(array: Any, shape: tuple[int, ...], kind: Any, what: str) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != kind or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InvalidRequestError(f"{what} are {found}; they must be {np.dtype(kind)} {shape}")


def _from_arrow(batch: pa.RecordBatch, layout: RowLayout, table: str) -> tuple[Any, Any, Any]:
    for name in ("id", "weights"):
        if name not in batch.schema.names:
            raise InvalidRequestError(f"table {table!r}: no column {name!r}; there are {batch.schema.names}")
    ids = batch.column("id")
    if ids.type not in (pa.uint64(), pa.int64()) or ids.null_count:
        raise InvalidRequestError(f"table {table!r}: column 'id' must be uint64 or int64 without nulls")
    state = None
    if layout.state_size and "state" in batch.schema.names:
        state = _floats(batch.column("state"), layout.state_size, f"table {table!r}: column 'state'")
    weights = _floats(batch.column("weights"), layout.dim, f"table {table!r}: column 'weights'")
    return ids.to_numpy(zero_copy_only=False).view(np.uint64), weights, state


def _floats(column: pa.Array, width: int, what: str) -> Floats:
    """A column of equal lists as (n, width) float32."""
    kind = column.type
    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type) or column.null_count:
        raise InvalidRequestError(f"{what} is {kind}; it must hold {width} floats per row, without nulls")
    flat = column.flatten()
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if (lengths != width).any() or flat.null_count:
        raise InvalidRequestError(f"{what} must hold {width} floats per row, without nulls")
    values: Floats = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return values.reshape(-1, width)


def schema_of(layout: RowLayout) -> pa.Schema:
    """Arrow schema of an export."""
    element = pa.float16() if layout.dtype == dtype.FLOAT16 else pa.float32()
    fields = [pa.field("id", pa.uint64(), False), pa.field("weights", pa.list_(element, layout.dim), False)]
    if layout.state_size:
        fields.append(pa.field("state", pa.list_(pa.float32(), layout.state_size), False))
    return pa.schema([*fields, pa.field("lsn", pa.uint64(), False)])


def to_record_batch(keys: Keys, values: Values, layout: RowLayout) -> pa.RecordBatch:
    """Stored rows as a record batch of `schema_of(layout)`; `keys` (n,), `values` (n, value_bytes)."""
    schema = schema_of(layout)
    storage = dtype.STORAGE[layout.dtype]
    weights = np.ascontiguousarray(values[:, : layout.dim * storage.itemsize]).view(storage)
    if layout.dtype == dtype.BFLOAT16:
        weights = dtype.widen(weights, layout.dtype)
    columns = [pa.array(unmix64(keys)), _lists(weights, schema.field("weights").type)]
    if layout.state_size:
        at = layout.state_at - layout.weights_at
        state = np.ascontiguousarray(values[:, at : at + 4 * layout.state_size]).view("<f4")
        columns.append(_lists(state, schema.field("state").type))
    return pa.RecordBatch.from_arrays([*columns, pa.array(get_lsn(values))], schema=schema)


def _lists(rows: NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=kind)
