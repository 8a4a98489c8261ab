# SPDX-License-Identifier: Apache-2.0
"""New rows: each weight a pure function of (seed, id, element).

Counter-based (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): the
bits of element j are mix64(mix64(id ^ mix64(seed)) + j), so there is no stream to keep, and no order
or batch can be seen in a row. A normal deviate is the inverse distribution function of one uniform
deviate (Wichura 1988, "Algorithm AS 241", PPND16: 12 digits or more here).

Invariants: 1. a row's bits depend on (seed, id, kind, parameters) alone, not on the machine: only
IEEE's exactly rounded operations are used, which is why the logarithm is written out here; 2. they
never change between versions: tests/unit/test_initializer.py pins them.
Thread safety: writes only `out`.
"""

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray
from rowhouse.mix import mix64_scalar

from ps_server.kernel.intrinsic import bits_double, double_bits

CONSTANT: Final = 0
"""parameters: value."""

UNIFORM: Final = 1
"""parameters: low, high."""

NORMAL: Final = 2
"""parameters: mean, standard deviation."""

TRUNCATED_NORMAL: Final = 3
"""parameters: mean and standard deviation of the normal that is cut at two deviations from the mean."""

_U64 = np.uint64
_MIDDLE: Final = 0.9544997361036416
"""Share of a normal distribution within two standard deviations."""

_CENTRAL: Final = 0.425
"""AS 241 takes its first rational function up to here, |p - 1/2|."""

_LN2: Final = 0.6931471805599453
_SQRT_HALF: Final = 0.7071067811865476


@njit(inline="always")
def _uniform(bits: np.uint64) -> float:
    """The middle of one of 2^52 equal parts of (0, 1): never 0, never 1, and exact."""
    return (np.float64(bits >> _U64(12)) + 0.5) * 2.0**-52


@njit(inline="always", error_model="numpy")
def _log(x: float) -> float:
    """Natural logarithm of a positive, normal float64, by 2·artanh((m - 1) / (m + 1)) + e·ln 2."""
    bits = double_bits(x)
    e = np.float64(np.int64(bits >> _U64(52)) - 1022)
    m = bits_double((bits & _U64(0x000FFFFFFFFFFFFF)) | _U64(0x3FE0000000000000))  # in [1/2, 1)
    e = e - 1.0 if m < _SQRT_HALF else e
    m = m * 2.0 if m < _SQRT_HALF else m
    s = (m - 1.0) / (m + 1.0)  # |s| <= 0.172, so the term s^23 / 23 is below 2^-60
    square = s * s
    series = 1.0 / 21.0  # written out: as a loop it keeps LLVM from vectorising the one around it
    series = series * square + 1.0 / 19.0
    series = series * square + 1.0 / 17.0
    series = series * square + 1.0 / 15.0
    series = series * square + 1.0 / 13.0
    series = series * square + 1.0 / 11.0
    series = series * square + 1.0 / 9.0
    series = series * square + 1.0 / 7.0
    series = series * square + 1.0 / 5.0
    series = series * square + 1.0 / 3.0
    series = series * square + 1.0 / 1.0
    return 2.0 * s * series + e * _LN2


@njit(inline="always", error_model="numpy")
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


@njit(inline="always", error_model="numpy")
def _tail(r: float) -> float:
    """PPND16 where r = sqrt(-ln p) and p is the tail, up to 0.075: the positive deviate.

    The paper changes functions again at r = 5. Our tails end at p = 2^-53, r = 6.1, where this one is off
    by 5e-13: too little to be seen in float32.
    """
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
    return upper / lower


@njit(inline="always", error_model="numpy")
def normal_quantile(p: float) -> float:
    """The standard normal deviate below which a share p, 2^-53 <= p <= 1 - 2^-53, of the distribution lies.

    Both rational functions are computed and one is taken: without a branch LLVM vectorises the loop.
    """
    q = p - 0.5
    central = _central(min(max(q, -_CENTRAL), _CENTRAL))
    tail = _tail(np.sqrt(-_log(min(p, 1.0 - p))))
    return central if abs(q) <= _CENTRAL else (-tail if q < 0.0 else tail)


@njit(error_model="numpy")
def _fill_normal(
    key: np.uint64, mean: float, std: float, share: float, cut: float, row: NDArray[np.float32]
) -> None:
    """Normal deviates of the `share` of the distribution in its middle, within `cut` deviations."""
    low, least, most = 0.5 - 0.5 * share, np.float32(mean - std * cut), np.float32(mean + std * cut)
    for j in range(row.shape[0]):
        p = low + share * _uniform(mix64_scalar(key + _U64(j)))
        row[j] = min(max(np.float32(mean + std * normal_quantile(p)), least), most)


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
    share, cut = (_MIDDLE, 2.0) if kind == TRUNCATED_NORMAL else (1.0, np.inf)
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
        else:
            _fill_normal(key, first, second, share, cut, out[i])
