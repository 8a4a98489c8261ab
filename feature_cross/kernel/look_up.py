# SPDX-License-Identifier: Apache-2.0
"""Folds of dictionary-encoded operands: each row's hash is looked up, mixed and laid out in one pass.

Eight rows at a time: loads are scalar and are put together by insertion (as in feature_cross/kernel/wide.py);
the mixer runs over vectors of eight lanes, whatever width the processor has. Left alone, the compiler takes
gather instructions, or writes what was looked up to memory and reads it again: 1.1 ns a row, and not 0.45.
A table past the second cache is asked for ahead of time, for the processor looks only some 60 rows ahead by
itself: 0.9 ns a row for 1.4, with a million elements that the third cache has in part.
Positions are the caller's to have checked (`largest`): nothing here looks at a table's end.
Invariant: equal to the kernels of feature_cross/kernel/fold.py over looked-up hashes. Thread safety: free
functions, GIL released; `out` is the caller's.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from feature_cross.id_format import GAMMA, MULTIPLIER_1, MULTIPLIER_2
from feature_cross.kernel.fold import mix

__all__ = ["largest", "look_up", "look_up_first", "look_up_next", "look_up_pair"]

_LANES: Final = 8
_AHEAD: Final = 192
"""Rows that a large table's elements are asked for in advance: 12 KiB of the first cache."""
_NEAR: Final = 1 << 17
"""Elements, 1 MiB, of a table that a core's second cache holds: asking costs more than it brings."""
_I64: Final = ir.IntType(64)
_VECTOR: Final = ir.VectorType(_I64, _LANES)


def _constant(value: int) -> Any:
    return ir.Constant(_VECTOR, [value] * _LANES)


class _Code:
    """Writes an intrinsic's steps over vectors; arguments go by number, `row` is that of the first row's."""

    def __init__(self, row: int, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.context = context
        self.builder = builder
        self.signature = signature
        self.arguments = arguments
        self.row = arguments[row]

    def data(self, number: int) -> Any:
        """First element of an argument that is an array."""
        array = self.context.make_array(self.signature.args[number])
        return array(self.context, self.builder, self.arguments[number]).data

    def splat(self, number: int) -> Any:
        vector: Any = ir.Constant(_VECTOR, ir.Undefined)
        for lane in range(_LANES):
            vector = self.builder.insert_element(vector, self.arguments[number], ir.IntType(32)(lane))
        return vector

    def look_up(self, table: int, positions: int) -> Any:
        """table[positions[row]], …, table[positions[row + 7]]."""
        vector: Any = ir.Constant(_VECTOR, ir.Undefined)
        for lane, address in enumerate(self.addresses(table, positions)):
            vector = self.builder.insert_element(vector, self.builder.load(address), ir.IntType(32)(lane))
        return vector

    def addresses(self, table: int, positions: int) -> Iterator[Any]:
        """Where the elements for eight rows are."""
        builder, values, places = self.builder, self.data(table), self.data(positions)
        for lane in range(_LANES):
            place = builder.load(builder.gep(places, [builder.add(self.row, _I64(lane))]))
            place = place if place.type == _I64 else builder.zext(place, _I64)
            yield builder.gep(values, [place])

    def load(self, number: int) -> Any:
        return self.builder.load(self._eight(number), align=8)

    def store(self, x: Any, number: int) -> Any:
        self.builder.store(x, self._eight(number), align=8)
        return self.context.get_dummy_value()

    def _eight(self, number: int) -> Any:
        return self.builder.bitcast(self.builder.gep(self.data(number), [self.row]), _VECTOR.as_pointer())

    def mix(self, x: Any) -> Any:
        """The mixer of feature_cross/kernel/fold.py."""
        builder = self.builder
        z = builder.add(x, _constant(GAMMA))
        for shift, multiplier in ((30, MULTIPLIER_1), (27, MULTIPLIER_2)):
            z = builder.mul(builder.xor(z, builder.lshr(z, _constant(shift))), _constant(multiplier))
        return builder.xor(z, builder.lshr(z, _constant(31)))

    def lay_out(self, x: Any, keep: int) -> Any:
        """(x & keep) | top; `top` is the argument after `keep`."""
        return self.builder.or_(self.builder.and_(x, self.splat(keep)), self.splat(keep + 1))


_PREFETCH: Final = ir.FunctionType(
    ir.VoidType(), [ir.IntType(8).as_pointer(), *(ir.IntType(32) for _ in range(3))]
)
"""llvm.prefetch: address, 0 to read, locality 3 (every cache), 1 for data."""


@intrinsic
def _ask(typing_context: Any, table: Any, positions: Any, row: Any) -> Any:
    """Begin to load table[positions[i]] for eight rows from `row` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(2, context, builder, signature, arguments)
        prefetch = builder.module.declare_intrinsic("llvm.prefetch.p0", (), _PREFETCH)
        how = [ir.IntType(32)(number) for number in (0, 3, 1)]
        for address in code.addresses(0, 1):
            builder.call(prefetch, [builder.bitcast(address, ir.IntType(8).as_pointer()), *how])
        return context.get_dummy_value()

    return types.none(table, positions, row), generate


@intrinsic
def _eight(typing_context: Any, table: Any, positions: Any, row: Any, out: Any) -> Any:
    """out[i] = table[positions[i]] for eight rows from `row` on."""

    def generate(*given: Any) -> Any:
        code = _Code(2, *given)
        return code.store(code.look_up(0, 1), 3)

    return types.none(table, positions, row, out), generate


@intrinsic
def _eight_first(
    typing_context: Any, start: Any, table: Any, positions: Any, row: Any, keep: Any, top: Any, out: Any
) -> Any:
    """As `_eight`, mixed with one start."""

    def generate(*given: Any) -> Any:
        code = _Code(3, *given)
        mixed = code.mix(code.builder.xor(code.splat(0), code.look_up(1, 2)))
        return code.store(code.lay_out(mixed, 4), 6)

    return types.none(start, table, positions, row, keep, top, out), generate


@intrinsic
def _eight_next(
    typing_context: Any, states: Any, table: Any, positions: Any, row: Any, keep: Any, top: Any
) -> Any:
    """As `_eight`, mixed with eight states, in place."""

    def generate(*given: Any) -> Any:
        code = _Code(3, *given)
        mixed = code.mix(code.builder.xor(code.load(0), code.look_up(1, 2)))
        return code.store(code.lay_out(mixed, 4), 0)

    return types.none(states, table, positions, row, keep, top), generate


@intrinsic
def _eight_pair(
    typing_context: Any, states: Any, first: Any, table: Any, second: Any, row: Any, keep: Any, top: Any,
    out: Any,
) -> Any:  # fmt: skip
    """As `_eight_next`, with the states looked up as well."""

    def generate(*given: Any) -> Any:
        code = _Code(4, *given)
        mixed = code.mix(code.builder.xor(code.look_up(0, 1), code.look_up(2, 3)))
        return code.store(code.lay_out(mixed, 5), 7)

    return types.none(states, first, table, second, row, keep, top, out), generate


@njit(nogil=True, cache=True)
def largest(positions: NDArray[Any]) -> Any:
    """The largest of (n,) unsigned integers, as uint64; 0 of none."""
    if positions.shape[0] == 0:
        return np.uint64(0)
    found = positions[0]
    for i in range(positions.shape[0]):
        found = max(found, positions[i])
    return np.uint64(found)


@njit(nogil=True, cache=True)
def look_up(table: NDArray[np.uint64], positions: NDArray[Any], out: NDArray[np.uint64]) -> None:
    """out[i] = table[positions[i]].

    `table` is (distinct,) uint64, `positions` (rows,) of any unsigned type, within `table`, `out` (rows,).
    """
    rows = out.shape[0]
    whole = rows - rows % _LANES
    asked = whole - _AHEAD if table.shape[0] > _NEAR else 0
    for row in range(0, whole, _LANES):
        if row < asked:
            _ask(table, positions, row + _AHEAD)  # type: ignore[call-arg]
        _eight(table, positions, row, out)  # type: ignore[call-arg]
    for row in range(whole, rows):
        out[row] = table[np.uint64(positions[row])]


@njit(nogil=True, cache=True)
def look_up_first(
    start: np.uint64,
    table: NDArray[np.uint64],
    positions: NDArray[Any],
    keep: np.uint64,
    top: np.uint64,
    out: NDArray[np.uint64],
) -> None:
    """out[i] = mix(start ^ table[positions[i]]) & keep | top; shapes as in `look_up`."""
    rows = out.shape[0]
    whole = rows - rows % _LANES
    asked = whole - _AHEAD if table.shape[0] > _NEAR else 0
    for row in range(0, whole, _LANES):
        if row < asked:
            _ask(table, positions, row + _AHEAD)  # type: ignore[call-arg]
        _eight_first(start, table, positions, row, keep, top, out)  # type: ignore[call-arg]
    for row in range(whole, rows):
        out[row] = (mix(start ^ table[np.uint64(positions[row])]) & keep) | top


@njit(nogil=True, cache=True)
def look_up_next(
    states: NDArray[np.uint64],
    table: NDArray[np.uint64],
    positions: NDArray[Any],
    keep: np.uint64,
    top: np.uint64,
) -> None:
    """states[i] = mix(states[i] ^ table[positions[i]]) & keep | top, in place; `states` is (rows,) uint64."""
    rows = states.shape[0]
    whole = rows - rows % _LANES
    asked = whole - _AHEAD if table.shape[0] > _NEAR else 0
    for row in range(0, whole, _LANES):
        if row < asked:
            _ask(table, positions, row + _AHEAD)  # type: ignore[call-arg]
        _eight_next(states, table, positions, row, keep, top)  # type: ignore[call-arg]
    for row in range(whole, rows):
        states[row] = (mix(states[row] ^ table[np.uint64(positions[row])]) & keep) | top


@njit(nogil=True, cache=True)
def look_up_pair(
    states: NDArray[np.uint64],
    first: NDArray[Any],
    table: NDArray[np.uint64],
    second: NDArray[Any],
    keep: np.uint64,
    top: np.uint64,
    out: NDArray[np.uint64],
) -> None:
    """out[i] = mix(states[first[i]] ^ table[second[i]]) & keep | top: two operands in one pass.

    `states` is the first operand's table, mixed with the start; shapes as in `look_up`.
    """
    rows = out.shape[0]
    whole = rows - rows % _LANES
    asked = whole - _AHEAD if table.shape[0] > _NEAR else 0
    for row in range(0, whole, _LANES):
        if row < asked:
            _ask(table, second, row + _AHEAD)  # type: ignore[call-arg]
        _eight_pair(states, first, table, second, row, keep, top, out)  # type: ignore[call-arg]
    for row in range(whole, rows):
        mixed = mix(states[np.uint64(first[row])] ^ table[np.uint64(second[row])])
        out[row] = (mixed & keep) | top
