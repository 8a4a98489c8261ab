# SPDX-License-Identifier: Apache-2.0
"""The data port of real shards: where it is, what goes over it, what a client sees when it is not there."""

import asyncio
import os
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse import frame
from rowhouse.error import ConfigError

from ps_client import connect, connect_async, connection
from ps_client.transport.grpc import GrpcTransport
from ps_server.config.cluster import load_config
from ps_server.serve import binding
from ps_server.serve.server import Server
from ps_server.shard.shard import Shard
from tests.conftest import MakeConfig
from tests.e2e.test_trainer_client import together
from tests.process import ServerProcess, free_ports

IDS = np.arange(3_000, dtype=np.uint64)


def serve(config: dict[str, Any], index: int = 0) -> tuple[Server, Counter[int]]:
    """A running server, and what it answers on its data port, counted by kind."""
    server = Server(load_config(config), index, Shard.open)
    server.start()
    return server, count_frames(server)


def count_frames(server: Server) -> Counter[int]:
    """Counts the frames that a server answers from now on."""
    seen, answer = Counter[int](), server._service.answer

    def counted(kind: int, data: memoryview, hold: Any) -> Any:
        seen[kind] += 1
        return answer(kind, data, hold)

    server._service.answer = counted  # type: ignore[method-assign]
    return seen


def step(endpoint: str, wire_dtype: str = "fp32") -> Any:
    """Push and pull; the rows."""
    with connect(endpoint, timeout_s=20, wire_dtype=wire_dtype) as client:
        client.push("user", IDS, np.ones((IDS.size, 4)))
        return client.pull("user", IDS)


def is_free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a socket's path, which tmp_path may not be."""
    with tempfile.TemporaryDirectory(prefix="rw") as name:
        yield Path(name)


@pytest.mark.parametrize("wanted", ["auto", "off", "number"])
def test_pulls_and_pushes_go_where_the_config_says(make_config: MakeConfig, wanted: str) -> None:
    port = free_ports(1)
    config = make_config(shards=["127.0.0.1:0"], data_port=port if wanted == "number" else wanted)
    server, frames = serve(config)
    step(server.endpoint)
    assert dict(frames) == ({} if wanted == "off" else {frame.PULL: 1, frame.PUSH: 1})
    if wanted == "number":
        assert server._data_port.endpoint == f":{port}" and not is_free(port)
    server.stop()
    assert is_free(port) and is_free(int(server.endpoint.rpartition(":")[2]))


def test_a_taken_data_port_is_told_and_gives_everything_back(make_config: MakeConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port, calls = taken.getsockname()[1], free_ports(1)
        config = make_config(shards=[f"127.0.0.1:{calls}"], data_port=port)
        server = Server(load_config(config), 0, Shard.open)
        with pytest.raises(ConfigError, match=rf"data_port: \('127\.0\.0\.1', {port}\) cannot be bound: "):
            server.start()
        assert is_free(calls)
        with ServerProcess("up", config) as process:
            assert process.finish() == ConfigError.exit_code
            assert "data_port: " in process.text() and "Address already in use" in process.text()
    server, frames = serve(config)
    step(server.endpoint)
    assert frames[frame.PUSH] == 1
    server.stop()


def test_the_data_port_is_free_again_when_recovery_fails(make_config: MakeConfig) -> None:
    port = free_ports(1)

    def broken(*_: Any) -> Any:
        raise ConfigError("on purpose")

    server = Server(load_config(make_config(shards=["127.0.0.1:0"], data_port=port)), 0, broken)
    with pytest.raises(ConfigError, match="on purpose"):
        server.start()
    assert is_free(port)


def test_two_shards_have_a_port_each(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(shards=2, data_port=free_ports(2))
    with ServerProcess("up", config) as cluster:
        endpoints = cluster.endpoints()
        assert not is_free(config["data_port"]) and not is_free(config["data_port"] + 1)
        rows = step(endpoints)
        assert cluster.stop() == 0
    with connect(f"embedded:{tmp_path}/embedded", config={"tables": config["tables"]}) as client:
        client.push("user", IDS, np.ones((IDS.size, 4)))
        np.testing.assert_array_equal(rows, client.pull("user", IDS))


def test_ports_that_would_meet_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="data_port 7472 gives shard 0 port 7472, the endpoint of shard 2"):
        load_config(make_config(shards=3, base_port=7470, data_port=7472))
    load_config(make_config(shards=3, base_port=7470, data_port=7473))
    load_config(make_config(shards=["10.0.0.1:7470", "10.0.0.2:7471"], data_port=7470 - 1))
    with pytest.raises(ConfigError, match="gives shard 0 port 7470, the endpoint of shard 0"):
        load_config(make_config(shards=["10.0.0.1:7470", "10.0.0.2:7471"], data_port=7470))


def test_a_port_picked_is_no_shards_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    picked: list[int] = []
    bind = binding._bind

    def noted(family: int, address: Any) -> socket.socket:
        made = bind(family, address if len(picked) else (address[0], reserved))
        picked.append(made.getsockname()[1])
        return made

    reserved = free_ports(1)
    monkeypatch.setattr(binding, "_bind", noted)  # the first pick is a port that is another's
    others = ["unix:/a", f"127.0.0.1:{reserved}"]
    with binding.bind_data_port("127.0.0.1:1", 0, others) as made:
        assert picked[0] == reserved and len(picked) == 2
        assert made.getsockname()[1] == picked[1] != reserved
    assert is_free(reserved)


def test_socket_files_have_one_beside_them(make_config: MakeConfig, folder: Path) -> None:
    config = make_config(shards=[f"unix:{folder}/a.sock"])
    with ServerProcess("serve", config, "--shard", "0") as process:
        process.endpoint()
        assert {p.name for p in folder.iterdir()} == {"a.sock", "a.sock.data"}
        before = step(f"unix:{folder}/a.sock")
        os.kill(process.process.pid, signal.SIGKILL)
        process.finish()
    assert (folder / "a.sock.data").exists(), "a kill leaves it"
    server, frames = serve(config)
    with connect(server.endpoint, timeout_s=20) as client:
        np.testing.assert_array_equal(client.pull("user", IDS), before)
    assert frames[frame.PULL] == 1
    second = Server(
        load_config({**config, "shards": [f"unix:{folder}/a.sock.data"], "data_port": "off"}), 0, Shard.open
    )
    with pytest.raises(ConfigError, match="in use by another process"):
        second.start()
    server.stop()
    assert not list(folder.iterdir())


def test_a_firewalled_port_means_grpc_and_a_warning(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    server, frames = serve(make_config(shards=["127.0.0.1:0"]))
    server._service.tell_data_port(f":{free_ports(1)}", 5)
    with connect(server.endpoint, timeout_s=20) as client:
        for _ in range(5):
            client.push("user", IDS, np.ones((IDS.size, 4)))
        assert client.pull("user", IDS).shape == (IDS.size, 4)
    assert not frames and caplog.text.count("cannot be reached; going on over gRPC") == 1
    server.stop()


@pytest.mark.parametrize("wire_dtype", ["fp32", "fp16", "bf16"])
def test_both_ways_give_the_same_bits(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, wire_dtype: str
) -> None:
    rows = []
    for way in ("frames", "grpc"):
        config = make_config(shards=["127.0.0.1:0"], data_dir=f"{make_config()['data_dir']}-{way}")
        server, frames = serve(config)
        if way == "grpc":
            monkeypatch.setattr(connection, "dial", GrpcTransport)
        rng = np.random.default_rng(4)
        with connect(server.endpoint, timeout_s=20, wire_dtype=wire_dtype) as client:
            for _ in range(3):
                client.push("user", IDS, rng.normal(size=(IDS.size, 4)))
            rows.append(client.pull("user", IDS))
        assert bool(frames) == (way == "frames")
        server.stop()
    np.testing.assert_array_equal(rows[0], rows[1])


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.soak)])
def test_many_tables_in_one_step(make_config: MakeConfig, count: int) -> None:
    """More pieces than one sendmsg takes, both ways."""
    sgd = {"kind": "sgd", "learning_rate": 0.5}
    tables = [{"name": f"t{i}", "dim": 2, "optimizer": sgd} for i in range(count)]
    ids = {f"t{i}": np.arange(i % 3 + 1) for i in range(count)}
    server, frames = serve(make_config(tables=tables, shards=["127.0.0.1:0"], memory_budget="256MiB"))
    with connect(server.endpoint, timeout_s=60) as client:
        before = client.pull_many(ids)
        client.push_many({name: (i, np.full((i.size, 2), 0.25)) for name, i in ids.items()})
        after = client.pull_many(ids)
    assert dict(frames) == {frame.PULL: 2, frame.PUSH: 1}
    assert all(np.array_equal(after[name], before[name] - np.float32(0.125)) for name in ids)
    server.stop()


def test_the_asyncio_client_takes_it_too(make_config: MakeConfig) -> None:
    server, frames = serve(make_config(shards=["127.0.0.1:0"]))

    async def train() -> None:
        async with await connect_async(server.endpoint, timeout_s=20) as client:
            await asyncio.gather(*[client.pull("user", IDS + i) for i in range(8)])
            await client.push("user", IDS, np.ones((IDS.size, 4)))

    asyncio.run(train())
    assert dict(frames) == {frame.PULL: 8, frame.PUSH: 1}
    server.stop()


def test_a_groups_contributions_are_frames(make_config: MakeConfig) -> None:
    server, frames = serve(make_config(shards=["127.0.0.1:0"]))
    with connect(server.endpoint, timeout_s=20) as one, connect(server.endpoint, timeout_s=20) as other:
        before = one.pull("user", IDS)
        trainers = [
            c.trainer(group="run", rank=rank, world_size=2, deadline_s=20.0)
            for rank, c in enumerate((one, other))
        ]
        ones = np.ones((IDS.size, 4), np.float32)
        for _ in range(3):
            for trainer in trainers:
                trainer.push("user", IDS, ones)
            assert together(*[trainer.step for trainer in trainers]) == [None, None]
        np.testing.assert_array_equal(
            one.pull("user", IDS), before - np.float32(1) - np.float32(1) - np.float32(1)
        )
        for trainer in trainers:
            trainer.close()
    assert frames[frame.CONTRIBUTE] >= 6 and not frames[frame.PUSH]
    server.stop()
