# SPDX-License-Identifier: Apache-2.0
"""Ids that ascend are told from all others (rowhouse/ids.py)."""

import numpy as np
import pytest
from rowhouse.ids import ascend


@pytest.mark.parametrize("count", [0, 1, 2, 256, 257, 258, 1000])
def test_ascending_ids_are_told_from_others(count: int) -> None:
    ids = np.arange(count, dtype=np.uint64) + np.uint64(2**64 - 1 - count)
    assert ascend(ids)
    for place in {1, 255, 256, 257, count - 1} & set(range(1, count)):
        for wrong in (ids[place - 1], np.uint64(0)):
            other = ids.copy()
            other[place] = wrong
            assert not ascend(other)
