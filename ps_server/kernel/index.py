# SPDX-License-Identifier: Apache-2.0
"""The arena's index: id -> place by open addressing, as kernels over flat arrays.

One entry is a uint64:

    bits 0..31   place + 1 (0: the entry is empty)
    bits 32..35  flags: DIRTY, REFERENCED, STORED, PINNED
    bits 36..63  tag: 28 bits of the id's hash, other ones than the sector's

The index is cut into `sectors` (a power of two) by the top bits of the hash. A sector owns
`sector_reserved` entries of one lazily committed array and uses the first `caps[s]` of them; it grows
by itself (x 1.25 at load 0.75), so growth pauses for one sector, never for the whole index. An entry's
home is the first entry of a cache line, 8 x ((tag x cap / 8) >> 28): it follows from the entry alone, so
growing, deleting and sweeping never read a record, and nearly every probe ends in the line that it began
in (Knuth 6.4, buckets of 8: 1.1 lines at load 0.75). The id itself stands in the record (its first 8
bytes), which a pull reads anyway; a 28-bit tag in a sector of about 2^14 entries is wrong about once in 2^14
probes, and then the probe goes on.

Each kernel takes the index as (entries, caps, counts, geometry); geometry is int64
[sectors, sector_reserved, sector_shift, stride_words] (made in arena.py). `records` is the uint64 view of
the records, `stride_words` its words per record.
A batch is looked up in blocks of 64 ids, three passes each: hash and prefetch the index line; scan it and
prefetch the record; compare the id in the record, and use the row while it is in the first-level cache. What
costs time besides the misses is guessing wrong where a probe ends, so a line's eight entries are compared
in one instruction (kernel/vector.py), and a probe that needs a second line is rare.

Invariants: 1. an id has at most one entry; 2. between an entry's home and its own offset no entry is empty
(cyclically, within the sector); 3. counts[s] entries of sector s are not empty; 4. caps[s] and
sector_reserved are whole lines of 8 entries, and what lies past caps[s] is empty.
Thread safety: none; the table's lock covers each call. All kernels release the GIL.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from rowhouse.mix import mix64_scalar

from ps_server.kernel.intrinsic import prefetch_read
from ps_server.kernel.vector import copy_row, lowest_bit, scan_line, widen_bfloat_row, widen_half_row

DIRTY = 1
REFERENCED = 2
STORED = 4
PINNED = 8

SECTORS, RESERVED, SHIFT, STRIDE = 0, 1, 2, 3

LINE = 8
"""Entries of a cache line."""

SWEEP_ENTRIES = 64
"""Entries of a sector that the clock's hand passes before the next sector: eight cache lines."""

TAKE_ENTRIES = 32_768
"""Entries that are looked at in one go for dirty rows: a full sector, or the many small ones of a table that
has few rows, where a call for each costs more than the rows."""

COPY, WIDEN_HALF, WIDEN_BFLOAT = 0, 1, 2
"""What `gather` does to a row's weights."""

BLOCK = 64  # ids per pass: enough to cover memory latency, small enough for the first-level cache
_PREFETCH_WORDS = 64  # 512 bytes of a record at most: past it the processor follows the stream by itself

_SPREAD = np.uint64(0xD6E8FEB86659FD93)
_TAG_MASK = np.uint64((1 << 28) - 1)
_LOW32 = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)
_S3 = np.uint64(3)
_S28 = np.uint64(28)
S32 = np.uint64(32)
_S36 = np.uint64(36)
_FLAG_MASK = np.uint64(15)

# numba's own decorator type is untyped, so every kernel argument is documented here and annotated Any:
# entries uint64[sectors * reserved], caps and counts int64[sectors], geometry int64[4].
Array = NDArray[Any]


@njit(inline="always")
def spread(ident: np.uint64) -> np.uint64:
    """Hash for the index. Another one than placement's: a shard's ids share mix64's high bits."""
    return mix64_scalar(ident) * _SPREAD


@njit(inline="always")
def sector_of(hashed: np.uint64, geometry: Array) -> int:
    """Sector of a hashed id."""
    # a shift by 64 (one sector) is undefined, so it is made in two steps
    return np.int64((hashed >> _ONE) >> np.uint64(geometry[SHIFT] - 1))  # type: ignore[return-value]


@njit(inline="always")
def tag_of(hashed: np.uint64) -> np.uint64:
    """Tag of a hashed id, 28 bits."""
    # bits 20..47: apart from the sector's (48..63, so at most 2^16 sectors)
    return (hashed >> np.uint64(20)) & _TAG_MASK


@njit(inline="always")
def home_of(tag: np.uint64, cap: int) -> int:
    """Place within its sector where the search for a tag begins."""
    line = (tag * (np.uint64(cap) >> _S3)) >> _S28
    return np.int64(line << _S3)  # type: ignore[return-value]


@njit(inline="always")
def place_of(entry: np.uint64) -> int:
    """Place that an entry names; -1 for an empty one."""
    return np.int64(entry & _LOW32) - 1  # type: ignore[return-value]


@njit(nogil=True, cache=True)
def clear_flags(
    ids: Array, entries: Array, caps: Array, geometry: Array, records: Array, flags_off: int
) -> None:
    """Clear `flags_off` in the entry of each id that is here; `ids` is (n,) uint64."""
    keep = ~(np.uint64(flags_off) << S32)
    for i in range(ids.shape[0]):
        position = locate(ids[i], entries, caps, geometry, records)
        if position >= 0:
            entries[position] &= keep


@njit(nogil=True, cache=True)
def read_flags(
    ids: Array, entries: Array, caps: Array, geometry: Array, records: Array, flags: Array
) -> None:
    """Flags of each id's entry into `flags` (n,) uint8; untouched where the id is not here."""
    for i in range(ids.shape[0]):
        position = locate(ids[i], entries, caps, geometry, records)
        if position >= 0:
            flags[i] = (entries[position] >> S32) & _FLAG_MASK


@njit(nogil=True, cache=True)
def locate(ident: np.uint64, entries: Array, caps: Array, geometry: Array, records: Array) -> int:
    """Position of the id's entry in `entries`, or -1."""
    hashed = spread(ident)
    sector = sector_of(hashed, geometry)
    tag = tag_of(hashed)
    base = sector * geometry[RESERVED]
    cap = caps[sector]
    offset = home_of(tag, cap)
    while True:
        entry = entries[base + offset]
        if entry == 0:
            return -1
        if (entry >> _S36) == tag and records[place_of(entry) * geometry[STRIDE]] == ident:
            return base + offset
        offset += 1
        if offset == cap:
            offset = 0


@njit(nogil=True, cache=True)
def _put(entry: np.uint64, entries: Array, base: int, cap: int) -> None:
    """Put an entry that is not there yet at the first empty offset from its home on."""
    offset = home_of(entry >> _S36, cap)
    while entries[base + offset] != 0:
        offset += 1
        if offset == cap:
            offset = 0
    entries[base + offset] = entry


@njit(nogil=True, cache=True)
def _grow(sector: int, entries: Array, caps: Array, geometry: Array) -> None:
    """Widen a sector by a quarter (at least 32 entries) in whole lines, within what is reserved for it."""
    base = sector * geometry[RESERVED]
    old = caps[sector]
    new = min(max(old + old // 4 // LINE * LINE, old + 32), geometry[RESERVED])
    kept = entries[base : base + old].copy()
    entries[base : base + old] = 0
    caps[sector] = new
    for i in range(old):
        if kept[i] != 0:
            _put(kept[i], entries, base, new)


@njit(nogil=True, cache=True)
def insert(
    ids: Array,
    places: Array,
    flags: int,
    entries: Array,
    caps: Array,
    counts: Array,
    geometry: Array,
    records: Array,
) -> int:
    """Enter ids that are not here, and write each id into its record.

    `ids` is (n,) uint64 distinct, `places` (n,) int64 free places. Returns how many were entered: fewer
    than n only when a sector is full to its reserve (the caller then makes room and goes on).
    """
    bits = np.uint64(flags) << S32
    for i in range(ids.shape[0]):
        hashed = spread(ids[i])
        sector = sector_of(hashed, geometry)
        if counts[sector] * 4 >= caps[sector] * 3:
            if caps[sector] < geometry[RESERVED]:
                _grow(sector, entries, caps, geometry)
            if counts[sector] + 1 >= caps[sector]:
                return i
        entry = (tag_of(hashed) << _S36) | bits | np.uint64(places[i] + 1)
        _put(entry, entries, sector * geometry[RESERVED], caps[sector])
        counts[sector] += 1
        records[places[i] * geometry[STRIDE]] = ids[i]
    return ids.shape[0]


@njit(nogil=True, cache=True)
def _delete(position: int, sector: int, entries: Array, caps: Array, counts: Array, geometry: Array) -> None:
    """Empty an entry and move later entries back so that invariant 2 holds (Knuth 6.4, algorithm R)."""
    base = sector * geometry[RESERVED]
    cap = caps[sector]
    hole = position - base
    offset = hole
    while True:
        offset += 1
        if offset == cap:
            offset = 0
        entry = entries[base + offset]
        if entry == 0:
            break
        home = home_of(entry >> _S36, cap)
        # stays where it is when its home lies cyclically in (hole, offset]
        stays = hole < home <= offset if hole <= offset else home > hole or home <= offset
        if not stays:
            entries[base + hole] = entry
            hole = offset
    entries[base + hole] = 0
    counts[sector] -= 1


@njit(nogil=True, cache=True)
def remove(
    ids: Array,
    entries: Array,
    caps: Array,
    counts: Array,
    geometry: Array,
    records: Array,
    places: Array,
    flags: Array,
) -> int:
    """Take ids out. `places` (n,) int64 and `flags` (n,) uint8 get those of each id that was here, packed
    at the front; returns their number."""
    removed = 0
    for i in range(ids.shape[0]):
        position = locate(ids[i], entries, caps, geometry, records)
        if position >= 0:
            entry = entries[position]
            places[removed] = place_of(entry)
            flags[removed] = (entry >> S32) & _FLAG_MASK
            removed += 1
            _delete(position, position // geometry[RESERVED], entries, caps, counts, geometry)
    return removed


@njit(nogil=True, cache=True)
def sweep(
    hand: Array,
    wanted: int,
    entries: Array,
    caps: Array,
    counts: Array,
    geometry: Array,
    places: Array,
    flags: Array,
) -> int:
    """CLOCK: take up to `wanted` victims out of the index, from the hand on.

    `hand` is int64 [sector, offset] and moves on: a block of entries in every sector, then the next block,
    so that all sectors empty at one rate. (Sector by sector, the last one before its turn would hold
    twice its share, more than is reserved for it.) An entry that was referenced since the last lap loses
    the mark and stays; a pinned one stays. `places` int64 and `flags` uint8 get the victims'. Returns
    their number, fewer than wanted only after two whole laps. (Corbato 1968, "A paging experiment".)
    """
    found = laps = 0
    sector, offset = hand[0], hand[1]
    while found < wanted and laps <= 2:
        first = offset - offset % SWEEP_ENTRIES
        base, stop = sector * geometry[RESERVED], min(first + SWEEP_ENTRIES, caps[sector])
        while found < wanted and offset < stop:
            entry = entries[base + offset]
            bits = (entry >> S32) & _FLAG_MASK
            if entry == 0 or bits & np.uint64(PINNED):
                offset += 1
            elif bits & np.uint64(REFERENCED):
                entries[base + offset] = entry & ~(np.uint64(REFERENCED) << S32)
                offset += 1
            else:
                places[found] = place_of(entry)
                flags[found] = bits
                found += 1
                _delete(base + offset, sector, entries, caps, counts, geometry)  # looks at `offset` again
        if offset >= stop:
            offset = first
            sector += 1
            if sector == geometry[SECTORS]:
                sector, offset = 0, first + SWEEP_ENTRIES
                if offset >= caps.max():
                    offset = 0
                    laps += 1
    hand[0], hand[1] = sector, offset
    return found


@njit(nogil=True, cache=True)
def take_dirty(
    first: int, entries: Array, caps: Array, geometry: Array, places: Array, flags: Array
) -> tuple[int, int]:
    """Dirty entries of sector `first`, and of those after it as long as `places` has room for a whole sector
    more and no more than TAKE_ENTRIES are looked at; they become clean and STORED.

    `places` int64 and `flags` uint8 (as they were) hold caps[first] values at least. Returns how many, and
    the next sector. Whole sectors, since growing and deleting move entries within one.
    """
    found = looked_at = 0
    dirty = np.uint64(DIRTY) << S32
    stored = np.uint64(STORED) << S32
    sector = first
    while sector < geometry[SECTORS]:
        cap = caps[sector]
        if sector > first and (found + cap > places.shape[0] or looked_at + cap > TAKE_ENTRIES):
            break
        base = sector * geometry[RESERVED]
        for offset in range(cap):
            entry = entries[base + offset]
            if entry & dirty:
                places[found] = place_of(entry)
                flags[found] = (entry >> S32) & _FLAG_MASK
                entries[base + offset] = (entry & ~dirty) | stored
                found += 1
        looked_at += cap
        sector += 1
    return found, sector


@njit(nogil=True, cache=True)
def count_flags(entries: Array, caps: Array, geometry: Array, wanted: int) -> int:
    """Number of entries that carry all of `wanted`'s flags (0: every entry)."""
    total = 0
    bits = np.uint64(wanted) << S32
    for sector in range(geometry[SECTORS]):
        base = sector * geometry[RESERVED]
        for offset in range(caps[sector]):
            entry = entries[base + offset]
            if entry != 0 and entry & bits == bits:
                total += 1
    return total


# ---------------------------------------------------------------- whole batches of look-ups
@njit(inline="always")
def _candidates(
    ids: Array, start: int, size: int, entries: Array, caps: Array, geometry: Array, records: Array,
    words: int, tags: Array, sectors: Array, at: Array,
) -> None:  # fmt: skip
    """Position in `entries` of each id's first entry of its tag, or of the empty one before any, into
    at[:size], and `words` uint64 of its record on their way. `tags` and `sectors` are scratch."""
    for j in range(size):
        hashed = spread(ids[start + j])
        sector = sector_of(hashed, geometry)
        tags[j] = tag_of(hashed)
        sectors[j] = sector
        at[j] = sector * geometry[RESERVED] + home_of(tags[j], caps[sector])
        prefetch_read(entries, at[j])
    for j in range(size):
        line = at[j]
        hits = scan_line(entries, line, tags[j])
        while hits == 0:
            base = sectors[j] * geometry[RESERVED]
            line += LINE
            if line == base + caps[sectors[j]]:
                line = base
            hits = scan_line(entries, line, tags[j])
        line += lowest_bit(hits)
        at[j] = line
        record = place_of(entries[line]) * geometry[STRIDE]
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
    if records[place_of(entry) * geometry[STRIDE]] == ident:
        return position
    return locate(ident, entries, caps, geometry, records)


@njit(nogil=True, cache=True)
def find_block(
    ids: Array, entries: Array, caps: Array, geometry: Array, records: Array, words: int, set_flags: int,
    tags: Array, sectors: Array, at: Array, places: Array,
) -> int:  # fmt: skip
    """`find` for at most BLOCK ids; `words` uint64 of each record come into the cache. `tags` uint64,
    `sectors` and `at` int64 are scratch of BLOCK."""
    missing = 0
    flags = np.uint64(set_flags) << S32
    _candidates(ids, 0, ids.shape[0], entries, caps, geometry, records, words, tags, sectors, at)
    for j in range(ids.shape[0]):
        position = _settled(ids[j], at[j], entries, caps, geometry, records)
        if position < 0:
            places[j] = -1
            missing += 1
        else:
            entry = entries[position]
            places[j] = place_of(entry)
            if entry & flags != flags:
                entries[position] = entry | flags
    return missing


@njit(nogil=True, cache=True)
def find(
    ids: Array, entries: Array, caps: Array, geometry: Array, records: Array, set_flags: int, places: Array
) -> int:
    """Place of each id into `places` (int64, -1: not here) and OR `set_flags` into its entry.

    `ids` is (n,) uint64. Returns how many were not found.
    """
    missing = 0
    tags = np.empty(BLOCK, np.uint64)
    sectors = np.empty(BLOCK, np.int64)
    at = np.empty(BLOCK, np.int64)
    for start in range(0, ids.shape[0], BLOCK):
        stop = min(start + BLOCK, ids.shape[0])
        missing += find_block(
            ids[start:stop], entries, caps, geometry, records, 1, set_flags, tags, sectors, at,
            places[start:stop],
        )  # fmt: skip
    return missing


@njit(nogil=True, cache=True)
def gather(
    ids: Array, entries: Array, caps: Array, geometry: Array, records: Array, set_flags: int,
    first: int, width: int, mode: int, out: Array, missing: Array,
) -> int:  # fmt: skip
    """Weights of each id into its row of `out`, and OR `set_flags` into its entry.

    `ids` is (n,) uint64; a record's weights are `width` bytes from its byte `first` on. `mode` is COPY, or
    widens binary16 or bfloat16 to float32. `out` is the flat uint8 view of the caller's rows. `missing` (n,)
    int64 gets the positions in `ids`, ascending, of those that are not here; their rows are left as they
    are. Returns how many.
    """
    absent = 0
    n = ids.shape[0]
    flags = np.uint64(set_flags) << S32
    bytes8 = records.view(np.uint8)
    stride = geometry[STRIDE] * 8
    count = width // 2  # 16-bit weights of a row, where they are widened
    words = min((first + width + 7) // 8, _PREFETCH_WORDS)
    tags = np.empty(BLOCK, np.uint64)
    sectors = np.empty(BLOCK, np.int64)
    at = np.empty(BLOCK, np.int64)
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        _candidates(ids, start, size, entries, caps, geometry, records, words, tags, sectors, at)
        for j in range(size):
            position = _settled(ids[start + j], at[j], entries, caps, geometry, records)
            if position < 0:
                missing[absent] = start + j
                absent += 1
                continue
            entry = entries[position]
            if entry & flags != flags:
                entries[position] = entry | flags
            row = place_of(entry) * stride + first
            if mode == COPY:
                copy_row(bytes8, row, out, (start + j) * width, width)
            elif mode == WIDEN_HALF:
                widen_half_row(bytes8, row, out, (start + j) * 4 * count, count)
            else:
                widen_bfloat_row(bytes8, row, out, (start + j) * 4 * count, count)
    return absent
