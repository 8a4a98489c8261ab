# SPDX-License-Identifier: Apache-2.0
"""The model's rounding is the slow oracle's, element by element."""

import numpy as np
import pytest
from rowhouse import dtype

from tests import naive
from tests.simulation.model import rounded


@pytest.mark.parametrize("code", [dtype.FLOAT16, dtype.BFLOAT16])
def test_the_model_rounds_as_the_oracle(code: int) -> None:
    rng = np.random.default_rng(4)
    values = (rng.standard_normal((20, 7)) * 10.0 ** rng.integers(-7, 4, (20, 7))).astype(np.float32)
    ids = rng.integers(0, 2**64, 20, np.uint64)
    found = rounded(values, ids, 77, code)
    words = np.arange(0x7C00 if code == dtype.FLOAT16 else 0x7F80, dtype=np.uint16)  # up to infinity
    grid = dtype.widen(words.view(dtype.STORAGE[code]), code).astype(np.float64)
    for i, row in enumerate(values):
        for j, value in enumerate(row.tolist()):
            random = naive.rounding_random(int(ids[i]), 77, j)
            bits = 16 if code == dtype.BFLOAT16 else 13 if abs(value) >= 2.0**-14 else 32
            assert found[i, j] == naive.round_stochastically(value, random, grid, bits)
