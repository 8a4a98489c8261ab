# SPDX-License-Identifier: Apache-2.0
"""Ids of another shard: a stub that routes wrongly is told, by every call that takes ids."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rowhouse import dtype
from rowhouse.error import InvalidRequestError
from rowhouse.message import Contribution, PullRequest, PushRequest, TableEdit, TableGradients, TableIds
from rowhouse.placement import PartitionMap
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.transport.grpc import GrpcTransport
from tests.process import ServerProcess, free_ports

MakeConfig = Callable[..., dict[str, Any]]

SHARDS = 3
MAP = PartitionMap.even(SHARDS)
IDS = np.arange(3000, dtype=np.uint64)
OWNERS = MAP.shards_of(IDS)
MEMBER = pb.Member(
    group=5, trainer=0, trainers=1, incarnation=1, name="t", pace=pb.PACE_BSP, deadline_ms=60_000
)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcTransport]:
    """The shard in the middle of three."""
    folder = tmp_path_factory.mktemp("misrouted")
    table = {"name": "user", "dim": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.5}}
    config = {
        "data_dir": str(folder / "data"), "tables": [table], "shards": SHARDS, "memory_budget": "16MiB",
        "base_port": free_ports(SHARDS),
    }  # fmt: skip
    with ServerProcess("serve", config, "--shard", "1") as server:
        transport = GrpcTransport(server.endpoint())
        yield transport
        transport.close()


def one_foreign(wrong: int, at: int) -> tuple[np.ndarray, int]:
    """Ids of shard 1 with one of shard `wrong` among them, and that one."""
    ids = IDS[OWNERS == 1].copy()
    ids[at] = IDS[wrong == OWNERS][0]
    return ids, int(ids[at])


def gradients(ids: np.ndarray) -> TableGradients:
    return TableGradients("user", dtype.FLOAT32, ids, np.ones((ids.shape[0], 4), np.float32))


@pytest.mark.parametrize("wrong", [0, 2])
@pytest.mark.parametrize("at", [0, 500, -1])
def test_every_call_names_an_id_of_another_shard(shard: GrpcTransport, wrong: int, at: int) -> None:
    ids, foreign = one_foreign(wrong, at)
    text = (
        rf"table 'user': id {foreign} \(row {at % ids.shape[0]}\) belongs to shard {wrong}; this is shard 1"
    )
    push = PushRequest(MAP.version, 77, 1, (gradients(ids),))
    with pytest.raises(InvalidRequestError, match=text):
        shard.pull(PullRequest(MAP.version, dtype.FLOAT32, False, (TableIds("user", 4, ids),)), 60.0)
    with pytest.raises(InvalidRequestError, match=text):
        shard.push(push, 60.0)
    with pytest.raises(InvalidRequestError, match=text):
        shard.contribute(Contribution(MEMBER, replace(push, client_id=5)), 60.0)
    removal = TableEdit("user", 0, ids)
    assigned = TableEdit("user", dtype.FLOAT32, ids, np.ones((ids.shape[0], 4), np.float32))
    for edit in (removal, assigned):
        with pytest.raises(InvalidRequestError, match=text):
            shard.push(replace(push, tables=(), edits=(edit,)), 60.0)
    read = pb.ReadRowsRequest(map_version=MAP.version, table="user", ids=ids.tobytes())
    with pytest.raises(InvalidRequestError, match=text):
        shard.call("ReadRows", read, 60.0)
    stats = shard.call("GetStats", pb.GetStatsRequest(), 60.0)
    assert stats.tables[0].pushed_ids == 0 and stats.tables[0].pulled_ids == 0, "nothing was changed"


def test_its_own_ids_are_served(shard: GrpcTransport) -> None:
    own = IDS[OWNERS == 1]
    pull = PullRequest(MAP.version, dtype.FLOAT32, False, (TableIds("user", 4, own),))
    before = shard.pull(pull, 60.0).tables[0].rows
    shard.push(PushRequest(MAP.version, 99, 1, (gradients(own),)), 60.0)
    np.testing.assert_array_equal(shard.pull(pull, 60.0).tables[0].rows, before - np.float32(0.5))


def test_rows_by_hand_are_no_part_of_a_step(shard: GrpcTransport) -> None:
    own = IDS[OWNERS == 1][:3]
    edits = PushRequest(MAP.version, MEMBER.group, 1, (), (TableEdit("user", 0, own),))
    with pytest.raises(InvalidRequestError, match="rows by hand are no part of a step"):
        shard.contribute(Contribution(MEMBER, edits), 60.0)
