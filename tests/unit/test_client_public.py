# SPDX-License-Identifier: Apache-2.0
"""What ps_client shows: its names, its plain values, and how its things look when they are printed."""

import inspect
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest
from rowhouse.error import error_class_names
from rowhouse.v1 import rowhouse_pb2 as pb

import ps_client
from ps_client import AsyncClient, Checkpoint, Client, RowhouseError, ShardStats, StepProtocol, TableStats
from ps_client.report import checkpoint_of, shard_stats
from ps_client.step import StepClient
from ps_client.table import read_tables
from tests.architecture import documented_parameters

from .fake_shard import local_client, make_shards


def test_the_names_are_sorted_and_each_has_a_home() -> None:
    names = ps_client.__all__
    assert names == sorted(names) and set(names) <= set(dir(ps_client))
    assert {name for name in names if name.endswith("Error")} == {
        name for name, kind in error_class_names().items() if kind.__module__ == "rowhouse.error"
    }
    for name in names:
        assert getattr(ps_client, name).__doc__, name
    assert ps_client.Client is Client and ps_client.RowhouseError is RowhouseError
    with pytest.raises(AttributeError, match="has no attribute 'clinet'"):
        ps_client.clinet  # type: ignore[attr-defined]  # noqa: B018


def test_a_program_that_has_not_connected_loads_neither_kernels_nor_grpc() -> None:
    program = "import sys; from ps_client import connect, RowhouseError; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"numba", "grpc", "numpy", "asyncio", "google", "torch", "pyarrow", "pydantic"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ShardStats, pb.GetStatsResponse),
        (TableStats, pb.TableStats),
        (Checkpoint, pb.CreateCheckpointResponse),
    ],
)
def test_a_plain_value_has_the_fields_of_its_message_and_documents_them(kind: Any, message: Any) -> None:
    names = [field.name for field in fields(kind)]
    assert names == [field.name for field in message.DESCRIPTOR.fields]
    attributes = inspect.getdoc(kind) or ""
    assert documented_parameters(re.sub("Attributes\n-+", "Parameters\n----------", attributes)) == names


def test_stats_and_checkpoints_are_frozen_and_of_python_types() -> None:
    table = pb.TableStats(name="user", rows=2**63, rows_exact=True)
    stats = shard_stats(pb.GetStatsResponse(shard=3, poison="disk full", tables=[table]))
    assert (stats.shard, stats.poison, stats.log_bytes) == (3, "disk full", 0)
    assert stats.tables[0].rows == 2**63 and stats.tables[0].rows_exact is True
    assert checkpoint_of(pb.CreateCheckpointResponse(lsn=7, rows_written=2)) == Checkpoint(
        lsn=7, rows_written=2
    )
    with pytest.raises(FrozenInstanceError):
        stats.shard = 4  # type: ignore[misc]


def test_each_thing_tells_what_it_is_in_one_line() -> None:
    client = local_client(make_shards(2))
    shown = "<Client of 2 shards: user (dim 4), item (dim 3)>"
    assert repr(client) == shown
    assert repr(client.tables["user"]) == "<Table 'user': dim 4, fp32, sgd>"
    with client.pipeline(staleness=2) as pipeline:
        assert repr(pipeline) == f"<Pipeline of staleness 2 over {shown}>"
        assert repr(AsyncClient(pipeline)) == f"<AsyncClient over {pipeline!r}>"
    assert repr(pipeline).startswith("<Pipeline of staleness 2, closed over")
    trainer = client.trainer(group="run", rank=1, world_size=2, pace="async")
    assert repr(trainer) == "<Trainer rank 1 of world_size 2 in group 'run', async, 0 steps>"
    client.close()
    assert repr(client) == "<Client of 2 shards, closed: user (dim 4), item (dim 3)>"


def test_many_tables_are_counted_and_not_listed() -> None:
    infos = [pb.TableInfo(name=f"t{n}", dim=2, dtype=pb.DTYPE_FLOAT16) for n in range(40)]
    tables = read_tables(infos)
    assert repr(tables["t7"]) == "<Table 't7': dim 2, fp16, of no known optimizer>"
    with local_client(make_shards(1, {f"t{n}": 2 for n in range(40)})) as client:
        assert repr(client).endswith("t0 (dim 2), t1 (dim 2), t2 (dim 2), t3 (dim 2) and 36 more>")


def test_a_client_offers_the_step_protocol_and_push_unique_checks_what_it_gets() -> None:
    for name, member in vars(StepProtocol).items():
        if not name.startswith("_"):
            assert hasattr(StepClient, name)
            if inspect.isfunction(member):
                assert inspect.signature(member) == inspect.signature(getattr(StepClient, name))
    (shard,) = make_shards(1)
    with local_client([shard]) as client:
        found = client.pull_unique({"user": [5, 3, 5]})["user"]
        client.push_unique({"user": (found.ids, np.ones((2, 4), np.float32))})
        np.testing.assert_array_equal(client.pull("user", [5, 3]), found.rows - np.float32(0.5))
        with pytest.raises(ValueError, match="have dtype float64"):
            client.push_unique({"user": (np.ones(2), np.ones((2, 4), np.float32))})  # type: ignore[dict-item]
