# SPDX-License-Identifier: Apache-2.0
"""`psctl freeze` and the config's `freeze` over SIGKILL of a real server."""

import signal

import numpy as np
import pytest
from rowhouse.error import TableFrozenError

from ps_client import connect
from ps_server import psctl
from tests.conftest import MakeConfig
from tests.process import ServerProcess

IDS = np.arange(3, dtype=np.uint64)


def is_open(server: ServerProcess) -> bool:
    """Whether it takes a push."""
    with connect(server.endpoint(), timeout_s=20) as client:
        try:
            client.push("user", IDS, np.ones((3, 4)))
        except TableFrozenError:
            return False
    return True


def test_a_command_outlives_kills_until_the_config_changes(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {"name": "user", "dim": 4}
    usual = make_config(shards=["127.0.0.1:0"])
    refusing = {**usual, "tables": [{**table, "freeze": "refuse"}]}
    opening = {**usual, "tables": [{**table, "freeze": "off"}]}
    expected = [(opening, False), (refusing, False), (opening, True), (refusing, False)]
    with ServerProcess("serve", opening, "--shard", "0") as server:
        assert is_open(server)
        command = ["freeze", "--endpoints", server.endpoint(), "--table", "user", "--mode", "refuse"]
        assert psctl.main(command) == 0
        assert not is_open(server)
        server.stop(signal.SIGKILL)
    for config, is_it_open in expected:
        with ServerProcess("serve", config, "--shard", "0") as server:
            assert is_open(server) is is_it_open
            server.stop(signal.SIGKILL)
