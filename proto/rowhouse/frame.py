# SPDX-License-Identifier: Apache-2.0
"""The frames of a data connection: a head of 20 bytes, then one protobuf message of rowhouse.proto.

Beside its gRPC port a shard may listen on a data port for Pull, Push and Contribute. One connection
carries one call at a time: a frame with the request goes, a frame with the answer comes back. The body is
the same message that gRPC would carry, so codec.py serves both; what is saved is gRPC's own work, which
costs more than the bytes themselves (docs/ARCHITECTURE.md, "Wire").

    head   magic (4 bytes) · kind (1) · zero (3) · body bytes (uint32) · token (uint64), little-endian
    body   kind PULL, PUSH, CONTRIBUTE: the request; ANSWER: the response;
           ERROR: gRPC status code (1 byte) · class name · 0 · details, UTF-8

GetCluster tells where the data port is, and the token: a random number of this start of this shard. A
frame with another token is refused by closing, for a port may meanwhile belong to another shard.

Thread safety: pure functions.
"""

import struct
from typing import Final

import grpc

from rowhouse.error import InvalidRequestError, RowhouseError, from_status
from rowhouse.limit import MESSAGE_BYTES_MAX

MAGIC: Final = b"rhd1"
"""Names the layout; another layout gets another number."""

HEAD: Final = struct.Struct("<4sB3xIQ")

PULL: Final = 1
PUSH: Final = 2
CONTRIBUTE: Final = 3
REQUESTS: Final = (PULL, PUSH, CONTRIBUTE)
ANSWER: Final = 16
ERROR: Final = 17

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def encode_head(kind: int, body_bytes: int, token: int) -> bytes:
    """The head of a frame."""
    return HEAD.pack(MAGIC, kind, body_bytes, token)


def decode_head(data: bytes | bytearray | memoryview) -> tuple[int, int, int]:
    """(kind, body bytes, token) of a head.

    Raises
    ------
    InvalidRequestError
        Another magic, or a body past MESSAGE_BYTES_MAX: nothing on this connection can be trusted.
    """
    magic, kind, body_bytes, token = HEAD.unpack(data)
    if magic != MAGIC:
        raise InvalidRequestError(f"a frame begins with {magic!r}; it must be {MAGIC!r}")
    if body_bytes > MESSAGE_BYTES_MAX:
        raise InvalidRequestError(f"a frame says {body_bytes} bytes; at most {MESSAGE_BYTES_MAX}")
    return kind, body_bytes, token


def encode_error(error: RowhouseError) -> bytes:
    """The body of an ERROR frame."""
    head = bytes([error.code.value[0]]) + type(error).__name__.encode() + b"\0"
    return head + (str(error) or type(error).__name__).encode()


def decode_error(body: memoryview, where: str) -> RowhouseError:
    """The error of an ERROR frame; `where` stands before its details."""
    name, _, details = bytes(body[1:]).partition(b"\0")
    code = _CODES.get(body[0] if len(body) else -1, grpc.StatusCode.UNKNOWN)
    return from_status(code, f"{where}: {details.decode(errors='replace')}", name.decode(errors="replace"))
