# SPDX-License-Identifier: Apache-2.0
"""A transport with two ways to a shard: which one a call takes, and how it comes back to the faster one."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from rowhouse import dtype, error, frame, message
from rowhouse.control import METHODS
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.transport import fallback
from ps_client.transport import frame as frame_module
from ps_client.transport.fallback import FallbackTransport
from ps_client.transport.frame import FrameTransport, open_frames
from ps_client.transport.grpc import GrpcTransport
from ps_server.config.cluster import load_config
from ps_server.serve.server import Server
from tests.conftest import MakeConfig
from tests.data_peer import until
from tests.process import free_ports
from tests.stub_shard import StubShard

IDS = np.arange(3, dtype=np.uint64)
GRADIENTS = message.TableGradients("user", dtype.FLOAT32, IDS, np.ones((3, 4), np.float32), None)


class Rig:
    """A server over a stub of a shard, and a transport that has asked it for its data port."""

    def __init__(self, make_config: MakeConfig) -> None:
        self.make_config = make_config
        self.endpoint = "127.0.0.1:0"
        self.start("auto")
        self.open_frames: Callable[[str, str, int], FrameTransport | None] = open_frames
        self.now_s: Callable[[], float] = time.monotonic
        self.dial()

    def dial(self) -> None:
        self.transport = FallbackTransport(GrpcTransport(self.endpoint), self._open, self._clock)
        self.ask()

    def _open(self, endpoint: str, data_endpoint: str, token: int) -> FrameTransport | None:
        return self.open_frames(endpoint, data_endpoint, token)

    def _clock(self) -> float:
        return self.now_s()

    def start(self, wanted: Any, endpoint: str | None = None) -> None:
        config = load_config(self.make_config(shards=[endpoint or self.endpoint], data_port=wanted))
        self.shard = StubShard()
        self.server = Server(config, 0, lambda *_: self.shard)
        self.server.start()
        self.endpoint = endpoint or self.server.endpoint

    def ask(self) -> None:
        self.transport.call("GetCluster", pb.GetClusterRequest(), 5)

    def tell(self, endpoint: str, token: int = 7) -> None:
        """Have the shard tell another data port from now on."""
        self.server._service.tell_data_port(endpoint, token)

    def push(self, sequence: int = 1, timeout_s: float = 5) -> str:
        """Push, and say which way it went: the data port hands its own memory on, gRPC makes bytes."""
        count = len(self.shard.encoded)
        self.transport.push(message.PushRequest(1, 2, sequence, (GRADIENTS,)), timeout_s)
        assert len(self.shard.encoded) == count + 1
        return "frame" if isinstance(self.shard.encoded[-1], memoryview) else "grpc"

    def cut(self) -> None:
        """End every data connection, seen from the shard."""
        for connection in list(self.server._data_port._connections.values()):
            self.server._data_port._end(connection)
        until(lambda: not self.server._data_port._connections)


@pytest.fixture
def rig(make_config: MakeConfig) -> Iterator[Rig]:
    one = Rig(make_config)
    yield one
    one.transport.close()
    one.server.stop()


@contextmanager
def port_that(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The endpoint of a port that does `serve` with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    peer = listener.accept()[0]
                except OSError:
                    return
                with peer:
                    serve(peer)

        thread = threading.Thread(target=accept)
        thread.start()
        yield f":{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_every_hot_call_takes_the_data_port(rig: Rig) -> None:
    assert [rig.push(n) for n in (1, 2)] == ["frame", "frame"]
    table = message.TableIds("user", 4, IDS)
    answer = rig.transport.pull(message.PullRequest(1, dtype.BFLOAT16, False, (table,)), 5)
    assert answer.lsn == 7 and answer.tables[0].rows.shape == (3, 4)
    assert len(rig.server._data_port._connections) == 1
    member = pb.Member(group=5, trainers=2, incarnation=1, name="a", pace=pb.PACE_BSP, deadline_ms=1000)
    rig.transport.contribute(message.Contribution(member, message.PushRequest(1, 5, 1, (GRADIENTS,))), 5)
    assert rig.shard.calls[-1][0] == "contribute" and rig.shard.calls[-1][1].member == member
    assert len(rig.server._data_port._connections) == 1
    rig.shard.fail = error.BusyError("later")
    with pytest.raises(error.BusyError, match=f"^shard at {rig.endpoint}: later$"):
        rig.push(3)
    rig.shard.fail = None


def test_every_control_call_goes_by_its_name(rig: Rig) -> None:
    for name, method in METHODS.items():
        assert type(rig.transport.call(name, method.request(), 5)) is method.response
        assert rig.shard.calls[-1] == (name, method.request())
    with pytest.raises(error.InvalidRequestError, match="method 'Walk' is unknown"):
        rig.transport.call("Walk", pb.GetStatsRequest(), 5)


def test_what_is_begun_waits_for_no_connection(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many shards whose ports are hidden, each would hold up the others."""
    request = message.PushRequest(1, 2, 1, (GRADIENTS,))
    pull = message.PullRequest(1, dtype.FLOAT32, False, ())
    monkeypatch.setattr(rig, "open_frames", None)
    assert rig.transport.begin(request, 5) is None and rig.transport.begin(pull, 5) is None
    monkeypatch.undo()
    assert "push" not in [name for name, _ in rig.shard.calls]
    assert rig.push(1) == "frame"
    begun = rig.transport.begin(message.PushRequest(1, 2, 2, (GRADIENTS,)), 5)
    assert begun is not None and not begun.result().duplicate


def test_a_port_that_cannot_be_reached_costs_one_warning(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f":{taken.getsockname()[1]}"
    rig.tell(closed)
    rig.ask()
    for sequence in range(1, 6):
        assert rig.push(sequence) == "grpc"
        rig.ask()
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1 and f"its data port {closed} cannot be reached" in warnings[0]
    monkeypatch.setattr(fallback, "RETRY_S", 0.0)
    rig.transport._retry_s = 0.0  # that much later it is tried again, and again in vain
    assert [rig.push(n) for n in range(6, 10)] == ["grpc"] * 4
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    rig.tell(rig.server._data_port.endpoint, rig.server._data_port.token)  # the firewall was opened
    assert [rig.push(n) for n in (10, 11)] == ["grpc", "frame"]


def test_tries_become_rare(rig: Rig) -> None:
    now_s = [1000.0]
    rig.now_s = lambda: now_s[0]
    opened: list[float] = []
    rig.open_frames = lambda *_: opened.append(now_s[0] - 1000)
    rig.tell(":1")
    rig.ask()
    for _ in range(2_000):
        rig.push()
        now_s[0] += 1
    gaps = np.diff(opened)
    assert opened[0] == 0 and gaps[0] <= 7 and (np.diff(gaps) > 0)[:5].all() and gaps.max() <= 602
    assert 8 <= len(opened) <= 12


def test_after_a_lost_connection_one_attempt_goes_over_grpc(rig: Rig) -> None:
    assert rig.push(1) == "frame"
    for _ in range(3):
        rig.cut()
        with pytest.raises(error.UnavailableError, match=f"shard at {rig.endpoint}: data connection lost"):
            rig.push(2)
        assert [rig.push(n) for n in (2, 3, 4)] == ["grpc", "frame", "frame"]


def test_a_restart_on_another_port_with_another_token(rig: Rig) -> None:
    assert rig.push(1) == "frame"
    before = rig.transport._told
    rig.server.stop()
    rig.start("auto")
    with pytest.raises(error.UnavailableError):
        rig.push(2)
    for _ in range(50):  # gRPC finds the shard again within a second
        try:
            assert rig.push(2) == "grpc"
            break
        except error.UnavailableError:
            threading.Event().wait(0.1)
    assert rig.push(3) == "frame" and rig.transport._told != before


def test_a_restart_without_a_data_port(rig: Rig) -> None:
    assert rig.push(1) == "frame"
    rig.server.stop()
    rig.start("off")
    with pytest.raises(error.UnavailableError):
        rig.push(2)
    for _ in range(50):
        try:
            rig.ask()
            break
        except error.UnavailableError:
            threading.Event().wait(0.1)
    assert [rig.push(n) for n in (2, 3)] == ["grpc", "grpc"]


def test_a_port_that_is_another_shards_by_now_applies_nothing(rig: Rig) -> None:
    port = free_ports(1)
    rig.server.stop()
    rig.start(port, "127.0.0.1:0")
    rig.transport.close()
    rig.endpoint = rig.server.endpoint
    rig.dial()
    assert rig.push(1) == "frame"
    first, rig_endpoint = rig.shard, rig.endpoint
    rig.server.stop()
    rig.start(port, "127.0.0.1:0")  # the other shard, with the first one's data port
    for _ in range(3):
        with pytest.raises(error.UnavailableError):
            rig.transport.push(message.PushRequest(1, 2, 2, (GRADIENTS,)), 1)
    # Also when only the token is old: a new connection to a port that answers.
    frames = FrameTransport(rig_endpoint, f":{port}", 12345)
    assert not frames.open()
    with pytest.raises(error.UnavailableError, match="data connection lost"):
        frames.send(2, [b"\x08\x01"], 5).result()
    assert not rig.shard.calls and [name for name, _ in first.calls].count("push") == 1


def test_a_port_that_takes_connections_and_never_answers(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(frame_module, "CONNECT_S", 0.2)

    def listen(peer: socket.socket) -> None:
        peer.recv(frame.HEAD.size, socket.MSG_WAITALL)
        peer.recv(1)

    with port_that(listen) as silent:
        rig.tell(silent)
        rig.ask()
        assert [rig.push(n) for n in (1, 2)] == ["grpc", "grpc"]
    assert "cannot be reached" in caplog.text


def test_a_port_that_hangs_up_on_calls_is_not_tried_at_each(rig: Rig) -> None:
    def serve(peer: socket.socket) -> None:
        peer.sendall(b"rhd1\x10" + bytes(15))
        peer.recv(20, socket.MSG_WAITALL)
        peer.recv(1)

    with port_that(serve) as rude:
        rig.tell(rude)
        rig.ask()
        with pytest.raises(error.UnavailableError):
            rig.push(1)
        assert [rig.push(n) for n in range(1, 6)] == ["grpc"] * 5


def test_a_full_port_sends_its_clients_to_grpc(rig: Rig) -> None:
    rig.server._data_port._connections_max = 0
    assert [rig.push(n) for n in (1, 2, 3)] == ["grpc"] * 3


@pytest.mark.parametrize("told", ["tcp://127.0.0.1:5", ":99999", "unix:/nowhere.data"])
def test_words_of_a_newer_shard_mean_grpc(rig: Rig, told: str) -> None:
    rig.tell(told)
    rig.ask()
    assert [rig.push(n) for n in (1, 2)] == ["grpc", "grpc"]


def test_an_answer_that_cannot_be_read_is_an_internal_error(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig.server._service, "answer", lambda *_: [b"\xff\xff"])
    pull = message.PullRequest(1, dtype.FLOAT32, False, ())
    member = pb.Member(group=5)
    calls: list[Callable[[], Any]] = [
        lambda: rig.transport.pull(pull, 5),
        lambda: rig.push(1),
        lambda: rig.transport.contribute(message.Contribution(member, message.PushRequest(1, 5, 1, ())), 5),
    ]
    for call in calls:
        with pytest.raises(error.InternalError, match="an answer that cannot be read"):
            call()


@pytest.mark.parametrize("when", ["now", "on a way that was retired"])
def test_close_ends_a_call_that_is_under_way(rig: Rig, when: str) -> None:
    entered, leave = threading.Event(), threading.Event()
    rig.shard.hold_pushes(entered, leave)
    failures: list[BaseException] = []

    def call() -> None:
        try:
            rig.push(1, timeout_s=10)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=call)
    thread.start()
    assert entered.wait(10)
    if when != "now":
        rig.tell(rig.server._data_port.endpoint, rig.server._data_port.token ^ 1)
        rig.ask()
        assert rig.transport._frames is None
    rig.transport.close()
    thread.join(5)
    assert not thread.is_alive()
    (failure,) = failures
    assert isinstance(failure, error.PreconditionError) and "the client was closed during the call" in str(
        failure
    )
    leave.set()
    with pytest.raises(error.PreconditionError):
        rig.push(2)


def test_close_leaves_no_connection(rig: Rig) -> None:
    assert rig.push(1) == "frame"
    rig.transport.close()
    until(lambda: not rig.server._data_port._connections)
