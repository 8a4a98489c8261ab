# SPDX-License-Identifier: Apache-2.0
"""psctl against a served stub of a shard: what it asks, prints and returns."""

import json
from collections.abc import Iterator

import pytest
from rowhouse.error import UnknownTableError
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server import psctl
from ps_server.config.cluster import load_config
from ps_server.serve.server import Server
from tests.conftest import MakeConfig
from tests.stub_shard import StubShard


@pytest.fixture
def shard() -> StubShard:
    return StubShard()


@pytest.fixture
def endpoint(shard: StubShard, make_config: MakeConfig) -> Iterator[str]:
    server = Server(load_config(make_config()), 0, lambda *_: shard)
    server.start()
    yield server.endpoint
    server.stop()


def test_stats_for_people(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert psctl.main(["stats", "--endpoints", endpoint]) == 0
    printed = capsys.readouterr().out
    for text in ("user", "25.0%", "1.0 TiB", "2.0 KiB", "healthy", endpoint):
        assert text in printed


def test_stats_for_scripts(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """64-bit counters are numbers, and zeros are there."""
    assert psctl.main(["stats", "--endpoints", endpoint, "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["endpoint"] == endpoint and facts["applied_lsn"] == 5 and facts["poison"] == ""
    (table,) = facts["tables"]
    assert table["disk_bytes"] == 2**40 and table["rows_exact"] is True and table["evicted_rows"] == 0
    assert list(facts) == ["endpoint", *(field.name for field in pb.GetStatsResponse.DESCRIPTOR.fields)]
    assert list(table) == [field.name for field in pb.TableStats.DESCRIPTOR.fields]


def test_a_poisoned_shard_says_why(
    endpoint: str, shard: StubShard, capsys: pytest.CaptureFixture[str]
) -> None:
    shard.answers["GetStats"] = pb.GetStatsResponse(poison="disk full")
    assert psctl.main(["stats", "--endpoints", endpoint]) == 0
    assert "poisoned: disk full" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        (pb.FREEZE_MODE_OFF, "open"),
        (pb.FREEZE_MODE_REFUSE, "frozen: refuse"),
        (pb.FREEZE_MODE_IGNORE, "frozen: ignore"),
        (pb.FREEZE_MODE_UNSPECIFIED, "frozen: refuse"),  # of an older shard
    ],
)
def test_stats_tell_what_a_frozen_table_does(
    mode: pb.FreezeMode, shown: str, endpoint: str, shard: StubShard, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pb.TableStats(name="user", frozen=mode != pb.FREEZE_MODE_OFF, freeze=mode)
    shard.answers["GetStats"] = pb.GetStatsResponse(tables=[table])
    assert psctl.main(["stats", "--endpoints", endpoint]) == 0
    assert shown in capsys.readouterr().out


def test_checkpoint(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert psctl.main(["checkpoint", "--endpoints", endpoint, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"endpoint": endpoint, "lsn": 2**63, "rows_written": 4}]
    assert psctl.main(["checkpoint", "--endpoints", endpoint]) == 0
    assert str(2**63) in capsys.readouterr().out


def test_freeze_and_evict_name_the_table(endpoint: str, shard: StubShard) -> None:
    assert psctl.main(["freeze", "--endpoints", endpoint, "--table", "user", "--mode", "ignore"]) == 0
    evict = pb.EvictRowsRequest(table="user")
    freeze = pb.SetTableFreezeRequest(table="user", mode=pb.FREEZE_MODE_IGNORE)
    assert psctl.main(["evict", "--endpoints", endpoint, "--table", "user"]) == 0
    changes = [call for call in shard.calls if call[0] != "GetCluster"]
    assert all(request.ticket for _, request in changes), "a call that may be asked about again"
    for _, request in changes:
        request.ticket = 0
    assert changes == [("SetTableFreeze", freeze), ("EvictRows", evict)]


def test_an_error_of_one_shard_is_printed_and_the_others_are_asked(
    endpoint: str, shard: StubShard, capsys: pytest.CaptureFixture[str]
) -> None:
    """Port 1 answers nobody; the worst exit code wins."""
    assert psctl.main(["stats", "--endpoints", f"127.0.0.1:1,{endpoint}", "--json"]) == 69
    printed = capsys.readouterr()
    away, there = json.loads(printed.out)
    assert away["endpoint"] == "127.0.0.1:1" and away["error"].startswith("UnavailableError: 127.0.0.1:1: ")
    assert there["endpoint"] == endpoint and "error" not in there
    assert "psctl: UnavailableError: 127.0.0.1:1: " in printed.err
    shard.fail = UnknownTableError("table 'usr' is not declared")
    assert psctl.main(["evict", "--endpoints", endpoint, "--table", "usr"]) == 2
    assert f"UnknownTableError: {endpoint}: table 'usr' is not declared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stats"], "--endpoints"),
        (["stats", "--endpoints", "localhost"], "endpoint is 'localhost'; it must be host:port"),
        (["stats", "--endpoints", "a:1,b:1,a:1"], "a:1 is named twice; name each shard once"),
        (["freeze", "--endpoints", "a:1", "--table", "user", "--mode", "on"], "invalid choice: 'on'"),
        (["evict", "--endpoints", "a:1"], "--table"),
        (["walk"], "invalid choice: 'walk'"),
    ],
)
def test_wrong_flags(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        psctl.main(arguments)
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


def test_what_changes_a_cluster_is_not_done_to_a_part_of_it(
    endpoint: str, shard: StubShard, capsys: pytest.CaptureFixture[str]
) -> None:
    shard.endpoints = [endpoint, "127.0.0.1:1"]
    for command in (
        ["checkpoint"],
        ["freeze", "--table", "user", "--mode", "off"],
        ["evict", "--table", "user"],
    ):
        assert psctl.main([command[0], "--endpoints", endpoint, *command[1:]]) == 2
        assert "--endpoints names 1 of the cluster's 2 shards" in capsys.readouterr().err
    assert {name for name, _ in shard.calls} == {"GetCluster"}
    assert psctl.main(["stats", "--endpoints", endpoint]) == 0
