# SPDX-License-Identifier: Apache-2.0
"""A server's life over a stub of a shard: health, reflection, ports, the order of start and stop."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from rowhouse.control import SERVICE_NAME
from rowhouse.error import ConfigError, CorruptionError, PoisonedError
from rowhouse.v1 import rowhouse_pb2 as pb
from rowhouse.v1 import rowhouse_pb2_grpc

from ps_server.config.cluster import ClusterConfig, load_config
from ps_server.serve.server import Server, StopFlag
from tests.conftest import MakeConfig
from tests.stub_shard import StubShard

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def config(make_config: MakeConfig) -> ClusterConfig:
    return load_config(make_config())


def opener(shard: StubShard) -> Any:
    return lambda config, index, directory: shard


def health_of(channel: grpc.Channel, service: str = "") -> Any:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status


def test_health_follows_recovery_and_poison(config: ClusterConfig) -> None:
    """Invariant 1."""
    shard, seen = StubShard(), {}

    def open_shard(opened: ClusterConfig, index: int, directory: Path) -> StubShard:
        assert directory.is_dir() and directory == config.data_dir / "shard-0000"
        with grpc.insecure_channel(opened.endpoints[index]) as channel:
            seen["recovering"] = health_of(channel), health_of(channel, SERVICE_NAME)
            stub: Any = rowhouse_pb2_grpc.ParameterServiceStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.RpcError, match="shard 0 is starting"):
                stub.GetStats(pb.GetStatsRequest())
        return shard

    server, flag = Server(config, 0, open_shard), StopFlag()
    server.start()
    loop = threading.Thread(target=server.run, args=(flag,))
    loop.start()
    with grpc.insecure_channel(server.endpoint) as channel:
        assert seen["recovering"] == (NOT_SERVING, NOT_SERVING)
        assert health_of(channel) == health_of(channel, SERVICE_NAME) == SERVING
        shard.poison = "disk full"
        deadline = time.monotonic() + 5
        while health_of(channel, SERVICE_NAME) != NOT_SERVING:
            assert time.monotonic() < deadline
    flag.request()
    loop.join(5)
    with pytest.raises(PoisonedError, match="shard 0 was poisoned: disk full"):
        server.stop()
    assert shard.closed.is_set()


def test_reflection_tells_the_services(config: ClusterConfig) -> None:
    server = Server(config, 0, opener(StubShard()))
    server.start()
    with grpc.insecure_channel(server.endpoint) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert SERVICE_NAME in database.get_services()
        assert "grpc.health.v1.Health" in database.get_services()
        found = database.FindFileContainingSymbol(SERVICE_NAME)
        assert found.package == "rowhouse.v1"
    server.stop()


def test_a_stop_lets_the_running_push_end_before_the_shard_closes(config: ClusterConfig) -> None:
    shard, entered, leave = StubShard(), threading.Event(), threading.Event()
    shard.hold_pushes(entered, leave)
    server = Server(config, 0, opener(shard))
    server.start()
    with grpc.insecure_channel(server.endpoint) as channel:
        stub: Any = rowhouse_pb2_grpc.ParameterServiceStub(channel)  # type: ignore[no-untyped-call]
        push = stub.Push.future(pb.PushRequest(sequence=5))
        assert entered.wait(10)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert not shard.closed.wait(0.3)
        leave.set()
        stopping.join(10)
        assert push.result(1).lsn == 5
    assert [name for name, _ in shard.calls] == ["push", "close"]


def test_a_port_in_use_is_an_error_and_never_shared(config: ClusterConfig) -> None:
    """Invariant 2."""
    first, other = Server(config, 0, opener(StubShard())), StubShard()
    first.start()
    second = Server(config.model_copy(update={"shards": (first.endpoint,)}), 0, opener(other))
    port = first.endpoint.rpartition(":")[2]
    with pytest.raises(
        ConfigError, match=f"shard 0 cannot listen on '{first.endpoint}': port {port} is in use"
    ):
        second.start()
    assert other.calls == []
    first.stop()


def test_a_host_that_is_not_ours_is_an_error(config: ClusterConfig) -> None:
    wrong = config.model_copy(update={"shards": ("192.0.2.1:0",)})
    with pytest.raises(ConfigError, match=r"cannot listen on '192.0.2.1:0': Cannot assign requested address"):
        Server(wrong, 0, opener(StubShard())).start()


def test_a_shard_that_does_not_open_frees_the_port(config: ClusterConfig) -> None:
    def corrupt(opened: ClusterConfig, index: int, directory: Path) -> StubShard:
        endpoints.append(opened.endpoints[index])
        raise CorruptionError("record 7: checksum")

    endpoints: list[str] = []
    with pytest.raises(CorruptionError, match="record 7"):
        Server(config, 0, corrupt).start()
    again = Server(config.model_copy(update={"shards": tuple(endpoints)}), 0, opener(StubShard()))
    again.start()
    again.stop()


def test_ports_of_other_shards_must_be_known(make_config: MakeConfig) -> None:
    config = load_config(make_config(shards=2))
    with pytest.raises(ConfigError, match=r"endpoint '127.0.0.1:0' has port 0"):
        Server(config, 0, opener(StubShard())).start()


def test_an_index_past_the_shards_is_refused(config: ClusterConfig) -> None:
    with pytest.raises(ConfigError, match="shard is 1; it must be 0 to 0"):
        Server(config, 1, opener(StubShard()))


def test_the_stop_flag_takes_signals_and_gives_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag().on_signals() as flag:
        assert not flag.requested
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert flag.requested
    assert signal.getsignal(signal.SIGTERM) is before
