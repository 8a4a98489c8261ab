# SPDX-License-Identifier: Apache-2.0
"""Dota 2 matches as a question: does radiant win? The last 10 % of rows is the test.

Source: S. Tridgell (2016), Dota2 Games Results, UCI Machine Learning Repository, DOI 10.24432/C5W593.
Thread safety: pure functions of their arguments.
"""

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

TEST_FRACTION: Final = 0.1


def make(data: Path | None = None, rows: int | None = None, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Read the matches and split them.

    Parameters
    ----------
    data
        dota2_matches.parquet.
    rows
        Read only so many of its rows, the first; None reads all.
    seed
        Not used: nothing here is drawn.

    Returns
    -------
    tuple
        The training and the test part: win (bool), mode, radiant and dire (lists of hero ids).

    Raises
    ------
    ValueError
        No file was given.
    """
    if data is None:
        raise ValueError("the dota2 example needs --data PATH of dota2_matches.parquet")
    log = pq.read_table(data, columns=["win", "mode", "radiant", "dire"]).slice(0, rows)
    cut = log.num_rows - int(log.num_rows * TEST_FRACTION)
    return log.slice(0, cut), log.slice(cut)
