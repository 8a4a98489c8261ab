# SPDX-License-Identifier: Apache-2.0
"""A shard called by a stub that is not ours: Node.js, grpc-js, rowhouse.proto. (Python's stock stub is in
tests/e2e/test_wire.py.)"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rowhouse.v1 import rowhouse_pb2 as pb
from rowhouse.v1 import rowhouse_pb2_grpc

from ps_server.config.cluster import load_config
from ps_server.serve.server import Server
from ps_server.shard.shard import Shard
from tests.conftest import MakeConfig

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "node"
NPM = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """client.js beside the packages that package-lock.json pins."""
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("node")
    for name in ("client.js", "package.json", "package-lock.json"):
        shutil.copy(FOLDER / name, folder)
    try:
        done = subprocess.run(NPM, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm could not install grpc-js within 300 s")
    if done.returncode:
        pytest.skip(f"npm could not install grpc-js: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "client.js"


def run(client: Path, endpoint: str) -> dict[str, Any]:
    """What the client found."""
    proto = ROOT / "proto" / "rowhouse" / "v1" / "rowhouse.proto"
    command = ["node", str(client), endpoint, str(proto)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_stock_stub_of_another_language_gets_rows_errors_and_answers_beside_silent_calls(
    make_config: MakeConfig, node_client: Path
) -> None:
    server = Server(load_config(make_config()), 0, Shard.open)
    server.start()
    try:
        with grpc.insecure_channel(server.endpoint) as channel:
            stub: Any = rowhouse_pb2_grpc.ParameterServiceStub(channel)  # type: ignore[no-untyped-call]
            ids = np.array([5, 2**64 - 1], "<u8").tobytes()
            pull = pb.PullRequest(
                map_version=stub.GetCluster(pb.GetClusterRequest()).map_version, dtype=pb.DTYPE_FLOAT32,
                tables=[pb.TableIds(table="user", dim=4, count=2, ids=ids)],
            )  # fmt: skip
            before: bytes = stub.Pull(pull).tables[0].rows
            found = run(node_client, server.endpoint)
            after: bytes = stub.Pull(pull).tables[0].rows
    finally:
        server.stop()
    assert before != after
    assert found["before"] == before.hex()
    assert found["after"] == found["beside"] == found["end"] == after.hex()
    assert found["first"]["duplicate"] is False and found["again"]["duplicate"] is True
    assert found["first"]["lsn"] == found["again"]["lsn"] == found["stats"]["applied_lsn"]
    starts = {
        "gap": "FAILED_PRECONDITION SequenceGapError", "dim": "INVALID_ARGUMENT InvalidRequestError",
        "table": "NOT_FOUND UnknownTableError", "ids": "INVALID_ARGUMENT InvalidRequestError",
        "map": "FAILED_PRECONDITION StalePartitionMapError",
    }  # fmt: skip
    for wrong, start in starts.items():
        assert found["refused"][wrong].startswith(start), found["refused"][wrong]
