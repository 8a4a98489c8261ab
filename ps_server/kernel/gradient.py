# SPDX-License-Identifier: Apache-2.0
"""Clipping of a push's gradients before the optimizer. Thread safety: `clip` writes its argument."""

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(nogil=True, cache=True, error_model="numpy")
def clip(gradients: NDArray[np.float32], by_value: float, by_norm: float) -> None:
    """Clip finite gradients in place, first each element, then each row's L2 norm.

    Parameters
    ----------
    gradients
        (n, dim) float32, written: pass a copy if the push must keep its own.
    by_value
        Elements are brought into [-by_value, by_value]; 0 for no such limit.
    by_norm
        A row longer than this is scaled by by_norm / norm; 0 for no such limit.
    """
    limit = np.float32(by_value if by_value > 0.0 else np.inf)
    longest = by_norm if by_norm > 0.0 else np.inf
    for i in range(gradients.shape[0]):
        square = 0.0  # float64: a float32 sum of squares overflows at a norm of 1.8e19
        for j in range(gradients.shape[1]):
            g = min(max(gradients[i, j], -limit), limit)
            gradients[i, j] = g
            square += np.float64(g) * np.float64(g)
        norm = np.sqrt(square)
        if norm > longest:
            scale = np.float32(longest / norm)
            for j in range(gradients.shape[1]):
                gradients[i, j] *= scale
