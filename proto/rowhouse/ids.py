# SPDX-License-Identifier: Apache-2.0
"""What client and server both ask of a batch of ids before they work on it.

Thread safety: pure functions.
"""

from typing import TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

_BLOCK = 256

Scalar = TypeVar("Scalar", bound=np.generic)


def as_read_only(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """A view that kernels see as one type wherever the array came from, so that they compile once."""
    view = array.view()
    view.flags.writeable = False
    return view


@njit(nogil=True, cache=True)
def ascend(ids: NDArray[np.uint64]) -> bool:
    """Whether each of `ids` ((n,) uint64) is greater than the one before it, as np.unique and torch.unique
    leave them; then none is there twice. A batch in another order is told within a block."""
    for begin in range(0, ids.shape[0], _BLOCK):
        block = ids[begin : min(begin + _BLOCK + 1, ids.shape[0])]
        falls = np.int64(0)
        for i in range(1, block.shape[0]):  # counted without an exit, in vectors
            falls += np.int64(block[i] <= block[i - 1])
        if falls:
            return False
    return True
