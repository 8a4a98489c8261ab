# SPDX-License-Identifier: Apache-2.0
"""What Arrow says of a file that it cannot read, as one sentence that names the file and the place in it.

Arrow nests its messages and numbers columns; an author looks for a name and a row. Thread safety: pure
functions, but for reading the first line of a CSV file.
"""

import csv
import os
import re
from typing import Final

import pyarrow as pa

from feature_cross.error import DataError

__all__ = ["READ_ERRORS", "read_error"]

READ_ERRORS: Final = (pa.ArrowException, OSError)
"""What Arrow raises where a file is damaged, cut short, or not what its suffix says."""

_SHOWN_CHARACTERS: Final = 300


def read_error(path: str | os.PathLike[str] | None, error: Exception) -> DataError:
    """The DataError for what Arrow raised while it read `path`; None where the data are no file.

    Parameters
    ----------
    path
        The file.
    error
        One of READ_ERRORS.
    """
    said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    # "Error creating dataset. Could not read schema from X. … Could not open Y input source X: …"
    said = re.split(r"Could not open \S+ input source '[^']*': ", said)[-1]
    said = said.removeprefix("Invalid: ").removeprefix("IOError: ")
    said = re.split(r"\. (?:Detail: |Is this a )", said)[0]
    said = _csv_place(said, path) or said
    if isinstance(error, OSError) and error.errno:
        said = os.strerror(error.errno)
    said = said if len(said) <= _SHOWN_CHARACTERS else said[: _SHOWN_CHARACTERS - 1] + "…"
    return DataError(f"{'the data' if path is None else os.fspath(path)}: cannot be read: {said}")


def _csv_place(said: str, path: str | os.PathLike[str] | None) -> str | None:
    """Arrow's words for a CSV file, with a row and the column's name; None where it is none of them."""
    if "Empty CSV file" in said:
        return "the file is empty; its first row must name the columns"
    parsed = re.match(
        r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", said, re.DOTALL
    )
    if parsed is not None:
        row, wanted, found, text = parsed.groups()
        return f"row {row}, counting the header, has {found} columns, and the header {wanted}: {text}"
    converted = re.match(r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to (\S+): (.*)", said)
    if converted is not None:
        column, row, kind, reason = converted.groups()
        place = f"row {row}, counting the header, " if row else ""
        word = re.fullmatch(r"invalid value '([^'\d]+)'", reason)
        hint = f"; if it stands for a null, declare it: nulls: [{word[1]}], cast: true" if word else ""
        if re.fullmatch(r"invalid value '-?\d+\.0+'", reason):
            hint = "; set cast: true to take whole numbers as integers"
        return f"{place}column {_column_name(path, int(column))}: {reason} for {kind}{hint}"
    return None


def _column_name(path: str | os.PathLike[str] | None, number: int) -> str:
    if path is None:
        return f"number {number + 1}"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return repr(next(csv.reader(file))[number])
    except (OSError, UnicodeDecodeError, StopIteration, IndexError, csv.Error):
        return f"number {number + 1}"
