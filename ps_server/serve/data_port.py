# SPDX-License-Identifier: Apache-2.0
"""The data port of a shard: Pull, Push and Contribute as frames over plain sockets, beside gRPC.

    epoll ── a ready connection ──▶ one of `threads` ── read · answer · write, as far as it goes ──▶ epoll

No thread belongs to a connection: one that idles costs its socket and a few hundred bytes. What a frame
means is rowhouse/frame.py's business, what a call does service.py's.

Invariants: 1. a connection is in the hands of one thread at a time (EPOLLONESHOT); 2. the bytes of a
request count as in flight as they arrive, until the end of its answer, those of the rows it asks for from
before they are fetched to then: peers that ask and do not read find the shard busy, not its memory gone, and
what a head announces takes nothing from others; 3. whatever a peer sends, at worst its own connection is
closed; 4. a peer that stops in the middle of a frame, does not read its answer, or trickles, loses its
connection: a frame takes STALL_S, plus a second for each RATE_BYTES_MIN, at most, and PRESSED_S in the place
of STALL_S while others find the shard busy.
Thread safety: `start` and `stop` belong to one thread.
"""

import contextlib
import errno
import logging
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from rowhouse import frame
from rowhouse.codec import Part
from rowhouse.error import BusyError, InvalidRequestError, LimitExceededError, RowhouseError

from ps_server.config.endpoint import SOCKET_PREFIX
from ps_server.serve.complaint import Complaints
from ps_server.serve.connection_limit import CONNECTIONS_MAX
from ps_server.serve.in_flight import Counting, peer_of

STALL_S: Final = 30.0
"""A frame that makes no progress for so long is given up: its bytes are counted against everybody."""

PRESSED_S: Final = 2.0
"""What such a frame has while others are refused for the bytes that it holds."""

TAKE_BYTES: Final = 1 << 20
"""A body is counted so many bytes ahead at most, while it is read."""

RATE_BYTES_MIN: Final = 1 << 20
"""Bytes of a frame that win it another second: else one byte now and then would hold the rest for ever."""

KEEPALIVE_S: Final = 30
"""A trainer whose machine vanished is noticed after this and KEEPALIVE_LOST_S, as with gRPC."""

KEEPALIVE_LOST_S: Final = 20

_SWEEP_S: Final = 5.0
_BACKLOG: Final = 1024
_ACCEPTS_MAX: Final = 64
"""Connections taken at a time, so that a flood of them leaves threads to those that are there."""

_NEVER_S: Final = float("inf")

_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)

_READ, _WRITE = select.EPOLLIN | select.EPOLLONESHOT, select.EPOLLOUT | select.EPOLLONESHOT

_log = logging.getLogger(__name__)


class Answering(Counting, Protocol):
    """What a data port serves: service.py's ParameterService, and fakes in tests."""

    message_bytes_max: int
    """Bound of the body of one frame."""

    def when_refused(self, press: Callable[[], None]) -> None:
        """Have `press` called when `take` refuses, now and then."""

    def answer(self, kind: int, data: memoryview, hold: Callable[[int], None]) -> list[Part]:
        """The answer to one request frame, large ones counted by `hold`; raises errors of rowhouse.error."""


class _Connection:
    """One peer: the frame that is coming in, or the answer that is going out.

    Attributes
    ----------
    got
        Bytes of the head, or then of the body, that are here.
    body
        Where the body goes; None while the head is read, and while a refused body is skipped.
    held_bytes
        What is counted as in flight.
    peer
        Who is at the other end, as shares of what is in flight go: an address, or a connection of this
        machine, for all of its processes have one address.
    refusal
        Why the body is skipped, and what the answer will be.
    unsent
        What is left of the answer.
    due_s
        When the frame must have got further; infinite between two calls and while the call is at work.
    """

    __slots__ = (
        "body",
        "due_s",
        "got",
        "head",
        "held_bytes",
        "kind",
        "left",
        "peer",
        "refusal",
        "socket",
        "unsent",
    )

    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer
        self.peer = peer_of(_address(peer), f"connection {peer.fileno()}")
        self.head = bytearray(frame.HEAD.size)
        self.got = self.left = self.kind = self.held_bytes = 0
        self.body: memoryview | None = None
        self.refusal: RowhouseError | None = None
        self.unsent: list[memoryview] = []
        self.due_s = _NEVER_S

    def moved(self, count: int) -> None:
        """Note that `count` bytes went in or out."""
        latest_s = time.monotonic() + STALL_S
        self.due_s = min(latest_s, self.due_s + count / RATE_BYTES_MIN)

    def receive(self, into: memoryview) -> bool:
        """Read until `into` is full; False when the rest is not here yet. EOFError when the peer is gone."""
        while self.got < len(into):
            if not self.receive_some(into[self.got :]):
                return False
        return True

    def receive_some(self, into: memoryview) -> bool:
        """Read what is here; False when that is nothing."""
        try:
            count = self.socket.recv_into(into)
        except BlockingIOError:
            return False
        if not count:
            raise EOFError
        self.got += count
        self.moved(count)
        return True

    def is_ready(self) -> bool:
        """Whether the peer did its part, and it is we who have not come to go on."""
        poller = select.poll()
        try:
            poller.register(self.socket, select.POLLOUT if self.unsent else select.POLLIN)
        except ValueError:  # closed meanwhile
            return True
        return bool(poller.poll(0))

    def send(self) -> bool:
        """Write what is unsent; False when the peer must read first."""
        while self.unsent:
            try:
                self.moved(frame.send_some(self.socket, self.unsent))
            except BlockingIOError:
                return False
        return True


class DataPort:
    """The data port of one shard.

    Parameters
    ----------
    service
        Answers requests.
    threads
        Requests served at once.
    connections_max
        Connections past it are closed as they come; their clients go on over gRPC.

    Attributes
    ----------
    endpoint
        What GetCluster tells: ":port" or "unix:/path".
    token
        What every frame must carry.
    """

    def __init__(self, service: Answering, threads: int, connections_max: int = CONNECTIONS_MAX) -> None:
        self.endpoint = ""
        self._connections_max = connections_max
        self.token = secrets.randbits(64)
        self._service = service
        service.when_refused(self._press)
        self._complaints = Complaints(_log)
        self._connections: dict[int, _Connection] = {}
        self._stopping = self._paused = False
        self._swept_s = time.monotonic()
        self._sweeping = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"data-{i}", daemon=True) for i in range(threads)
        ]

    def start(self, listener: socket.socket) -> None:
        """Serve on a bound socket from now on; it is closed by `stop`.

        Raises
        ------
        OSError
            The system refuses to listen.
        """
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        self._listener = listener
        address = listener.getsockname()
        self.endpoint = f":{address[1]}" if isinstance(address, tuple) else f"{SOCKET_PREFIX}{address}"
        self._epoll = select.epoll()
        self._epoll.register(listener, _READ)
        self._waker, self._wake = socket.socketpair()
        self._epoll.register(self._waker, select.EPOLLIN)  # not one-shot: it wakes every thread
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> None:
        """Take no more frames, let running calls end, close every connection; nothing if never started."""
        if not self.endpoint or self._stopping:
            return
        self._stopping = True
        self._wake.send(b"\0")
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(deadline_s - time.monotonic(), 0))
        if self.endpoint.startswith(SOCKET_PREFIX):
            Path(self.endpoint.removeprefix(SOCKET_PREFIX)).unlink(missing_ok=True)
        for connection in list(self._connections.values()):
            self._end(connection)  # whatever still runs finds its peer gone, and drops it itself
        self._end_socket(self._listener)
        if not any(thread.is_alive() for thread in self._threads):
            for connection in list(self._connections.values()):
                self._drop(connection)
            for one in (self._listener, self._epoll, self._waker, self._wake):
                one.close()

    # ------------------------------------------------------------ threads
    def _work(self) -> None:
        listening = self._listener.fileno()
        while not self._stopping:
            ready = self._epoll.poll(_SWEEP_S, 1)
            if self._stopping:
                return
            self._sweep()
            for number, _ in ready:
                if number == listening:
                    self._accept()
                elif connection := self._connections.get(number):
                    self._serve(connection)

    def _accept(self) -> None:
        try:
            for _ in range(_ACCEPTS_MAX):
                self._add(self._listener.accept()[0])
        except BlockingIOError:
            pass
        except OSError as error:
            if self._stopping:
                return
            _log.warning("data port %s: a connection was not taken: %s", self.endpoint, error)
            if error.errno in _EXHAUSTED:  # taking it at once again would fail at once again
                self._paused = True
                return
        self._epoll.modify(self._listener, _READ)

    def _add(self, peer: socket.socket) -> None:
        if len(self._connections) >= self._connections_max:
            peer.close()
            return
        try:
            peer.setblocking(False)
            if peer.family != socket.AF_UNIX:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                frame.keep_alive(peer, KEEPALIVE_S, KEEPALIVE_LOST_S)
            self._connections[peer.fileno()] = _Connection(peer)
            self._epoll.register(peer, _READ)
        except OSError:
            self._connections.pop(peer.fileno(), None)
            peer.close()
            raise

    def _serve(self, connection: _Connection) -> None:
        """Go on with a connection as far as it goes, then wait for it again, or close it."""
        try:
            wanted = self._advance(connection)
        except (OSError, EOFError):
            self._drop(connection)
        except RowhouseError as error:
            peer = _address(connection.socket)
            self._complaints.warn(peer, f"data port {self.endpoint}: connection of {peer} closed: {error}")
            self._drop(connection)
        except Exception:
            _log.exception("data port %s: connection closed", self.endpoint)
            self._drop(connection)
        else:
            self._epoll.modify(connection.socket, wanted)

    def _advance(self, c: _Connection) -> int:
        """What to wait for next. One call at most, so that no connection keeps a thread for itself."""
        if not c.unsent:
            if not self._read(c):
                return _READ
            c.unsent = [memoryview(part) for part in self._answer(c) if len(part)]
        if not c.send():
            return _WRITE
        self._release(c)
        return _READ

    def _read(self, c: _Connection) -> bool:
        """Whether a whole request is here."""
        if not c.left and c.body is None:
            if not c.receive(memoryview(c.head)):
                return False
            self._begin(c)
        if c.body is not None:
            try:
                return self._receive_body(c, c.body)
            except BusyError as error:
                self._refuse(c, error, len(c.body) - c.got)
        scratch = memoryview(bytearray(1 << 16))
        while c.left:  # a refused body is read all the same: closing now would lose the answer
            c.got = 0
            try:
                c.receive(scratch[: c.left])
            finally:
                c.left -= c.got
            if not c.got:
                return False
        return True

    def _begin(self, c: _Connection) -> None:
        """The head is here: make room for the body, which takes no memory before it comes."""
        c.kind, size, token = frame.decode_head(c.head)
        known = c.kind in frame.REQUESTS or (c.kind == frame.HELLO and not size)
        if token != self.token or not known:
            raise InvalidRequestError(f"a frame of kind {c.kind} with token {token:#x} is not for this shard")
        c.got = 0
        most = self._service.message_bytes_max
        if size > most:
            text = f"a request of {size} bytes; at most {most} for the memory_budget of this shard"
            self._refuse(c, LimitExceededError(f"{text}, use smaller steps"), size)
        else:
            c.body = frame.body_memory(size)

    def _refuse(self, c: _Connection, error: RowhouseError, left: int) -> None:
        """Keep nothing of a request, and answer it with `error` once the `left` bytes of it have come."""
        self._let_go(c)
        c.refusal, c.left = error, left

    def _receive_body(self, c: _Connection, body: memoryview) -> bool:
        """Read until the body is whole; False when the rest is not here yet. What is here is counted."""
        while True:
            ahead = min(len(body) - c.got, TAKE_BYTES)
            self._service.take(ahead, peer=c.peer, own_bytes=c.held_bytes)
            c.held_bytes += ahead
            if c.got == len(body):
                return True
            came = c.receive_some(body[c.got : c.got + ahead])
            if c.held_bytes > c.got:
                self._service.give(c.held_bytes - c.got, peer=c.peer)
                c.held_bytes = c.got
            if not came:
                return False

    def _press(self) -> None:
        """Others are refused: end the connections whose frames hold bytes and do not get further."""
        now_s = time.monotonic()
        for c in list(self._connections.values()):
            if c.held_bytes and c.due_s - STALL_S + PRESSED_S < now_s and not c.is_ready():
                self._end(c)

    def _answer(self, c: _Connection) -> list[Part]:
        c.due_s = _NEVER_S
        try:
            if c.refusal is not None:
                raise c.refusal
            assert c.body is not None
            if c.kind == frame.HELLO:
                return [frame.encode_head(frame.ANSWER, 0, 0)]
            parts = self._service.answer(c.kind, c.body, partial(self._hold, c))
            return [frame.encode_head(frame.ANSWER, sum(len(part) for part in parts), 0), *parts]
        except RowhouseError as error:
            self._let_go(c)  # neither the request nor rows are kept for a peer that does not read its error
            body = frame.encode_error(error)
            return [frame.encode_head(frame.ERROR, len(body), 0), body]
        finally:
            c.due_s = time.monotonic() + STALL_S

    def _hold(self, c: _Connection, size_bytes: int) -> None:
        self._service.take(size_bytes, peer=c.peer, own_bytes=c.held_bytes)
        c.held_bytes += size_bytes

    def _let_go(self, c: _Connection) -> None:
        self._service.give(c.held_bytes, peer=c.peer)
        c.held_bytes, c.body = 0, None

    def _release(self, c: _Connection) -> None:
        """Back to the state between two calls."""
        self._let_go(c)
        c.got = c.left = 0
        c.refusal = None
        c.due_s = _NEVER_S

    def _drop(self, c: _Connection) -> None:
        if self._connections.pop(c.socket.fileno(), None) is None:
            return
        self._release(c)
        c.unsent = []
        c.socket.close()  # and so out of the epoll

    def _sweep(self) -> None:
        """End connections that stopped in the middle of a frame; the thread that wakes then drops them."""
        now_s = time.monotonic()
        if now_s - self._swept_s < _SWEEP_S or not self._sweeping.acquire(blocking=False):
            return
        try:
            self._swept_s = now_s
            self._complaints.tell_left_out()
            if self._paused:
                self._paused = False
                self._epoll.modify(self._listener, _READ)
            for c in list(self._connections.values()):
                if c.due_s < now_s:
                    self._end(c)
        finally:
            self._sweeping.release()

    def _end(self, c: _Connection) -> None:
        self._end_socket(c.socket)

    @staticmethod
    def _end_socket(one: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed meanwhile
            one.shutdown(socket.SHUT_RDWR)


def _address(peer: socket.socket) -> str:
    """Who is at the other end, without the port, which is another one each time."""
    try:
        name = peer.getpeername()
    except OSError:
        return "a peer that is gone"
    return str(name[0]) if isinstance(name, tuple) else "a process of this machine"
