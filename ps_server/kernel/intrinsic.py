# SPDX-License-Identifier: Apache-2.0
"""Processor instructions that NumPy and numba have no name for: prefetch, half precision, bit patterns.

They are LLVM intrinsics and casts, so LLVM picks the instruction of the machine it runs on
(https://llvm.org/docs/LangRef.html, "llvm.prefetch", "fpext", "fptrunc", "bitcast"). Callable from
other kernels only, not from Python; kernel/vector.py has those that work on many elements at once. numba's
on-disk cache looks at the file of the kernel that calls, not at this one: whoever changes this file removes
the `__pycache__` beside it.

Invariants: 1. a prefetch never faults and never changes a value, whatever its index; 2. half
precision converts exactly upwards, and rounds to nearest even downwards.
Thread safety: no state.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core.errors import TypingError
from numpy.typing import NDArray

# numba passes the typing context by itself, which its own annotations do not know.
intrinsic: Final[Callable[[Callable[..., Any]], Any]] = extending.intrinsic

_LINE_BYTES: Final = 64
_PREFETCH_BYTES_MAX: Final = 512
"""Head of a row that is prefetched. Past it the processor has seen the stream and follows it by
itself, and whole rows of dim 1024 ahead would drive each other out of a 32 KiB cache."""


def pointer_to(context: Any, builder: Any, array: Any, value: Any, index: Any, place: Any) -> Any:
    """Code generation: the address of `array[index]`, `value` and `place` being their LLVM values."""
    data = context.make_array(array)(context, builder, value).data
    return builder.gep(data, [context.cast(builder, place, index, types.intp)])


def _prefetch_of(array: Any, index: Any, write: int) -> Any:
    if not (isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"):
        raise TypingError(f"prefetch takes a contiguous 1-D array, not {array}")
    if not isinstance(index, types.Integer):
        raise TypingError(f"prefetch takes an integer index, not {index}")

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address = pointer_to(context, builder, array, arguments[0], index, arguments[1])
        pointer = builder.bitcast(address, ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch.p0",
            fnty=ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), i32, i32, i32]),
        )
        # Read or write, locality 3 (keep in every cache level), data (not instructions).
        builder.call(prefetch, [pointer, i32(write), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(array, index), codegen


@intrinsic
def prefetch_read(typing_context: Any, array: Any, index: Any) -> Any:
    """Start loading the cache line of `array[index]`, to be read soon; `array` is 1-D contiguous."""
    return _prefetch_of(array, index, 0)


@intrinsic
def prefetch_write(typing_context: Any, array: Any, index: Any) -> Any:
    """Start loading the cache line of `array[index]`, to be written soon; `array` is 1-D contiguous."""
    return _prefetch_of(array, index, 1)


@intrinsic
def copy_bytes(
    typing_context: Any, target: Any, target_at: Any, source: Any, source_at: Any, count: Any
) -> Any:
    """Copy `source[source_at : source_at + count]` to `target` from `target_at`; they must not overlap.

    Both are 1-D contiguous uint8. A loop over bytes costs several times as much, because nothing tells the
    compiler that they are apart.
    """
    for array in (target, source):
        if not (isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"):
            raise TypingError(f"copy_bytes takes contiguous 1-D arrays, not {array}")
        if array.dtype != types.uint8:
            raise TypingError(f"copy_bytes takes arrays of uint8, not {array}")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def place(array: int) -> Any:
            data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
            offset = context.cast(builder, arguments[array + 1], signature.args[array + 1], types.intp)
            return builder.gep(data, [offset])

        i8p, i64 = ir.IntType(8).as_pointer(), ir.IntType(64)
        copy = builder.module.declare_intrinsic(
            "llvm.memcpy",
            (i8p, i8p, i64),
            ir.FunctionType(ir.VoidType(), [i8p, i8p, i64, ir.IntType(1)]),
        )
        length = context.cast(builder, arguments[4], signature.args[4], types.int64)
        builder.call(copy, [place(0), place(2), length, ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(target, target_at, source, source_at, count), codegen


@intrinsic
def half_to_float(typing_context: Any, bits: Any) -> Any:
    """The float32 value of the IEEE binary16 pattern `bits` (uint16); exact."""
    if bits != types.uint16:
        raise TypingError(f"half_to_float takes uint16, not {bits}")

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(bits), codegen


@intrinsic
def float_to_half_bits(typing_context: Any, value: Any) -> Any:
    """The binary16 pattern (uint16) nearest to the float32 `value`, ties to even."""
    if value != types.float32:
        raise TypingError(f"float_to_half_bits takes float32, not {value}")

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(value), codegen


@intrinsic
def float_bits(typing_context: Any, value: Any) -> Any:
    """The bit pattern (uint32) of the float32 `value`."""
    if value != types.float32:
        raise TypingError(f"float_bits takes float32, not {value}")

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(value), codegen


@intrinsic
def bits_float(typing_context: Any, bits: Any) -> Any:
    """The float32 value of the bit pattern `bits` (uint32)."""
    if bits != types.uint32:
        raise TypingError(f"bits_float takes uint32, not {bits}")

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(bits), codegen


@intrinsic
def double_bits(typing_context: Any, value: Any) -> Any:
    """The bit pattern (uint64) of the float64 `value`."""
    if value != types.float64:
        raise TypingError(f"double_bits takes float64, not {value}")

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.uint64(value), codegen


@intrinsic
def bits_double(typing_context: Any, bits: Any) -> Any:
    """The float64 value of the bit pattern `bits` (uint64)."""
    if bits != types.uint64:
        raise TypingError(f"bits_double takes uint64, not {bits}")

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(bits), codegen


@njit(inline="always")
def prefetch_row(array: NDArray[Any], start: np.int64, count: int) -> None:
    """Prefetch `array[start : start + count]`, to be written soon (only its head if it is long).

    A row need not begin on a cache line, so its last element is prefetched as well.
    """
    if count > 0:
        end = min(count, _PREFETCH_BYTES_MAX // array.itemsize)
        for k in range(0, end, _LINE_BYTES // array.itemsize):
            prefetch_write(array, start + k)
        prefetch_write(array, start + end - 1)
