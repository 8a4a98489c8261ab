# SPDX-License-Identifier: Apache-2.0
"""Rows as columns: NumPy arrays or Arrow record batches in, Arrow record batches out.

Arrow column    type                                      what
`id`            uint64 (int64 is taken bit for bit)       the id
`weights`       fixed-size list of dim floats             any float width is taken; float16 is given for fp16
`state`         fixed-size list of state_size floats      optimizer state, where there is any
`push_time`     uint32 (any integer is taken)             seconds since the epoch of the last push
`push_count`    uint32 (any integer is taken)             number of pushes
`shows`         float32 (any float is taken)              decayed sum of shows, as of `push_time`
`clicks`        float32 (any float is taken)              decayed sum of clicks, as of `push_time`
`lsn`           uint64                                    given, not taken

The four of metadata are there where a policy of the table reads them. The schema's metadata says whose state
the rows hold (STATE_OF), so that another optimizer does not take it for its own.

Thread safety: pure functions.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.error import InvalidRequestError
from rowhouse.mix import unmix64

from ps_server.disk.row import RowLayout, get_lsn
from ps_server.disk.store import Keys, Values

STATE_OF: Final = b"rowhouse.state_of"
"""Key of an Arrow schema's metadata: the optimizer's kind, "" for one that keeps no state."""

RESETTABLE: Final = ("state", "push_time", "push_count", "shows", "clicks")
"""Columns that a load may let begin anew: as the optimizer's first state, and as a row pushed once, now."""

Floats = NDArray[np.float32]
LoadArrays = tuple[NDArray[np.uint64], Floats] | tuple[NDArray[np.uint64], Floats, Floats | None]
LoadBatch: TypeAlias = "LoadArrays | pa.RecordBatch"
"""What a load takes: (ids, weights[, state]) or a record batch."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Rows of a batch, checked; n of them.

    Attributes
    ----------
    ids, weights
        (n,) uint64, and (n, dim) in the table's storage dtype.
    state
        (n, state_size) float32; None where it begins anew, or the table keeps none.
    metadata
        (n,) uint32 or float32 of each word of metadata that does not begin anew, by name.
    left_out
        Columns of the batch that the table has no use for.
    skipped
        Ids of rows that were left out, because they are not finite; (m,) uint64.
    """

    ids: NDArray[np.uint64]
    weights: NDArray[Any]
    state: Floats | None
    metadata: dict[str, NDArray[Any]]
    left_out: frozenset[str]
    skipped: NDArray[np.uint64]


def columns_of(
    batch: LoadBatch,
    layout: RowLayout,
    table: str,
    *,
    state_of: str | None = None,
    reset: Collection[str] = (),
    skip_not_finite: bool = False,
) -> Columns:
    """Columns of a batch, checked; views where possible.

    Parameters
    ----------
    batch
        What a load was given.
    layout, table
        Of the table's rows, and its name.
    state_of
        Optimizer whose state the table holds; None: not known.
    reset
        Columns of RESETTABLE that begin anew, whether the batch has them or not.
    skip_not_finite
        Leave out rows that are not finite, instead of refusing them.

    Raises
    ------
    InvalidRequestError
        It names the table, the column and what is wrong with it, or which columns are missing.
    """
    metadata: dict[str, NDArray[Any]] = {}
    left_out: frozenset[str] = frozenset()
    if isinstance(batch, pa.RecordBatch):
        ids, weights, state = _from_arrow(batch, layout, table, state_of, reset)
        present = [name for name in layout.metadata if name in batch.schema.names and name not in reset]
        metadata = {n: _words(batch.column(n), f"table {table!r}: column {n!r}", n) for n in present}
        used = {"id", "weights", "lsn", *metadata} | ({"state"} if state is not None else set())
        left_out = frozenset(batch.schema.names) - used
    else:
        ids, weights, state = (*batch, None)[:3]
        state = None if "state" in reset else state
    _check(ids, (len(ids),), np.uint64, f"table {table!r}: ids")
    _check(weights, (len(ids), layout.dim), np.float32, f"table {table!r}: weights")
    with np.errstate(over="ignore"):  # too large for the table's dtype: found below
        packed = dtype.narrow(weights, layout.dtype)
    parts = {"weights": dtype.widen(packed, layout.dtype)}
    if state is not None:
        _check(state, (len(ids), layout.state_size), np.float32, f"table {table!r}: state")
        parts["state"] = state
    _check_complete(table, layout, {*metadata, *reset} | ({"state"} if state is not None else set()))
    columns = Columns(
        ids=ids, weights=packed, state=state, metadata=metadata, left_out=left_out, skipped=ids[:0]
    )
    if all(np.isfinite(values).all() for values in parts.values()):
        return columns
    good = np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in parts.values()])
    if not skip_not_finite:
        raise _not_finite(ids, parts, int((~good).sum()), table, layout)
    return replace(
        columns, ids=ids[good], weights=packed[good], state=None if state is None else state[good],
        metadata={name: words[good] for name, words in metadata.items()}, skipped=ids[~good],
    )  # fmt: skip


def _check_complete(table: str, layout: RowLayout, known: set[str]) -> None:
    """Nothing that training or a policy reads begins anew without being asked for."""
    state = ["state"] if layout.state_size and "state" not in known else []
    words = [name for name in layout.metadata if name not in known]
    if not state and not words:
        return
    needed = [f"its optimizer keeps {layout.state_size} values of state per row"] if state else []
    needed += [f"its eviction reads {', '.join(words)}"] if words else []
    anew = ["every row begins with the optimizer's first state"] if state else []
    anew += ["every row counts as pushed once, now"] if words else []
    raise InvalidRequestError(
        f"table {table!r}: {' and '.join(needed)}, which the input lacks: add the columns, or load with "
        f"--reset {','.join(state + words)}, and {' and '.join(anew)}"
    )


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


def _from_arrow(
    batch: pa.RecordBatch, layout: RowLayout, table: str, state_of: str | None, reset: Collection[str]
) -> tuple[Any, Any, Any]:
    for name in ("id", "weights"):
        if name not in batch.schema.names:
            raise InvalidRequestError(f"table {table!r}: no column {name!r}; there are {batch.schema.names}")
    ids = batch.column("id")
    if ids.type not in (pa.uint64(), pa.int64()) or ids.null_count:
        raise InvalidRequestError(f"table {table!r}: column 'id' must be uint64 or int64 without nulls")
    state = None
    if layout.state_size and "state" in batch.schema.names and "state" not in reset:
        _check_state_of(batch.schema, state_of, table)
        state = _floats(batch.column("state"), layout.state_size, f"table {table!r}: column 'state'")
    weights = _floats(batch.column("weights"), layout.dim, f"table {table!r}: column 'weights'")
    return ids.to_numpy(zero_copy_only=False).view(np.uint64), weights, state


def _check_state_of(schema: pa.Schema, state_of: str | None, table: str) -> None:
    """State of one optimizer may have the size of another's."""
    theirs = (schema.metadata or {}).get(STATE_OF, b"").decode(errors="replace")
    if theirs and state_of and theirs != state_of:
        raise InvalidRequestError(
            f"table {table!r}: column 'state' is of optimizer {theirs!r}; the table's is {state_of!r}: load "
            "with --reset state, and every row begins with the optimizer's first state"
        )


def _words(column: pa.Array, what: str, name: str) -> NDArray[Any]:
    """A column of metadata: (n,) uint32 for integers, (n,) float32 for sums."""
    whole = name in ("push_time", "push_count")
    right = pa.types.is_integer(column.type) if whole else pa.types.is_floating(column.type)
    if not right or column.null_count:
        raise InvalidRequestError(
            f"{what} is {column.type}; it must be {'uint32' if whole else 'float32'} without nulls"
        )
    try:
        values: NDArray[Any] = column.cast(pa.uint32() if whole else pa.float32()).to_numpy(
            zero_copy_only=False
        )
    except pa.ArrowInvalid as error:
        raise InvalidRequestError(f"{what}: {error}; it must fit uint32") from None
    if not whole and not (np.isfinite(values) & (values >= 0)).all():
        wrong = values[~(np.isfinite(values) & (values >= 0))][0]
        raise InvalidRequestError(f"{what} holds {wrong}; a sum must be finite and not below 0")
    return values


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


def schema_of(layout: RowLayout, state_of: str | None) -> pa.Schema:
    """Arrow schema of an export; `state_of` is the optimizer whose state the rows hold, None: not known."""
    element = pa.float16() if layout.dtype == dtype.FLOAT16 else pa.float32()
    fields = [pa.field("id", pa.uint64(), False), pa.field("weights", pa.list_(element, layout.dim), False)]
    if layout.state_size:
        fields.append(pa.field("state", pa.list_(pa.float32(), layout.state_size), False))
    for name, (_, kind) in layout.metadata.items():
        fields.append(pa.field(name, pa.from_numpy_dtype(np.dtype(kind)), False))
    known = {} if state_of is None else {STATE_OF: state_of.encode()}
    return pa.schema([*fields, pa.field("lsn", pa.uint64(), False)], metadata=known)


def to_record_batch(keys: Keys, values: Values, layout: RowLayout, schema: pa.Schema) -> pa.RecordBatch:
    """Stored rows as a record batch of `schema_of`; `keys` (n,), `values` (n, value_bytes)."""
    storage = dtype.STORAGE[layout.dtype]
    weights = np.ascontiguousarray(values[:, : layout.dim * storage.itemsize]).view(storage)
    if layout.dtype == dtype.BFLOAT16:
        weights = dtype.widen(weights, layout.dtype)
    columns = [pa.array(unmix64(keys)), _lists(weights, schema.field("weights").type)]
    if layout.state_size:
        at = layout.state_at - layout.weights_at
        state = np.ascontiguousarray(values[:, at : at + 4 * layout.state_size]).view("<f4")
        columns.append(_lists(state, schema.field("state").type))
    for at, kind in layout.metadata.values():
        start = at - layout.weights_at
        columns.append(pa.array(np.ascontiguousarray(values[:, start : start + 4]).view(kind).reshape(-1)))
    return pa.RecordBatch.from_arrays([*columns, pa.array(get_lsn(values))], schema=schema)


def _lists(rows: NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=kind)
