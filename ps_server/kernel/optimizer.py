# SPDX-License-Identifier: Apache-2.0
"""Optimizers with one step per touched row: SGD, momentum, Adagrad, row-wise Adagrad, Adam, AdamW.

One signature for all of them, and for those of optimizer_proximal.py:

    kernel(weights, weight_at, state, state_at, gradients, hyper) -> None

| argument   | shape, dtype            | meaning                                                   |
|------------|-------------------------|-----------------------------------------------------------|
| weights    | (floats,) float32       | holds row i's weights at weight_at[i] : weight_at[i] + dim |
| weight_at  | (n,) int64              |                                                           |
| state      | (floats,) float32       | holds row i's state at state_at[i]; may be `weights` itself |
| state_at   | (n,) int64              |                                                           |
| gradients  | (n, dim) float32        | row i's gradient, duplicates summed and clipped; not written |
| hyper      | (count,) float64        | hyper[0] is the learning rate; each kernel names the rest |

`weight_at` and `state_at` may both be longer: what follows are places of rows to come, which are
prefetched.

"Lazy" throughout: a row that a push does not touch does not move, nor does its state, whatever its
momentum or weight decay. Arithmetic is float32 in the order of torch.optim on float32 tensors.
`error_model="numpy"` makes a division by zero an infinity, not an exception, and lets LLVM
vectorise; indices are uint64 because numba would look for negative ones otherwise. LLVM does not
fuse multiply and add here, so a replay on another machine gives the same bits.

Invariants: 1. rows are distinct and worked on in order; 2. the result of a row depends on its own
weights, state, gradient and `hyper` alone; 3. what is written is finite where a row, its gradient and `hyper`
were (bound.py). Thread safety: concurrent calls must touch other rows.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ps_server.kernel.bound import finite
from ps_server.kernel.intrinsic import prefetch_row

_F32, _U64 = np.float32, np.uint64


@njit(nogil=True, cache=True, error_model="numpy")
def sgd(
    weights: NDArray[np.float32], weight_at: NDArray[np.int64],
    state: NDArray[np.float32], state_at: NDArray[np.int64],
    gradients: NDArray[np.float32], hyper: NDArray[np.float64],
) -> None:  # fmt: skip
    """Stochastic gradient descent; no state. hyper: learning rate, weight decay.

    g' = g + decay·w;  w -= lr·g'. As torch.optim.SGD (Robbins, Monro 1951, "A Stochastic
    Approximation Method").
    """
    count, dim = gradients.shape
    ahead = weight_at.shape[0] - count
    rate, decay = _F32(hyper[0]), _F32(hyper[1])
    for i in range(count):
        if ahead > 0:
            prefetch_row(weights, weight_at[i + ahead], dim)
        w = _U64(weight_at[i])
        for j in range(_U64(dim)):
            before = weights[w + j]
            weights[w + j] = finite(before - rate * (gradients[i, j] + decay * before), before)


@njit(nogil=True, cache=True, error_model="numpy")
def momentum(
    weights: NDArray[np.float32], weight_at: NDArray[np.int64],
    state: NDArray[np.float32], state_at: NDArray[np.int64],
    gradients: NDArray[np.float32], hyper: NDArray[np.float64],
) -> None:  # fmt: skip
    """SGD with momentum. State: b (dim). hyper: learning rate, weight decay, momentum, dampening, nesterov.

    g' = g + decay·w;  b = momentum·b + (1 - dampening)·g';  w -= lr·b, or lr·(g' + momentum·b) with
    nesterov = 1. The first step takes b = g' without dampening, as torch.optim.SGD does; a row whose
    b is all zeros counts as one that has had no step (Sutskever, Martens, Dahl, Hinton 2013, "On the
    importance of initialization and momentum in deep learning", section 2).
    """
    count, dim = gradients.shape
    ahead = weight_at.shape[0] - count
    rate, decay, factor = _F32(hyper[0]), _F32(hyper[1]), _F32(hyper[2])
    damped, nesterov = _F32(1.0 - hyper[3]), hyper[4] != 0.0
    for i in range(count):
        if ahead > 0:
            prefetch_row(weights, weight_at[i + ahead], dim)
            prefetch_row(state, state_at[i + ahead], dim)
        w, s = _U64(weight_at[i]), _U64(state_at[i])
        gain = damped
        if damped != _F32(1.0):
            moved = False
            for j in range(_U64(dim)):
                moved |= state[s + j] != _F32(0.0)
            gain = damped if moved else _F32(1.0)
        for j in range(_U64(dim)):
            before, velocity = weights[w + j], state[s + j]
            g = gradients[i, j] + decay * before
            b = finite(factor * velocity + gain * g, velocity)
            state[s + j] = b
            weights[w + j] = finite(before - rate * (g + factor * b if nesterov else b), before)


@njit(nogil=True, cache=True, error_model="numpy")
def adagrad(
    weights: NDArray[np.float32], weight_at: NDArray[np.int64],
    state: NDArray[np.float32], state_at: NDArray[np.int64],
    gradients: NDArray[np.float32], hyper: NDArray[np.float64],
) -> None:  # fmt: skip
    """Adagrad. State: n (dim). hyper: learning rate, weight decay, eps.

    g' = g + decay·w;  n += g'²;  w -= lr·g' / (sqrt(n) + eps). As torch.optim.Adagrad with
    lr_decay = 0 (Duchi, Hazan, Singer 2011, "Adaptive Subgradient Methods", section 1.1, diagonal).
    """
    count, dim = gradients.shape
    ahead = weight_at.shape[0] - count
    rate, decay, eps = _F32(hyper[0]), _F32(hyper[1]), _F32(hyper[2])
    for i in range(count):
        if ahead > 0:
            prefetch_row(weights, weight_at[i + ahead], dim)
            prefetch_row(state, state_at[i + ahead], dim)
        w, s = _U64(weight_at[i]), _U64(state_at[i])
        for j in range(_U64(dim)):
            before, sum_before = weights[w + j], state[s + j]
            g = gradients[i, j] + decay * before
            n = finite(sum_before + g * g, sum_before)
            state[s + j] = n
            weights[w + j] = finite(before - rate * g / (np.sqrt(n) + eps), before)


@njit(nogil=True, cache=True, error_model="numpy")
def rowwise_adagrad(
    weights: NDArray[np.float32], weight_at: NDArray[np.int64],
    state: NDArray[np.float32], state_at: NDArray[np.int64],
    gradients: NDArray[np.float32], hyper: NDArray[np.float64],
) -> None:  # fmt: skip
    """Adagrad with one accumulator per row. State: n (1). hyper: learning rate, weight decay, eps.

    g' = g + decay·w;  n += mean over the row of g'²;  w -= lr / (sqrt(n) + eps)·g'. As FBGEMM's
    EXACT_ROWWISE_ADAGRAD with L2 weight decay (Mudigere et al. 2022, "Software-Hardware Co-design
    for Fast and Scalable Training of Deep Learning Recommendation Models", section 4.1.1).
    """
    count, dim = gradients.shape
    ahead = weight_at.shape[0] - count
    rate, decay, eps = _F32(hyper[0]), _F32(hyper[1]), _F32(hyper[2])
    for i in range(count):
        if ahead > 0:
            prefetch_row(weights, weight_at[i + ahead], dim)
            prefetch_row(state, state_at[i + ahead], 1)
        w, s = _U64(weight_at[i]), _U64(state_at[i])
        square = 0.0  # summed in float64, so that the order of the sum cannot be seen
        for j in range(_U64(dim)):
            g = gradients[i, j] + decay * weights[w + j]
            square += np.float64(g) * np.float64(g)
        n = finite(state[s] + _F32(square / dim), state[s])
        state[s] = n
        scale = rate / (np.sqrt(n) + eps)
        for j in range(_U64(dim)):
            before = weights[w + j]
            weights[w + j] = finite(before - scale * (gradients[i, j] + decay * before), before)


@njit(inline="always")
def _power(base: float, exponent: float) -> float:
    """base^exponent for a whole exponent >= 0, by squaring: the C library's pow differs by machine."""
    out, left = 1.0, np.int64(exponent)
    while left > 0:
        if left & 1:
            out *= base
        base *= base
        left >>= 1
    return out


@njit(nogil=True, cache=True, error_model="numpy")
def adam(
    weights: NDArray[np.float32], weight_at: NDArray[np.int64],
    state: NDArray[np.float32], state_at: NDArray[np.int64],
    gradients: NDArray[np.float32], hyper: NDArray[np.float64],
) -> None:  # fmt: skip
    """Adam and AdamW, lazy. State: m (dim), v (dim), t (1).

    hyper: learning rate, weight decay, beta1, beta2, eps, decoupled. t is the row's own number of
    steps, so a rare row gets the bias correction of its own history:

        t += 1;  g' = g + decay·w (Adam), or w *= 1 - lr·decay first (AdamW, decoupled = 1)
        m += (1 - beta1)·(g' - m);  v = beta2·v + (1 - beta2)·g'²
        w -= lr / (1 - beta1^t) · m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    As torch.optim.Adam and AdamW on a parameter that is stepped only when touched (Kingma, Ba 2015,
    "Adam", algorithm 1; Loshchilov, Hutter 2019, "Decoupled Weight Decay Regularization", algorithm
    2). A float32 t counts to 2^24, where both corrections have long been 1, and stays there.
    """
    count, dim = gradients.shape
    ahead = weight_at.shape[0] - count
    rate, decay, beta1, beta2 = hyper[0], hyper[1], hyper[2], hyper[3]
    eps, decoupled = _F32(hyper[4]), hyper[5] != 0.0
    coupled = _F32(0.0) if decoupled else _F32(decay)
    keep = _F32(1.0 - rate * decay) if decoupled else _F32(1.0)
    gain1, keep2, gain2 = _F32(1.0 - beta1), _F32(beta2), _F32(1.0 - beta2)
    last, step_size, root = _F32(-1.0), _F32(0.0), _F32(1.0)
    for i in range(count):
        if ahead > 0:
            prefetch_row(weights, weight_at[i + ahead], dim)
            prefetch_row(state, state_at[i + ahead], 2 * dim + 1)
        w, m = _U64(weight_at[i]), _U64(state_at[i])
        v = m + _U64(dim)
        t = state[v + _U64(dim)] + _F32(1.0)
        state[v + _U64(dim)] = t
        if t != last:  # neighbours in a batch are often as old as each other
            step_size = _F32(rate / (1.0 - _power(beta1, t)))
            root = _F32(np.sqrt(1.0 - _power(beta2, t)))
            last = t
        for j in range(_U64(dim)):
            weight = finite(weights[w + j] * keep, weights[w + j])
            g = gradients[i, j] + coupled * weight
            first = finite(state[m + j] + gain1 * (g - state[m + j]), state[m + j])
            second = finite(keep2 * state[v + j] + gain2 * g * g, state[v + j])
            state[m + j] = first
            state[v + j] = second
            weights[w + j] = finite(weight - step_size * first / (np.sqrt(second) / root + eps), weight)
