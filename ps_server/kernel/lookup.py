# SPDX-License-Identifier: Apache-2.0
"""Many ids at once: where their rows are, and what is in them.

A batch is worked on in blocks of 64 ids, three passes each: hash and prefetch the index line; scan it and
prefetch the record; compare the id in the record, and use the row while it is in the first-level cache. What
costs time besides the misses is guessing wrong where a probe ends, so a line's eight entries are compared
in one instruction (kernel/vector.py) and a probe that needs a second line is rare.

Arguments are those of kernel/index.py. Thread safety: none; the table's lock covers each call. All kernels
release the GIL.
"""

import numpy as np
from numba import njit

from ps_server.kernel.index import (
    LINE,
    RESERVED,
    S32,
    STRIDE,
    Array,
    home_of,
    locate,
    segment_of,
    slot_of,
    spread,
    tag_of,
)
from ps_server.kernel.intrinsic import prefetch_read
from ps_server.kernel.vector import copy_row, lowest_bit, scan_line, widen_bfloat_row, widen_half_row

COPY, WIDEN_HALF, WIDEN_BFLOAT = 0, 1, 2
"""What `gather` does to a row's weights."""

BLOCK = 64  # ids per pass: enough to cover memory latency, small enough for the first-level cache
_PREFETCH_WORDS = 64  # 512 bytes of a record at most: past it the processor follows the stream by itself


@njit(inline="always")
def _candidates(
    ids: Array, start: int, size: int, entries: Array, caps: Array, geometry: Array, records: Array,
    words: int, tags: Array, segments: Array, at: Array,
) -> None:  # fmt: skip
    """Position in `entries` of each id's first entry of its tag, or of the empty one before any, into
    at[:size], and `words` uint64 of its record on their way. `tags` and `segments` are scratch."""
    for j in range(size):
        hashed = spread(ids[start + j])
        segment = segment_of(hashed, geometry)
        tags[j] = tag_of(hashed)
        segments[j] = segment
        at[j] = segment * geometry[RESERVED] + home_of(tags[j], caps[segment])
        prefetch_read(entries, at[j])
    for j in range(size):
        line = at[j]
        hits = scan_line(entries, line, tags[j])
        while hits == 0:
            base = segments[j] * geometry[RESERVED]
            line += LINE
            if line == base + caps[segments[j]]:
                line = base
            hits = scan_line(entries, line, tags[j])
        line += lowest_bit(hits)
        at[j] = line
        record = slot_of(entries[line]) * geometry[STRIDE]
        for word in range(0, words - 1, 8):
            prefetch_read(records, record + word)
        prefetch_read(records, record + words - 1)


@njit(inline="always")
def _settled(
    ident: np.uint64, position: int, entries: Array, caps: Array, geometry: Array, records: Array
) -> int:
    """The id's position from its candidate, or -1: another id may have the same tag."""
    entry = entries[position]
    if entry == 0:
        return -1
    if records[slot_of(entry) * geometry[STRIDE]] == ident:
        return position
    return locate(ident, entries, caps, geometry, records)


@njit(nogil=True, cache=True)
def find_block(
    ids: Array, entries: Array, caps: Array, geometry: Array, records: Array, words: int, set_flags: int,
    tags: Array, segments: Array, at: Array, slots: Array,
) -> int:  # fmt: skip
    """`find` for at most BLOCK ids; `words` uint64 of each record come into the cache. `tags` uint64,
    `segments` and `at` int64 are scratch of BLOCK."""
    missing = 0
    flags = np.uint64(set_flags) << S32
    _candidates(ids, 0, ids.shape[0], entries, caps, geometry, records, words, tags, segments, at)
    for j in range(ids.shape[0]):
        position = _settled(ids[j], at[j], entries, caps, geometry, records)
        if position < 0:
            slots[j] = -1
            missing += 1
        else:
            entry = entries[position]
            slots[j] = slot_of(entry)
            if entry & flags != flags:
                entries[position] = entry | flags
    return missing


@njit(nogil=True, cache=True)
def find(
    ids: Array, entries: Array, caps: Array, geometry: Array, records: Array, set_flags: int, slots: Array
) -> int:
    """Slot of each id into `slots` (int64, -1: not here) and OR `set_flags` into its entry.

    `ids` is (n,) uint64. Returns how many were not found.
    """
    missing = 0
    tags = np.empty(BLOCK, np.uint64)
    segments = np.empty(BLOCK, np.int64)
    at = np.empty(BLOCK, np.int64)
    for start in range(0, ids.shape[0], BLOCK):
        stop = min(start + BLOCK, ids.shape[0])
        missing += find_block(
            ids[start:stop], entries, caps, geometry, records, 1, set_flags, tags, segments, at,
            slots[start:stop],
        )  # fmt: skip
    return missing


@njit(nogil=True, cache=True)
def gather(
    ids: Array, entries: Array, caps: Array, geometry: Array, records: Array, set_flags: int,
    first: int, width: int, mode: int, out: Array, missing: Array,
) -> int:  # fmt: skip
    """Weights of each id into its row of `out`, and OR `set_flags` into its entry.

    `ids` is (n,) uint64; a record's weights are `width` bytes from its byte `first` on. `mode` is COPY, or
    widens binary16 or bfloat16 to float32. `out` is the flat uint8 view of the caller's rows. The places of
    ids that are not here come into `missing` (n,) int64, ascending; their rows are left as they are.
    Returns how many.
    """
    absent = 0
    n = ids.shape[0]
    flags = np.uint64(set_flags) << S32
    bytes8 = records.view(np.uint8)
    stride = geometry[STRIDE] * 8
    count = width // 2  # 16-bit weights of a row, where they are widened
    words = min((first + width + 7) // 8, _PREFETCH_WORDS)
    tags = np.empty(BLOCK, np.uint64)
    segments = np.empty(BLOCK, np.int64)
    at = np.empty(BLOCK, np.int64)
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        _candidates(ids, start, size, entries, caps, geometry, records, words, tags, segments, at)
        for j in range(size):
            position = _settled(ids[start + j], at[j], entries, caps, geometry, records)
            if position < 0:
                missing[absent] = start + j
                absent += 1
                continue
            entry = entries[position]
            if entry & flags != flags:
                entries[position] = entry | flags
            row = slot_of(entry) * stride + first
            if mode == COPY:
                copy_row(bytes8, row, out, (start + j) * width, width)
            elif mode == WIDEN_HALF:
                widen_half_row(bytes8, row, out, (start + j) * 4 * count, count)
            else:
                widen_bfloat_row(bytes8, row, out, (start + j) * 4 * count, count)
    return absent
