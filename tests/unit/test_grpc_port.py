# SPDX-License-Identifier: Apache-2.0
"""The gRPC port over a stub of a shard: what is cut, what is waited for, and which calls wait for which."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from rowhouse.v1 import rowhouse_pb2 as pb
from rowhouse.v1 import rowhouse_pb2_grpc

from ps_server.serve import grpc_port
from ps_server.serve.grpc_port import GrpcPort
from ps_server.serve.service import ParameterService
from tests.data_peer import until
from tests.stub_shard import StubShard

PUSH = "/rowhouse.v1.ParameterService/Push"
GRACE_S = 600.0
"""Nothing that is cut at a stop may wait for it."""


class Rig:
    """A served StubShard and a channel to it."""

    def __init__(self) -> None:
        self.shard, service = StubShard(), ParameterService(0)
        service.attach(self.shard)
        self.port = GrpcPort(service, 2)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port.listen('127.0.0.1:0')}")
        self.port.start()
        self.stub: Any = rowhouse_pb2_grpc.ParameterServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.end = threading.Event()

    def nothing(self) -> Iterator[Any]:
        self.end.wait()
        yield from ()

    def silent(self) -> Any:
        """A push whose message does not come."""
        return self.channel.stream_unary(PUSH).future(self.nothing())

    def open_calls(self) -> int:
        return len(self.port._open)


@pytest.fixture
def rig() -> Iterator[Rig]:
    one = Rig()
    yield one
    one.end.set()
    one.channel.close()
    one.port.stop(0)


def test_a_stop_cuts_what_is_silent_and_lets_work_end(rig: Rig) -> None:
    """Invariant 2."""
    entered, leave = threading.Event(), threading.Event()
    rig.shard.hold_pushes(entered, leave)
    push = rig.stub.Push.future(pb.PushRequest(sequence=5))
    assert entered.wait(20)
    silent = [rig.silent() for _ in range(5)]
    watch = health_pb2_grpc.HealthStub(rig.channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    talk = reflection_pb2_grpc.ServerReflectionStub(rig.channel).ServerReflectionInfo(rig.nothing())
    until(lambda: rig.open_calls() == 7)
    stopping = threading.Thread(target=rig.port.stop, args=(GRACE_S,))
    stopping.start()
    for call in silent:
        assert call.exception(20).code() is grpc.StatusCode.UNAVAILABLE
    for stream in (watch, talk):
        with pytest.raises(grpc.RpcError, match="the shard stops"):
            next(stream)
    assert stopping.is_alive()
    leave.set()
    stopping.join(20)
    assert not stopping.is_alive() and push.result(20).lsn == 5


def test_a_stop_cuts_work_that_does_not_end(rig: Rig) -> None:
    entered, leave = threading.Event(), threading.Event()
    rig.shard.hold_pushes(entered, leave)
    push = rig.stub.Push.future(pb.PushRequest(sequence=5))
    assert entered.wait(20)
    rig.port.stop(0.01)
    assert push.exception(20) is not None
    leave.set()


def test_the_oldest_silent_call_makes_room(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_port, "OPEN_MAX", 3)
    silent = []
    for count in range(1, 4):
        silent.append(rig.silent())
        until(lambda count=count: rig.open_calls() == count)  # type: ignore[misc]
    silent.append(rig.silent())
    assert silent[0].exception(20).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rig.stub.Push(pb.PushRequest(sequence=1), timeout=20).lsn == 1


def test_calls_that_wait_for_the_disk_or_for_trainers_stop_no_other_kind(rig: Rig) -> None:
    """Invariant 1."""
    leave = threading.Event()
    answered = rig.shard.call

    def slow(method: str, request: Any) -> Any:
        if method in ("CreateCheckpoint", "AwaitStep"):
            assert leave.wait(60)
        return answered(method, request)

    rig.shard.call = slow  # type: ignore[method-assign]
    waiting = [rig.stub.CreateCheckpoint.future(pb.CreateCheckpointRequest()) for _ in range(20)]
    waiting += [rig.stub.AwaitStep.future(pb.AwaitStepRequest()) for _ in range(20)]
    assert rig.stub.Push(pb.PushRequest(sequence=3), timeout=20).lsn == 3
    assert rig.stub.GetStats(pb.GetStatsRequest(), timeout=20).applied_lsn == 5
    assert rig.stub.GetCluster(pb.GetClusterRequest(), timeout=20).endpoints == ["fake"]
    leave.set()
    for call in waiting:
        call.result(60)
