# SPDX-License-Identifier: Apache-2.0
"""The hot calls to one shard over its data port: frames (rowhouse/frame.py) over plain sockets.

One connection carries one call at a time; there are as many as calls under way at once. A call that was
begun goes on whenever its thread gives it a turn, so one thread can have calls to many shards under way.
fallback.py decides when frames are used and when gRPC is.

Invariants: 1. a connection goes back to the pool only after a whole answer: whatever breaks off, its
connection is closed; 2. nothing is sent twice; 3. a forked process never touches its parent's connections.
Thread safety: any number of threads may call at once; a call that was begun belongs to one thread at a time.
"""

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from google.protobuf.message import DecodeError
from rowhouse import codec, frame
from rowhouse.codec import Part
from rowhouse.error import (
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    RowhouseError,
    UnavailableError,
)
from rowhouse.message import Contribution, PullRequest, PullResponse, PushRequest, PushResponse
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.notice import NOTICE_S, tell_waiting
from ps_client.transport.transport import Begun, HotTransport, Underway, as_ended

CONNECT_S: Final = 1.0
"""A port that a firewall hides does not answer at all; gRPC is there instead."""

KEEPALIVE_S: Final = 30
"""A machine that vanished is noticed after this and KEEPALIVE_LOST_S, as with gRPC."""

KEEPALIVE_LOST_S: Final = 10

_log = logging.getLogger(__name__)


class FrameCall(Underway):
    """One call: its request goes out and its answer comes in, as far as nothing must be waited for.

    Parameters
    ----------
    frames
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
        self, frames: "FrameTransport", peer: socket.socket | None, parts: Sequence[Part], timeout_s: float
    ) -> None:
        self._frames, self._timeout_s = frames, timeout_s
        self._peer = peer
        self._unsent = [memoryview(part) for part in parts if len(part)]
        self._into = memoryview(bytearray(frame.HEAD.size))
        self._got, self._kind = 0, -1  # -1 while the head is awaited
        self._failure: RowhouseError | None = None
        self._told = False
        self.deadline_s = time.monotonic() + timeout_s

    @classmethod
    def failed(cls, frames: "FrameTransport", failure: RowhouseError) -> "FrameCall":
        """A call that ended before anything was sent."""
        call = cls(frames, None, (), 0.0)
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
            self._break_off(UnavailableError(f"{self._frames}: data connection lost: {failure}"))
            return True
        except BaseException:
            self.cancel()
            raise
        if whole:
            peer, self._peer = self._peer, None
            self._frames.keep(peer)
        else:
            self._look_at_time()
        return self._peer is None

    def _look_at_time(self) -> None:
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            self._break_off(
                DeadlineExceededError(f"{self._frames}: no answer within {self._timeout_s:.3g} s")
            )
        elif not self._told and self._timeout_s - left_s >= NOTICE_S:
            self._told = True
            tell_waiting(f"{self._frames}: no answer yet", left_s)

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
        self._break_off(UnavailableError(f"{self._frames}: the call was given up"))

    def _break_off(self, failure: RowhouseError) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            self._failure = failure
            self._frames.discard(peer)

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
            raise frame.decode_error(self._into, str(self._frames))
        return self._into


@dataclass(frozen=True, slots=True)
class _Hot:
    """A hot call as frames."""

    kind: int
    encode: Callable[[Any], list[Part]]
    decode: Callable[[memoryview], Any]


_HOT: Final[Mapping[type, _Hot]] = {
    PullRequest: _Hot(frame.PULL, codec.pull_request_parts, codec.decode_pull_response),
    PushRequest: _Hot(frame.PUSH, codec.push_request_parts, codec.decode_push_response),
    Contribution: _Hot(
        frame.CONTRIBUTE,
        codec.contribution_parts,
        lambda data: pb.ContributeResponse.FromString(bytes(data)),
    ),
}


def open_frames(endpoint: str, data_endpoint: str, token: int) -> "FrameTransport | None":
    """A way to the data port that `endpoint` told; None when it cannot be used."""
    try:
        frames = FrameTransport(endpoint, data_endpoint, token)
    except ValueError as failure:  # the words of a newer shard
        _log.info("shard at %s: %s", endpoint, failure)
        return None
    return frames if frames.open() else None


class FrameTransport(HotTransport):
    """The hot calls to one shard over its data port.

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
        self.endpoint = endpoint
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
        return f"shard at {self.endpoint}"

    def open(self) -> bool:
        """Make a first connection and say hello; False when that is not answered within CONNECT_S.

        A port that takes connections may still be another shard's by now, full, or a balancer with nobody
        behind it; a first call would wait there for all of its time.
        """
        try:
            greeted = not len(self.send(frame.HELLO, [], CONNECT_S).result())
        except RowhouseError:
            greeted = False
        if not greeted:
            with self._lock:
                self._close_idle()
        self.served = False
        return greeted

    def pull(self, request: PullRequest, timeout_s: float) -> PullResponse:
        """Rows of one step."""
        return cast("PullResponse", self.begin(request, timeout_s).result())

    def push(self, request: PushRequest, timeout_s: float) -> PushResponse:
        """Gradients of one step."""
        return cast("PushResponse", self.begin(request, timeout_s).result())

    def contribute(self, request: Contribution, timeout_s: float) -> pb.ContributeResponse:
        """One trainer's gradients of one step."""
        return cast("pb.ContributeResponse", self.begin(request, timeout_s).result())

    def begin(self, request: PullRequest | PushRequest | Contribution, timeout_s: float) -> Begun[Any]:
        """A hot call that is sent, and not waited for."""
        hot = _HOT[type(request)]
        call = self.send(hot.kind, hot.encode(request), timeout_s)

        def result() -> Any:
            data = call.result()
            try:
                return hot.decode(data)
            except (InvalidRequestError, DecodeError) as failure:  # as gRPC takes such an answer
                raise InternalError(f"{self}: an answer that cannot be read: {failure}") from failure

        return Begun(call, result)

    def send(self, kind: int, parts: Sequence[Part], timeout_s: float) -> FrameCall:
        """Send what can be sent of a request at once; the rest, and the answer, are the call's.

        Parameters
        ----------
        kind
            frame.HELLO, PULL, PUSH or CONTRIBUTE.
        parts
            The encoded request, in pieces; they must stay as they are until the call ends.
        timeout_s
            What the answer may take, in seconds.

        Returns
        -------
        FrameCall
            One that failed, where there is no connection.
        """
        try:
            peer = self._take(timeout_s)
        except (OSError, EOFError) as failure:
            self.lost = True
            return FrameCall.failed(self, UnavailableError(f"{self}: no data connection: {failure}"))
        head = frame.encode_head(kind, sum(len(part) for part in parts), self._token)
        call = FrameCall(self, peer, [head, *parts], timeout_s)
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
