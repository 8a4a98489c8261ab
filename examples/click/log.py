# SPDX-License-Identifier: Apache-2.0
"""The click log, split by time. Thread safety: pure functions of their arguments."""

from pathlib import Path
from typing import Final

import pyarrow as pa

from examples.click.generate import generate

ROWS: Final = 200_000
"""Impressions unless told otherwise: every planted cell of a cross is then seen about fifty times or more."""

TEST_FRACTION: Final = 0.2
"""The last part of the log."""


def make(data: Path | None = None, rows: int | None = None, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Generate the log and split it.

    Parameters
    ----------
    data
        Must be None: this log is generated.
    rows
        Impressions; None takes ROWS.
    seed
        Of the generator.

    Returns
    -------
    tuple
        The training and the test part.

    Raises
    ------
    ValueError
        A data file was given, or there are too few rows to split.
    """
    if data is not None:
        raise ValueError(f"--data is {str(data)!r}, but the click log is generated; leave it out")
    count = ROWS if rows is None else rows
    cut = count - int(count * TEST_FRACTION)
    if not 0 < cut < count:
        raise ValueError(
            f"rows is {count}; a training and a test part need at least {int(1 / TEST_FRACTION)}"
        )
    log = generate(count, seed)
    return log.slice(0, cut), log.slice(cut)
