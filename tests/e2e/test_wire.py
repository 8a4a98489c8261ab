# SPDX-License-Identifier: Apache-2.0
"""What a shard refuses from a client that checks nothing: generated stubs, bad requests, no change."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rowhouse.error import ERROR_METADATA_KEY
from rowhouse.v1 import rowhouse_pb2 as pb
from rowhouse.v1 import rowhouse_pb2_grpc

from ps_server.config.cluster import load_config
from ps_server.serve.server import Server
from ps_server.shard.shard import Shard
from tests.conftest import MakeConfig

IDS = np.array([5, 2**64 - 1], np.uint64)


class Wire:
    """A served shard with one table `user` of dim 4, and its stub."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.server = Server(load_config(config), 0, Shard.open)
        self.server.start()
        self.channel = grpc.insecure_channel(self.server.endpoint)
        self.stub: Any = rowhouse_pb2_grpc.ParameterServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.map_version = self.stub.GetCluster(pb.GetClusterRequest()).map_version

    def push(self, sequence: int) -> pb.PushRequest:
        """A push that is right."""
        table = pb.TableGradients(table="user", dim=4, count=2, dtype=pb.DTYPE_FLOAT32, ids=IDS.tobytes())
        table.gradients = np.full((2, 4), 0.25, "<f4").tobytes()
        return pb.PushRequest(map_version=self.map_version, client_id=9, sequence=sequence, tables=[table])

    def pull(self) -> pb.PullRequest:
        """A pull that is right."""
        table = pb.TableIds(table="user", dim=4, count=2, ids=IDS.tobytes())
        return pb.PullRequest(map_version=self.map_version, dtype=pb.DTYPE_FLOAT32, tables=[table])

    def rows(self) -> bytes:
        """The rows of IDS as they are now."""
        rows: bytes = self.stub.Pull(self.pull()).tables[0].rows
        return rows


@pytest.fixture
def wire(make_config: MakeConfig) -> Iterator[Wire]:
    one = Wire(make_config())
    yield one
    one.channel.close()
    one.server.stop()


def gradients(value: float) -> bytes:
    array = np.ones((2, 4), "<f4")
    array[1, 2] = value
    return array.tobytes()


Change = Callable[[Any], Any]
BAD_PUSHES: dict[str, tuple[Change, str]] = {
    "unknown table": (lambda t: setattr(t.tables[0], "table", "usr"), "UnknownTableError"),
    "wrong dim": (lambda t: t.tables[0].MergeFrom(pb.TableGradients(dim=2, count=4)), "InvalidRequestError"),
    "dim 0": (lambda t: setattr(t.tables[0], "dim", 0), "LimitExceededError"),
    "dim past the bound": (lambda t: setattr(t.tables[0], "dim", 1025), "LimitExceededError"),
    "short gradients": (lambda t: setattr(t.tables[0], "gradients", b"1234"), "InvalidRequestError"),
    "NaN": (lambda t: setattr(t.tables[0], "gradients", gradients(np.nan)), "InvalidRequestError"),
    "infinity": (lambda t: setattr(t.tables[0], "gradients", gradients(-np.inf)), "InvalidRequestError"),
    "unknown dtype": (lambda t: setattr(t.tables[0], "dtype", 7), "InvalidRequestError"),
    "NaN rate": (lambda t: setattr(t.tables[0], "learning_rate", float("nan")), "InvalidRequestError"),
    "table twice": (lambda t: t.tables.append(t.tables[0]), "InvalidRequestError"),
    "another map": (lambda t: setattr(t, "map_version", 1), "StalePartitionMapError"),
    "a gap": (lambda t: setattr(t, "sequence", 9), "SequenceGapError"),
    "second table bad": (lambda t: t.tables.add(table="x", dim=1, dtype=1), "UnknownTableError"),
}  # fmt: skip


def refused(call: Any, request: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    names = [str(m.value) for m in caught.value.trailing_metadata() if m.key == ERROR_METADATA_KEY]
    return names[0]


@pytest.mark.parametrize("name", sorted(BAD_PUSHES))
def test_a_bad_push_changes_nothing_and_the_next_good_one_is_applied(wire: Wire, name: str) -> None:
    change, expected = BAD_PUSHES[name]
    assert wire.stub.Push(wire.push(1)).lsn == 1
    before, bad = wire.rows(), wire.push(2)
    change(bad)
    assert refused(wire.stub.Push, bad) == expected
    assert wire.rows() == before
    assert wire.stub.Push(wire.push(2)).lsn == 2
    assert wire.rows() != before


def test_a_repeated_push_is_answered_and_not_applied(wire: Wire) -> None:
    assert not wire.stub.Push(wire.push(1)).duplicate
    before = wire.rows()
    again = wire.stub.Push(wire.push(1))
    assert again.duplicate and again.lsn == 1
    assert wire.rows() == before


def test_bad_pulls_are_refused(wire: Wire) -> None:
    unknown, dim, dtype, stale = (wire.pull() for _ in range(4))
    unknown.tables[0].table, dim.tables[0].dim, stale.map_version = "usr", 5, 1
    dtype.MergeFromString(b"\x10\x09")  # dtype 9, which the enum does not know
    found = [refused(wire.stub.Pull, r) for r in (unknown, dim, dtype, stale)]
    assert found == [
        "UnknownTableError",
        "InvalidRequestError",
        "InvalidRequestError",
        "StalePartitionMapError",
    ]


def test_calls_on_a_table_that_is_not_there(wire: Wire) -> None:
    freeze = pb.SetTableFreezeRequest(table="usr", mode=pb.FREEZE_MODE_REFUSE)
    assert refused(wire.stub.SetTableFreeze, freeze) == "UnknownTableError"
    assert refused(wire.stub.EvictRows, pb.EvictRowsRequest(table="usr")) == "UnknownTableError"
    unspecified = pb.SetTableFreezeRequest(table="user")
    assert refused(wire.stub.SetTableFreeze, unspecified) == "InvalidRequestError"


def test_a_frozen_table_refuses_or_ignores_and_thaws(wire: Wire) -> None:
    before = wire.rows()
    wire.stub.SetTableFreeze(pb.SetTableFreezeRequest(table="user", mode=pb.FREEZE_MODE_REFUSE))
    assert refused(wire.stub.Push, wire.push(1)) == "TableFrozenError"
    wire.stub.SetTableFreeze(pb.SetTableFreezeRequest(table="user", mode=pb.FREEZE_MODE_IGNORE))
    wire.stub.Push(wire.push(1))
    assert wire.rows() == before
    wire.stub.SetTableFreeze(pb.SetTableFreezeRequest(table="user", mode=pb.FREEZE_MODE_OFF))
    wire.stub.Push(wire.push(2))
    assert wire.rows() != before


def test_a_table_frozen_by_its_config(make_config: MakeConfig, tmp_path: Path) -> None:
    table = {"name": "user", "dim": 4, "freeze": "refuse"}
    wire = Wire(make_config(tables=[table]))
    assert refused(wire.stub.Push, wire.push(1)) == "TableFrozenError"
    assert wire.stub.GetStats(pb.GetStatsRequest()).tables[0].frozen
    wire.channel.close()
    wire.server.stop()
