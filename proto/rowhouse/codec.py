# SPDX-License-Identifier: Apache-2.0
"""Hand-written encoding of the hot messages: exactly the protobuf encoding of rowhouse.proto.

Why by hand: Python's protobuf copies a large bytes field several times; here an array's own memory is
joined into the message once, and decoding hands out views. Any protobuf stub can talk to us, and
unknown fields are skipped as protobuf demands. Field numbers below are those of rowhouse.proto;
tests/unit/test_codec.py holds this module and the generated stubs together.

Encoding: https://protobuf.dev/programming-guides/encoding (varints, wire types 0, 1, 2 and 5).

Invariants: 1. encode(decode(x)) has the meaning of x, and encode equals SerializeToString; 2. decode
never reads past the buffer, keeps nothing of it but views of the arrays, and raises InvalidRequestError on
anything malformed; 3. it checks count x dim x element size against the bytes it got; 4. its work is bounded
by the tables of a message, not by its bytes: what may stand once stands once, and at most UNKNOWN_FIELDS_MAX
unknown fields are skipped in one message. Thread safety: pure functions.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from rowhouse.dtype import NAMES, STORAGE
from rowhouse.error import InvalidRequestError, LimitExceededError
from rowhouse.limit import (
    CONTROL_BYTES_MAX,
    DIM_MAX,
    IDS_PER_REQUEST_MAX,
    TABLE_NAME_BYTES_MAX,
    TABLES_PER_REQUEST_MAX,
)
from rowhouse.message import (
    Contribution,
    PullRequest,
    PullResponse,
    PushRequest,
    PushResponse,
    TableChange,
    TableEdit,
    TableGradients,
    TableIds,
    TableRows,
)  # fmt: skip
from rowhouse.v1 import rowhouse_pb2 as pb

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TAG_BYTES_MAX = 5
"""A tag is a 32-bit varint; protobuf refuses longer forms of it."""

_U64_MASK = (1 << 64) - 1
_NOTHING = memoryview(b"")

Part = bytes | memoryview
Value = int | float | memoryview
Fields = dict[int, Value]
"""Value of each field number."""

UNKNOWN_FIELDS_MAX: Final = 64
"""Fields of a newer version that are skipped in one message: each costs a microsecond, and may be short."""

# Wire type of each field, by field number: of a pull and a push, then of what is nested in them.
_REQUEST = {1: _VARINT, 2: _VARINT, 3: _VARINT, 4: _BYTES}
_TABLE_IDS = {1: _BYTES, 2: _VARINT, 3: _VARINT, 4: _BYTES}
_PULL_REQUEST = {**_REQUEST, 5: _VARINT}
_TABLE_ROWS = {1: _BYTES, 2: _VARINT, 3: _VARINT, 4: _VARINT, 5: _BYTES, 6: _BYTES}
_TABLE_GRADIENTS = {
    1: _BYTES, 2: _VARINT, 3: _VARINT, 4: _VARINT, 5: _BYTES, 6: _BYTES, 7: _FIXED32, 8: _BYTES, 9: _BYTES,
    10: _BYTES, 11: _BYTES, 12: _VARINT,
}  # fmt: skip


# ------------------------------------------------------------------ writing
def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(number: int, value: int) -> bytes:
    """Varint field; proto3 leaves a zero out."""
    return _varint(number << 3) + _varint(value) if value else b""


def _head(number: int, length: int) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(length)


def _text(number: int, text: str) -> bytes:
    data = text.encode()
    return _head(number, len(data)) + data if data else b""


def _array(number: int, array: NDArray[Any], dtype: np.dtype[Any]) -> list[Part]:
    """A bytes field whose payload is the array's own memory (copied only if it is not contiguous)."""
    data = np.ascontiguousarray(array, dtype)
    return [_head(number, data.nbytes), data.reshape(-1).view(np.uint8).data] if data.nbytes else []


def _nested(number: int, parts: list[Part]) -> list[Part]:
    return [_head(number, sum(len(p) for p in parts)), *parts]


def pull_request_parts(message: PullRequest) -> list[Part]:
    """`rowhouse.v1.PullRequest` in pieces, the arrays' own memory among them."""
    parts: list[Part] = [
        _integer(1, message.map_version) + _integer(2, message.dtype) + _integer(3, message.read_only)
    ]
    for t in message.tables:
        head = _text(1, t.table) + _integer(2, t.dim) + _integer(3, t.ids.shape[0])
        parts += _nested(4, [head, *_array(4, t.ids, np.dtype("<u8"))])
    if message.changed_since is not None:
        parts.append(_varint(5 << 3) + _varint(message.changed_since))
    return parts


def encode_pull_request(message: PullRequest) -> bytes:
    """Encode `rowhouse.v1.PullRequest`."""
    return b"".join(pull_request_parts(message))


def pull_response_parts(message: PullResponse) -> list[Part]:
    """`rowhouse.v1.PullResponse` in pieces, the arrays' own memory among them."""
    parts: list[Part] = [_integer(1, message.lsn)]
    for t in message.tables:
        head = _text(1, t.table) + _integer(2, t.rows.shape[1]) + _integer(3, t.rows.shape[0])
        inner = [head + _integer(4, t.dtype), *_array(5, t.rows, STORAGE[t.dtype])]
        parts += _nested(2, inner if t.changed is None else [*inner, *_array(6, t.changed, np.dtype("u1"))])
    return parts


def encode_pull_response(message: PullResponse) -> bytes:
    """Encode `rowhouse.v1.PullResponse`."""
    return b"".join(pull_response_parts(message))


def push_request_parts(message: PushRequest) -> list[Part]:
    """`rowhouse.v1.PushRequest` in pieces, the arrays' own memory among them."""
    parts: list[Part] = [
        _integer(1, message.map_version) + _integer(2, message.client_id) + _integer(3, message.sequence)
    ]
    for t in message.tables:
        head = _text(1, t.table) + _integer(2, t.gradients.shape[1]) + _integer(3, t.ids.shape[0])
        inner = [head + _integer(4, t.dtype), *_array(5, t.ids, np.dtype("<u8"))]
        inner += _array(6, t.gradients, STORAGE[t.dtype])
        if t.learning_rate is not None:
            inner.append(_varint(7 << 3 | _FIXED32) + struct.pack("<f", t.learning_rate))
        inner += _event_parts(t)
        parts += _nested(4, inner)
    for edit in message.edits:
        parts += _nested(4, _edit_parts(edit))
    return parts


def _event_parts(change: TableChange) -> list[Part]:
    parts: list[Part] = []
    for number, events in ((8, change.shows), (9, change.clicks)):
        if events is not None:
            parts += _array(number, events, np.dtype("<f4"))
    return parts


def _edit_parts(edit: TableEdit) -> list[Part]:
    head = _text(1, edit.table) + _integer(2, 0 if edit.weights is None else edit.weights.shape[1])
    head += _integer(3, edit.ids.shape[0]) + _integer(4, edit.dtype)
    parts: list[Part] = [head, *_array(5, edit.ids, np.dtype("<u8")), *_event_parts(edit)]
    if edit.weights is None:
        return [*parts, _integer(12, True)]
    parts += _array(10, edit.weights, STORAGE[edit.dtype])
    return parts if edit.state is None else parts + _array(11, edit.state, np.dtype("<f4"))


def encode_push_request(message: PushRequest) -> bytes:
    """Encode `rowhouse.v1.PushRequest`."""
    return b"".join(push_request_parts(message))


def contribution_parts(message: Contribution) -> list[Part]:
    """`rowhouse.v1.ContributeRequest` in pieces, the arrays' own memory among them."""
    member = message.member.SerializeToString()
    return [*_nested(1, [member]), *_nested(2, push_request_parts(message.push))]


def encode_contribution(message: Contribution) -> bytes:
    """Encode `rowhouse.v1.ContributeRequest`."""
    return b"".join(contribution_parts(message))


def encode_push_response(message: PushResponse) -> bytes:
    """Encode `rowhouse.v1.PushResponse`."""
    return _integer(1, message.lsn) + _integer(2, message.duplicate)


# ------------------------------------------------------------------ reading
def _read_varint(buffer: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(buffer):
            raise InvalidRequestError(f"message ends inside a varint at byte {position}")
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _U64_MASK, position
        shift += 7
        if shift > 63:
            raise InvalidRequestError(f"varint at byte {position} is longer than 10 bytes")


def _take(buffer: memoryview, position: int, length: int) -> memoryview:
    if length > len(buffer) - position:
        raise InvalidRequestError(
            f"field at byte {position} says {length} bytes; the message has {len(buffer) - position} left"
        )
    return buffer[position : position + length]


def _fields(buffer: memoryview) -> Iterator[tuple[int, int, Value]]:
    """(field number, wire type, value) of each field, in the order of the message."""
    position = 0
    while position < len(buffer):
        start = position
        tag, position = _read_varint(buffer, start)
        number, wire = tag >> 3, tag & 7
        value: Value
        if position - start > _TAG_BYTES_MAX:
            raise InvalidRequestError(f"the tag at byte {start} is longer than {_TAG_BYTES_MAX} bytes")
        if number == 0 or number >= 1 << 29:
            raise InvalidRequestError(f"field number {number} at byte {position} is not legal")
        if wire == _VARINT:
            value, position = _read_varint(buffer, position)
        elif wire == _BYTES:
            length, position = _read_varint(buffer, position)
            value = _take(buffer, position, length)
            position += length
        elif wire == _FIXED64:
            value = int.from_bytes(_take(buffer, position, 8), "little")
            position += 8
        elif wire == _FIXED32:
            value = struct.unpack("<f", _take(buffer, position, 4))[0]
            position += 4
        else:
            raise InvalidRequestError(f"wire type {wire} of field {number} at byte {position} is not legal")
        yield number, wire, value


def _collect(buffer: memoryview, wires: dict[int, int], tables: int = 0) -> tuple[Fields, list[memoryview]]:
    """Fields by number, and the values of the repeated one.

    Parameters
    ----------
    buffer
        A message.
    wires
        Wire type of each known field; unknown fields are skipped.
    tables
        Number of the repeated field; 0: there is none.
    """
    found: Fields = {}
    nested: list[memoryview] = []
    unknown = 0
    for number, wire, value in _fields(buffer):
        if number not in wires:
            unknown += 1
            if unknown > UNKNOWN_FIELDS_MAX:
                raise InvalidRequestError(f"more than {UNKNOWN_FIELDS_MAX} unknown fields in one message")
        elif wire != wires[number]:
            raise InvalidRequestError(f"field {number} has wire type {wire}; it must be {wires[number]}")
        elif number == tables:
            assert isinstance(value, memoryview)
            nested.append(value)
            if len(nested) > TABLES_PER_REQUEST_MAX:
                raise LimitExceededError(f"more than {TABLES_PER_REQUEST_MAX} tables in one message")
        elif number in found:
            raise InvalidRequestError(f"field {number} is there twice; it may be there once")
        else:
            found[number] = value
    return found, nested


def _int(fields: Fields, number: int) -> int:
    """A scalar field's value; absent is 0 (proto3)."""
    value = fields.get(number, 0)
    assert isinstance(value, int)
    return value


def _bytes(fields: Fields, number: int) -> memoryview:
    value = fields.get(number, _NOTHING)
    assert isinstance(value, memoryview)
    return value


def _table_name(fields: Fields) -> str:
    data = _bytes(fields, 1)
    if not 0 < len(data) <= TABLE_NAME_BYTES_MAX:
        bound = f"it must have 1 to {TABLE_NAME_BYTES_MAX}"
        raise InvalidRequestError(f"table name has {len(data)} bytes; {bound}")
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"table name is not UTF-8: {error}") from None


def _dim(fields: Fields, table: str) -> int:
    dim = _int(fields, 2)
    if not 1 <= dim <= DIM_MAX:
        raise LimitExceededError(f"table {table!r}: dim is {dim}; it must be 1 to {DIM_MAX}")
    return dim


def _storage(code: int, what: str) -> np.dtype[Any]:
    if code not in STORAGE:
        raise InvalidRequestError(f"{what}: dtype code is {code}; it must be one of {sorted(NAMES)}")
    return STORAGE[code]


def _view(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(data) != expected:
        raise InvalidRequestError(f"{what}: {len(data)} bytes; {shape} of {dtype.name} needs {expected}")
    return np.frombuffer(data, dtype).reshape(shape)


def _check_total(counts: list[int]) -> None:
    if sum(counts) > IDS_PER_REQUEST_MAX:
        raise LimitExceededError(f"{sum(counts)} ids in one message; at most {IDS_PER_REQUEST_MAX}")


def _table_ids(fields: Fields) -> TableIds:
    table, count = _table_name(fields), _int(fields, 3)
    ids = _view(_bytes(fields, 4), np.dtype("<u8"), (count,), f"table {table!r}: ids")
    return TableIds(table, _dim(fields, table), ids)


def _table_rows(fields: Fields) -> TableRows:
    table, count, code = _table_name(fields), _int(fields, 3), _int(fields, 4)
    what = f"table {table!r}: rows"
    rows = _view(_bytes(fields, 5), _storage(code, what), (count, _dim(fields, table)), what)
    bits = _bytes(fields, 6)
    if not len(bits):
        return TableRows(table, code, rows)
    changed = np.frombuffer(bits, np.uint8)
    if (told := int(np.bitwise_count(changed).sum())) != count:
        raise InvalidRequestError(f"{what}: {count} of them, and {told} are said to have changed")
    return TableRows(table, code, rows, changed)


def _events(fields: Fields, number: int, count: int, table: str) -> NDArray[np.float32] | None:
    """shows (8) or clicks (9) of a push, or None where it has none."""
    if number not in fields:
        return None
    return _view(_bytes(fields, number), np.dtype("<f4"), (count,), f"table {table!r}: field {number}")


def _table_change(fields: Fields) -> TableChange:
    """Gradients; or rows by hand, where there are weights or the rows are removed."""
    return _table_edit(fields) if _int(fields, 12) or len(_bytes(fields, 10)) else _table_gradients(fields)


def _refuse_fields(fields: Fields, numbers: tuple[int, ...], table: str, why: str) -> None:
    for number in numbers:
        value = fields.get(number, 0)
        if len(value) if isinstance(value, memoryview) else value or (number == 7 and number in fields):
            raise InvalidRequestError(f"table {table!r}: {why}; field {number} must not be there")


def _table_edit(fields: Fields) -> TableEdit:
    table, count, code = _table_name(fields), _int(fields, 3), _int(fields, 4)
    ids = _view(_bytes(fields, 5), np.dtype("<u8"), (count,), f"table {table!r}: ids")
    if _int(fields, 12):
        _refuse_fields(fields, (2, 4, 6, 7, 8, 9, 10, 11), table, "rows are removed")
        return TableEdit(table, 0, ids)
    what = f"table {table!r}: weights"
    _refuse_fields(fields, (6, 7), table, "rows are assigned")
    weights = _view(_bytes(fields, 10), _storage(code, what), (count, _dim(fields, table)), what)
    data, state = _bytes(fields, 11), None
    if len(data):
        if not count or len(data) % (4 * count):
            raise InvalidRequestError(f"table {table!r}: state has {len(data)} bytes for {count} rows")
        state = np.frombuffer(data, "<f4").reshape(count, -1)
    shows, clicks = (_events(fields, number, count, table) for number in (8, 9))
    return TableEdit(table, code, ids, weights, state, shows, clicks)


def _table_gradients(fields: Fields) -> TableGradients:
    table, count, code = _table_name(fields), _int(fields, 3), _int(fields, 4)
    what = f"table {table!r}: gradients"
    ids = _view(_bytes(fields, 5), np.dtype("<u8"), (count,), f"table {table!r}: ids")
    gradients = _view(_bytes(fields, 6), _storage(code, what), (count, _dim(fields, table)), what)
    _refuse_fields(fields, (11,), table, "state goes with weights")
    rate = fields.get(7)
    assert rate is None or isinstance(rate, float)
    shows, clicks = (_events(fields, number, count, table) for number in (8, 9))
    return TableGradients(table, code, ids, gradients, rate, shows, clicks)


def decode_pull_request(data: bytes | memoryview) -> PullRequest:
    """Decode `rowhouse.v1.PullRequest`; InvalidRequestError on malformed bytes."""
    fields, nested = _collect(memoryview(data), _PULL_REQUEST, 4)
    tables = tuple(_table_ids(_collect(one, _TABLE_IDS)[0]) for one in nested)
    _check_total([t.ids.shape[0] for t in tables])
    dtype = _int(fields, 2)
    _storage(dtype, "pull")
    since = _int(fields, 5) if 5 in fields else None
    return PullRequest(_int(fields, 1), dtype, bool(_int(fields, 3)), tables, since)


def decode_pull_response(data: bytes | memoryview) -> PullResponse:
    """Decode `rowhouse.v1.PullResponse`; InvalidRequestError on malformed bytes."""
    fields, nested = _collect(memoryview(data), {1: _VARINT, 2: _BYTES}, 2)
    tables = tuple(_table_rows(_collect(one, _TABLE_ROWS)[0]) for one in nested)
    return PullResponse(_int(fields, 1), tables)


def decode_push_request(data: bytes | memoryview) -> PushRequest:
    """Decode `rowhouse.v1.PushRequest`; InvalidRequestError on malformed bytes."""
    fields, nested = _collect(memoryview(data), _REQUEST, 4)
    tables = tuple(_table_change(_collect(one, _TABLE_GRADIENTS)[0]) for one in nested)
    _check_total([t.ids.shape[0] for t in tables])
    return PushRequest.of(_int(fields, 1), _int(fields, 2), _int(fields, 3), tables)


def decode_contribution(data: bytes | memoryview) -> Contribution:
    """Decode `rowhouse.v1.ContributeRequest`; InvalidRequestError on malformed bytes."""
    fields, _ = _collect(memoryview(data), {1: _BYTES, 2: _BYTES})
    if len(_bytes(fields, 1)) > CONTROL_BYTES_MAX:
        raise LimitExceededError(f"member of {len(_bytes(fields, 1))} bytes; at most {CONTROL_BYTES_MAX}")
    try:
        member = pb.Member.FromString(bytes(_bytes(fields, 1)))
        member.DiscardUnknownFields()
    except DecodeError as error:
        raise InvalidRequestError(f"member of a group: {error}") from None
    return Contribution(member, decode_push_request(_bytes(fields, 2)))


def decode_push_response(data: bytes | memoryview) -> PushResponse:
    """Decode `rowhouse.v1.PushResponse`; InvalidRequestError on malformed bytes."""
    fields, _ = _collect(memoryview(data), {1: _VARINT, 2: _VARINT})
    return PushResponse(_int(fields, 1), bool(_int(fields, 2)))
