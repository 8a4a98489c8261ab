# SPDX-License-Identifier: Apache-2.0
"""Vector instructions that LLVM does not find by itself in a kernel's loops.

A loop over a row whose length is known only at run time costs more in entering and leaving it than in
moving 64 bytes, and a search through hash entries is a branch per entry that no processor can guess. These
move or compare many elements at once, as LLVM vectors: AVX-512 where the machine has it, and whatever it
has elsewhere, with the same result (https://llvm.org/docs/LangRef.html, "vector type"). Callable from
other kernels only.

Invariants: 1. nothing outside the named elements is read or written; 2. no address need be aligned.
Thread safety: no state.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.errors import TypingError
from numpy.typing import NDArray

from ps_server.kernel.intrinsic import intrinsic, pointer_to

ENTRIES_PER_LINE: Final = 8
"""Entries (8 bytes each) of a cache line: what `scan_line` looks at."""

_TAG_SHIFT: Final = 36
_LANES: Final = 16

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_Codegen = Callable[[Any, Any, Any, Any], Any]


def _require(array: Any, dtype: Any) -> None:
    if not (
        isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and array.dtype == dtype
    ):
        raise TypingError(f"this intrinsic takes a contiguous 1-D array of {dtype}, not {array}")


@intrinsic
def scan_line(typing_context: Any, entries: Any, index: Any, tag: Any) -> Any:
    """Compare the 8 index entries from `entries[index]` on with `tag`, all at once.

    Returns a uint32: bit k is set where entry k is empty (0) or its top 28 bits are `tag`.
    """
    _require(entries, types.uint64)

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        line = ir.VectorType(_I64, ENTRIES_PER_LINE)
        address = pointer_to(context, builder, entries, arguments[0], index, arguments[1])
        loaded = builder.load(builder.bitcast(address, line.as_pointer()))
        loaded.align = 8
        one = builder.insert_element(ir.Constant(line, ir.Undefined), arguments[2], _I32(0))
        lanes = ir.Constant(ir.VectorType(_I32, ENTRIES_PER_LINE), [0] * ENTRIES_PER_LINE)
        wanted = builder.shuffle_vector(one, ir.Constant(line, ir.Undefined), lanes)
        tags = builder.lshr(loaded, ir.Constant(line, [_TAG_SHIFT] * ENTRIES_PER_LINE))
        same = builder.icmp_unsigned("==", tags, wanted)
        empty = builder.icmp_unsigned("==", loaded, ir.Constant(line, [0] * ENTRIES_PER_LINE))
        return builder.zext(builder.bitcast(builder.or_(same, empty), _I8), _I32)

    return types.uint32(entries, index, types.uint64), codegen


@intrinsic
def lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Number of the lowest bit that is set in `bits` (uint32, not 0), as int64."""
    if bits != types.uint32:
        raise TypingError(f"lowest_bit takes uint32, not {bits}")

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.cttz(arguments[0], ir.IntType(1)(1)), _I64)

    return types.int64(bits), codegen


def _move(source_type: Any, convert: Callable[[Any, Any], Any] | None) -> _Codegen:
    """Code generation: load a vector at source[at], convert it, store it at target[to]; uint8 arrays."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        source = pointer_to(context, builder, kinds[0], arguments[0], kinds[1], arguments[1])
        target = pointer_to(context, builder, kinds[2], arguments[2], kinds[3], arguments[3])
        value = builder.load(builder.bitcast(source, source_type.as_pointer()))
        value.align = 1
        moved = value if convert is None else convert(builder, value)
        store = builder.store(moved, builder.bitcast(target, moved.type.as_pointer()))
        store.align = 1
        return context.get_dummy_value()

    return codegen


def _mover(source_type: Any, convert: Callable[[Any, Any], Any] | None, text: str) -> Any:
    def move(typing_context: Any, source: Any, at: Any, target: Any, to: Any) -> Any:
        _require(source, types.uint8)
        _require(target, types.uint8)
        return types.void(source, at, target, to), _move(source_type, convert)

    move.__doc__ = text
    return intrinsic(move)


def _floats_of_halves(lanes: int) -> Callable[[Any, Any], Any]:
    def convert(builder: Any, bits: Any) -> Any:
        halves = builder.bitcast(bits, ir.VectorType(ir.HalfType(), lanes))
        return builder.fpext(halves, ir.VectorType(ir.FloatType(), lanes))

    return convert


def _floats_of_bfloats(lanes: int) -> Callable[[Any, Any], Any]:
    def convert(builder: Any, bits: Any) -> Any:
        wide = ir.VectorType(_I32, lanes)
        return builder.shl(builder.zext(bits, wide), ir.Constant(wide, [16] * lanes))

    return convert


_WIDE, _SHORT = ir.VectorType(ir.IntType(16), _LANES), ir.VectorType(ir.IntType(16), 1)
_copy_64 = _mover(ir.VectorType(_I8, 64), None, "Copy 64 bytes.")
_copy_16 = _mover(ir.VectorType(_I8, 16), None, "Copy 16 bytes.")
_copy_2 = _mover(ir.IntType(16), None, "Copy 2 bytes.")
_halves = _mover(_WIDE, _floats_of_halves(_LANES), "Widen 16 binary16 elements.")
_half = _mover(_SHORT, _floats_of_halves(1), "Widen one binary16 element.")
_bfloats = _mover(_WIDE, _floats_of_bfloats(_LANES), "Widen 16 bfloat16 elements.")
_bfloat = _mover(_SHORT, _floats_of_bfloats(1), "Widen one bfloat16 element.")

Bytes = NDArray[np.uint8]


@njit(inline="always")
def copy_row(source: Bytes, at: int, target: Bytes, to: int, width: int) -> None:
    """Copy `width` bytes (an even number) from source[at] to target[to]; 1-D contiguous uint8 arrays."""
    done = 0
    while done + 64 <= width:
        _copy_64(source, at + done, target, to + done)
        done += 64
    while done + 16 <= width:
        _copy_16(source, at + done, target, to + done)
        done += 16
    while done < width:
        _copy_2(source, at + done, target, to + done)
        done += 2


@njit(inline="always")
def widen_half_row(source: Bytes, at: int, target: Bytes, to: int, count: int) -> None:
    """Write `count` binary16 elements from source[at] on as float32 from target[to] on; offsets in bytes."""
    done = 0
    while done + _LANES <= count:
        _halves(source, at + 2 * done, target, to + 4 * done)
        done += _LANES
    while done < count:
        _half(source, at + 2 * done, target, to + 4 * done)
        done += 1


@njit(inline="always")
def widen_bfloat_row(source: Bytes, at: int, target: Bytes, to: int, count: int) -> None:
    """Write `count` bfloat16 elements from source[at] on as float32 from target[to] on; offsets in bytes."""
    done = 0
    while done + _LANES <= count:
        _bfloats(source, at + 2 * done, target, to + 4 * done)
        done += _LANES
    while done < count:
        _bfloat(source, at + 2 * done, target, to + 4 * done)
        done += 1
