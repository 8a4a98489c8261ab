# SPDX-License-Identifier: Apache-2.0
"""Kernels that move whole rows between records, tiles and the caller's arrays.

`places` is (n,) int64; -1 stands for "not here" and is skipped. `records32` is the float32 view of the
records, `stride32` its words per record, `first` the word at which the weights begin.
Thread safety: none; the table's lock covers each call. All kernels release the GIL.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ps_server.kernel.bound import finite

Array = NDArray[Any]


@njit(nogil=True, cache=True)
def copy_out(records8: Array, stride8: int, first: int, places: Array, rows: Array, width: int) -> None:
    """Bytes [first, first + width) of each place's record into rows[i, :width]; `rows` is uint8."""
    for i in range(places.shape[0]):
        at = places[i] * stride8 + first
        for j in range(width):
            rows[i, j] = records8[at + j]


@njit(nogil=True, cache=True)
def copy_in(records8: Array, stride8: int, first: int, places: Array, rows: Array, width: int) -> None:
    """The reverse of copy_out: rows[i, :width] into each place's record."""
    for i in range(places.shape[0]):
        at = places[i] * stride8 + first
        for j in range(width):
            records8[at + j] = rows[i, j]


@njit(nogil=True, cache=True)
def read_ids(records64: Array, stride64: int, places: Array, out: Array) -> None:
    """The id of each place's record into out (n,) uint64."""
    for i in range(places.shape[0]):
        out[i] = records64[places[i] * stride64]


@njit(nogil=True, cache=True)
def touch(records32: Array, stride32: int, word: int, places: Array, value: int) -> None:
    """Write `value` (uint32) into one metadata word of each place's record (last push time)."""
    bits = records32.view(np.uint32)
    for i in range(places.shape[0]):
        bits[places[i] * stride32 + word] = np.uint32(value)


@njit(nogil=True, cache=True)
def count_up(records32: Array, stride32: int, word: int, places: Array) -> None:
    """Add one to a saturating uint32 metadata word of each place's record (push count)."""
    bits = records32.view(np.uint32)
    for i in range(places.shape[0]):
        at = places[i] * stride32 + word
        if bits[at] != np.uint32(0xFFFFFFFF):
            bits[at] += np.uint32(1)


@njit(nogil=True, cache=True)
def add_events(
    records32: Array,
    stride32: int,
    time_word: int,
    show_word: int,
    places: Array,
    events: Array,
    decay_rate: float,
    period_s: int,
    time_s: int,
) -> None:
    """Decay each record's shows and clicks (two words from `show_word`) by the whole periods since its
    last push, then add events[i] = (shows, clicks), float32. Runs before `touch` moves the time on."""
    bits = records32.view(np.uint32)
    for i in range(places.shape[0]):
        at = places[i] * stride32
        periods = time_s // period_s - np.int64(bits[at + time_word]) // period_s
        factor = np.float64(1.0)
        base = np.float64(decay_rate)
        while periods > 0:  # by squaring: the C library's pow differs between machines
            if periods & 1:
                factor *= base
            base *= base
            periods >>= 1
        for j in range(2):
            total = np.float32(records32[at + show_word + j] * factor + events[i, j])
            records32[at + show_word + j] = finite(total, records32[at + show_word + j])
