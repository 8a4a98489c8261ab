# SPDX-License-Identifier: Apache-2.0
"""Ridge logistic regression over coded ids: coordinate descent by code, margins and losses by row.

A code is the number of a distinct id within its feature. A row's margin is the sum of the weights of its
codes. The sweep is the coordinate-wise Newton method of Chang, Hsieh and Lin (2008), "Coordinate Descent
Method for Large-scale L2-loss Linear SVM", carried over to the logistic loss as in Yu, Huang and Lin (2011),
"Dual coordinate descent methods for logistic regression", section 2.1: no learning rate, no order of rows.
Shapes: N rows, T ids, K codes. Thread safety: free functions, GIL released; outputs are the caller's.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["add_margins", "index_rows", "row_losses", "sweep"]

_STEP_MAX = 4.0
"""Largest step of one weight, in log-odds: from a saturated row a whole Newton step would run away."""


@njit(nogil=True, cache=True)
def index_rows(
    codes: NDArray[np.int32], offsets: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The rows of each code, rising: (K + 1,) starts and (T,) rows, by counting sort.

    Parameters
    ----------
    codes
        (T,) int32, each below `size`.
    offsets
        (N + 1,) int64; row r has codes[offsets[r]:offsets[r + 1]].
    size
        K.
    """
    starts = np.zeros(size + 1, np.int64)
    first, last = offsets[0], offsets[-1]
    for k in range(first, last):
        starts[codes[k] + 1] += 1
    for c in range(size):
        starts[c + 1] += starts[c]
    place = starts[:-1].copy()
    rows = np.empty(last - first, np.int32)
    for r in range(offsets.shape[0] - 1):
        for k in range(offsets[r], offsets[r + 1]):
            c = codes[k]
            rows[place[c]] = r
            place[c] += 1
    return starts, rows


@njit(nogil=True, cache=True)
def sweep(
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    labels: NDArray[np.float64],
    margins: NDArray[np.float64],
    weights: NDArray[np.float64],
    penalty: float,
) -> float:
    """One Newton step for each code in turn; `weights` and `margins` change in place.

    Parameters
    ----------
    starts, rows
        From `index_rows`.
    labels
        (N,) float64, 0 or 1.
    margins
        (N,) float64, log-odds.
    weights
        (K,) float64.
    penalty
        Half of it times the sum of squared weights is added to the loss; above 0.

    Returns
    -------
    About what the loss fell by: the sum of gradient times step, halved.
    """
    fell = 0.0
    for c in range(weights.shape[0]):
        first, last = starts[c], starts[c + 1]
        gradient = -penalty * weights[c]
        curvature = penalty
        k = first
        while k < last:
            r = rows[k]
            count = 1.0
            while k + 1 < last and rows[k + 1] == r:  # a list may hold a value twice
                count += 1.0
                k += 1
            chance = 1.0 / (1.0 + np.exp(-margins[r]))
            gradient += count * (labels[r] - chance)
            curvature += count * count * chance * (1.0 - chance)
            k += 1
        step = min(max(gradient / curvature, -_STEP_MAX), _STEP_MAX)
        fell += 0.5 * gradient * step
        weights[c] += step
        for k in range(first, last):
            margins[rows[k]] += step
    return fell


@njit(nogil=True, cache=True)
def add_margins(
    codes: NDArray[np.int32],
    offsets: NDArray[np.int64],
    weights: NDArray[np.float64],
    margins: NDArray[np.float64],
) -> None:
    """margins[r] += weights of the row's codes, in place; a code past `weights` was not trained and adds 0.

    Shapes: codes (T,) int32, offsets (N + 1,) int64, weights (K,) float64, margins (N,) float64.
    """
    size = weights.shape[0]
    for r in range(margins.shape[0]):
        total = 0.0
        for k in range(offsets[r], offsets[r + 1]):
            c = codes[k]
            if c < size:
                total += weights[c]
        margins[r] += total


@njit(nogil=True, cache=True)
def row_losses(margins: NDArray[np.float64], labels: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """out[r] = log(1 + exp(margin)) - label * margin, without overflow; all (N,) float64."""
    for r in range(margins.shape[0]):
        margin = margins[r]
        out[r] = max(margin, 0.0) + np.log1p(np.exp(-abs(margin))) - labels[r] * margin
