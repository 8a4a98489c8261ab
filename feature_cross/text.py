# SPDX-License-Identifier: Apache-2.0
"""Text columns: is it valid UTF-8, and each step of normalisation that a config may ask for.

Thread safety: pure functions.
"""

from collections.abc import Callable
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from feature_cross.attribute import Attribute
from feature_cross.error import DataError

__all__ = ["check_strings", "normalise_strings", "reason"]

_NORMALISERS: Final[dict[str, Callable[[pa.Array], pa.Array]]] = {
    "strip": pc.utf8_trim_whitespace,
    "lower": pc.utf8_lower,
    "ascii_lower": pc.ascii_lower,
    "nfc": lambda array: pc.utf8_normalize(array, "NFC"),
    "nfkc": lambda array: pc.utf8_normalize(array, "NFKC"),
}


def reason(error: Exception) -> str:
    """The first line of what Arrow says, at most 200 characters of it."""
    text = str(error).splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."


def check_strings(array: pa.Array, attribute: Attribute, label: str) -> pa.Array:
    """The column as string or large_string; DataError where it is another type or not valid UTF-8."""
    kind = array.type
    if pa.types.is_string_view(kind):
        array = array.cast(pa.large_string())
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        hint = "; set cast: true for their decimal text" if pa.types.is_integer(kind) else ""
        raise DataError(f"{label} has Arrow type {kind}; type {attribute.type} takes text{hint}")
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"{label} is not valid text: {reason(error)}") from error
    return array


def normalise_strings(array: pa.Array, attribute: Attribute, label: str) -> pa.Array:
    """The attribute's normalisation of each string; DataError where the column is not valid text."""
    array = check_strings(array, attribute, label)
    for step in attribute.normalise:
        array = _NORMALISERS[step](array)
    return array
