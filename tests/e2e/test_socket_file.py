# SPDX-License-Identifier: Apache-2.0
"""A cluster on socket files: served, killed, started again on the file that the kill left."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rowhouse.error import ConfigError

from ps_client import connect
from ps_server.config.cluster import load_config
from ps_server.serve.server import Server
from tests.conftest import MakeConfig
from tests.process import ServerProcess
from tests.stub_shard import StubShard


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a socket's path, which tmp_path may not be."""
    with tempfile.TemporaryDirectory(prefix="rw") as name:
        yield Path(name)


def test_two_shards_train_on_socket_files_and_outlive_a_kill(make_config: MakeConfig, folder: Path) -> None:
    config = make_config(shards=2, host=f"unix:{folder}/sockets")
    ids = np.arange(1000, dtype=np.uint64)
    with ServerProcess("up", config) as server:
        endpoints = server.endpoints()
        assert endpoints == ",".join(f"unix:{folder}/sockets/shard-000{i}.sock" for i in range(2))
        with connect(endpoints) as client, connect(endpoints.split(",")[0]) as one_target:
            before = client.pull("user", ids)
            client.push("user", ids, np.ones_like(before))
            os.kill(server.facts()["pids"][0], signal.SIGKILL)
            client.push("user", ids, np.ones_like(before))  # waits for the restart
            np.testing.assert_array_equal(
                one_target.pull("user", ids), before - np.float32(0.5) - np.float32(0.5)
            )
        assert server.stop() == 0
    assert not list((folder / "sockets").iterdir()), "a clean stop takes its socket files away"


def test_serve_takes_over_a_stale_file_and_leaves_a_taken_one(make_config: MakeConfig, folder: Path) -> None:
    endpoint = f"unix:{folder}/a.sock"
    config = load_config(make_config(shards=[endpoint]))
    shards = [StubShard(), StubShard()]
    servers = [Server(config, 0, lambda *_, shard=shard: shard) for shard in shards]
    servers[0].start()
    with pytest.raises(ConfigError, match=r"a\.sock' is in use by another process"):
        servers[1].start()
    assert servers[0].endpoint == endpoint
    servers[0].stop()
    servers[1].start()
    servers[1].stop()
    assert [name for name, _ in shards[1].calls] == ["close"]


def test_up_refuses_a_taken_file_before_it_starts_anything(make_config: MakeConfig, folder: Path) -> None:
    config = make_config(shards=[f"unix:{folder}/a.sock"])
    running = Server(load_config(config), 0, lambda *_: StubShard())
    running.start()
    with ServerProcess("up", config) as server:
        assert server.finish() == 2
        assert f"socket file '{folder}/a.sock' is in use by another process" in server.text()
    running.stop()
