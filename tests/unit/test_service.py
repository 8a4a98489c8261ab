# SPDX-License-Identifier: Apache-2.0
"""The service over a stub of a shard and real gRPC: bytes, errors, bounds."""

import gc
import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import pytest
from rowhouse import codec, dtype, error, message
from rowhouse.control import SERVICE_NAME, SIZE_METADATA_KEY
from rowhouse.error import ERROR_METADATA_KEY, RowhouseError, error_class_names, from_status
from rowhouse.v1 import rowhouse_pb2 as pb
from rowhouse.v1 import rowhouse_pb2_grpc

from ps_server.serve import reading
from ps_server.serve.grpc_port import GrpcPort
from ps_server.serve.service import ParameterService
from tests.stub_shard import StubShard

IDS = np.array([0, 2**64 - 1], np.uint64)
CLASSES = sorted((c for c in error_class_names().values() if c.__module__ == "rowhouse.error"), key=str)


class Rig:
    """A served StubShard and a channel to it."""

    def __init__(self) -> None:
        self.shard, self.service = StubShard(), ParameterService(3, in_flight_bytes_max=80)
        self.service.attach(self.shard)
        self.port = GrpcPort(self.service, 4)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port.listen('127.0.0.1:0')}")
        self.port.start()
        self.stub: Any = rowhouse_pb2_grpc.ParameterServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.raw_push: Any = self.channel.unary_unary("/rowhouse.v1.ParameterService/Push")
        self.raw_pull: Any = self.channel.unary_unary("/rowhouse.v1.ParameterService/Pull")


@pytest.fixture
def rig() -> Iterator[Rig]:
    one = Rig()
    yield one
    one.channel.close()
    one.port.stop(0)


def failure(call: Any, *arguments: Any) -> tuple[grpc.StatusCode, RowhouseError]:
    """Status code of a failing call, and the error that a client makes of it."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    names = [str(m.value) for m in caught.value.trailing_metadata() if m.key == ERROR_METADATA_KEY]
    code = caught.value.code()
    return code, from_status(code.value[0], caught.value.details() or "", names[0])


def push_request(sequence: int = 1) -> pb.PushRequest:
    table = pb.TableGradients(table="user", dim=1, count=2, dtype=pb.DTYPE_FLOAT32)
    table.ids, table.gradients = IDS.tobytes(), np.ones(2, "<f4").tobytes()
    return pb.PushRequest(map_version=1, client_id=2, sequence=sequence, tables=[table])


def test_a_stub_can_pull(rig: Rig) -> None:
    table = pb.TableIds(table="user", dim=3, count=2, ids=IDS.tobytes())
    answer = rig.stub.Pull(pb.PullRequest(map_version=1, dtype=pb.DTYPE_FLOAT16, tables=[table]))
    assert answer.lsn == 7 and answer.tables[0].rows == bytes(2 * 3 * 2)
    np.testing.assert_array_equal(rig.shard.calls[0][1].tables[0].ids, IDS)


def test_a_push_reaches_the_shard_with_its_own_bytes(rig: Rig) -> None:
    data = push_request(9).SerializeToString()
    assert codec.decode_push_response(rig.raw_push(data)).lsn == 9
    assert rig.shard.encoded == [data]
    assert rig.shard.calls[0][1].sequence == 9


def test_the_other_calls_go_through_the_stubs(rig: Rig) -> None:
    rig.service.message_bytes_max = 1 << 20
    cluster = rig.stub.GetCluster(pb.GetClusterRequest())
    assert (cluster.map_version, cluster.message_bytes_max) == (2**64 - 1, 1 << 20)
    assert rig.stub.CreateCheckpoint(pb.CreateCheckpointRequest()).rows_written == 4
    assert rig.stub.GetStats(pb.GetStatsRequest()).tables[0].rows == 3
    rig.stub.SetTableFreeze(pb.SetTableFreezeRequest(table="user", mode=pb.FREEZE_MODE_REFUSE))
    assert rig.shard.calls[-1][1].mode == pb.FREEZE_MODE_REFUSE
    assert rig.stub.EvictRows(pb.EvictRowsRequest(table="user")).rows_evicted == 2


def test_every_method_of_the_proto_is_served(rig: Rig) -> None:
    methods = pb.DESCRIPTOR.services_by_name["ParameterService"].methods
    for method in methods:
        call: Any = rig.channel.unary_unary(f"/{SERVICE_NAME}/{method.name}")
        rig.shard.fail = error.BusyError("here")
        request = codec.encode_pull_request(message.PullRequest(1, dtype.FLOAT32, False, ()))
        data = request if method.name in ("Pull", "Push") else b""
        assert str(failure(call, data)[1]) == "here", method.name


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_of_the_tree_arrives_as_itself(rig: Rig, kind: type[RowhouseError]) -> None:
    """call.py, invariant 2."""
    rig.shard.fail = kind("tâble 'user': why")
    for call, request in ((rig.stub.Push, push_request()), (rig.stub.GetStats, pb.GetStatsRequest())):
        code, back = failure(call, request)
        assert code.value[0] == kind.code
        assert type(back) is kind and str(back) == "tâble 'user': why"


def test_an_unexpected_exception_is_internal_and_its_traceback_is_logged(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.shard.fail = ZeroDivisionError("oops")
    with caplog.at_level(logging.ERROR):
        code, back = failure(rig.stub.Push, push_request())
    assert code is grpc.StatusCode.INTERNAL and type(back) is error.InternalError
    assert "ZeroDivisionError: oops" in str(back)
    assert any(r.exc_info for r in caplog.records)


@pytest.mark.parametrize(("character", "kept"), [("a", 6000), ("%", 2000), ("ü", 1000), ("😀", 500)])
def test_a_long_message_is_cut_to_what_a_header_holds(rig: Rig, character: str, kept: int) -> None:
    """gRPC refuses headers between 8 and 16 KiB at random, so one try would prove little."""
    rig.shard.fail = error.ConfigError(character * 100_000)
    for _ in range(20):
        assert str(failure(rig.stub.Push, push_request())[1]) == character * kept + "..."


@pytest.mark.parametrize("call", ["raw_pull", "raw_push"])
@pytest.mark.parametrize("data", [b"\xff", b"\x22\x05abc", b"\x08"])
def test_malformed_bytes_never_reach_the_shard(rig: Rig, call: str, data: bytes) -> None:
    code, back = failure(getattr(rig, call), data)
    assert code is grpc.StatusCode.INVALID_ARGUMENT and type(back) is error.InvalidRequestError
    assert rig.shard.calls == []


def test_an_answer_past_the_bound_is_refused_before_the_shard_works(rig: Rig) -> None:
    """Invariant 2."""
    rig.service.message_bytes_max = 2 * 1000 * 4 + 1023
    table = pb.TableIds(table="user", dim=1000, count=2, ids=IDS.tobytes())
    code, back = failure(rig.stub.Pull, pb.PullRequest(dtype=pb.DTYPE_FLOAT32, tables=[table]))
    assert code is grpc.StatusCode.OUT_OF_RANGE and type(back) is error.LimitExceededError
    assert rig.shard.calls == []
    assert rig.stub.Pull(pb.PullRequest(dtype=pb.DTYPE_FLOAT16, tables=[table])).lsn == 7


def test_without_a_shard_every_call_is_unavailable(rig: Rig) -> None:
    """Invariant 3."""
    rig.service.attach(None)
    for call, request in ((rig.stub.Push, push_request()), (rig.stub.GetCluster, pb.GetClusterRequest())):
        code, back = failure(call, request)
        assert code is grpc.StatusCode.UNAVAILABLE and back.retryable
        assert "shard 3 is starting or stopping" in str(back)


def test_past_the_in_flight_bound_a_push_is_told_to_back_off(rig: Rig) -> None:
    """Invariant 1: two pushes of some 50 bytes do not fit under 80; after the first ends, the other does."""
    entered, leave = threading.Event(), threading.Event()
    rig.shard.hold_pushes(entered, leave)
    first = rig.stub.Push.future(push_request(1))
    assert entered.wait(10)
    code, back = failure(rig.stub.Push, push_request(2))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and back.retryable
    leave.set()
    assert first.result(10).lsn == 1
    assert rig.stub.Push(push_request(2)).lsn == 2


def test_a_refused_call_leaves_nothing_of_its_request_to_the_garbage_collector(rig: Rig) -> None:
    """gRPC keeps an ended call in a circle; a traceback in it would keep the bytes of the request."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            failure(rig.raw_push, b"\x08")
        kept = [o.tb_frame.f_code.co_name for o in gc.get_objects() if type(o) is TracebackType]
        assert kept.count("_answered") <= 1, "that of the last one, which may not have ended yet"
    finally:
        gc.enable()


def test_a_message_that_was_told_and_does_not_come_makes_room_for_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PATIENCE_S", 0.2)
    leave = threading.Event()

    def nothing() -> Iterator[bytes]:
        leave.wait(30)
        yield from ()

    call: Any = rig.channel.stream_unary("/rowhouse.v1.ParameterService/Push")
    silent = call.future(nothing(), metadata=((SIZE_METADATA_KEY, "80"),))
    while not silent.done():
        with suppress(grpc.RpcError):
            rig.stub.Push(push_request(1))
    assert silent.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    leave.set()
    assert rig.stub.Push(push_request(1)).lsn == 1
