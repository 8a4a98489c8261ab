# SPDX-License-Identifier: Apache-2.0
"""kernel/vector.py against one element at a time in NumPy, at every alignment."""

from typing import Any

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError
from numpy.typing import NDArray

from ps_server.kernel.vector import copy_row, lowest_bit, scan_line, widen_bfloat_row, widen_half_row

Bytes = NDArray[np.uint8]


@njit()
def _scan(entries: NDArray[np.uint64], at: int, tag: int) -> Any:
    return scan_line(entries, at, np.uint64(tag))


@njit()
def _lowest(bits: int) -> Any:
    return lowest_bit(np.uint32(bits))


@njit()
def _copy(source: Bytes, at: int, target: Bytes, to: int, width: int) -> None:
    copy_row(source, at, target, to, width)


@njit()
def _widen(source: Bytes, at: int, target: Bytes, to: int, count: int, half: bool) -> None:
    if half:
        widen_half_row(source, at, target, to, count)
    else:
        widen_bfloat_row(source, at, target, to, count)


def test_a_line_is_scanned_as_its_entries_one_by_one() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        tags = rng.integers(0, 4, 24).astype(np.uint64)
        entries = (tags << np.uint64(36)) | rng.integers(0, 3, 24).astype(np.uint64)
        at, tag = int(rng.integers(0, 17)), int(rng.integers(0, 4))
        line = entries[at : at + 8].tolist()
        expected = sum(1 << k for k, entry in enumerate(line) if entry == 0 or entry >> 36 == tag)
        assert _scan(entries, at, tag) == expected
        if expected:
            assert _lowest(expected) == (expected & -expected).bit_length() - 1


@pytest.mark.parametrize("width", [0, 2, 4, 14, 16, 18, 62, 64, 66, 78, 128, 132, 400])
def test_copied_rows_are_the_bytes_and_no_others(width: int) -> None:
    rng = np.random.default_rng(width)
    source = rng.integers(0, 256, 1000, np.uint8)
    for at, to in ((0, 0), (1, 3), (8, 64), (37, 120)):
        target = np.full(1000, 7, np.uint8)
        _copy(source, at, target, to, width)
        expected = np.full(1000, 7, np.uint8)
        expected[to : to + width] = source[at : at + width]
        np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 33, 100])
def test_widened_rows_are_the_values_and_nothing_beside_them(half: bool, count: int) -> None:
    bits = np.random.default_rng(count).integers(0, 1 << 16, count, np.uint16)
    row = np.array([0x0001, 0x8000, 0x7C00, 0x3C00, *bits], np.uint16)[:count]  # small, -0, infinity, 1
    wide = row.view(np.float16).astype(np.float32) if half else (row.astype(np.uint32) << 16).view(np.float32)
    source, target = np.zeros(10 + 2 * count, np.uint8), np.full(24 + 4 * count, 9, np.uint8)
    source[10:] = row.view(np.uint8)
    _widen(source, 10, target, 12, count, half)
    got = target[12 : 12 + 4 * count].copy().view(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wide))
    np.testing.assert_array_equal(got[~np.isnan(got)], wide[~np.isnan(wide)])
    assert (target[:12] == 9).all() and (target[12 + 4 * count :] == 9).all()


def test_wrong_arguments_do_not_compile() -> None:
    with pytest.raises(TypingError, match="contiguous 1-D array of uint8"):
        _copy(np.zeros(4, np.uint16), 0, np.zeros(4, np.uint8), 0, 2)
    with pytest.raises(TypingError, match="contiguous 1-D array of uint64"):
        _scan(np.zeros(16, np.int64), 0, 1)
