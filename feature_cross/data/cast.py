# SPDX-License-Identifier: Apache-2.0
"""What `cast`, `normalise` and `nulls` of an attribute make of a column, before its values are hashed.

    text ─ nulls and "" out ─▶ numbers, bools, dates          (cast)
    whole floats, decimals without a fraction ─▶ integers     (cast: pandas makes ids floats beside a null)
    integers ─▶ decimal text                                  (cast, type string)
    text ─▶ normalised text ─ nulls out                       (type string)

A column that no step fits comes back as it is: the type check is data/column.py's.
Invariant: a text means the same from a CSV file, a Parquet file and a dict. Thread safety: pure functions.
"""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from feature_cross.config.attribute import Attribute
from feature_cross.data.moment import text_moments
from feature_cross.data.text import is_text, normalise_strings, reason, without
from feature_cross.error import DataError

__all__ = ["converted"]

_TARGETS: Final[dict[str, pa.DataType]] = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}

_WHOLE_BELOW: Final = 1 << 53
"""From it on a float64 may have lost the last bits of an integer."""


def converted(array: pa.Array, attribute: Attribute, label: str) -> pa.Array:
    """The flat column as the attribute means it; DataError where a value cannot be converted.

    Parameters
    ----------
    array
        The column; not dictionary encoded.
    attribute, label
        What it is declared as, and what messages call it.
    """
    if attribute.cast:
        array = _cast(array, attribute, label)
    if attribute.type == "string" and (attribute.normalise or attribute.nulls) and is_text(array.type):
        array = normalise_strings(array, attribute, label)
        if attribute.nulls:
            spellings = pa.array(attribute.nulls, pa.string())
            array = without(array, normalise_strings(spellings, attribute, label).to_pylist())
    return array


def _cast(array: pa.Array, attribute: Attribute, label: str) -> pa.Array:
    wanted = attribute.type
    try:
        if is_text(array.type) and wanted != "string":
            return _from_text(without(array, ("", *attribute.nulls)), wanted, label)
        if wanted == "float" and pa.types.is_decimal(array.type):
            return array.cast(pa.float64())
        if wanted in ("int", "string"):
            array = _whole(array, label)
        return array.cast(pa.string()) if wanted == "string" and pa.types.is_integer(array.type) else array
    except pa.ArrowInvalid as error:
        raise DataError(f"{label} cannot be converted to {wanted}: {reason(error)}") from error


def _from_text(array: pa.Array, wanted: str, label: str) -> pa.Array:
    if wanted == "date":
        return text_moments(array, label)
    try:
        return array.cast(_TARGETS[wanted])
    except pa.ArrowInvalid:
        if wanted != "int":
            raise
        # 7.0 is how pandas writes an int column that has a null
        return _integers(pc.replace_substring_regex(array, r"^(-?[0-9]+)\.0+$", r"\1"))


def _integers(array: pa.Array) -> pa.Array:
    """As int64, or as uint64 where an id has its uppermost bit; ArrowInvalid where neither holds all."""
    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid as error:
        try:
            return array.cast(pa.uint64())
        except pa.ArrowInvalid:
            raise error from None


def _whole(array: pa.Array, label: str) -> pa.Array:
    """Integers of a float column whose values are whole (NaN: a null), or of a decimal without a fraction."""
    kind = array.type
    if pa.types.is_decimal(kind) and kind.scale == 0:
        return _integers(array)
    if not pa.types.is_floating(kind):
        return array
    array = array.cast(pa.float64())
    array = pc.if_else(pc.is_nan(array), pa.scalar(None, pa.float64()), array)
    whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), float(_WHOLE_BELOW)))
    if pc.all(whole).as_py() is False:
        place = pc.index(whole, False).as_py()
        raise DataError(
            f"{label} has {array[place].as_py()} at its value {place}; an integer must be whole, and below"
            " 2^53, because larger floats have lost bits"
        )
    return array.cast(pa.int64())
