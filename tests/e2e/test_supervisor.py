# SPDX-License-Identifier: Apache-2.0
"""`ps-server up` with real shards: restarts, clean stops, nothing lost, nothing left behind."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse.document import dump

from ps_client import connect
from tests.conftest import MakeConfig
from tests.process import ServerProcess, is_running, kill, wait_until_gone

IDS = np.arange(2000, dtype=np.uint64)


@pytest.fixture
def config(make_config: MakeConfig) -> dict[str, Any]:
    return make_config(shards=2)


def trained_rows(endpoints: str) -> Any:
    with connect(endpoints) as client:
        client.push("user", IDS, np.random.default_rng(7).normal(size=(IDS.size, 4)))
        return client.pull("user", IDS)


def test_a_killed_shard_is_started_again_with_its_rows(config: dict[str, Any]) -> None:
    with ServerProcess("up", config) as cluster:
        endpoints = cluster.endpoints()
        before = trained_rows(endpoints)
        first, other = cluster.facts()["pids"]
        kill(first)
        with connect(endpoints) as client:  # a client just waits for the shard to come back
            np.testing.assert_array_equal(client.pull("user", IDS), before)
            client.push("user", IDS[:1], np.ones((1, 4)))
        pids = cluster.facts()["pids"]
        assert pids[0] != first and pids[1] == other
        assert "shard 0 ended with signal SIGKILL; starting it again" in cluster.text()
        assert cluster.stop() == 0
        wait_until_gone([p for p in pids if p])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_loses_nothing_even_without_a_log(config: dict[str, Any], number: int) -> None:
    config["durability"] = "none"
    with ServerProcess("up", config) as cluster:
        before = trained_rows(cluster.endpoints())
        pids = cluster.facts()["pids"]
        assert cluster.stop(number) == 0
        assert not any(is_running(p) for p in pids)
        assert cluster.facts()["pids"] == [None, None]
    with ServerProcess("up", config) as again, connect(again.endpoints()) as client:
        np.testing.assert_array_equal(client.pull("user", IDS), before)
        assert again.stop() == 0


def test_shards_die_with_a_killed_supervisor_and_lose_nothing(config: dict[str, Any]) -> None:
    with ServerProcess("up", config) as cluster:
        before = trained_rows(cluster.endpoints())
        pids = cluster.facts()["pids"]
        kill(cluster.process.pid)
        wait_until_gone(pids)
    with ServerProcess("up", config) as again, connect(again.endpoints()) as client:
        np.testing.assert_array_equal(client.pull("user", IDS), before)


def test_a_script_reads_the_endpoints_as_one_line_of_json(config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "ps_server.cli", "up", "--config", str(path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        with connect(",".join(facts["endpoints"])) as client:
            assert client.pull("user", IDS).shape == (IDS.size, 4)
        process.terminate()
        assert process.stdout.read() == ""
    assert process.returncode == 0


def test_a_second_supervisor_on_the_directory(config: dict[str, Any]) -> None:
    with ServerProcess("up", config) as cluster:
        endpoints = cluster.endpoints()
        before = trained_rows(endpoints)
        with ServerProcess("up", config) as second:
            assert second.finish() == 74
            assert "DirectoryInUseError" in second.text()
        with connect(endpoints) as client:
            np.testing.assert_array_equal(client.pull("user", IDS), before)


def test_a_table_that_changed_its_dim_is_refused_and_nothing_is_lost(config: dict[str, Any]) -> None:
    with ServerProcess("up", config) as cluster:
        before = trained_rows(cluster.endpoints())
        assert cluster.stop() == 0
    changed = {**config, "tables": [{**config["tables"][0], "dim": 5}]}
    with ServerProcess("up", changed) as cluster:
        assert cluster.finish() == 2
        assert "user" in cluster.text() and "ConfigError" in cluster.text()
    with ServerProcess("up", config) as again, connect(again.endpoints()) as client:
        np.testing.assert_array_equal(client.pull("user", IDS), before)
