# SPDX-License-Identifier: Apache-2.0
"""The data port under peers that ask for much and never read (invariants 2 and 4 of its module)."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from rowhouse import codec, frame
from rowhouse.codec import Part
from rowhouse.error import UnknownTableError

from ps_server.serve import data_port
from ps_server.serve.data_port import DataPort
from ps_server.serve.service import ParameterService
from tests.data_peer import BIG, Counted, Peer, listener, serving, until
from tests.unread import ANSWER, BOUND, Filled, held_bytes, pull_bytes

PEERS = 300


@contextmanager
def serving_shard(service: ParameterService) -> Iterator[DataPort]:
    """A data port of a real service; nothing is in flight at the end."""
    service.attach(Filled())
    port = DataPort(service, 2)
    port.start(listener())
    try:
        yield port
    finally:
        port.stop(10)
        assert held_bytes(service) == 0


def test_peers_that_ask_and_never_read_find_it_busy_and_its_memory_bounded() -> None:
    service = ParameterService(0, in_flight_bytes_max=BOUND)
    body, this = pull_bytes(ANSWER), psutil.Process()
    with serving_shard(service) as port:
        with ExitStack() as stack, Peer(port) as honest:
            before = this.memory_info().rss
            most = 0
            for _ in range(PEERS):
                stack.enter_context(Peer(port)).send(frame.PULL, body)
                most = max(most, held_bytes(service))
            until(lambda: sum(bool(c.unsent) for c in list(port._connections.values())) == 7)
            assert BOUND - 2 * ANSWER < held_bytes(service) <= BOUND and most <= BOUND
            assert this.memory_info().rss - before < 2 * BOUND, "300 answers would be 4.8 GB"
            assert len(honest.call(frame.PULL, pull_bytes(4096))) > 4096, "what still fits is served"
            assert honest.fail(frame.PULL, body).startswith("BusyError port: the answer of 16778240 bytes: ")
            assert honest.call(frame.HELLO, b"") == b""
        until(lambda: held_bytes(service) == 0)
        with Peer(port) as after:
            assert len(after.call(frame.PULL, body)) > ANSWER


def test_a_peer_that_reads_at_last_gets_its_rows_and_the_others_room() -> None:
    service = ParameterService(0, in_flight_bytes_max=BOUND)
    with serving_shard(service) as port, Peer(port) as late, Peer(port) as other:
        late.send(frame.PULL, pull_bytes(BOUND - ANSWER))
        until(lambda: held_bytes(service) > BOUND - ANSWER)
        assert other.fail(frame.PULL, pull_bytes(ANSWER)).startswith("BusyError")
        kind, answer = late.receive()
        assert kind == frame.ANSWER
        rows = codec.decode_pull_response(answer).tables[0].rows
        assert rows.nbytes == BOUND - ANSWER and (rows == 1.5).all()
        until(lambda: held_bytes(service) == 0)
        assert len(other.call(frame.PULL, pull_bytes(ANSWER))) > ANSWER


def test_one_pull_past_the_bound_is_served_while_nobody_else_is() -> None:
    service = ParameterService(0, in_flight_bytes_max=1000)
    with serving_shard(service) as port, Peer(port) as alone:
        assert len(alone.call(frame.PULL, pull_bytes(ANSWER))) > ANSWER


def test_peers_that_do_not_read_are_given_up_and_the_others_served(hasty: None) -> None:
    service = Counted(bound_bytes=BIG + 100)
    service.work = lambda kind, data: [bytes(BIG if kind == frame.PULL else 1)]
    with serving(service) as port, Peer(port) as unread, Peer(port) as other:
        unread.send(frame.PULL, b"never read")
        until(lambda: service.held_bytes > BIG)
        assert other.fail(frame.PULL, b"x").startswith("BusyError")
        assert other.call(frame.PUSH, b"x") == b"\0"
        until(lambda: service.held_bytes == 0)  # without any call of the peers
        assert unread.is_closed()
        assert len(other.call(frame.PULL, b"x")) == BIG


def test_an_error_that_is_not_read_holds_neither_request_nor_rows() -> None:
    """As many glued requests as their errors fill both sockets, so that one stays unsent."""

    def refuse(kind: int, data: memoryview) -> list[Part]:
        raise UnknownTableError("no" * 2_000)

    service = Counted()
    service.work = refuse
    with serving(service, threads=1) as port, Peer(port) as unread:
        unread.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            unread.socket.sendall(unread.frame(frame.PULL, bytes(50)) * 200_000)
        until(lambda: any(c.unsent for c in list(port._connections.values())))
        assert service.held_bytes == 0


def test_heads_without_bodies_take_nothing_from_others() -> None:
    service = Counted(bound_bytes=10 << 20)
    with serving(service) as port, ExitStack() as stack, Peer(port) as honest:
        for _ in range(20):
            stack.enter_context(Peer(port)).socket.sendall(frame.encode_head(frame.PUSH, 9 << 20, port.token))
        until(lambda: sum(c.body is not None for c in list(port._connections.values())) == 20)
        until(lambda: service.held_bytes == 0)
        for _ in range(5):
            assert len(honest.call(frame.PUSH, bytes(9 << 20))) == (9 << 20) + 1


@pytest.mark.parametrize("where", ["body", "answer"])
def test_bytes_that_do_not_get_further_are_given_up_when_others_need_them(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 4: it would take STALL_S, were it not for the others."""
    monkeypatch.setattr(data_port, "PRESSED_S", 0.3)
    service = Counted(bound_bytes=BIG)
    service.work = lambda kind, data: [bytes(BIG - 100 if kind == frame.PULL else 1)]
    with serving(service) as port, Peer(port) as silent, Peer(port) as other:
        if where == "answer":
            silent.send(frame.PULL, b"never read")
        else:
            silent.socket.sendall(silent.frame(frame.PUSH, bytes(BIG))[:-1])
        until(lambda: service.held_bytes > BIG - 100)
        while other.fail_or_call(frame.PUSH, bytes(200)) != "":
            pass
        assert silent.is_closed()


def test_a_body_that_finds_no_room_half_way_is_refused_and_the_connection_goes_on() -> None:
    service = Counted(bound_bytes=8 << 20)
    with serving(service) as port, Peer(port) as peer:
        whole = peer.frame(frame.PUSH, bytes(4 << 20))
        peer.socket.sendall(whole[: 2 << 20])
        until(lambda: service.held_bytes == (2 << 20) - frame.HEAD.size)
        service.take(6 << 20)
        peer.socket.sendall(whole[2 << 20 :])
        kind, body = peer.receive()
        assert kind == frame.ERROR and b"BusyError" in body
        assert service.held_bytes == 6 << 20
        service.give(6 << 20)
        assert len(peer.call(frame.PUSH, bytes(4 << 20))) == (4 << 20) + 1


def test_a_peer_that_waits_for_the_shard_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_port, "PRESSED_S", -60.0)  # nobody is in time
    service, entered, leave = Counted(), threading.Event(), threading.Event()

    def work(kind: int, data: memoryview) -> list[Part]:
        if kind == frame.PULL:
            entered.set()
            assert leave.wait(20)
        return [b"done"]

    service.work = work
    with serving(service, threads=1) as port, Peer(port) as busy, Peer(port) as other, Peer(port) as silent:
        whole = other.frame(frame.PUSH, bytes(1000))
        other.socket.sendall(whole[:500])
        silent.socket.sendall(silent.frame(frame.PUSH, bytes(1000))[:500])
        until(lambda: service.held_bytes == 2 * (500 - frame.HEAD.size))
        busy.send(frame.PULL, b"")
        assert entered.wait(20)
        other.socket.sendall(whole[500:])  # it lies there: the only thread is at work
        until(lambda: sum(c.is_ready() for c in list(port._connections.values()) if c.held_bytes) == 1)
        port._press()
        leave.set()
        assert other.receive() == (frame.ANSWER, b"done")
        assert busy.receive() == (frame.ANSWER, b"done")
        assert silent.is_closed()
