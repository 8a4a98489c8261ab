# SPDX-License-Identifier: Apache-2.0
"""The LLVM intrinsics: values against NumPy, and that the prefetch instruction is really there."""

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError
from numpy.typing import NDArray

from ps_server.kernel.intrinsic import (
    bits_double,
    bits_float,
    double_bits,
    float_bits,
    float_to_half_bits,
    half_to_float,
    prefetch_read,
    prefetch_write,
)

HALVES = np.arange(1 << 16, dtype=np.uint16)


@njit()
def _widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    out = np.empty(bits.shape[0], np.float32)
    for i in range(bits.shape[0]):
        out[i] = half_to_float(bits[i])
    return out


@njit()
def _narrow(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    out = np.empty(values.shape[0], np.uint16)
    for i in range(values.shape[0]):
        out[i] = float_to_half_bits(values[i])
    return out


@njit()
def _turn_around(values: NDArray[np.float32]) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    bits = np.empty(values.shape[0], np.uint32)
    back = np.empty(values.shape[0], np.float32)
    for i in range(values.shape[0]):
        bits[i] = float_bits(values[i])
        back[i] = bits_float(bits[i])
    return bits, back


@njit()
def _turn_doubles_around(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    bits = np.empty(values.shape[0], np.uint64)
    back = np.empty(values.shape[0], np.float64)
    for i in range(values.shape[0]):
        bits[i] = double_bits(values[i])
        back[i] = bits_double(bits[i])
    return bits, back


@njit()
def _prefetched_sum(array: NDArray[np.float32], ahead: int) -> float:
    total = 0.0
    for i in range(array.shape[0]):
        prefetch_read(array, i + ahead)
        prefetch_write(array, np.uint64(i))
        total += array[i]
    return total


@njit()
def _wrong_use(array: NDArray[np.float32], index: float) -> None:
    prefetch_read(array, index)


def test_every_half_widens_as_numpy_does() -> None:
    expected = HALVES.view(np.float16).astype(np.float32)
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(_widen(HALVES)[finite].view(np.uint32), expected[finite].view(np.uint32))
    assert np.isnan(_widen(HALVES)[~finite]).all()


def test_floats_narrow_to_the_nearest_half() -> None:
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 1 << 32, 200_000, np.uint32)
    halves = HALVES.view(np.float16).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        ties = ((halves[:-1] + halves[1:]) / 2).astype(np.float32)
        values = np.concatenate([halves, ties, bits.view(np.float32)])
        values = values[~np.isnan(values)]
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(_narrow(values), expected.view(np.uint16))
    assert np.isnan(_narrow(np.array([np.nan], np.float32)).view(np.float16)).all()


def test_bits_and_floats_turn_into_each_other() -> None:
    values = np.array([0.0, -0.0, 1.5, -3e38, 1e-45, np.inf], np.float32)
    bits, back = _turn_around(values)
    np.testing.assert_array_equal(bits, values.view(np.uint32))
    np.testing.assert_array_equal(back.view(np.uint32), values.view(np.uint32))


def test_bits_and_doubles_turn_into_each_other() -> None:
    values = np.array([0.0, -0.0, 1.5, -1e308, 5e-324, np.inf])
    bits, back = _turn_doubles_around(values)
    np.testing.assert_array_equal(bits, values.view(np.uint64))
    np.testing.assert_array_equal(back.view(np.uint64), values.view(np.uint64))


@pytest.mark.parametrize("ahead", [0, 8, 1 << 40, -(1 << 40)])
def test_a_prefetch_changes_nothing_and_never_faults(ahead: int) -> None:
    assert _prefetched_sum(np.arange(100, dtype=np.float32), ahead) == 4950.0
    assert "llvm.prefetch.p0" in next(iter(_prefetched_sum.inspect_llvm().values()))


def test_wrong_arguments_do_not_compile() -> None:
    with pytest.raises(TypingError, match="integer index"):
        _wrong_use(np.zeros(4, np.float32), 1.0)
    with pytest.raises(TypingError, match="contiguous 1-D"):
        _wrong_use(np.zeros((4, 4), np.float32), 1)
    with pytest.raises(TypingError, match="contiguous 1-D"):
        _wrong_use(np.zeros(8, np.float32)[::2], 1)
