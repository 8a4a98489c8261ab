# SPDX-License-Identifier: Apache-2.0
"""Connections to the data port of one shard: calls as frames (rowhouse/frame.py) over plain sockets.

One connection carries one call at a time; there are as many as calls under way at once. A call that was
begun goes on whenever its thread gives it a turn, so one thread can have calls to many shards under way.
channel.py decides when a link is used and when gRPC is.

Invariants: 1. a connection goes back to the pool only after a whole answer: whatever breaks off, its
connection is closed; 2. nothing is sent twice; 3. a forked process never touches its parent's connections.
Thread safety: any number of threads may call at once; a call that was begun belongs to one thread at a time.
"""

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeVar

from rowhouse import frame
from rowhouse.codec import Part
from rowhouse.error import DeadlineExceededError, InvalidRequestError, RowhouseError, UnavailableError

CONNECT_S: Final = 1.0
"""A port that a firewall hides does not answer at all; gRPC is there instead."""

KEEPALIVE_S: Final = 30
"""A machine that vanished is noticed after this and KEEPALIVE_LOST_S, as with gRPC."""

KEEPALIVE_LOST_S: Final = 10

K = TypeVar("K")


class DataCall:
    """One call: its request goes out and its answer comes in, as far as nothing must be waited for.

    Parameters
    ----------
    link
        Whose connection it uses.
    peer
        The connection; the call's own until it ends. None: there is none, and the call has ended.
    parts
        The frame of the request, in pieces.
    timeout_s
        What the answer may take, in seconds.

    Attributes
    ----------
    deadline_s
        When the answer must be here, of time.monotonic.
    """

    def __init__(
        self, link: "DataLink", peer: socket.socket | None, parts: Sequence[Part], timeout_s: float
    ) -> None:
        self._link, self._timeout_s = link, timeout_s
        self._peer = peer
        self._unsent = [memoryview(part) for part in parts if len(part)]
        self._into = memoryview(bytearray(frame.HEAD.size))
        self._got, self._kind = 0, -1  # -1 while the head is awaited
        self._failure: RowhouseError | None = None
        self.deadline_s = time.monotonic() + timeout_s

    @classmethod
    def failed(cls, link: "DataLink", failure: RowhouseError) -> "DataCall":
        """A call that ended before anything was sent."""
        call = cls(link, None, (), 0.0)
        call._failure = failure
        return call

    @property
    def succeeded(self) -> bool:
        """Whether the answer is here, and is no error."""
        return self._peer is None and self._failure is None and self._kind == frame.ANSWER

    def fileno(self) -> int:
        """The connection's number; -1 when the call has ended."""
        return -1 if self._peer is None else self._peer.fileno()

    @property
    def waits_for(self) -> int:
        """What must happen to the connection before the call can go on."""
        return select.POLLOUT if self._unsent else select.POLLIN

    def advance(self) -> bool:
        """Go on as far as it goes; whether the call has ended."""
        if self._peer is None:
            return True
        try:
            whole = self._go_on(self._peer)
        except (OSError, EOFError, InvalidRequestError) as failure:
            self._break_off(UnavailableError(f"{self._link}: data connection lost: {failure}"))
            return True
        except BaseException:
            self.cancel()
            raise
        if whole:
            peer, self._peer = self._peer, None
            self._link.keep(peer)
        elif time.monotonic() >= self.deadline_s:
            self._break_off(DeadlineExceededError(f"{self._link}: no answer within {self._timeout_s:.3g} s"))
        return self._peer is None

    def _go_on(self, peer: socket.socket) -> bool:
        """Whether the whole answer is here."""
        try:
            while self._unsent:
                frame.send_some(peer, self._unsent)
            while True:
                while self._got < len(self._into):
                    count = peer.recv_into(self._into[self._got :])
                    if not count:
                        raise EOFError("closed by the shard")
                    self._got += count
                if self._kind >= 0:
                    return True
                kind, size, _ = frame.decode_head(self._into)
                if kind not in (frame.ANSWER, frame.ERROR):
                    raise InvalidRequestError(f"a frame of kind {kind} is no answer")
                self._kind, self._got, self._into = kind, 0, frame.body_memory(size)
        except BlockingIOError:
            return False

    def cancel(self) -> None:
        """Wait for no answer; nothing if the call has ended. What the shard makes of it is not known."""
        self._break_off(UnavailableError(f"{self._link}: the call was given up"))

    def _break_off(self, failure: RowhouseError) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            self._failure = failure
            self._link.discard(peer)

    def result(self) -> memoryview:
        """The encoded answer, in memory of its own; it is waited for.

        Raises
        ------
        UnavailableError
            The connection was lost: whether the call was served is not known.
        DeadlineExceededError
            No answer in time; same.
        RowhouseError
            What the shard raised.
        """
        for _ in as_ended({0: self}):
            pass
        if self._failure is not None:
            raise self._failure
        if self._kind == frame.ERROR:
            raise frame.decode_error(self._into, str(self._link))
        return self._into


def as_ended(calls: Mapping[K, DataCall]) -> Iterator[K]:
    """Keys of calls as these end: all of them go on meanwhile, each as far as it can.

    Parameters
    ----------
    calls
        Each ends by itself, at its deadline at the latest.
    """
    try:
        poller = select.poll()
        waiting: dict[int, K] = {}
        for key, call in calls.items():
            number = call.fileno()  # before it ends
            if call.advance():
                yield key
            else:
                waiting[number] = key
                poller.register(number, call.waits_for)
        while waiting:
            now_s = time.monotonic()
            due_s = min(calls[key].deadline_s for key in waiting.values())
            ready = {number for number, _ in poller.poll(max(due_s - now_s, 0.0) * 1e3)}
            if due_s <= now_s or not ready:  # each looks at its own time
                ready = set(waiting)
            for number in ready:
                call = calls[waiting[number]]
                if call.advance():
                    poller.unregister(number)
                    yield waiting.pop(number)
                else:
                    poller.register(number, call.waits_for)
    finally:  # an interrupted wait, or a caller that wants no more of them
        for call in calls.values():
            call.cancel()


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

    def __str__(self) -> str:
        return self._where

    def open(self) -> bool:
        """Make a first connection and say hello; False when that is not answered within CONNECT_S.

        A port that takes connections may still be another shard's by now, full, or a balancer with nobody
        behind it; a first call would wait there for all of its time.
        """
        try:
            greeted = not len(self.begin(frame.HELLO, [], CONNECT_S).result())
        except RowhouseError:
            greeted = False
        if not greeted:
            with self._lock:
                self._close_idle()
        self.served = False
        return greeted

    def begin(self, kind: int, parts: Sequence[Part], timeout_s: float) -> DataCall:
        """Send what can be sent of a request at once; the rest, and the answer, are the call's.

        Parameters
        ----------
        kind
            frame.PULL, PUSH or CONTRIBUTE.
        parts
            The encoded request, in pieces; they must stay as they are until the call ends.
        timeout_s
            What the answer may take, in seconds.

        Returns
        -------
        DataCall
            One that failed, where there is no connection.
        """
        try:
            peer = self._take(timeout_s)
        except (OSError, EOFError) as failure:
            self.lost = True
            return DataCall.failed(self, UnavailableError(f"{self}: no data connection: {failure}"))
        head = frame.encode_head(kind, sum(len(part) for part in parts), self._token)
        call = DataCall(self, peer, [head, *parts], timeout_s)
        call.advance()
        return call

    def retire(self) -> None:
        """Close every connection, those in use after their call."""
        with self._lock:
            self._closed = True
            self._close_idle()

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
            peer.setblocking(False)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            frame.keep_alive(peer, KEEPALIVE_S, KEEPALIVE_LOST_S)
            return peer
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.settimeout(timeout_s)
            peer.connect(self._path)
            peer.setblocking(False)
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
            self._close_idle()

    def _close_idle(self) -> None:
        for peer in self._idle:
            peer.close()
        self._idle = []

    def keep(self, peer: socket.socket) -> None:
        """Take back a connection whose call was answered."""
        self.served = True
        with self._lock:
            self._busy.discard(peer)
            if not self._closed:
                self._idle.append(peer)
                return
        peer.close()

    def discard(self, peer: socket.socket) -> None:
        """Close a connection whose call broke off."""
        self.lost = True
        with self._lock:
            self._busy.discard(peer)
        peer.close()
