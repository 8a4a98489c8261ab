# SPDX-License-Identifier: Apache-2.0
"""Connections to the data port of one shard: calls as frames (rowhouse/frame.py) over plain sockets.

One connection carries one call at a time; there are as many as threads that call at once. channel.py
decides when a link is used and when gRPC is.

Invariants: 1. a connection goes back to the pool only after a whole answer: whatever breaks off, its
connection is closed; 2. nothing is sent twice; 3. a forked process never touches its parent's connections.
Thread safety: any number of threads may call at once.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final

import numpy as np
from rowhouse import frame
from rowhouse.codec import Part
from rowhouse.error import DeadlineExceededError, InvalidRequestError, UnavailableError

CONNECT_S: Final = 1.0
"""A port that a firewall hides does not answer at all; gRPC is there instead."""

KEEPALIVE_S: Final = 30
"""A machine that vanished is noticed after this and KEEPALIVE_LOST_S, as with gRPC."""

KEEPALIVE_LOST_S: Final = 10


class DataLink:
    """Calls to one data port.

    Parameters
    ----------
    endpoint
        The shard's gRPC endpoint, for its host and for messages.
    data_endpoint
        What the shard told: ":port" or "unix:/path".
    token
        What every frame must carry.

    Attributes
    ----------
    lost
        Whether a call broke off: the shard may be gone.
    served
        Whether a call was answered.

    Raises
    ------
    ValueError
        The data endpoint has neither form.
    """

    def __init__(self, endpoint: str, data_endpoint: str, token: int) -> None:
        self._where = f"shard at {endpoint}"
        self._path: str | None = None
        if data_endpoint.startswith("unix:"):
            self._path = data_endpoint.removeprefix("unix:")
        else:
            host, port = endpoint.rpartition(":")[0], data_endpoint.removeprefix(":")
            if not port.isdecimal() or not 0 < int(port) <= 65535:
                raise ValueError(f"data endpoint is {data_endpoint!r}; it must be :port or unix:/path")
            self._address = (host.strip("[]"), int(port))
        self._token = token
        self.lost = self.served = False
        self._process = os.getpid()
        self._idle: list[socket.socket] = []
        self._busy: set[socket.socket] = set()
        self._closed = False
        self._lock = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return bool(self._busy)

    def open(self) -> bool:
        """Make a first connection and say hello; False when that is not answered within CONNECT_S.

        A port that takes connections may still be another shard's by now, full, or a balancer with nobody
        behind it; a first call would wait there for all of its time.
        """
        deadline_s = time.monotonic() + CONNECT_S
        peer: socket.socket | None = None
        try:
            peer = self._connect(CONNECT_S)
            _send(peer, [frame.encode_head(frame.HELLO, 0, self._token)], deadline_s)
            answer = frame.decode_head(_receive(peer, frame.HEAD.size, deadline_s))
            if answer[:2] != (frame.ANSWER, 0):
                raise InvalidRequestError("a hello was answered by something else")
        except BaseException as failure:
            if peer is not None:
                peer.close()
            if isinstance(failure, OSError | EOFError | InvalidRequestError):
                return False
            raise
        self._keep(peer)
        return True

    def call(self, kind: int, parts: Sequence[Part], timeout_s: float) -> memoryview:
        """Send a request and wait for its answer.

        Parameters
        ----------
        kind
            frame.PULL, PUSH or CONTRIBUTE.
        parts
            The encoded request, in pieces.
        timeout_s
            What the answer may take, in seconds.

        Returns
        -------
        memoryview
            The encoded answer, in memory of its own.

        Raises
        ------
        UnavailableError
            The connection was lost: whether the call was served is not known.
        DeadlineExceededError
            No answer in time; same.
        RowhouseError
            What the shard raised.
        """
        deadline_s = time.monotonic() + timeout_s
        try:
            peer = self._take(timeout_s)
        except (OSError, EOFError) as failure:
            self.lost = True
            raise UnavailableError(f"{self._where}: no data connection: {failure}") from None
        try:
            size = sum(len(part) for part in parts)
            _send(peer, [memoryview(frame.encode_head(kind, size, self._token)), *parts], deadline_s)
            head = _receive(peer, frame.HEAD.size, deadline_s)
            answer, size, _ = frame.decode_head(head)
            if answer not in (frame.ANSWER, frame.ERROR):
                raise InvalidRequestError(f"a frame of kind {answer} is no answer")
            body = _receive(peer, size, deadline_s)
        except TimeoutError:
            self._discard(peer)
            raise DeadlineExceededError(f"{self._where}: no answer within {timeout_s:.3g} s") from None
        except (OSError, EOFError, InvalidRequestError) as failure:
            self._discard(peer)
            raise UnavailableError(f"{self._where}: data connection lost: {failure}") from None
        except BaseException:
            self._discard(peer)
            raise
        self.served = True
        self._keep(peer)
        if answer == frame.ERROR:
            raise frame.decode_error(body, self._where)
        return body

    def retire(self) -> None:
        """Close every connection, those in use after their call."""
        with self._lock:
            self._closed = True
            for peer in self._idle:
                peer.close()
            self._idle = []

    def close(self) -> None:
        """Close every connection; calls under way break off."""
        self.retire()
        with self._lock:
            self._disown()
            for peer in self._busy:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)

    def _connect(self, timeout_s: float) -> socket.socket:
        if self._path is None:
            peer = socket.create_connection(self._address, timeout_s)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            frame.keep_alive(peer, KEEPALIVE_S, KEEPALIVE_LOST_S)
            return peer
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.settimeout(timeout_s)
            peer.connect(self._path)
        except BaseException:
            peer.close()
            raise
        return peer

    def _take(self, timeout_s: float) -> socket.socket:
        """A connection for one call: the one that was used last, or a new one."""
        with self._lock:
            self._disown()
            peer = self._idle.pop() if self._idle else None
            if peer is not None:
                self._busy.add(peer)
                return peer
        peer = self._connect(min(timeout_s, CONNECT_S))
        with self._lock:
            if not self._closed:
                self._busy.add(peer)
                return peer
        peer.close()
        raise EOFError("the client was closed")

    def _disown(self) -> None:
        """In a forked process, let go of the parent's connections: two callers would read one stream."""
        if self._process != os.getpid():
            self._process, self._busy = os.getpid(), set()
            for peer in self._idle:
                peer.close()
            self._idle = []

    def _keep(self, peer: socket.socket) -> None:
        with self._lock:
            self._busy.discard(peer)
            if not self._closed:
                self._idle.append(peer)
                return
        peer.close()

    def _discard(self, peer: socket.socket) -> None:
        self.lost = True
        with self._lock:
            self._busy.discard(peer)
        peer.close()


def _wait_at_most(peer: socket.socket, deadline_s: float) -> None:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    peer.settimeout(left_s)


def _send(peer: socket.socket, parts: Sequence[Part], deadline_s: float) -> None:
    unsent = [memoryview(part) for part in parts if len(part)]
    while unsent:
        _wait_at_most(peer, deadline_s)
        frame.send_some(peer, unsent)


def _receive(peer: socket.socket, size: int, deadline_s: float) -> memoryview:
    """The next `size` bytes; EOFError when the stream ends before."""
    body = np.empty(size, np.uint8).data
    got = 0
    while got < size:
        _wait_at_most(peer, deadline_s)
        count = peer.recv_into(body[got:])
        if not count:
            raise EOFError("closed by the shard")
        got += count
    return body
