# SPDX-License-Identifier: Apache-2.0
"""New rows: each weight a pure function of (seed, id, element).

Counter-based (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): the
bits of element j are mix64(mix64(id ^ mix64(seed)) + j), so there is no stream to keep, and no order
or batch can be seen in a row. A normal deviate is the inverse distribution function of one uniform
deviate (Wichura 1988, "Algorithm AS 241", PPND16: 16 digits).

Invariants: 1. a row's bits depend on (seed, id, kind, parameters) alone, not on the machine: only
IEEE's exactly rounded operations are used, which is why the logarithm is written out here; 2. they
never change between versions: tests/unit/test_initializer.py pins them.
Thread safety: writes only `out`.
"""

import math
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray
from rowhouse.mix import mix64_scalar

CONSTANT: Final = 0
"""parameters: value."""

UNIFORM: Final = 1
"""parameters: low, high."""

NORMAL: Final = 2
"""parameters: mean, standard deviation."""

TRUNCATED_NORMAL: Final = 3
"""parameters: mean and standard deviation of the normal that is cut at two deviations from the mean."""

_U64 = np.uint64
_BELOW_MINUS_2: Final = 0.022750131948179195
"""Share of a normal distribution below -2 standard deviations."""

_CENTRAL: Final = 0.425
"""AS 241 takes its first rational function up to here, |p - 1/2|."""

_LN2: Final = 0.6931471805599453
_SQRT_HALF: Final = 0.7071067811865476


@njit(inline="always")
def _uniform(bits: np.uint64) -> float:
    """The middle of one of 2^52 equal parts of (0, 1): never 0, never 1, and exact."""
    return (np.float64(bits >> _U64(12)) + 0.5) * 2.0**-52


@njit(error_model="numpy")
def _log(x: float) -> float:
    """Natural logarithm of a positive float64, by 2·artanh((m - 1) / (m + 1)) + e·ln 2."""
    m, e = math.frexp(x)
    if m < _SQRT_HALF:
        m *= 2.0
        e -= 1
    s = (m - 1.0) / (m + 1.0)  # |s| <= 0.172, so the term s^23 / 23 is below 2^-60
    square = s * s
    series = 0.0
    for k in range(21, 0, -2):
        series = series * square + 1.0 / k
    return 2.0 * s * series + e * _LN2


@njit(error_model="numpy")
def _central(q: float) -> float:
    """PPND16 for |q| <= _CENTRAL, where q = p - 1/2."""
    r = 0.180625 - q * q
    upper = 2.5090809287301226727e3
    upper = upper * r + 3.3430575583588128105e4
    upper = upper * r + 6.7265770927008700853e4
    upper = upper * r + 4.5921953931549871457e4
    upper = upper * r + 1.3731693765509461125e4
    upper = upper * r + 1.9715909503065514427e3
    upper = upper * r + 1.3314166789178437745e2
    upper = upper * r + 3.3871328727963666080e0
    lower = 5.2264952788528545610e3
    lower = lower * r + 2.8729085735721942674e4
    lower = lower * r + 3.9307895800092710610e4
    lower = lower * r + 2.1213794301586595867e4
    lower = lower * r + 5.3941960214247511077e3
    lower = lower * r + 6.8718700749205790830e2
    lower = lower * r + 4.2313330701600911252e1
    lower = lower * r + 1.0
    return q * upper / lower


@njit(error_model="numpy")
def _tail(p: float) -> float:
    """PPND16 for a tail of probability p <= 0.075: the positive deviate."""
    r = math.sqrt(-_log(p))
    if r <= 5.0:
        r -= 1.6
        upper = 7.74545014278341407640e-4
        upper = upper * r + 2.27238449892691845833e-2
        upper = upper * r + 2.41780725177450611770e-1
        upper = upper * r + 1.27045825245236838258e0
        upper = upper * r + 3.64784832476320460504e0
        upper = upper * r + 5.76949722146069140550e0
        upper = upper * r + 4.63033784615654529590e0
        upper = upper * r + 1.42343711074968357734e0
        lower = 1.05075007164441684324e-9
        lower = lower * r + 5.47593808499534494600e-4
        lower = lower * r + 1.51986665636164571966e-2
        lower = lower * r + 1.48103976427480074590e-1
        lower = lower * r + 6.89767334985100004550e-1
        lower = lower * r + 1.67638483018380384940e0
        lower = lower * r + 2.05319162663775882187e0
        lower = lower * r + 1.0
    else:
        r -= 5.0
        upper = 2.01033439929228813265e-7
        upper = upper * r + 2.71155556874348757815e-5
        upper = upper * r + 1.24266094738807843860e-3
        upper = upper * r + 2.65321895265761230930e-2
        upper = upper * r + 2.96560571828504891230e-1
        upper = upper * r + 1.78482653991729133580e0
        upper = upper * r + 5.46378491116411436990e0
        upper = upper * r + 6.65790464350110377720e0
        lower = 2.04426310338993978564e-15
        lower = lower * r + 1.42151175831644588870e-7
        lower = lower * r + 1.84631831751005468180e-5
        lower = lower * r + 7.86869131145613259100e-4
        lower = lower * r + 1.48753612908506148525e-2
        lower = lower * r + 1.36929880922735805310e-1
        lower = lower * r + 5.99832206555887937690e-1
        lower = lower * r + 1.0
    return upper / lower


@njit(error_model="numpy")
def normal_quantile(p: float) -> float:
    """The standard normal deviate below which a share p, 0 < p < 1, of the distribution lies."""
    q = p - 0.5
    if abs(q) <= _CENTRAL:
        return _central(q)
    return -_tail(p) if q < 0.0 else _tail(1.0 - p)


@njit(error_model="numpy")
def _fill_normal(
    key: np.uint64, low: float, share: float, mean: float, std: float, row: NDArray[np.float32]
) -> None:
    """Normal deviates of the quantiles low + u·share, u uniform.

    Twice over the row: LLVM vectorises the first loop, which has no branch; the second puts right
    the 15 % that lie in a tail.
    """
    for j in range(row.shape[0]):
        q = low + share * _uniform(mix64_scalar(key + _U64(j))) - 0.5
        row[j] = mean + std * _central(min(max(q, -_CENTRAL), _CENTRAL))
    for j in range(row.shape[0]):
        p = low + share * _uniform(mix64_scalar(key + _U64(j)))
        if abs(p - 0.5) > _CENTRAL:
            row[j] = mean + std * normal_quantile(p)


@njit(nogil=True, cache=True, error_model="numpy")
def initialize(
    kind: int,
    seed: np.uint64,
    ids: NDArray[np.uint64],
    parameters: NDArray[np.float64],
    out: NDArray[np.float32],
) -> None:
    """Fill the initial weights of rows.

    Parameters
    ----------
    kind
        CONSTANT, UNIFORM, NORMAL or TRUNCATED_NORMAL.
    seed
        The table's seed.
    ids
        (n,) uint64.
    parameters
        (2,) float64, as the kind's constant says.
    out
        (n, dim) float32, written.
    """
    dim = out.shape[1]
    first, second = parameters[0], parameters[1]
    table_key = mix64_scalar(seed)
    for i in range(ids.shape[0]):
        if kind == CONSTANT:
            for j in range(dim):
                out[i, j] = first
            continue
        key = mix64_scalar(ids[i] ^ table_key)
        if kind == UNIFORM:
            for j in range(dim):
                out[i, j] = first + (second - first) * _uniform(mix64_scalar(key + _U64(j)))
        elif kind == NORMAL:
            _fill_normal(key, 0.0, 1.0, first, second, out[i])
        else:
            _fill_normal(key, _BELOW_MINUS_2, 1.0 - 2.0 * _BELOW_MINUS_2, first, second, out[i])
            for j in range(dim):  # the last bit of an extreme quantile may lie past the cut
                out[i, j] = min(
                    max(out[i, j], np.float32(first - 2.0 * second)), np.float32(first + 2.0 * second)
                )
