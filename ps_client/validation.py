# SPDX-License-Identifier: Apache-2.0
"""Checks at the client's edge: ids, gradients, the answer's array, learning rates.

Each batch is checked once, vectorised, before anything is sent; what lies behind this module asserts.
Thread safety: pure functions.

Invariants: 1. ids come out as C-contiguous (n,) uint64 and gradients as C-contiguous (n, dim) float32
whose elements are finite; 2. a legal array of that kind is not copied; 3. nothing is clipped, wrapped
or rounded to an integer.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rowhouse import dtype
from rowhouse.error import InvalidRequestError, LimitExceededError
from rowhouse.kernel import as_read_only, first_not_below
from rowhouse.limit import IDS_PER_REQUEST_MAX
from rowhouse.problem import with_article

from ps_client.table import Table

WIRE_MAX: Final = {
    dtype.FLOAT16: float(np.finfo(np.float16).max),
    dtype.BFLOAT16: float(np.array(0x7F7F0000, np.uint32).view(np.float32)),
}  # fmt: skip
"""Largest finite value of each narrow wire dtype; a gradient beyond it could turn into an infinity."""

WIRE_BOUND: Final = {code: float(np.nextafter(np.float32(most), np.inf)) for code, most in WIRE_MAX.items()}
"""What a gradient's elements must stay below in magnitude for that."""


def as_ids(table: Table, ids: ArrayLike) -> NDArray[np.uint64]:
    """The ids of one table as (n,) uint64.

    Raises
    ------
    InvalidRequestError
        Not one-dimensional, not an integer dtype, or negative (the first bad index and its value).
    LimitExceededError
        More ids than limit.IDS_PER_REQUEST_MAX.
    """
    what = f"table {table.name!r}: ids"
    array = as_array(what, ids)
    if array.shape == (0,):
        return np.empty(0, np.uint64)  # np.array([]) is of floats
    if array.dtype.kind in "fO" and not hasattr(ids, "dtype"):
        array = _from_python(what, ids, array)
    if array.ndim != 1:
        raise InvalidRequestError(f"{what} have shape {array.shape}; they must have one dimension")
    if array.dtype.kind not in "ui":
        raise InvalidRequestError(
            f"{what} have dtype {array.dtype}; they must be integers (uint64 as they are)"
        )
    if array.shape[0] > IDS_PER_REQUEST_MAX:
        raise LimitExceededError(f"{what}: {array.shape[0]} in one step; at most {IDS_PER_REQUEST_MAX}")
    if array.dtype.kind == "i":
        _refuse_negative(what, array)
    return np.ascontiguousarray(array, np.uint64)


def as_array(what: str, values: ArrayLike) -> NDArray[Any]:
    """What a caller gave as an array; a torch tensor of a graph, of bfloat16 or on a GPU too.

    Parameters
    ----------
    what
        What the values are, for messages.
    values
        An array, a list, or a tensor.

    Raises
    ------
    InvalidRequestError
        NumPy takes it for no array: lists of unequal lengths, a tensor without memory.
    """
    given: Any = values
    try:
        if hasattr(given, "detach"):  # torch's, which this module does not import
            given = given.detach().cpu()
            given = given.float() if str(given.dtype) == "torch.bfloat16" else given
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidRequestError(f"{what} are no array of numbers: {reason}") from error


def _from_python(what: str, ids: ArrayLike, array: NDArray[Any]) -> NDArray[Any]:
    """A list of ints that NumPy took for something else: empty, or with ids on both sides of 2^63."""
    objects = np.asarray(ids, object).reshape(-1)
    if any(type(value) is not int for value in objects):
        return array
    for index, value in enumerate(objects):
        if not 0 <= value < 1 << 64:
            raise InvalidRequestError(f"{what}[{index}] is {value}; an id is 0 to 2^64 - 1")
    return objects.astype(np.uint64).reshape(array.shape)


def _refuse_negative(what: str, array: NDArray[Any]) -> None:
    if array.size and array.min() < 0:
        first = int(np.argmax(array < 0))
        raise InvalidRequestError(
            f"{what}[{first}] is {array[first]}; an id is 0 to 2^64 - 1 (cast the bits with .view(np.uint64))"
        )


def as_gradients(
    table: Table, ids: NDArray[np.uint64], gradients: ArrayLike, wire_dtype: int
) -> NDArray[np.float32]:
    """The gradients of one table as (n, dim) float32.

    Parameters
    ----------
    table
        The table they are for.
    ids
        (n,) uint64, checked.
    gradients
        (n, dim), any floating dtype.
    wire_dtype
        Wire code they will be sent in; an element must be finite in it too.

    Returns
    -------
    ndarray
        `gradients` itself where it is C-contiguous float32, else a copy.

    Raises
    ------
    InvalidRequestError
        A wrong shape or dtype, or an element that is not finite or past the table's gradient_bound (names its
        index, id and value).
    """
    what = f"table {table.name!r}: gradients"
    array = as_array(what, gradients)
    if array.shape == ids.shape == (0,):
        return np.empty((0, table.dim), np.float32)
    if array.dtype.kind != "f":
        raise InvalidRequestError(f"{what} have dtype {array.dtype}; they must be floating-point")
    if array.shape != (ids.shape[0], table.dim):
        raise InvalidRequestError(
            f"{what} have shape {array.shape}; {ids.shape[0]} ids of dim {table.dim} need "
            f"{(ids.shape[0], table.dim)}"
        )
    with np.errstate(over="ignore"):  # a float64 beyond fp32 turns into an infinity, refused below
        values = np.ascontiguousarray(array, np.float32)
    optimizer_bound, wire_bound = table.gradient_bound, WIRE_BOUND.get(wire_dtype, math.inf)
    bad = first_not_below(as_read_only(values), min(optimizer_bound, wire_bound))
    if bad < 0:
        return values
    row, column = divmod(bad, table.dim)
    value = values[row, column]
    if not np.isfinite(value):
        reason = "gradients must be finite in fp32"
    elif abs(value) >= optimizer_bound:
        kind = table.config["optimizer"]["kind"]
        reason = f"{kind} sums squares: it must be below {optimizer_bound:g}, or clip_value be set"
    else:
        reason = f"an element on a wire of {dtype.NAMES[wire_dtype]} is at most {WIRE_MAX[wire_dtype]:g}"
    raise InvalidRequestError(f"{what}[{row}, {column}] is {value!s} for id {ids[row]}; {reason}")


def as_events(
    table: Table, name: str, events: ArrayLike | None, ids: NDArray[np.uint64]
) -> NDArray[np.float32] | None:
    """Shows or clicks of one push as (n,) float32; InvalidRequestError unless finite and not negative.

    Parameters
    ----------
    table
        The table they are for.
    name
        "shows" or "clicks", for messages.
    events
        (n,) numbers, or None.
    ids
        (n,) uint64, checked.
    """
    if events is None:
        return None
    what = f"table {table.name!r}: {name}"
    array = as_array(what, events)
    if array.dtype.kind not in "uifb":
        raise InvalidRequestError(f"{what} have dtype {array.dtype}; they must be numbers")
    values = np.ascontiguousarray(array, np.float32)
    if values.shape != ids.shape:
        raise InvalidRequestError(f"{what} have shape {values.shape}; {ids.shape[0]} ids need {ids.shape}")
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        first = int(np.argmax(bad))
        raise InvalidRequestError(
            f"{what}[{first}] is {values[first]!s} for id {ids[first]}; it must be finite and not negative"
        )
    return values


def check_out(table: Table, count: int, out: NDArray[np.float32]) -> None:
    """Refuse an `out` that is not a writable C-contiguous (count, dim) float32 array."""
    wanted = f"a writable C-contiguous float32 array of shape {(count, table.dim)}"
    if not isinstance(out, np.ndarray):
        raise InvalidRequestError(
            f"table {table.name!r}: out is {with_article(type(out).__name__)}; it must be {wanted}"
        )
    legal = out.flags.c_contiguous and out.flags.writeable and out.flags.aligned
    if not legal or out.dtype != np.float32 or out.shape != (count, table.dim):
        raise InvalidRequestError(
            f"table {table.name!r}: out is {out.dtype} of shape {out.shape} "
            f"(C-contiguous: {out.flags.c_contiguous}, writable: {out.flags.writeable}); it must be {wanted}"
        )


def as_number(name: str, value: object) -> float:
    """A number as a float; InvalidRequestError for anything else, a text of digits too.

    Parameters
    ----------
    name
        What it is, for the message.
    value
        What a caller gave; an array or a tensor of one element is a number.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise InvalidRequestError(f"{name} is {value!r}; it must be a number") from None


def check_learning_rate(learning_rate: float | None) -> float | None:
    """A push's learning rate as it travels, a float32: None (the optimizer's own), or finite from 0 up."""
    if learning_rate is None:
        return None
    with np.errstate(over="ignore"):
        rate = float(np.float32(as_number("learning_rate", learning_rate)))
    if not (math.isfinite(rate) and rate >= 0):
        raise InvalidRequestError(
            f"learning_rate is {float(learning_rate)}; it must be a finite float32 and at least 0"
        )
    return rate


def wire_code(wire_dtype: str) -> int:
    """Wire code of a dtype name; InvalidRequestError naming the legal ones."""
    if wire_dtype not in dtype.CODES:
        raise InvalidRequestError(f"wire_dtype is {wire_dtype!r}; it must be one of {sorted(dtype.CODES)}")
    return dtype.CODES[wire_dtype]
