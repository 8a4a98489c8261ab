# SPDX-License-Identifier: Apache-2.0
"""Calls over data connections against a port that does what a script says: the invariants of frame.py."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from rowhouse import frame
from rowhouse.error import BusyError, DeadlineExceededError, UnavailableError

from ps_client.transport import frame as ways
from ps_client.transport import transport
from ps_client.transport.frame import FrameTransport

TOKEN = 0x1122334455667788
Reply = Callable[[socket.socket, bytes], bool]


def whole(kind: int, body: bytes) -> bytes:
    """A frame."""
    return frame.encode_head(kind, len(body), TOKEN) + body


class Script:
    """A data port: `reply` gets each request's socket and body, and says whether the connection goes on."""

    def __init__(self) -> None:
        self.reply: Reply = self.echo
        self.connections = 0
        self.bodies: list[bytes] = []
        self.ended = threading.Semaphore(0)  # one for each connection that the client closed
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.frames = FrameTransport(f"127.0.0.1:{port + 1}", f":{port}", TOKEN)
        threading.Thread(target=self._accept, daemon=True).start()

    @staticmethod
    def echo(peer: socket.socket, body: bytes) -> bool:
        peer.sendall(whole(frame.ANSWER, b"re: " + body))
        return True

    def _accept(self) -> None:
        while True:
            try:
                peer = self._listener.accept()[0]
            except OSError:  # closed
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            while True:
                try:
                    head = peer.recv(frame.HEAD.size, socket.MSG_WAITALL)
                    if not head:
                        break
                    kind, size, token = frame.decode_head(head)
                    assert token == TOKEN
                    body = peer.recv(size, socket.MSG_WAITALL) if size else b""
                    if kind == frame.HELLO:
                        peer.sendall(whole(frame.ANSWER, b""))
                        continue
                    self.bodies.append(body)
                    if not self.reply(peer, body):
                        return
                except ConnectionError:
                    break
        self.ended.release()

    def call(self, body: bytes, timeout_s: float = 20) -> bytes:
        """One call."""
        return bytes(self.frames.send(frame.PULL, [body[:3], b"", body[3:]], timeout_s).result())

    def close(self) -> None:
        self.frames.close()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def script() -> Iterator[Script]:
    made = Script()
    yield made
    made.close()


def test_calls_in_a_row_share_a_connection(script: Script) -> None:
    assert script.frames.open() and not script.frames.served
    for number in range(20):
        assert script.call(b"call %d" % number) == b"re: call %d" % number
    assert script.connections == 1 and script.frames.served and not script.frames.lost


def test_threads_at_once_have_a_connection_each(script: Script) -> None:
    barrier = threading.Barrier(6)

    def together(peer: socket.socket, body: bytes) -> bool:
        barrier.wait(20)  # all six are under way at once
        return script.echo(peer, body)

    script.reply = together
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            bodies = [b"thread %d" % n for n in range(6)]
            assert list(pool.map(script.call, bodies)) == [b"re: " + b for b in bodies]
    assert script.connections == 6 and not script.frames.busy
    script.reply = script.echo
    assert script.call(b"alone") == b"re: alone"
    assert script.connections == 6


def test_many_pieces_and_big_answers(script: Script) -> None:
    pieces = [bytes([n % 251]) * (n % 5) for n in range(3_000)]
    big = bytes(5 << 20)
    assert (
        bytes(script.frames.send(frame.PUSH, [*pieces, big], 20).result()) == b"re: " + b"".join(pieces) + big
    )


def test_an_error_frame_is_raised_and_its_connection_is_used_again(script: Script) -> None:
    body = frame.encode_error(BusyError("later"))

    def refuse(peer: socket.socket, _: bytes) -> bool:
        peer.sendall(whole(frame.ERROR, body))
        return True

    script.reply = refuse
    with pytest.raises(BusyError, match=r"^shard at 127\.0\.0\.1:\d+: later$"):
        script.call(b"x")
    script.reply = script.echo
    assert script.call(b"x") == b"re: x"
    assert script.connections == 1 and not script.frames.lost


ANSWER = whole(frame.ANSWER, b"re: x" * 100)
BROKEN = {
    "nothing": b"",
    "half a head": ANSWER[:11],
    "a head": ANSWER[:20],
    "half a body": ANSWER[:300],
    "another magic": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a huge body": frame.encode_head(frame.ANSWER, 2**32 - 1, TOKEN),
    "a request": whole(frame.PUSH, b"x"),
    "another hello": whole(frame.HELLO, b""),
}


@pytest.mark.parametrize("broken", list(BROKEN))
def test_an_answer_that_breaks_off_or_is_none_is_unavailable(script: Script, broken: str) -> None:
    def break_off(peer: socket.socket, _: bytes) -> bool:
        peer.sendall(BROKEN[broken])
        return False

    assert script.call(b"before") == b"re: before"
    script.reply = break_off
    with pytest.raises(UnavailableError, match="data connection lost"):
        script.call(b"x")
    assert script.frames.lost and not script.frames.busy
    script.reply = script.echo
    assert script.call(b"after") == b"re: after"
    assert script.connections == 2 and script.bodies == [b"before", b"x", b"after"], "nothing is sent twice"


@pytest.mark.parametrize("sent", [0, 11, 20, 300])
def test_a_deadline_closes_the_connection(script: Script, sent: int) -> None:
    leave = threading.Event()

    def late(peer: socket.socket, _: bytes) -> bool:
        peer.sendall(ANSWER[:sent])
        leave.wait(20)
        peer.sendall(ANSWER[sent:])
        return True

    script.reply = late
    began_s = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.2 s"):
        script.call(b"x", timeout_s=0.2)
    assert 0.2 <= time.monotonic() - began_s < 5
    leave.set()
    script.reply = script.echo
    assert script.call(b"y") == b"re: y", "the late answer is nobody's"
    assert script.ended.acquire(timeout=10)


def test_a_call_that_gets_no_answer_says_so_once(
    script: Script, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "NOTICE_S", 0.05)
    monkeypatch.setattr(transport, "LOOK_S", 0.01)
    told = threading.Event()

    def late(peer: socket.socket, _: bytes) -> bool:
        assert told.wait(300)
        peer.sendall(ANSWER)
        return True

    def watch() -> None:
        while not caplog.records:
            time.sleep(0.01)
        time.sleep(0.1)  # for a second one
        told.set()

    script.reply = late
    threading.Thread(target=watch).start()
    script.call(b"x", timeout_s=300)
    (record,) = caplog.records
    assert re.match(r"waiting for shard at \S+: no answer yet; until ", record.getMessage())


def test_a_deadline_while_the_request_goes_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it takes the connection and reads nothing
        frames = FrameTransport("127.0.0.1:1", f":{listener.getsockname()[1]}", TOKEN)
        with pytest.raises(DeadlineExceededError):
            frames.send(frame.PUSH, [bytes(100 << 20)], 0.5).result()
        assert not frames.busy


def test_ctrl_c_in_mid_answer_leaves_no_half_read_connection(script: Script) -> None:
    """Invariant 1."""
    finish = threading.Event()

    def halting(peer: socket.socket, body: bytes) -> bool:
        peer.sendall(ANSWER[:200])
        time.sleep(0.1)  # let it wait for the rest
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        finish.wait(20)
        return True

    script.reply = halting
    with pytest.raises(KeyboardInterrupt):
        script.call(b"x")
    assert not script.frames.busy
    script.reply = script.echo
    assert script.call(b"y") == b"re: y"
    finish.set()
    assert script.ended.acquire(timeout=10)


def test_retire_lets_a_call_end_and_close_breaks_it_off(script: Script) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(peer: socket.socket, body: bytes) -> bool:
        entered.set()
        leave.wait(20)
        return script.echo(peer, body)

    script.reply = hold
    with ThreadPoolExecutor(2) as pool:
        assert script.frames.open()
        first = pool.submit(script.call, b"first")
        assert entered.wait(10)
        script.frames.retire()
        assert script.frames.busy
        leave.set()
        assert first.result(10) == b"re: first"
        assert script.ended.acquire(timeout=10), "its connection is closed then, not kept"
        with pytest.raises(UnavailableError, match="the client was closed"):
            script.call(b"late")
        other = Script()
        entered.clear()
        leave.clear()
        other.reply = hold
        second = pool.submit(other.call, b"second")
        assert entered.wait(10)
        other.close()
        with pytest.raises(UnavailableError, match="data connection lost"):
            second.result(10)
        leave.set()


def test_a_port_that_nobody_listens_on_is_not_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    frames = FrameTransport("127.0.0.1:1", f":{port}", TOKEN)
    assert not frames.open()
    with pytest.raises(UnavailableError, match=r"no data connection: .*refused"):
        frames.send(frame.PULL, [b""], 5).result()
    assert frames.lost
    assert not FrameTransport("unix:/a", "unix:/nowhere/at/all.data", TOKEN).open()


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", whole(frame.ERROR, b"x")])
def test_a_port_that_answers_no_hello_is_not_opened(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    monkeypatch.setattr(ways, "CONNECT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[Any] = []

        def accept() -> None:
            peer = listener.accept()[0]
            held.append(peer)
            if answer is not None:
                with peer:
                    peer.recv(frame.HEAD.size, socket.MSG_WAITALL)
                    peer.sendall(answer)

        thread = threading.Thread(target=accept)
        thread.start()
        began_s = time.monotonic()
        assert not FrameTransport("127.0.0.1:1", f":{listener.getsockname()[1]}", TOKEN).open()
        assert time.monotonic() - began_s < 5
        thread.join()
        held[0].close()


@pytest.mark.parametrize("told", ["", ":", ":0", ":65536", ":x", "tcp://a:1", "7000:"])
def test_words_that_are_no_data_endpoint(told: str) -> None:
    with pytest.raises(ValueError, match="must be :port or unix:/path"):
        FrameTransport("127.0.0.1:1", told, TOKEN)


def test_a_machine_that_vanishes_is_noticed_by_the_system(script: Script) -> None:
    assert script.frames.open()
    option = script.frames._idle[0].getsockopt
    assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 40_000


FORK = """
import os, sys
from rowhouse import frame
from ps_client.transport.frame import FrameTransport
frames = FrameTransport("127.0.0.1:1", sys.argv[1], int(sys.argv[2]))
assert bytes(frames.send(frame.PULL, [b"parent"], 20).result()) == b"re: parent"
pid = os.fork()
if pid == 0:
    assert bytes(frames.send(frame.PULL, [b"child"], 20).result()) == b"re: child"
    frames.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert bytes(frames.send(frame.PULL, [b"parent again"], 20).result()) == b"re: parent again"
"""


def test_a_forked_process_makes_connections_of_its_own(script: Script) -> None:
    """Invariant 3: two processes on one connection would read each other's answers."""
    where = f":{script._listener.getsockname()[1]}"
    subprocess.run([sys.executable, "-c", FORK, where, str(TOKEN)], check=True, timeout=600)
    assert script.connections == 2 and script.bodies == [b"parent", b"child", b"parent again"]
