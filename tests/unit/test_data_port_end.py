# SPDX-License-Identifier: Apache-2.0
"""How connections of the data port end: peers that vanish, stall, trickle; stops at every moment."""

import contextlib
import gc
import socket
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from rowhouse import frame
from rowhouse.codec import Part

from ps_server.serve import data_port
from ps_server.serve.data_port import DataPort
from tests.data_peer import BIG, Counted, Peer, listener, serving, until


# ------------------------------------------------------------ peers that vanish, stall, trickle
@pytest.mark.parametrize("where", ["head", "body", "refused body", "answer"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_peer_that_vanishes_leaves_nothing(service: Counted, port: DataPort, where: str, how: str) -> None:
    service.work = lambda kind, data: [bytes(BIG)]
    with Peer(port) as peer:
        whole = peer.frame(frame.PULL, bytes(1000))
        if where == "refused body":
            service.bound_bytes = 1
            service.take(1)
        peer.socket.sendall({"head": whole[:7], "answer": whole}.get(where, whole[:500]))
        (connection,) = _connections(port, 1)
        if where == "answer":
            until(lambda: bool(connection.unsent))
        elif where == "refused body":
            until(lambda: connection.refusal is not None)
            service.give(1)
        elif where == "body":
            until(lambda: service.held_bytes == 500 - frame.HEAD.size)  # what is here counts
        else:
            until(lambda: connection.got == 7)
        if how == "reset":
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    _connections(port, 0)
    assert service.held_bytes == 0


def _connections(port: DataPort, count: int) -> list[Any]:
    until(lambda: len(port._connections) == count)
    return list(port._connections.values())


@pytest.mark.parametrize("where", ["head", "body", "answer"])
def test_a_stalled_frame_is_given_up(service: Counted, hasty: None, where: str) -> None:
    service.work = lambda kind, data: [bytes(BIG)]
    with serving(service) as port, Peer(port) as peer:
        whole = peer.frame(frame.PULL, bytes(1000))
        peer.socket.sendall({"head": whole[:7], "body": whole[:500], "answer": whole}[where])
        _connections(port, 1)
        _connections(port, 0)
        assert service.held_bytes == 0 and peer.is_closed()


def test_idle_connections_and_long_calls_are_left_alone(service: Counted, hasty: None) -> None:
    def slow(kind: int, data: memoryview) -> list[Part]:
        time.sleep(1.2)
        return [data]

    usual = service.work
    with serving(service) as port, Peer(port) as idle, Peer(port) as fresh, Peer(port) as peer:
        assert idle.call(frame.PULL, b"first") == b"\x01first"
        service.work = slow
        assert peer.call(frame.PULL, b"long") == b"long"
        service.work = usual
        assert idle.call(frame.PULL, b"second") == b"\x01second"
        assert fresh.call(frame.PULL, b"first") == b"\x01first"


def test_bytes_that_trickle_do_not_hold_the_rest_for_ever(service: Counted, hasty: None) -> None:
    with serving(service) as port, Peer(port) as peer:
        peer.socket.sendall(peer.frame(frame.PUSH, bytes(100 << 20))[:1000])
        until(lambda: service.held_bytes == 1000 - frame.HEAD.size)
        began_s = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began_s + 10:
                peer.socket.sendall(b"\0")
                time.sleep(0.02)
        assert time.monotonic() - began_s < 5
        assert service.held_bytes == 0


def test_a_slow_frame_wins_time_by_its_bytes(
    service: Counted, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_port, "RATE_BYTES_MIN", 1_000)
    with serving(service) as port, Peer(port) as peer:
        data = peer.frame(frame.PUSH, bytes(3_000))
        began_s = time.monotonic()
        for start in range(0, len(data), 150):
            peer.socket.sendall(data[start : start + 150])
            time.sleep(0.06)
        assert time.monotonic() - began_s > 2 * data_port.STALL_S
        assert peer.receive() == (frame.ANSWER, b"\x02" + bytes(3_000))


def test_a_machine_that_vanishes_is_noticed_by_the_system(port: DataPort) -> None:
    with Peer(port):
        (connection,) = _connections(port, 1)
        option = connection.socket.getsockopt
        assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 50_000


# ------------------------------------------------------------ start and stop
def test_a_stop_ends_every_kind_of_connection(service: Counted) -> None:
    service.work = lambda kind, data: [bytes(BIG)]
    port = DataPort(service, 2)
    port.start(listener())
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(port)) for _ in range(4)]
        peers[0].call(frame.HELLO, b"")
        peers[1].socket.sendall(peers[1].frame(frame.PULL, bytes(100))[:50])
        peers[2].send(frame.PULL, b"unread")
        until(
            lambda: (
                service.held_bytes == 50 - frame.HEAD.size + 6 + BIG
                and any(c.unsent for c in port._connections.values())
            )
        )
        began_s = time.monotonic()
        port.stop(10)
        assert time.monotonic() - began_s < 2
        assert all(peer.is_closed() for peer in peers)
        with pytest.raises(ConnectionRefusedError):
            Peer(port)
    assert service.held_bytes == 0 and not port._connections
    port.stop(10)  # again: nothing


def test_a_stop_waits_for_the_call_that_runs(service: Counted) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(kind: int, data: memoryview) -> list[Part]:
        entered.set()
        assert leave.wait(10)
        return [data]

    service.work = hold
    port = DataPort(service, 2)
    port.start(listener())
    with Peer(port) as peer:
        peer.send(frame.PUSH, b"held")
        assert entered.wait(10)
        threading.Timer(0.3, leave.set).start()
        port.stop(10)
        assert leave.is_set()
        assert peer.receive() == (frame.ANSWER, b"held")
        assert peer.is_closed()
    assert service.held_bytes == 0


def test_a_stop_gives_up_on_a_call_that_does_not_end(service: Counted) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(kind: int, data: memoryview) -> list[Part]:
        entered.set()
        assert leave.wait(20)
        return [bytes(BIG)]

    service.work = hold
    port = DataPort(service, 2)
    port.start(listener())
    with Peer(port) as peer, Peer(port) as idle:
        idle.call(frame.HELLO, b"")
        peer.send(frame.PUSH, b"held")
        assert entered.wait(10)
        began_s = time.monotonic()
        port.stop(0.2)
        assert time.monotonic() - began_s < 2
        assert peer.is_closed() and idle.is_closed()
        leave.set()
        for thread in port._threads:
            thread.join(10)
            assert not thread.is_alive()
        assert service.held_bytes == 0
    port._listener.close()
    for connection in list(port._connections.values()):
        connection.socket.close()
    port._waker.close()
    port._wake.close()


def test_a_port_that_never_started_is_stopped(service: Counted) -> None:
    DataPort(service, 2).stop(1)


def test_a_socket_file_is_served_and_taken_away(service: Counted) -> None:
    with tempfile.TemporaryDirectory(prefix="rw") as name:
        made = socket.socket(socket.AF_UNIX)
        made.bind(f"{name}/a.sock.data")
        port = DataPort(service, 2)
        port.start(made)
        assert port.endpoint == f"unix:{name}/a.sock.data"
        with Peer(port) as peer:
            assert peer.call(frame.PULL, bytes(1 << 20)) == b"\1" + bytes(1 << 20)
        port.stop(10)
        assert not list(Path(name).iterdir())


def test_no_file_descriptor_is_left(service: Counted) -> None:
    this = psutil.Process()
    with serving(service), ExitStack():
        pass  # what is opened once in a process is open now
    gc.collect()  # what earlier tests left may be closed at any moment
    before = this.num_fds()
    with serving(service) as port:
        for number in range(30):
            with Peer(port) as peer:
                peer.socket.sendall(peer.frame(frame.PULL, bytes(50))[: number * 3])
        with Peer(port) as wrong, Peer(port):
            wrong.socket.sendall(bytes(20))
            assert wrong.is_closed()
            until(lambda: len(port._connections) == 1)
    assert this.num_fds() <= before
