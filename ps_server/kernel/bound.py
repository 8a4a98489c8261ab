# SPDX-License-Identifier: Apache-2.0
"""What an optimizer writes stays finite.

A gradient, a rate and a row that are finite can have a step that is not: a rate of 1e-30 under FTRL, or a
huge one with weight decay. Such a value would never become finite again, and would spoil what is exported.
So every weight and every value of state that a kernel writes goes through `finite`.

Thread safety: a pure function.
"""

from typing import Final

import numpy as np
from numba import njit

LARGEST: Final = np.float32(np.finfo(np.float32).max)


@njit(inline="always")
def finite(value: np.float32, before: np.float32) -> np.float32:
    """`value`; the largest finite one of its sign where it is infinite, and `before` where it is NaN (a step
    of 0·inf, which is no step). Comparisons without a branch, so that loops stay vectors."""
    bounded = value if value < LARGEST else LARGEST
    bounded = bounded if bounded > -LARGEST else -LARGEST
    return bounded if value == value else before  # noqa: PLR0124 # NaN alone differs from itself
