# SPDX-License-Identifier: Apache-2.0
"""The frames of a data connection: a head of 20 bytes, then one protobuf message of rowhouse.proto.

Beside its gRPC port a shard may listen on a data port for Pull, Push and Contribute. One connection
carries one call at a time: a frame with the request goes, a frame with the answer comes back. The body is
the same message that gRPC would carry, so codec.py serves both; what is saved is gRPC's own work, which
costs more than the bytes themselves (docs/ARCHITECTURE.md, "Wire").

    head   magic (4 bytes) · kind (1) · zero (3) · body bytes (uint32) · token (uint64), little-endian
    body   kind HELLO: none, and none in its ANSWER: the shard takes frames of this token here;
           PULL, PUSH, CONTRIBUTE: the request; ANSWER: the response;
           ERROR: gRPC status code (1 byte) · class name · 0 · details, UTF-8

GetCluster tells where the data port is, and the token: a random number of this start of this shard. A
frame with another token is refused by closing, for a port may meanwhile belong to another shard.

Thread safety: pure functions, beside the socket that send_some and keep_alive are given.
"""

import socket
import struct
from typing import Final

import numpy as np

from rowhouse.error import InvalidRequestError, RowhouseError, StatusCode, from_status
from rowhouse.limit import MESSAGE_BYTES_MAX

MAGIC: Final = b"rhd1"
"""Names the layout; another layout gets another number."""

HEAD: Final = struct.Struct("<4sB3xIQ")

HELLO: Final = 0
PULL: Final = 1
PUSH: Final = 2
CONTRIBUTE: Final = 3
REQUESTS: Final = (PULL, PUSH, CONTRIBUTE)
ANSWER: Final = 16
ERROR: Final = 17

_LINE_BYTES: Final = 64

_PARTS_MAX: Final = 512
"""Pieces of one sendmsg; Linux takes 1,024."""


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


def body_memory(size_bytes: int) -> memoryview:
    """Memory to receive a body in. It ends where a cache line does, so that the array which ends a message
    (the rows of a pull, the gradients of a push) is aligned."""
    memory = np.empty(size_bytes + _LINE_BYTES - 1, np.uint8)
    start = -(memory.__array_interface__["data"][0] + size_bytes) % _LINE_BYTES
    return memory[start : start + size_bytes].data


def encode_error(error: RowhouseError) -> bytes:
    """The body of an ERROR frame."""
    head = bytes([error.code]) + type(error).__name__.encode() + b"\0"
    return head + (str(error) or type(error).__name__).encode()


def send_some(peer: socket.socket, unsent: list[memoryview]) -> int:
    """Hand the socket as much of `unsent` as it takes in one call, and drop that from the list.

    Parameters
    ----------
    peer
        A connected socket.
    unsent
        Pieces of frames, none of them empty; changed in place.

    Returns
    -------
    int
        Bytes taken.

    Raises
    ------
    OSError
        As `sendmsg`: BlockingIOError or TimeoutError when it takes nothing now.
    """
    taken = count = peer.sendmsg(unsent[:_PARTS_MAX])
    done = 0
    while done < len(unsent) and count >= len(unsent[done]):
        count -= len(unsent[done])
        done += 1
    del unsent[:done]
    if count:
        unsent[0] = unsent[0][count:]
    return taken


def keep_alive(peer: socket.socket, idle_s: int, lost_s: int) -> None:
    """Have the system notice a peer that vanished without a word, as gRPC's pings do.

    Parameters
    ----------
    peer
        A connected TCP socket.
    idle_s
        Silence after which it is probed, in seconds.
    lost_s
        Time without an answer, to a probe or to data, after which the connection is lost.
    """
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", idle_s), ("TCP_KEEPINTVL", max(lost_s // 2, 1)), ("TCP_KEEPCNT", 2),
        ("TCP_USER_TIMEOUT", (idle_s + lost_s) * 1000),
    ):  # fmt: skip
        if hasattr(socket, name):  # else the system's own bounds, some hours
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def decode_error(body: memoryview, where: str) -> RowhouseError:
    """The error of an ERROR frame; `where` stands before its details."""
    name, _, details = bytes(body[1:]).partition(b"\0")
    code = body[0] if len(body) else StatusCode.UNKNOWN
    return from_status(code, f"{where}: {details.decode(errors='replace')}", name.decode(errors="replace"))
