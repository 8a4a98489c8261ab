# SPDX-License-Identifier: Apache-2.0
"""Two clusters whose counts and tables agree: a client is of one, also when an address changes hands."""

import socket
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rowhouse.error import PreconditionError
from rowhouse.v1 import rowhouse_pb2 as pb
from rowhouse.v1 import rowhouse_pb2_grpc

from ps_client import connect
from ps_server.command.serve import check_one_id
from ps_server.config.cluster import load_config, shard_directory
from ps_server.shard.shard import Shard
from tests.process import ServerProcess, free_ports, kill

IDS = np.arange(100, dtype=np.uint64)
ONES = np.ones((100, 4), np.float32)


def config(folder: Path, **keys: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    table = {"name": "user", "dim": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.5}}
    base = {"data_dir": str(folder / "data"), "tables": [table], "shards": 1, "memory_budget": "16MiB"}
    return {**base, **keys}


def told(endpoint: str) -> pb.GetClusterResponse:
    with grpc.insecure_channel(endpoint) as channel:
        stub: Any = rowhouse_pb2_grpc.ParameterServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        answer: pb.GetClusterResponse = stub.GetCluster(pb.GetClusterRequest(), timeout=60)
        return answer


@pytest.mark.parametrize("data_port", ["auto", pytest.param("off", marks=pytest.mark.soak)])
def test_a_cluster_that_takes_over_an_address_gets_no_pull_and_no_push(
    tmp_path: Path, data_port: str
) -> None:
    port = free_ports(1)
    keys = {"base_port": port, "data_port": data_port}
    one, other = config(tmp_path / "one", **keys), config(tmp_path / "other", **keys)
    with ServerProcess("serve", one, "--shard", "0") as server:
        endpoint = server.endpoint()
        client = connect(endpoint, timeout_s=60)
        client.push("user", IDS, ONES)
        rows = client.pull("user", IDS)
        kill(server.process.pid)
    with ServerProcess("serve", other, "--shard", "0") as server:
        assert server.endpoint() == endpoint
        with pytest.raises(PreconditionError, match=r"is of cluster .*, this client joined one of cluster"):
            client.pull("user", IDS)
        with pytest.raises(PreconditionError, match=r"is of cluster .*, this client joined one of cluster"):
            client.push("user", IDS, ONES)
        with connect(endpoint) as own:
            (stats,) = own.stats()
            assert (stats.applied_lsn, stats.tables[0].pulled_ids) == (0, 0)
        kill(server.process.pid)
    with ServerProcess("serve", one, "--shard", "0") as server, client:
        server.endpoint()
        np.testing.assert_array_equal(client.pull("user", IDS), rows)
        assert server.stop() == 0


def test_shards_on_every_address_tell_no_address_and_are_found(tmp_path: Path) -> None:
    """`host: 0.0.0.0` is where to listen, and on another machine it would be that machine itself."""
    keys = config(tmp_path / "one", shards=2, host="0.0.0.0", base_port=0)
    with ServerProcess("up", keys) as server:
        ports = [endpoint.rpartition(":")[2] for endpoint in server.endpoints().split(",")]
        named = ",".join(f"{socket.gethostname()}:{port}" for port in ports)
        assert f'ps_client.connect("{named}")' in server.wait_for("ps_client.connect(")
        answer = told(f"127.0.0.1:{ports[0]}")
        assert list(answer.endpoints) == [f":{port}" for port in ports]
        assert len(answer.cluster_id) == 32
        with connect(f"127.0.0.1:{ports[1]}") as client:
            client.push("user", IDS, ONES)
            assert [shard.applied_lsn for shard in client.stats()] == [1, 1]
        assert server.stop() == 0


def test_a_stub_that_sends_the_maps_version_is_served(tmp_path: Path) -> None:
    """As every client did before clusters had ids."""
    with ServerProcess("serve", config(tmp_path / "one", base_port=0), "--shard", "0") as server:
        endpoint = server.endpoint()
        version = told(endpoint).map_version
        part = pb.TableIds(table="user", dim=4, count=100, ids=IDS.tobytes())
        with grpc.insecure_channel(endpoint) as channel:
            stub: Any = rowhouse_pb2_grpc.ParameterServiceStub(channel)  # type: ignore[no-untyped-call]
            request = pb.PullRequest(map_version=version, dtype=pb.DTYPE_FLOAT32, tables=[part])
            assert stub.Pull(request, timeout=60).tables[0].count == 100
            request.map_version = version + 1
            with pytest.raises(grpc.RpcError, match="or another cluster's; reload it"):
                stub.Pull(request, timeout=60)


def test_shards_on_several_machines_need_an_id_that_all_of_them_are_given(tmp_path: Path) -> None:
    """Else each machine would make one, and clients would refuse to join them; it is told at the start."""
    keys = config(tmp_path / "one", shards=["127.0.0.1:0", "127.0.0.2:1"])
    with ServerProcess("serve", keys, "--shard", "0") as server:
        assert server.finish() == 2
        suggested = server.text().split("cluster_id: ")[1].strip()
    assert not (tmp_path / "one" / "data").exists()
    for index, name in enumerate(("one", "other")):
        keys = {**config(tmp_path / name, shards=["127.0.0.1:0", "127.0.0.2:1"]), "cluster_id": suggested}
        loaded = load_config(keys)
        check_one_id(loaded)
        shard = Shard.open(loaded, index, shard_directory(loaded, index))
        assert shard.get_cluster(pb.GetClusterRequest()).cluster_id == suggested
        shard.close()
        check_one_id(load_config({**keys, "cluster_id": None}))
