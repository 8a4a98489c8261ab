# SPDX-License-Identifier: Apache-2.0
"""Dates: their parts, moments in microseconds since 1970 on the clock of UTC, and ages between two of them.

An age is the difference in microseconds divided by the unit's, as float64: whole multiples of the unit are
exact, so an age of seven days is in the bucket that begins at 7. Nanoseconds are rounded down first.
Thread safety: pure functions.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_cross.data.text import is_text, reason, without
from feature_cross.error import DataError

__all__ = ["Moments", "date_part", "decoded", "read_moments", "subtract", "text_moments"]

Moments = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""(n,) int64 microseconds, and (n,) bool: true where there is none."""

_UNITS_US: Final = {"s": 10**6, "ms": 10**3, "us": 1}
_DAY_US: Final = 86_400 * 10**6
_MOMENT_MAX: Final = 1 << 61
"""73,000 years: the difference of two moments still fits."""

_DATE_FUNCTIONS: Final[dict[str, Callable[[pa.Array], pa.Array]]] = {
    "year": pc.year,
    "month": pc.month,
    "day": pc.day,
    "date": lambda array: pc.floor_temporal(array, unit="day").cast(pa.date32()).cast(pa.int32()),
    "weekday": pc.day_of_week,
    "hour": pc.hour,
    "minute": pc.minute,
    "hour_of_week": lambda array: pc.add(pc.multiply(pc.day_of_week(array), 24), pc.hour(array)),
}


def decoded(array: pa.Array) -> pa.Array:
    """The values of a run-end or dictionary encoded column; another one as it is."""
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def date_part(array: pa.Array, part: str, label: str) -> pa.Array:
    """The part of each timestamp or date, as integers; DataError where the column has none of it."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        if kind.tz is not None:
            array = array.cast(pa.timestamp(kind.unit))  # the same instant on UTC's clock
    elif pa.types.is_date(kind):
        if part in ("hour", "minute", "hour_of_week"):
            raise DataError(f"{label} has Arrow type {kind}, which has no time of day; part {part} needs one")
    else:
        hint = "; set cast: true to read dates from text" if is_text(kind) else ""
        raise DataError(f"{label} has Arrow type {kind}; type date takes timestamps or dates{hint}")
    return _DATE_FUNCTIONS[part](array)


def text_moments(array: pa.Array, label: str) -> pa.Array:
    """Timestamps of text in ISO 8601, in microseconds on the clock of UTC.

    A text may have an offset from UTC (Z, +02:00); one without is on the clock of UTC.
    """
    try:
        zoned = pc.match_substring_regex(array, r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)$")
        zoned = pc.and_(zoned, pc.match_substring_regex(array, "[:T ]"))  # not the end of 2026-01-02
        if not pc.any(zoned).as_py():
            return array.cast(pa.timestamp("us"))
        nothing = pa.scalar(None, array.type)
        plain = pc.if_else(zoned, nothing, array).cast(pa.timestamp("us"))
        moved = pc.if_else(zoned, array, nothing).cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
        return pc.coalesce(plain, moved)
    except pa.ArrowInvalid as error:
        raise DataError(f"{label} cannot be converted to date: {reason(error)}") from error


def read_moments(array: pa.Array, label: str, cast: bool, nulls: Sequence[str] = ()) -> Moments:
    """Flat moments of a column of timestamps or dates (or, with `cast`, of their text).

    Parameters
    ----------
    array, label
        The column, and what messages call it.
    cast
        Whether text is read; "" and `nulls` are then missing.
    nulls
        More texts that stand for a null.

    Raises
    ------
    DataError
        Another type, text that is no date, or a moment past 73,000 years; names the column.
    """
    array = decoded(array)
    if cast and is_text(array.type):
        array = text_moments(without(array, ("", *nulls)), label)
    kind = array.type
    missing: NDArray[np.bool_] = pc.is_null(array).to_numpy(zero_copy_only=False)
    if pa.types.is_null(kind):
        return np.zeros(len(array), np.int64), missing
    if pa.types.is_timestamp(kind):
        ticks = array.cast(pa.int64())
        factor, divisor = _UNITS_US.get(kind.unit, 1), 1000 if kind.unit == "ns" else 1
    elif pa.types.is_date32(kind):
        ticks, factor, divisor = array.cast(pa.int32()).cast(pa.int64()), _DAY_US, 1
    elif pa.types.is_date64(kind):
        ticks, factor, divisor = array.cast(pa.int64()), 1000, 1
    else:
        hint = "; set cast: true to read dates from text" if is_text(kind) else ""
        raise DataError(f"{label} has Arrow type {kind}; it takes timestamps or dates{hint}")
    values = pc.fill_null(ticks, 0).to_numpy(zero_copy_only=False)
    if (np.abs(values // divisor) > _MOMENT_MAX // factor).any():
        raise DataError(f"{label} has a moment more than 73,000 years from 1970")
    return values // divisor * factor, missing


def subtract(later: Moments, earlier: Moments, unit_us: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Ages in units, negative where `earlier` is the later one; and where one of the two is missing."""
    return (later[0] - earlier[0]) / np.float64(unit_us), later[1] | earlier[1]
