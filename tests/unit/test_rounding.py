# SPDX-License-Identifier: Apache-2.0
"""Narrow weights: widening, and stochastic rounding against the oracle and against its promises."""

import numpy as np
import pytest
from numpy.typing import NDArray
from rowhouse import dtype

from ps_server.kernel.rounding import round_rows, widen_rows
from tests import naive

CODES = (dtype.FLOAT16, dtype.BFLOAT16)
LARGEST = {dtype.FLOAT16: np.float32(65504.0), dtype.BFLOAT16: np.float32(3.3895314e38)}


def _all_values(code: int) -> NDArray[np.float32]:
    """Every finite value of the narrow dtype, ascending from 0."""
    words = np.arange(1 << 15, dtype=np.uint16)
    wide = dtype.widen(words.view(dtype.STORAGE[code]), code)
    return wide[np.isfinite(wide)]


def _round(tile: NDArray[np.float32], code: int, lsn: int = 1, first_id: int = 0) -> NDArray[np.float32]:
    """Rows rounded into a buffer with gaps, in reverse order, and read back."""
    count, dim = tile.shape
    words = np.full(count * (dim + 3) + 5, 0x1234, np.uint16)
    row_at = (np.arange(count, dtype=np.int64)[::-1] * (dim + 3) + 5).copy()
    ids = np.arange(first_id, first_id + count, dtype=np.uint64)
    round_rows(tile, ids, lsn, dim, code, words, row_at)
    touched = (row_at[:, None] + np.arange(dim)).reshape(-1)
    assert (np.delete(words, touched) == 0x1234).all(), "a gap between rows was written"
    out = np.empty((count, dim), np.float32)
    widen_rows(words, row_at, dim, code, out)
    np.testing.assert_array_equal(
        out, dtype.widen(words[touched].view(dtype.STORAGE[code]), code).reshape(out.shape)
    )
    return out


def _samples() -> NDArray[np.float32]:
    rng = np.random.default_rng(5)
    scale = 2.0 ** rng.integers(-40, 20, 2100)
    return (rng.standard_normal(2100) * scale).astype(np.float32).reshape(300, 7)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("dim", [1, 7, 16, 33])
def test_rounding_equals_the_oracle(code: int, dim: int) -> None:
    tile = np.resize(_samples(), (60, dim)).astype(np.float32)
    grid = _all_values(code).astype(np.float64)
    out = _round(tile, code, lsn=2**40 + 3, first_id=2**63)
    for i in range(60):
        for j in range(dim):
            subnormal = code == dtype.FLOAT16 and abs(tile[i, j]) < 2.0**-14
            bits = 16 if code == dtype.BFLOAT16 else 32 if subnormal else 13
            random = naive.rounding_random(2**63 + i, 2**40 + 3, j)
            expected = naive.round_stochastically(float(tile[i, j]), random, grid, bits)
            assert out[i, j] == expected, (tile[i, j], random)


@pytest.mark.parametrize("code", CODES)
def test_representable_values_stay_with_their_sign(code: int) -> None:
    values = _all_values(code)
    values = np.concatenate([values, -values]).reshape(-1, 1)
    for lsn in range(5):
        np.testing.assert_array_equal(_round(values, code, lsn).view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("code", CODES)
def test_overflow_saturates_and_nan_stays(code: int) -> None:
    top = LARGEST[code]
    past = np.float32(65535.9) if code == dtype.FLOAT16 else np.float32(3.4e38)  # nearly an ulp above top
    tile = np.array([[np.inf, -np.inf, 3.4e38, past, -past, top, 0, 0]], np.float32)
    tile.view(np.uint32)[0, 6:] = (0xFFC00001, 0x7F800001)  # a quiet NaN and a signalling one
    for lsn in range(50):
        out = _round(tile, code, lsn)[0]
        np.testing.assert_array_equal(out[:6], [top, -top, top, top, -top, top])
        assert np.isnan(out[6:]).all()


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("value", [1.0001, -0.300007, 3.1e-5, 5e-7, 1.3e-8, 60001.7])
def test_the_mean_is_unbiased(code: int, value: float) -> None:
    tile = np.full((20_000, 5), value, np.float32)
    out = _round(tile, code).astype(np.float64)
    neighbours = np.unique(out)
    assert neighbours.shape[0] == 2
    ulp = neighbours[1] - neighbours[0]
    # The deviation of the mean of 100,000 draws is at most ulp / 2 / sqrt(100,000); five of them.
    assert abs(out.mean() - float(np.float32(value))) < 5 * ulp / 2 / np.sqrt(out.size)


@pytest.mark.parametrize("code", CODES)
def test_small_updates_do_not_vanish(code: int) -> None:
    tile = np.ones((400, 4), np.float32)
    for lsn in range(1000):
        tile = _round(tile + np.float32(1e-5), code, lsn)  # an ulp at 1 is 1e-3 in fp16 and 8e-3 in bf16
    assert abs(float(tile.mean()) - 1.01) < 1e-3
    assert (
        dtype.widen(dtype.narrow(np.array([1 + 1e-5], np.float32), code), code)[0] == 1.0
    )  # what nearest would do


@pytest.mark.parametrize("code", CODES)
def test_bits_depend_on_id_lsn_and_element_only(code: int) -> None:
    tile = np.full((64, 6), 1.00003, np.float32)
    one = _round(tile, code, lsn=9)
    np.testing.assert_array_equal(one, _round(tile, code, lsn=9))
    np.testing.assert_array_equal(one[20:40], _round(tile[20:40].copy(), code, lsn=9, first_id=20))
    assert (one != _round(tile, code, lsn=10)).any()
    assert (one != _round(tile, code, lsn=9, first_id=64)).any()
