# SPDX-License-Identifier: Apache-2.0
"""A shard that is out of open files, or whose writes fail, waits or is started again, and loses nothing."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rowhouse.error import BusyError
from rowhouse.v1 import rowhouse_pb2 as pb

import ps_client
from ps_client import Client
from ps_client.transport.grpc import GrpcTransport
from ps_server.disk.open_file import files_of_checkpoint
from tests.conftest import MakeConfig
from tests.process import READY_S, ServerProcess, wait_until

IDS = np.arange(1000, dtype=np.uint64)
ONES = np.ones((1000, 4), np.float32)
TABLE = {
    "name": "user", "dim": 4, "optimizer": {"kind": "sgd", "learning_rate": 1.0},
    "initializer": {"kind": "constant", "value": 0.0},
}  # fmt: skip


def leave_files(pid: int, count: int) -> tuple[int, int]:
    """Leave the process so many files that it may open more; its limits before."""
    numbers = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = [number for number in range(max(numbers) + 2 + count) if number not in numbers]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[count], before[1]))
    return before


def poison_of(endpoint: str) -> str:
    transport = GrpcTransport(endpoint)
    try:
        return str(transport.call("GetStats", pb.GetStatsRequest(), READY_S).poison)
    finally:
        transport.close()


def rows(client: Client) -> float:
    """How many pushes of ones the rows hold."""
    found = client.pull("user", IDS)
    assert (found == found[0, 0]).all()
    return -float(found[0, 0])


def test_a_checkpoint_that_cannot_open_files_waits_and_is_made_later(make_config: MakeConfig) -> None:
    config = make_config(tables=[TABLE], checkpoint_log_bytes="1MiB")
    with ServerProcess("serve", config, "--shard", "0") as server:
        endpoint = server.endpoint()
        with ps_client.connect(endpoint, timeout_s=2 * READY_S) as client:
            client.push("user", IDS, ONES)
            before = leave_files(server.process.pid, files_of_checkpoint(1) // 2)
            with pytest.raises(BusyError, match=r"a checkpoint needs up to .* more open files"):
                client.checkpoint(timeout_s=0.5)
            for _ in range(60):  # more log than the config allows: the background wants a checkpoint
                client.push("user", IDS, ONES)
            server.wait_for("the checkpoint waits: ")
            assert rows(client) == 61
            assert poison_of(endpoint) == ""
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, before)
            wait_until(lambda: client.stats()[0].log_bytes < 1 << 20)
            assert rows(client) == 61
        assert server.stop() == 0


def test_a_shard_whose_write_failed_is_started_again_and_clients_go_on(make_config: MakeConfig) -> None:
    """The log may not grow any more, as on a full disk; the next process may write again."""
    with ServerProcess("up", make_config(tables=[TABLE], shards=2)) as server:
        with ps_client.connect(server.endpoints(), timeout_s=2 * READY_S) as client:
            client.push("user", IDS, ONES)
            first = server.facts()["pids"]
            resource.prlimit(first[0], resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            for _ in range(50):
                client.push("user", IDS, ONES)
            assert rows(client) == 51, "each push is applied once"
            wait_until(lambda: server.facts()["healthy"] == [True, True])
            assert server.facts()["pids"][0] != first[0] and server.facts()["pids"][1] == first[1]
            assert "is poisoned: " in server.text() and "starting it again" in server.text()
        assert server.stop() == 0


@pytest.mark.parametrize("soft_only", [True, False])
def test_tables_need_files_and_a_start_says_how_many(tmp_path: Path, soft_only: bool) -> None:
    """The soft limit is raised; a hard one that is too low is told before anything is made."""
    program = f"""
import resource, sys
from pathlib import Path
import ps_client
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, limit[1] if {soft_only} else 200))
tables = [{{"name": f"t{{i}}", "dim": 1, "optimizer": {{"kind": "sgd"}}}} for i in range(100)]
config = {{"tables": tables, "memory_budget": "64MiB"}}
with ps_client.connect("embedded:" + sys.argv[1], config=config) as client:
    for i in range(100):
        client.push(f"t{{i}}", [1, 2], [[1.0], [2.0]])
    client.checkpoint()
print("done")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "shard")],
        capture_output=True, text=True, timeout=4 * READY_S, check=False,
    )  # fmt: skip
    if soft_only:
        assert ended.stdout == "done\n", ended.stderr
    else:
        needed = 100 + files_of_checkpoint(100) + 64
        assert (
            f"ConfigError: tables: 100 tables need {needed} open files, and the hard limit is 200"
            in ended.stderr
        )
        assert not (tmp_path / "shard" / "shard-0000" / "store").exists()
