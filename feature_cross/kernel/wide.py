# SPDX-License-Identifier: Apache-2.0
"""xxh64 of eight strings of one length at a time, in vectors of eight 64-bit lanes.

A string's hash is a chain of multiplications, each waiting for the last; eight chains side by side fill the
multipliers, where the processor has a 64-bit vector multiplication (AVX-512DQ: vpmullq). Loads are scalar and
are gathered by insertion: a gather instruction is no faster, and its form differs between LLVM versions. They
take most of the time, so they are few: the bytes after the last lane come with one load, and are cut there.
The steps are those of feature_cross/kernel/xxh64.py, which documents them, and which tests hold it to.
Invariants: 1. no byte outside of a string is read; 2. equal to the scalar kernel for every length from
LENGTH_MIN on. Thread safety: pure code.
"""

from collections.abc import Callable
from typing import Any, Final

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["AVAILABLE", "LANES", "LENGTH_MIN", "hash_eight", "hash_row"]

LANES: Final = 8
LENGTH_MIN: Final = 4
"""Of the message, tag included: xxh64 takes three bytes and fewer one by one, and they are rare."""

AVAILABLE: Final = bool(llvmlite.binding.get_host_cpu_features().get("avx512dq"))
"""Without the instruction a vector multiplication is three narrower ones, and the scalar kernel is faster."""

_P1: Final = 11400714785074694791
_P2: Final = 14029467366897019727
_P3: Final = 1609587929392839161
_P4: Final = 9650029242287828579
_P5: Final = 2870177450012600261
_MASK: Final = (1 << 64) - 1

_I64: Final = ir.IntType(64)
_VECTOR: Final = ir.VectorType(_I64, LANES)


class _Code:
    """Writes the steps of xxh64 over vectors with one IR builder; `starts` are the strings' first bytes."""

    def __init__(self, builder: Any, starts: list[Any]) -> None:
        self.builder = builder
        self.starts = starts

    def constant(self, value: int) -> Any:
        return ir.Constant(_VECTOR, [value & _MASK] * LANES)

    def splat(self, value: Any) -> Any:
        vector: Any = ir.Constant(_VECTOR, ir.Undefined)
        for lane in range(LANES):
            vector = self.builder.insert_element(vector, value, ir.IntType(32)(lane))
        return vector

    def words(self, offset: Any, bits: int) -> Any:
        """`bits` bits at `offset` bytes from each string's start, zero-extended."""
        vector: Any = ir.Constant(_VECTOR, ir.Undefined)
        for lane, start in enumerate(self.starts):
            address = self.builder.gep(start, [offset])
            word = self.builder.load(self.builder.bitcast(address, ir.IntType(bits).as_pointer()), align=1)
            word = word if bits == 64 else self.builder.zext(word, _I64)
            vector = self.builder.insert_element(vector, word, ir.IntType(32)(lane))
        return vector

    def rotate(self, x: Any, bits: int) -> Any:
        left = self.builder.shl(x, self.constant(bits))
        return self.builder.or_(left, self.builder.lshr(x, self.constant(64 - bits)))

    def times(self, x: Any, factor: int) -> Any:
        return self.builder.mul(x, self.constant(factor))

    def plus(self, x: Any, term: int) -> Any:
        return self.builder.add(x, self.constant(term))

    def round(self, accumulator: Any, lane: Any) -> Any:
        return self.times(self.rotate(self.builder.add(accumulator, self.times(lane, _P2)), 31), _P1)

    def fresh_round(self, lane: Any) -> Any:
        return self.times(self.rotate(self.times(lane, _P2), 31), _P1)

    def merge(self, h: Any, accumulator: Any) -> Any:
        return self.plus(self.times(self.builder.xor(h, self.fresh_round(accumulator)), _P1), _P4)

    def lane_step(self, h: Any, lane: Any) -> Any:
        return self.plus(self.times(self.rotate(self.builder.xor(h, self.fresh_round(lane)), 27), _P1), _P4)

    def word_step(self, h: Any, word: Any) -> Any:
        mixed = self.rotate(self.builder.xor(h, self.times(word, _P1)), 23)
        return self.plus(self.times(mixed, _P2), _P3)

    def byte_step(self, h: Any, byte: Any) -> Any:
        return self.times(self.rotate(self.builder.xor(h, self.times(byte, _P5)), 11), _P1)

    def avalanche(self, h: Any) -> Any:
        h = self.times(self.builder.xor(h, self.builder.lshr(h, self.constant(33))), _P2)
        h = self.times(self.builder.xor(h, self.builder.lshr(h, self.constant(29))), _P3)
        return self.builder.xor(h, self.builder.lshr(h, self.constant(32)))

    def variable(self, initial: Any) -> Any:
        pointer = cgutils.alloca_once(self.builder, initial.type)  # type: ignore[no-untyped-call]
        self.builder.store(initial, pointer)
        return pointer

    def repeat(self, position: Any, step: int, length: Any, body: Callable[[Any], None]) -> None:
        """While position + step <= length: body(position), position += step."""
        builder = self.builder
        test, work, done = (builder.append_basic_block(name) for name in ("test", "work", "done"))
        builder.branch(test)
        builder.position_at_end(test)
        at = builder.load(position)
        fits = builder.icmp_signed("<=", builder.add(at, _I64(step)), length)
        builder.cbranch(fits, work, done)
        builder.position_at_end(work)
        body(at)
        builder.store(builder.add(at, _I64(step)), position)
        builder.branch(test)
        builder.position_at_end(done)


def _tagged(code: _Code, value: Any, tag: Any) -> Any:
    """The message's first bytes: the tag before the value's, whose last one falls out of the lane."""
    return code.builder.or_(code.builder.shl(value, code.constant(8)), code.splat(tag))


def _stripes(code: _Code, length: Any, tag: Any, state: Any, position: Any) -> None:
    """32 bytes and more: four accumulators, then all of them merged."""
    builder = code.builder
    seeds = (_P1 + _P2, _P2, 0, -_P1)
    lanes = (_tagged(code, code.words(_I64(0), 64), tag), *(code.words(_I64(at), 64) for at in (7, 15, 23)))
    sums = [code.variable(code.round(code.constant(s), w)) for s, w in zip(seeds, lanes, strict=True)]
    builder.store(_I64(32), position)

    def stripe(at: Any) -> None:
        for number, accumulator in enumerate(sums):
            words = code.words(builder.add(at, _I64(8 * number - 1)), 64)
            builder.store(code.round(builder.load(accumulator), words), accumulator)

    code.repeat(position, 32, length, stripe)
    last = [builder.load(accumulator) for accumulator in sums]
    turned = [code.rotate(x, bits) for x, bits in zip(last, (1, 7, 12, 18), strict=True)]
    h = builder.add(builder.add(turned[0], turned[1]), builder.add(turned[2], turned[3]))
    for accumulator in last:
        h = code.merge(h, accumulator)
    builder.store(builder.add(h, code.splat(length)), state)


def _lane(code: _Code, length: Any, tag: Any, state: Any) -> None:
    """9 to 31 bytes: the first lane, with one load, whose last byte the tag pushes out."""
    seeded = code.plus(code.splat(length), _P5)
    code.builder.store(code.lane_step(seeded, _tagged(code, code.words(_I64(0), 64), tag)), state)


def _only_lane(code: _Code, length: Any, tag: Any, state: Any) -> None:
    """8 bytes: the one lane, whose 7 bytes of the value two loads of 4 cover."""
    builder = code.builder
    high = builder.lshr(code.words(_I64(3), 32), code.constant(8))
    value = builder.or_(code.words(_I64(0), 32), builder.shl(high, code.constant(32)))
    seeded = code.plus(code.splat(length), _P5)
    builder.store(code.lane_step(seeded, _tagged(code, value, tag)), state)


def _word(code: _Code, length: Any, tag: Any, state: Any, position: Any) -> None:
    """4 to 7 bytes: the first word, whose 3 bytes of the value loads of 2 and 1 cover."""
    builder = code.builder
    value = builder.or_(code.words(_I64(0), 16), builder.shl(code.words(_I64(2), 8), code.constant(16)))
    seeded = code.plus(code.splat(length), _P5)
    builder.store(code.word_step(seeded, _tagged(code, value, tag)), state)
    builder.store(_I64(4), position)


def _tail(code: _Code, length: Any, state: Any, position: Any) -> None:
    """The last 0 to 7 bytes of 9 and more: one load that ends where the value ends has them all."""
    builder = code.builder
    rest = builder.sub(length, builder.load(position))
    with builder.if_then(builder.icmp_signed(">", rest, _I64(0))):
        words = code.words(builder.sub(length, _I64(9)), 64)
        passed = builder.sub(_I64(64), builder.mul(rest, _I64(8)))
        last = code.variable(builder.lshr(words, code.splat(passed)))
        with builder.if_then(builder.icmp_signed(">=", rest, _I64(4))):
            word = builder.and_(builder.load(last), code.constant(0xFFFFFFFF))
            builder.store(code.word_step(builder.load(state), word), state)
            builder.store(builder.lshr(builder.load(last), code.constant(32)), last)
            builder.store(builder.add(builder.load(position), _I64(4)), position)

        def byte(_at: Any) -> None:
            low = builder.and_(builder.load(last), code.constant(0xFF))
            builder.store(code.byte_step(builder.load(state), low), state)
            builder.store(builder.lshr(builder.load(last), code.constant(8)), last)

        code.repeat(position, 1, length, byte)


def _long(code: _Code, length: Any, tag: Any, state: Any, position: Any) -> None:
    """9 bytes and more."""
    builder = code.builder
    with builder.if_else(builder.icmp_signed(">=", length, _I64(32))) as (stripes, lanes):
        with stripes:
            _stripes(code, length, tag, state, position)
        with lanes:
            _lane(code, length, tag, state)

    def lane(at: Any) -> None:
        words = code.words(builder.sub(at, _I64(1)), 64)
        builder.store(code.lane_step(builder.load(state), words), state)

    code.repeat(position, 8, length, lane)
    _tail(code, length, state, position)


def _short(code: _Code, length: Any, tag: Any, state: Any, position: Any) -> None:
    """LENGTH_MIN to 8 bytes: no load of 8 bytes would stay within the value."""
    builder = code.builder
    with builder.if_else(builder.icmp_signed("==", length, _I64(8))) as (lane, word):
        with lane:
            _only_lane(code, length, tag, state)
        with word:
            _word(code, length, tag, state, position)

    def byte(at: Any) -> None:
        words = code.words(builder.sub(at, _I64(1)), 8)
        builder.store(code.byte_step(builder.load(state), words), state)

    code.repeat(position, 1, length, byte)


def _hash(code: _Code, length: Any, tag: Any) -> Any:
    builder = code.builder
    state = code.variable(ir.Constant(_VECTOR, [0] * LANES))
    position = code.variable(_I64(8))
    with builder.if_else(builder.icmp_signed(">", length, _I64(8))) as (long, short):
        with long:
            _long(code, length, tag, state, position)
        with short:
            _short(code, length, tag, state, position)
    return code.avalanche(builder.load(state))


def _datas(context: Any, builder: Any, signature: Any, arguments: Any, *numbers: int) -> list[Any]:
    """First elements of the arguments that are arrays."""
    arrays = (context.make_array(signature.args[n])(context, builder, arguments[n]) for n in numbers)
    return [array.data for array in arrays]


@intrinsic
def hash_row(typing_context: Any, data: Any, begin: Any, at: Any, length: Any, tag: Any, out: Any) -> Any:
    """Hash eight strings of `length` - 1 bytes that lie one after another from data[begin] on.

    `data` (bytes,) uint8, `out` (n,) uint64: its elements at, …, at + 7 are written. `length` >= LENGTH_MIN.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, out = _datas(context, builder, signature, arguments, 0, 5)
        _, begin, at, length, tag, _ = arguments
        starts, size = [builder.gep(data, [begin])], builder.sub(length, _I64(1))
        for _lane in range(1, LANES):
            starts.append(builder.gep(starts[-1], [size]))
        hashes = _hash(_Code(builder, starts), length, tag)
        place = builder.bitcast(builder.gep(out, [at]), _VECTOR.as_pointer())
        builder.store(hashes, place, align=8)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.int64, types.int64, types.uint64, out), generate


@intrinsic
def hash_eight(
    typing_context: Any, data: Any, offsets: Any, order: Any, at: Any, length: Any, tag: Any, out: Any
) -> Any:
    """Hash strings order[at], …, order[at + 7], which all have `length` - 1 bytes; `length` >= LENGTH_MIN.

    `data` (bytes,) uint8, `offsets` (n + 1,) int32 or int64, `order` int64, `out` (n,) uint64, written.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, offsets, order, out = _datas(context, builder, signature, arguments, 0, 1, 2, 6)
        starts, places = [], []
        for lane in range(LANES):
            index = builder.add(arguments[3], _I64(lane))
            place = builder.load(builder.gep(order, [index]))
            begin = builder.load(builder.gep(offsets, [place]))
            begin = begin if begin.type == _I64 else builder.sext(begin, _I64)
            places.append(place)
            starts.append(builder.gep(data, [begin]))
        hashes = _hash(_Code(builder, starts), arguments[4], arguments[5])
        for lane, place in enumerate(places):
            value = builder.extract_element(hashes, ir.IntType(32)(lane))
            builder.store(value, builder.gep(out, [place]))
        return context.get_dummy_value()

    return types.void(data, offsets, order, types.int64, types.int64, types.uint64, out), generate
