# SPDX-License-Identifier: Apache-2.0
"""Bounds, choices and exit codes that flags and the work of commands share. It imports nothing large."""

from typing import Final

DIM_MAX: Final = 65_536
"""Weights of a row that bytes are counted for."""

GOLDEN_ROWS_MAX: Final = 10_000
"""Rows of one golden file: it is read by people and kept with the code."""

SAMPLE_IDS_DEFAULT: Final = 1 << 16
"""Ids of a sample: 0.4 to 0.6 % standard error of any share of ids, in at most 4 MiB per feature."""

SAMPLE_IDS_MAX: Final = 1 << 24
"""Most that may be asked for in its place."""

OVER: Final = ("parts", "columns", "rest")
"""What `rank` judges a cross against: its own parts, all plain columns, or every other feature."""

PAST_BOUND: Final = 3
"""Exit code when `estimate`'s sum is past the budget, and when `diff` loses trained rows: not 1, which says
that data does not fit."""
