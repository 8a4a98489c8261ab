# SPDX-License-Identifier: Apache-2.0
"""Text columns: is it valid UTF-8, and each step of normalisation that a config may ask for.

Thread safety: pure functions.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_cross.config.attribute import Attribute
from feature_cross.error import DataError, shortened
from feature_cross.kernel.jagged import all_ascii

__all__ = [
    "as_text",
    "cast_hint",
    "check_strings",
    "check_utf8",
    "is_text",
    "normalise_strings",
    "reason",
    "without",
]

_NORMALISERS: Final[dict[str, Callable[[pa.Array], pa.Array]]] = {
    "strip": pc.utf8_trim_whitespace,
    "lower": pc.utf8_lower,
    "ascii_lower": pc.ascii_lower,
    "nfc": lambda array: pc.utf8_normalize(array, "NFC"),
    "nfkc": lambda array: pc.utf8_normalize(array, "NFKC"),
}


def reason(error: Exception) -> str:
    """The first line of what Arrow says, at most 200 characters of it."""
    return shortened(str(error).splitlines()[0], 200)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of that type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def without(array: pa.Array, texts: Sequence[str]) -> pa.Array:
    """A text column with a null in the place of each of `texts`; string_view comes out as large_string."""
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.large_string())
    said = pc.is_in(array, value_set=pa.array(texts, array.type))
    return pc.if_else(said, pa.scalar(None, array.type), array)


def cast_hint(kind: pa.DataType, attribute: Attribute) -> str:
    """What a message adds to "has Arrow type KIND" where `cast` would take the column; else nothing."""
    whole = pa.types.is_floating(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
    if is_text(kind):
        what = {"date": "dates", "bool": "bools", "string": ""}.get(attribute.type, "numbers")
        return f"; set cast: true to read {what} from text" if what else ""
    if attribute.type == "int" and whole:
        return "; set cast: true to take whole numbers as integers"
    if attribute.type == "string" and (whole or pa.types.is_integer(kind)):
        return "; set cast: true for their decimal text"
    if attribute.type == "float" and pa.types.is_decimal(kind):
        return "; set cast: true to take decimals as floats"
    return ""


def as_text(array: pa.Array, attribute: Attribute, label: str) -> pa.Array:
    """The column as string or large_string, of sound sizes; DataError where it is another type."""
    kind = array.type
    if pa.types.is_string_view(kind):
        array = array.cast(pa.large_string())
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(
            f"{label} has Arrow type {kind}; type {attribute.type} takes text{cast_hint(kind, attribute)}"
        )
    _validate(array, label, full=False)
    return array


def check_utf8(array: pa.Array, label: str) -> None:
    """Look at every string; DataError where one is not valid UTF-8, or is not within the column's bytes."""
    _validate(array, label, full=True)


def _validate(array: pa.Array, label: str, full: bool) -> None:
    try:
        array.validate(full=full)
    except pa.ArrowInvalid as error:
        raise DataError(f"{label} is not valid text: {reason(error)}") from error


def check_strings(array: pa.Array, attribute: Attribute, label: str) -> pa.Array:
    """The column as string or large_string; DataError where it is another type or not valid UTF-8."""
    array = as_text(array, attribute, label)
    if not _is_ascii(array):
        check_utf8(array, label)
    return array


def _is_ascii(array: pa.Array) -> bool:
    """Told in a sixth of the time of a full validation, which goes string by string."""
    _, offset_buffer, data_buffer = array.buffers()
    if offset_buffer is None or data_buffer is None:
        return False
    width = np.dtype(np.int64 if pa.types.is_large_string(array.type) else np.int32)
    offsets = np.frombuffer(offset_buffer, width, len(array) + 1, array.offset * width.itemsize)
    return bool(all_ascii(np.frombuffer(data_buffer, np.uint8), offsets))


def normalise_strings(array: pa.Array, attribute: Attribute, label: str) -> pa.Array:
    """The attribute's normalisation of each string; DataError where the column is not valid text."""
    array = check_strings(array, attribute, label)
    for step in attribute.normalise:
        array = _NORMALISERS[step](array)
    return array
