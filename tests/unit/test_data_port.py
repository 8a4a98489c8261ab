# SPDX-License-Identifier: Apache-2.0
"""The data port under peers that are slow, wrong, gone, greedy or many (numbers: its module's invariants)."""

import errno
import selectors
import socket
import threading
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from rowhouse import frame
from rowhouse.codec import Part
from rowhouse.error import InvalidRequestError
from rowhouse.limit import MESSAGE_BYTES_MAX

from ps_server.serve import complaint
from ps_server.serve.data_port import DataPort
from ps_server.serve.service import ParameterService
from tests.data_peer import BIG, Counted, Peer, listener, serving, until
from tests.stub_shard import StubShard


# ------------------------------------------------------------ frames
def test_a_frame_may_come_byte_by_byte(port: DataPort) -> None:
    with Peer(port) as peer:
        for one in peer.frame(frame.PUSH, b"dribbled"):
            peer.socket.sendall(bytes([one]))
            time.sleep(0.001)
        assert peer.receive() == (frame.ANSWER, b"\x02dribbled")


def test_a_connection_carries_many_frames_also_glued(port: DataPort) -> None:
    bodies = [b"", b"x", bytes(70_000), b"end"]
    with Peer(port) as peer:
        for body in bodies:
            for kind in frame.REQUESTS:
                assert peer.call(kind, body) == bytes([kind]) + body
        peer.socket.sendall(b"".join(peer.frame(frame.PULL, body) for body in bodies))
        assert [peer.receive()[1][1:] for _ in bodies] == bodies


def test_a_hello_is_answered_without_the_service(service: Counted, port: DataPort) -> None:
    with Peer(port) as peer:
        assert peer.call(frame.HELLO, b"") == b""
        assert peer.call(frame.PULL, b"1") == b"\x011"
        until(lambda: service.held_bytes == 0)
        peer.send(frame.HELLO, b"more")
        assert peer.is_closed()


def test_more_pieces_than_one_write_takes(service: Counted, port: DataPort) -> None:
    pieces: list[Part] = [bytes([n % 251]) * (n % 7 * 900) for n in range(3_000)]
    service.work = lambda kind, data: pieces
    with Peer(port) as peer:
        assert peer.call(frame.PULL, b"") == b"".join(pieces)


def test_a_slow_reader_gets_all_of_a_big_answer_and_holds_up_nobody(service: Counted) -> None:
    answer = np.random.default_rng(0).bytes(BIG)
    service.work = lambda kind, data: [answer] if kind == frame.PULL else [data]
    with serving(service, threads=1) as port, Peer(port) as slow, Peer(port) as other:
        slow.send(frame.PULL, b"big")
        until(lambda: any(c.unsent for c in port._connections.values()))
        for _ in range(20):
            assert other.call(frame.PUSH, b"quick") == b"quick"
        until(lambda: service.held_bytes == 3 + BIG)  # both count until the answer is out (invariant 2)
        assert slow.receive() == (frame.ANSWER, answer)
        until(lambda: service.held_bytes == 0)


# ------------------------------------------------------------ refusals
def _heads(token: int) -> dict[str, bytes]:
    return {
        "token": frame.encode_head(frame.PULL, 0, token ^ 1),
        "magic": b"rhd2" + frame.encode_head(frame.PULL, 0, token)[4:],
        "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "kind": frame.encode_head(9, 0, token),
        "answer": frame.encode_head(frame.ANSWER, 0, token),
        "oversize": frame.encode_head(frame.PULL, MESSAGE_BYTES_MAX + 1, token),
        "largest number": frame.encode_head(frame.PULL, 2**32 - 1, token),
    }


@pytest.mark.parametrize("wrong", list(_heads(0)))
def test_a_wrong_head_costs_its_own_connection(service: Counted, port: DataPort, wrong: str) -> None:
    with Peer(port) as peer, Peer(port) as bystander:
        assert bystander.call(frame.PULL, b"before") == b"\x01before"
        peer.socket.sendall(_heads(port.token)[wrong])
        assert peer.is_closed()
        assert bystander.call(frame.PULL, b"after") == b"\x01after"
        assert service.taken == 2, "nothing of the wrong frame was counted or answered"


def test_wrong_frames_do_not_fill_the_log(
    port: DataPort, hasty: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(complaint, "INTERVAL_S", 1.0)
    for _ in range(200):
        with Peer(port) as peer:
            peer.socket.sendall(_heads(port.token)["http"])
            assert peer.is_closed()
    # By the sweep: no further frame comes. The count is zero a moment before the line is there.
    until(lambda: not port._complaints._left_out and len(caplog.text.splitlines()) > 1)
    lines = caplog.text.splitlines()
    assert 2 <= len(lines) <= 10
    assert "connection of 127.0.0.1 closed: a frame begins with b'GET '; it must be b'rhd1'" in lines[0]
    assert "left out" not in lines[0] and "more like it in the " in lines[-1]


def test_an_error_of_a_call_leaves_the_connection(service: Counted, port: DataPort) -> None:
    def refuse(kind: int, data: memoryview) -> list[Part]:
        raise InvalidRequestError("table 'üser': no")

    usual = service.work
    with Peer(port) as peer:
        service.work = refuse
        assert peer.fail(frame.PUSH, b"1234") == "InvalidRequestError port: table 'üser': no"
        service.work = usual
        assert peer.call(frame.PUSH, b"1234") == b"\x021234"
        until(lambda: service.held_bytes == 0)


def test_an_answering_that_breaks_its_word_costs_one_connection(service: Counted, port: DataPort) -> None:
    def crash(kind: int, data: memoryview) -> list[Part]:
        raise ZeroDivisionError("on purpose")

    usual, service.work = service.work, crash
    with Peer(port) as peer, Peer(port) as other:
        peer.send(frame.PULL, b"1")
        assert peer.is_closed()
        service.work = usual
        assert other.call(frame.PULL, b"1") == b"\x011"


@pytest.mark.parametrize("size", [0, 100, 3 << 20])
def test_a_busy_shard_answers_and_the_connection_goes_on(service: Counted, port: DataPort, size: int) -> None:
    service.bound_bytes = 10
    service.take(11)  # others' requests: past the bound already, so that even an empty one is refused
    with Peer(port) as peer:
        for _ in range(3):
            assert peer.fail(frame.PUSH, bytes(size)) == "BusyError port: 11 bytes are held"
        service.give(11)
        assert peer.call(frame.PULL, b"now") == b"\x01now"
        until(lambda: service.held_bytes == 0)
        service.take(11)
        for one in peer.frame(frame.PUSH, b"refused and dribbled"):
            peer.socket.sendall(bytes([one]))
        assert peer.receive()[0] == frame.ERROR
        service.give(11)
        assert peer.call(frame.PULL, b"again") == b"\x01again"


def test_the_service_answers_what_nobody_foresaw(caplog: pytest.LogCaptureFixture) -> None:
    real, shard = ParameterService(3), StubShard()
    port = DataPort(real, 2)
    port.start(listener())
    with Peer(port) as peer:
        assert peer.fail(frame.PULL, b"").startswith("UnavailableError port: shard 3 is starting")
        real.attach(shard)
        shard.fail = ZeroDivisionError("on purpose")
        assert peer.fail(frame.PULL, b"\x10\1").startswith(
            "InternalError port: ZeroDivisionError: on purpose"
        )
        shard.fail = None
        assert peer.fail(frame.PUSH, b"\xff").startswith("InvalidRequestError port: ")
        assert peer.call(frame.PULL, b"\x10\1") == b"\x08\x07"
    port.stop(10)
    assert "a call failed" in caplog.text


# ------------------------------------------------------------ many
def test_connections_past_the_bound_are_closed_at_once(port: DataPort) -> None:
    port._connections_max = 3
    with ExitStack() as stack:
        held = [stack.enter_context(Peer(port)) for _ in range(3)]
        assert [peer.call(frame.HELLO, b"") for peer in held] == [b""] * 3
        with Peer(port) as late:
            assert late.is_closed()
        assert [peer.call(frame.PULL, b"x") for peer in held] == [b"\x01x"] * 3
        held[0].socket.close()
        until(lambda: len(port._connections) == 2)
        with Peer(port) as late:
            assert late.call(frame.PULL, b"x") == b"\x01x"


def test_hundreds_of_connections_are_served_in_turn(port: DataPort) -> None:
    count, rounds = 300, 12
    served = dict.fromkeys(range(count), 0)
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        peers = [stack.enter_context(Peer(port)) for _ in range(count)]
        for number, peer in enumerate(peers):
            selector.register(peer.socket, selectors.EVENT_READ, number)
            peer.send(frame.PULL, bytes(500))
        while sum(served.values()) < count * rounds:
            ready = selector.select(20)
            assert ready, served
            for key, _ in ready:
                assert peers[key.data].receive() == (frame.ANSWER, b"\1" + bytes(500))
                served[key.data] += 1
                peers[key.data].send(frame.PULL, bytes(500))  # at once: everybody always wants
    assert min(served.values()) > rounds // 2 and max(served.values()) < rounds * 2


def test_a_flood_of_pipelined_frames_leaves_room_for_others(service: Counted) -> None:
    with serving(service, threads=1) as port, Peer(port) as greedy, Peer(port) as modest:
        flood = greedy.frame(frame.PULL, b"") * 20_000
        sender = threading.Thread(target=greedy.socket.sendall, args=(flood,))
        sender.start()
        before = service.taken
        for _ in range(50):
            assert modest.call(frame.PUSH, b"m") == b"\x02m"
        between = service.taken - before
        assert all(greedy.receive()[0] == frame.ANSWER for _ in range(20_000))
        sender.join()
        assert between < 10_000, "one call of the modest one per call of the greedy one, or so"


def test_out_of_file_descriptors_it_waits_and_goes_on(
    port: DataPort, hasty: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Exhausted:
        def __init__(self, real: socket.socket) -> None:
            self.real, self.left, self.accept_s = real, 3, list[float]()

        def fileno(self) -> int:
            return self.real.fileno()

        def accept(self) -> Any:
            self.accept_s.append(time.monotonic())
            if self.left:
                self.left -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return self.real.accept()

    with Peer(port) as early:
        assert early.call(frame.PULL, b"x") == b"\x01x"
        empty = Exhausted(port._listener)
        monkeypatch.setattr(port, "_listener", empty)
        with Peer(port) as late:
            late.send(frame.PULL, b"late")
            assert early.call(frame.PULL, b"y") == b"\x01y"
            assert late.receive() == (frame.ANSWER, b"\x01late")
        assert caplog.text.count("Too many open files") == 3
        assert empty.accept_s[3] - empty.accept_s[0] > 0.1, "it tried again at once"
        monkeypatch.undo()


def test_a_request_past_the_largest_message_of_the_shard_is_told_so(service: Counted, port: DataPort) -> None:
    service.message_bytes_max = 1000
    with Peer(port) as peer:
        answer = peer.fail(frame.PUSH, bytes(3 << 20))
        assert answer.startswith("LimitExceededError port: a request of 3145728 bytes; at most 1000 for the ")
        assert service.taken == 0
        assert peer.call(frame.PUSH, bytes(1000)) == b"\x02" + bytes(1000)
