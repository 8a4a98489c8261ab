# SPDX-License-Identifier: Apache-2.0
"""Optimizers that give exact zeros: FTRL-proximal, FOBOS, and FTRL with a sparse group lasso.

Signature, arguments, invariants and thread safety are those of optimizer.py. Regularisation belongs to
the closed form of each step here, so there is no weight decay beside it.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ps_server.kernel.bound import finite
from ps_server.kernel.intrinsic import prefetch_row

_F32, _U64 = np.float32, np.uint64


@njit(inline="always")
def _shrink(value: np.float32, threshold: np.float32) -> np.float32:
    """Soft threshold: `value` moved towards zero by `threshold`, and exactly zero within it; NaN stays."""
    if abs(value) <= threshold:
        return _F32(0.0)
    return value - threshold if value > _F32(0.0) else value + threshold


@njit(inline="always")
def _over(value: np.float32, divisor: np.float32) -> np.float32:
    """`value` / `divisor`, and exactly +0 for a zero value even where the divisor is zero as well."""
    return value / divisor if value != _F32(0.0) else _F32(0.0)


@njit(nogil=True, cache=True, error_model="numpy")
def ftrl(
    weights: NDArray[np.float32], weight_at: NDArray[np.int64],
    state: NDArray[np.float32], state_at: NDArray[np.int64],
    gradients: NDArray[np.float32], hyper: NDArray[np.float64],
) -> None:  # fmt: skip
    """FTRL-proximal with per-coordinate rates. State: z (dim), n (dim).

    hyper: learning rate, beta, l1, l2 (as it enters the denominator: the convention's factor of 2 is
    already in it).

        n' = n + g²;  z += g - (sqrt(n') - sqrt(n)) / lr · w
        w = 0 if |z| <= l1, else -(z - sign(z)·l1) / ((beta + sqrt(n')) / lr + l2)

    McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches", algorithm 1. The roots are
    subtracted, not g² divided by their sum: that telescopes exactly even where g² is lost against n.
    """
    count, dim = gradients.shape
    ahead = weight_at.shape[0] - count
    rate, beta, l1, l2 = _F32(hyper[0]), _F32(hyper[1]), _F32(hyper[2]), _F32(hyper[3])
    for i in range(count):
        if ahead > 0:
            prefetch_row(weights, weight_at[i + ahead], dim)
            prefetch_row(state, state_at[i + ahead], 2 * dim)
        w, z = _U64(weight_at[i]), _U64(state_at[i])
        n = z + _U64(dim)
        for j in range(_U64(dim)):
            g, before, sum_before, linear_before = gradients[i, j], weights[w + j], state[n + j], state[z + j]
            square = finite(sum_before + g * g, sum_before)
            root = np.sqrt(square)
            linear = linear_before + g - (root - np.sqrt(sum_before)) / rate * before
            linear = finite(linear, linear_before)
            state[n + j] = square
            state[z + j] = linear
            weights[w + j] = finite(_over(-_shrink(linear, l1), (beta + root) / rate + l2), before)


@njit(nogil=True, cache=True, error_model="numpy")
def group_ftrl(
    weights: NDArray[np.float32], weight_at: NDArray[np.int64],
    state: NDArray[np.float32], state_at: NDArray[np.int64],
    gradients: NDArray[np.float32], hyper: NDArray[np.float64],
) -> None:  # fmt: skip
    """FTRL with L1 inside the row and a lasso over whole rows. State: z (dim), n (dim).

    hyper: learning rate, beta, l1, l2 (as it enters the denominator), l21. z and n are FTRL's; then
    with s_j = 0 if |z_j| <= l1, else sign(z_j)·l1 - z_j:

        w = 0 (the whole row) if ||s|| <= l21·sqrt(dim), else
        w_j = (1 - l21·sqrt(dim) / ||s||) · s_j / ((beta + sqrt(n_j)) / lr + l2)

    sqrt(dim) makes l21 mean the same for every dim (Yuan, Lin 2006, "Model selection and estimation in
    regression with grouped variables", section 2). Ni et al. 2019, "Feature Selection for Facebook Feed
    Ranking System via a Group-Sparsity-Regularized Training Algorithm", section 3; with L1, Yue et al.
    2021, "Adaptive Optimizers with Sparse Group Lasso for Neural Networks in CTR Prediction" (tfplus).
    The minimiser is exact where a row's n are equal, and has the same zero rows otherwise.
    """
    count, dim = gradients.shape
    ahead = weight_at.shape[0] - count
    rate, beta, l1, l2 = _F32(hyper[0]), _F32(hyper[1]), _F32(hyper[2]), _F32(hyper[3])
    threshold = hyper[4] * np.sqrt(np.float64(dim))
    for i in range(count):
        if ahead > 0:
            prefetch_row(weights, weight_at[i + ahead], dim)
            prefetch_row(state, state_at[i + ahead], 2 * dim)
        w, z = _U64(weight_at[i]), _U64(state_at[i])
        n = z + _U64(dim)
        for j in range(_U64(dim)):
            g, sum_before, linear_before = gradients[i, j], state[n + j], state[z + j]
            square = finite(sum_before + g * g, sum_before)
            linear = linear_before + g - (np.sqrt(square) - np.sqrt(sum_before)) / rate * weights[w + j]
            linear = finite(linear, linear_before)
            state[n + j] = square
            state[z + j] = linear
            weights[w + j] = -_shrink(linear, l1)  # s, until its norm is known
        norm = 0.0
        for j in range(_U64(dim)):
            norm += np.float64(weights[w + j]) * np.float64(weights[w + j])
        norm = np.sqrt(norm)
        keep = _F32(0.0) if norm <= threshold else _F32(1.0 - threshold / norm)
        for j in range(_U64(dim)):
            divisor = (beta + np.sqrt(state[n + j])) / rate + l2
            weights[w + j] = finite(_over(keep * weights[w + j], divisor), _F32(0.0))


@njit(nogil=True, cache=True, error_model="numpy")
def fobos(
    weights: NDArray[np.float32], weight_at: NDArray[np.int64],
    state: NDArray[np.float32], state_at: NDArray[np.int64],
    gradients: NDArray[np.float32], hyper: NDArray[np.float64],
) -> None:  # fmt: skip
    """Forward-backward splitting with one rate for all coordinates; no state. hyper: learning rate, l1, l2.

    h = w - lr·g;  w = sign(h)·max(|h| - lr·l1, 0) / (1 + lr·l2). The paper's rate falls as 1/sqrt(t);
    here the schedule is the trainer's. Duchi, Singer 2009, "Efficient Online and Batch Learning Using
    Forward Backward Splitting", section 5 (equations for L1, L2² and both).
    """
    count, dim = gradients.shape
    ahead = weight_at.shape[0] - count
    rate, l1, l2 = _F32(hyper[0]), _F32(hyper[1]), _F32(hyper[2])
    for i in range(count):
        if ahead > 0:
            prefetch_row(weights, weight_at[i + ahead], dim)
        w = _U64(weight_at[i])
        for j in range(_U64(dim)):
            before = weights[w + j]
            half = before - rate * gradients[i, j]
            weights[w + j] = finite(_shrink(half, rate * l1) / (_F32(1.0) + rate * l2), before)


@njit(nogil=True, cache=True, error_model="numpy")
def fobos_adagrad(
    weights: NDArray[np.float32], weight_at: NDArray[np.int64],
    state: NDArray[np.float32], state_at: NDArray[np.int64],
    gradients: NDArray[np.float32], hyper: NDArray[np.float64],
) -> None:  # fmt: skip
    """Forward-backward splitting with Adagrad's rates. State: n (dim). hyper: learning rate, l1, l2, eps.

    n += g²;  r = lr / (sqrt(n) + eps);  h = w - r·g;  w = sign(h)·max(|h| - r·l1, 0) / (1 + r·l2).
    Duchi, Hazan, Singer 2011, "Adaptive Subgradient Methods", section 5, composite mirror descent;
    TensorFlow's ProximalAdagrad is the case eps = 0.
    """
    count, dim = gradients.shape
    ahead = weight_at.shape[0] - count
    rate, l1, l2, eps = _F32(hyper[0]), _F32(hyper[1]), _F32(hyper[2]), _F32(hyper[3])
    for i in range(count):
        if ahead > 0:
            prefetch_row(weights, weight_at[i + ahead], dim)
            prefetch_row(state, state_at[i + ahead], dim)
        w, s = _U64(weight_at[i]), _U64(state_at[i])
        for j in range(_U64(dim)):
            g, before, sum_before = gradients[i, j], weights[w + j], state[s + j]
            n = finite(sum_before + g * g, sum_before)
            state[s + j] = n
            own = rate / (np.sqrt(n) + eps)
            half = before - own * g
            weights[w + j] = finite(_shrink(half, own * l1) / (_F32(1.0) + own * l2), before)
