# SPDX-License-Identifier: Apache-2.0
"""xxh64 (seed 0) of canonical bytes, over whole Arrow buffers.

Written from the specification, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, "XXH64". A
message here is a prefix of one or two bytes (feature_cross/id_format.py) and a value; the prefix is
shifted into the first lane, so that no value is copied.
Invariant: equal to the `xxhash` package byte for byte. Thread safety: free functions, GIL released.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from feature_cross.kernel.jagged import all_ascii
from feature_cross.kernel.wide import AVAILABLE, LANES, LENGTH_MIN, hash_eight, hash_row

__all__ = ["hash_ascii", "hash_integers", "hash_strings", "hash_strings_alone"]

_CHUNK: Final = 4096
"""Strings that are ordered by length at once: positions and offsets stay in a core's first cache."""
_LENGTHS: Final = 93
"""Lengths that are hashed in groups; a longer string fills the multipliers by itself, with four lanes."""

_P1: Final = np.uint64(11400714785074694791)
_P2: Final = np.uint64(14029467366897019727)
_P3: Final = np.uint64(1609587929392839161)
_P4: Final = np.uint64(9650029242287828579)
_P5: Final = np.uint64(2870177450012600261)


def _loader(bits: int) -> Any:
    """An intrinsic that loads `bits` bits, little-endian, from any byte of an array of uint8."""

    @intrinsic
    def load(typing_context: Any, data: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            address = builder.gep(array.data, [arguments[1]])
            word = builder.load(builder.bitcast(address, ir.IntType(bits).as_pointer()), align=1)
            return word if bits == 64 else builder.zext(word, ir.IntType(64))

        return types.uint64(data, types.int64), generate

    return load


_load8 = _loader(8)
_load16 = _loader(16)
_load32 = _loader(32)
_load64 = _loader(64)


@njit(inline="always")
def _rotate(x: Any, bits: Any) -> Any:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@njit(inline="always")
def _round(accumulator: Any, lane: Any) -> Any:
    return _rotate(accumulator + lane * _P2, 31) * _P1


@njit(inline="always")
def _merge(h: Any, accumulator: Any) -> Any:
    return (h ^ _round(np.uint64(0), accumulator)) * _P1 + _P4


@njit(inline="always")
def _lane_step(h: Any, lane: Any) -> Any:
    return _rotate(h ^ _round(np.uint64(0), lane), 27) * _P1 + _P4


@njit(inline="always")
def _byte_step(h: Any, byte: Any) -> Any:
    return _rotate(h ^ (byte * _P5), 11) * _P1


@njit(inline="always")
def _avalanche(h: Any) -> Any:
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@njit(inline="always")
def _stripes(data: Any, begin: Any, length: Any, tag: Any) -> Any:
    """The part for messages of 32 bytes and more; message byte 0 is the tag, byte p is begin + p - 1."""
    v1 = _P1 + _P2
    v2 = _P2
    v3 = np.uint64(0)
    v4 = np.uint64(0) - _P1
    v1 = _round(v1, (_load64(data, begin) << np.uint64(8)) | tag)
    v2 = _round(v2, _load64(data, begin + 7))
    v3 = _round(v3, _load64(data, begin + 15))
    v4 = _round(v4, _load64(data, begin + 23))
    p = 32
    while p + 32 <= length:
        at = begin + p - 1
        v1 = _round(v1, _load64(data, at))
        v2 = _round(v2, _load64(data, at + 8))
        v3 = _round(v3, _load64(data, at + 16))
        v4 = _round(v4, _load64(data, at + 24))
        p += 32
    h = _rotate(v1, 1) + _rotate(v2, 7) + _rotate(v3, 12) + _rotate(v4, 18)
    return _merge(_merge(_merge(_merge(h, v1), v2), v3), v4)


@njit(inline="always")
def _short_head(data: Any, begin: Any, length: Any, tag: Any) -> Any:
    """The first 8 bytes of a message of 8 to 31 bytes; reads 7 bytes and not one past the value."""
    low = _load32(data, begin) | (_load16(data, begin + 4) << np.uint64(32))
    return (low << np.uint64(8)) | (_load8(data, begin + 6) << np.uint64(56)) | tag


@njit(inline="always")
def _hash_string(data: Any, begin: Any, end: Any, tag: Any) -> Any:
    length = end - begin + 1
    if length >= 32:
        h = _stripes(data, begin, length, tag) + np.uint64(length)
        p = length & ~31
    elif length >= 8:
        h = _lane_step(_P5 + np.uint64(length), _short_head(data, begin, length, tag))
        p = 8
    elif length >= 4:
        low = _load16(data, begin) | (_load8(data, begin + 2) << np.uint64(16))
        word = (low << np.uint64(8)) | tag
        h = _rotate((_P5 + np.uint64(length)) ^ (word * _P1), 23) * _P2 + _P3
        p = 4
    else:
        h = _byte_step(_P5 + np.uint64(length), tag)
        p = 1
    while p + 8 <= length:
        h = _lane_step(h, _load64(data, begin + p - 1))
        p += 8
    if p + 4 <= length:
        h = _rotate(h ^ (_load32(data, begin + p - 1) * _P1), 23) * _P2 + _P3
        p += 4
    while p < length:
        h = _byte_step(h, _load8(data, begin + p - 1))
        p += 1
    return _avalanche(h)


@njit(inline="always")
def _group(offsets: Any, i: Any) -> Any:
    """0 for a string that is hashed alone, else the number of its length."""
    length = np.int64(offsets[i + 1]) - np.int64(offsets[i]) + 1 - LENGTH_MIN
    return length + 1 if 0 <= length < _LENGTHS else 0


@njit(inline="always")
def _order_by_length(offsets: Any, count: Any, order: Any, ends: Any) -> None:
    """Positions 0, …, count - 1 by group, in order within each; ends[g] is where group g ends."""
    ends[:] = 0
    for i in range(count):
        ends[_group(offsets, i)] += 1
    total = 0
    for g in range(_LENGTHS + 1):
        here = ends[g]
        ends[g] = total
        total += here
    for i in range(count):
        g = _group(offsets, i)
        order[ends[g]] = i
        ends[g] += 1


@njit(inline="always")
def _one_length(offsets: Any, count: Any) -> Any:
    """Bytes of each of `count` strings, or -1 where they differ; in a form that LLVM makes vectors of."""
    size = np.int64(offsets[1]) - np.int64(offsets[0])
    others = np.int64(0)
    for i in range(count):
        others |= (np.int64(offsets[i + 1]) - np.int64(offsets[i])) ^ size
    return np.int64(-1) if others else size


@njit(nogil=True, cache=True)
def hash_strings_alone(
    data: NDArray[np.uint8], offsets: NDArray[Any], tag: int, out: NDArray[np.uint64]
) -> None:
    """As `hash_strings`, one after another: for few strings, and where there is no wide multiplication."""
    wide = np.uint64(tag)
    for i in range(out.shape[0]):
        out[i] = _hash_string(data, np.int64(offsets[i]), np.int64(offsets[i + 1]), wide)


@njit(nogil=True, cache=True)
def _hash_chunk(
    data: NDArray[np.uint8],
    offsets: NDArray[Any],
    tag: int,
    order: NDArray[np.int64],
    ends: NDArray[np.int64],
    out: NDArray[np.uint64],
) -> None:
    """As `hash_strings`, of 1 to _CHUNK strings; `order` (_CHUNK,) and `ends` (_LENGTHS + 1,) are scratch."""
    wide = np.uint64(tag)
    count = out.shape[0]
    size = _one_length(offsets, count)
    if 0 <= size + 1 - LENGTH_MIN < _LENGTHS:  # as keys often have: they are in order, and side by side
        k = 0
        while k + LANES <= count:
            hash_row(data, np.int64(offsets[k]), k, size + 1, wide, out)  # type: ignore[call-arg]
            k += LANES
        hash_strings_alone(data, offsets[k:], tag, out[k:])
        return
    _order_by_length(offsets, count, order, ends)
    begin = ends[0]
    for k in range(begin):  # too short or too long for a group
        i = order[k]
        out[i] = _hash_string(data, np.int64(offsets[i]), np.int64(offsets[i + 1]), wide)
    for length in range(1, _LENGTHS + 1):
        end = ends[length]
        k = begin
        while k + LANES <= end:
            bytes_each = np.int64(length + LENGTH_MIN - 1)
            hash_eight(data, offsets, order, k, bytes_each, wide, out)  # type: ignore[call-arg]
            k += LANES
        while k < end:
            i = order[k]
            out[i] = _hash_string(data, np.int64(offsets[i]), np.int64(offsets[i + 1]), wide)
            k += 1
        begin = end


@njit(nogil=True, cache=True)
def hash_strings(data: NDArray[np.uint8], offsets: NDArray[Any], tag: int, out: NDArray[np.uint64]) -> None:
    """Hash strings of an Arrow buffer.

    Parameters
    ----------
    data
        (bytes,) uint8, the values one after another.
    offsets
        (n + 1,) int32 or int64, rising, within `data`; both are the caller's to have validated.
    tag
        The byte that goes before each value.
    out
        (n,) uint64, written.
    """
    if not AVAILABLE or out.shape[0] < LANES:
        hash_strings_alone(data, offsets, tag, out)
        return
    order = np.empty(_CHUNK, np.int64)
    ends = np.empty(_LENGTHS + 1, np.int64)
    for first in range(0, out.shape[0], _CHUNK):
        end = min(first + _CHUNK, out.shape[0])
        _hash_chunk(data, offsets[first : end + 1], tag, order, ends, out[first:end])


@njit(nogil=True, cache=True)
def hash_ascii(data: NDArray[np.uint8], offsets: NDArray[Any], tag: int, out: NDArray[np.uint64]) -> int:
    """Check strings and hash them while they are in a core's cache: one pass over memory, not two.

    Parameters
    ----------
    data, offsets, tag, out
        As `hash_strings` takes them, but not validated.

    Returns
    -------
    How many of the first strings are hashed: n, or fewer where `all_ascii` would have one look closer.
    """
    order = np.empty(_CHUNK, np.int64)
    ends = np.empty(_LENGTHS + 1, np.int64)
    for first in range(0, out.shape[0], _CHUNK):
        end = min(first + _CHUNK, out.shape[0])
        here = offsets[first : end + 1]
        if not all_ascii(data, here):
            return first
        if AVAILABLE and end - first >= LANES:
            _hash_chunk(data, here, tag, order, ends, out[first:end])
        else:
            hash_strings_alone(data, here, tag, out[first:end])
    return int(out.shape[0])


@njit(nogil=True, cache=True)
def hash_integers(
    values: NDArray[np.uint64], prefix: int, prefix_bytes: int, out: NDArray[np.uint64]
) -> None:
    """Hash 8-byte values behind one prefix.

    Parameters
    ----------
    values
        (n,) uint64, each value's 8 bytes.
    prefix
        The bytes before it, little-endian.
    prefix_bytes
        How many, 1 or 2.
    out
        (n,) uint64, written.
    """
    shift = np.uint64(8 * prefix_bytes)
    head = np.uint64(prefix)
    seed = _P5 + np.uint64(8 + prefix_bytes)
    for i in range(values.shape[0]):
        value = values[i]
        h = _lane_step(seed, (value << shift) | head)
        rest = value >> (np.uint64(64) - shift)
        for _ in range(prefix_bytes):
            h = _byte_step(h, rest & np.uint64(255))
            rest >>= np.uint64(8)
        out[i] = _avalanche(h)
