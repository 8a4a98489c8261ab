# SPDX-License-Identifier: Apache-2.0
"""Faults that a test plants into the codec, to see that the fuzzer finds them."""

from typing import Any, Final

from rowhouse import codec

_TAKE: Final = codec._take


def _take_what_is_there(buffer: memoryview, position: int, _length: int) -> memoryview:
    return buffer[position:]


def _room_as_told(buffer: memoryview, position: int, length: int) -> memoryview:
    bytes(length)
    return _TAKE(buffer, position, length)


def _any_text(fields: codec.Fields) -> str:
    return str(codec._bytes(fields, 1), "utf-8", "replace")


FAULTS: Final[dict[str, tuple[Any, str, Any]]] = {
    "length": (codec, "_take", _take_what_is_there),
    "memory": (codec, "_take", _room_as_told),
    "text": (codec, "_table_name", _any_text),
}
"""Module, name of the function, and what stands in its place."""
