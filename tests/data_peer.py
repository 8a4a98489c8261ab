# SPDX-License-Identifier: Apache-2.0
"""Both ends of a data connection for tests: a bare socket that speaks frames, and what a data port serves."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rowhouse import frame
from rowhouse.codec import Part
from rowhouse.error import BusyError
from rowhouse.limit import MESSAGE_BYTES_MAX

from ps_server.serve.data_port import DataPort

BIG = 40 << 20
"""An answer that no socket's buffer takes whole."""


class Counted:
    """An Answering that gives back what it got (`work` changes that) and counts what is in flight."""

    def __init__(self, bound_bytes: int = 1 << 30) -> None:
        self.message_bytes_max = MESSAGE_BYTES_MAX
        self.bound_bytes = bound_bytes
        self.held_bytes = 0
        self.taken = 0
        self.work: Callable[[int, memoryview], list[Part]] = lambda kind, data: [bytes([kind]), data]
        self._lock = threading.Lock()
        self._when_refused: list[Callable[[], None]] = []

    def when_refused(self, press: Callable[[], None]) -> None:
        self._when_refused.append(press)

    def take(self, size_bytes: int, *, peer: str = "", own_bytes: int = 0) -> None:
        with self._lock:
            if self.held_bytes > own_bytes and self.held_bytes + size_bytes > self.bound_bytes:
                refusal = BusyError(f"{self.held_bytes} bytes are held")
            else:
                refusal = None
                self.held_bytes += size_bytes
                self.taken += own_bytes == 0
        if refusal:
            for press in self._when_refused:
                press()
            raise refusal

    def give(self, size_bytes: int, *, peer: str = "") -> None:
        with self._lock:
            self.held_bytes -= size_bytes

    def answer(self, kind: int, data: memoryview, hold: Callable[[int], None]) -> list[Part]:
        parts = self.work(kind, data)
        if kind == frame.PULL:
            hold(sum(len(part) for part in parts))
        return parts


class Peer:
    """A connection to a data port, bytes in hand."""

    def __init__(self, port: DataPort) -> None:
        self.token = port.token
        if port.endpoint.startswith("unix:"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(20)
            self.socket.connect(port.endpoint.removeprefix("unix:"))
        else:
            self.socket = socket.create_connection(("127.0.0.1", int(port.endpoint[1:])), timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def frame(self, kind: int, body: bytes) -> bytes:
        """A frame that the port takes."""
        return frame.encode_head(kind, len(body), self.token) + body

    def send(self, kind: int, body: bytes) -> None:
        """Send a whole frame."""
        self.socket.sendall(self.frame(kind, body))

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer when the connection ends."""
        got = bytearray()
        while len(got) < size and (more := self.socket.recv(min(size - len(got), 1 << 20))):
            got += more
        return bytes(got)

    def receive(self) -> tuple[int, bytes]:
        """Kind and body of the next frame."""
        kind, size, _ = frame.decode_head(self.read(frame.HEAD.size))
        body = self.read(size)
        assert len(body) == size
        return kind, body

    def call(self, kind: int, body: bytes) -> bytes:
        """The body of the answer."""
        self.send(kind, body)
        answer, data = self.receive()
        assert answer == frame.ANSWER, data
        return data

    def fail(self, kind: int, body: bytes) -> str:
        """Class name and words of the error that a call gets."""
        self.send(kind, body)
        answer, data = self.receive()
        assert answer == frame.ERROR, data
        failure = frame.decode_error(memoryview(data), "port")
        return f"{type(failure).__name__} {failure}"

    def fail_or_call(self, kind: int, body: bytes) -> str:
        """Class name of the error that a call gets; "" when it gets none."""
        self.send(kind, body)
        answer, data = self.receive()
        return "" if answer == frame.ANSWER else type(frame.decode_error(memoryview(data), "")).__name__

    def is_closed(self) -> bool:
        """Whether the port hangs up, waiting for it; whatever it still says is read."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True


def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.005)


def listener() -> socket.socket:
    """A bound socket on a free port of loopback."""
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    return made


@contextmanager
def serving(service: Counted, threads: int = 2) -> Iterator[DataPort]:
    """A data port over `service`; at the end nothing is in flight and no thread is left."""
    before = set(threading.enumerate())
    port = DataPort(service, threads)
    port.start(listener())
    try:
        yield port
    finally:
        port.stop(10)
        assert service.held_bytes == 0
        assert not [t for t in threading.enumerate() if t.name.startswith("data-") and t not in before]
