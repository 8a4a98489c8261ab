# SPDX-License-Identifier: Apache-2.0
"""Narrow weights: read as float32, and written back with stochastic rounding.

Rounding to nearest loses every update below half a unit in the last place (ulp), so training in fp16
or bf16 stalls. Stochastic rounding goes up with probability (distance to the lower neighbour) / ulp,
so the expected value is exact and small updates add up (Gupta, Agrawal, Gopalakrishnan, Narayanan
2015, "Deep Learning with Limited Numerical Precision", section 3).

The randomness is mix64 of (id, LSN, element), so replaying a push writes the same bits.

Invariants: 1. a representable value is written as it is; 2. a value never moves past its two
neighbours; 3. what would be infinite, infinity included, becomes the largest finite value of its
sign; 4. NaN stays NaN. Thread safety: rows of concurrent calls must be distinct.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray
from rowhouse.dtype import BFLOAT16
from rowhouse.mix import mix64_scalar

from ps_server.kernel.intrinsic import bits_float, float_bits, half_to_float, prefetch_row

_U16, _U32, _U64 = np.uint16, np.uint32, np.uint64
_TWO_24 = np.float32(2.0**24)
_TWO_32 = np.float32(2.0**32)


@njit(inline="always")
def _round_half(value: np.float32, random: np.uint32) -> np.uint16:
    """`value` as binary16 bits; `random` is uniform over uint32."""
    bits = float_bits(value)
    sign = (bits >> _U32(16)) & _U32(0x8000)
    magnitude = bits & _U32(0x7FFFFFFF)
    # From 2^-14 on a half drops 13 bits of the float's fraction and rebiases the exponent by 112.
    normal = ((magnitude + (random & _U32(0x1FFF))) >> _U32(13)) - _U32(112 << 10)
    # Below it an ulp is 2^-24 throughout; both factors are powers of two, so nothing is lost.
    units = bits_float(_U32(min(magnitude, _U32(0x38800000)))) * _TWO_24
    whole = _U32(units)
    fraction = _U32((units - np.float32(whole)) * _TWO_32)
    subnormal = whole + ((_U64(fraction) + _U64(random)) >> _U64(32))
    out = normal if magnitude >= _U32(0x38800000) else subnormal
    out = _U32(0x7BFF) if magnitude >= _U32(0x47800000) else min(out, _U32(0x7BFF))
    out = _U32(0x7E00) if magnitude > _U32(0x7F800000) else out
    return _U16(sign | out)


@njit(inline="always")
def _round_bfloat(value: np.float32, random: np.uint32) -> np.uint16:
    """`value` as bfloat16 bits; `random` is uniform over uint32."""
    bits = float_bits(value)
    magnitude = bits & _U32(0x7FFFFFFF)
    # A bfloat16 is the upper half of a float32, so subnormals need no case of their own.
    out = min((magnitude + (random & _U32(0xFFFF))) >> _U32(16), _U32(0x7F7F))
    out = (magnitude >> _U32(16)) | _U32(0x40) if magnitude > _U32(0x7F800000) else out
    return _U16(((bits >> _U32(16)) & _U32(0x8000)) | out)


@njit(nogil=True, cache=True, error_model="numpy")
def widen_rows(
    words: NDArray[np.uint16], row_at: NDArray[np.int64], dim: int, code: int, out: NDArray[np.float32]
) -> None:
    """Read the narrow weights of scattered rows.

    Parameters
    ----------
    words
        (words,) uint16 view of the records.
    row_at
        (n,) int64, index in `words` of each row's first weight; or longer, by rows to come (prefetched).
    dim
        Weights per row.
    code
        `rowhouse.dtype.FLOAT16` or `BFLOAT16`.
    out
        (n, dim) float32, written.
    """
    count = out.shape[0]
    ahead = row_at.shape[0] - count
    for i in range(count):
        if ahead > 0:
            prefetch_row(words, row_at[i + ahead], dim)
        start = _U64(row_at[i])
        if code == BFLOAT16:
            for j in range(_U64(dim)):
                out[i, j] = bits_float(_U32(_U32(words[start + j]) << _U32(16)))
        else:
            for j in range(_U64(dim)):
                out[i, j] = half_to_float(words[start + j])


@njit(nogil=True, cache=True, error_model="numpy")
def round_rows(
    tile: NDArray[np.float32],
    ids: NDArray[np.uint64],
    lsn: int,
    dim: int,
    code: int,
    words: NDArray[np.uint16],
    row_at: NDArray[np.int64],
) -> None:
    """Write float32 weights back into scattered narrow rows, rounded stochastically.

    Parameters
    ----------
    tile
        (n, dim) float32.
    ids
        (n,) uint64, the id of each row; seeds its rounding together with `lsn`.
    lsn
        LSN of the push that is applied.
    dim
        Weights per row.
    code
        `rowhouse.dtype.FLOAT16` or `BFLOAT16`.
    words
        (words,) uint16 view of the records, written.
    row_at
        (n,) int64, index in `words` of each row's first weight.
    """
    push_key = mix64_scalar(_U64(lsn))
    for i in range(row_at.shape[0]):
        start = _U64(row_at[i])
        key = mix64_scalar(ids[i] ^ push_key)
        for j in range(_U64(dim)):
            # One mixed word serves two elements: the lower half the even one, the upper half the odd.
            random = _U32(mix64_scalar(key + (j >> _U64(1))) >> ((j & _U64(1)) << _U64(5)))
            if code == BFLOAT16:
                words[start + j] = _round_bfloat(tile[i, j], random)
            else:
                words[start + j] = _round_half(tile[i, j], random)
