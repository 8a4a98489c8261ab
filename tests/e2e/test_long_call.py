# SPDX-License-Identifier: Apache-2.0
"""Long calls over real sockets: a checkpoint may take longer than any timeout; Ctrl-C ends the waiting."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from ps_client import DeadlineExceededError, connect
from ps_server.config.cluster import load_config
from ps_server.serve.server import Server
from ps_server.shard.shard import Shard
from tests.conftest import MakeConfig

TIMEOUT_S = 1.0


@pytest.fixture
def served(make_config: MakeConfig) -> Iterator[tuple[Shard, str]]:
    shards: list[Shard] = []

    def opened(*given: object) -> Shard:
        shards.append(Shard.open(*given))  # type: ignore[arg-type]
        return shards[0]

    server = Server(load_config(make_config()), 0, opened)
    server.start()
    with connect(server.endpoint) as client:
        client.push("user", np.arange(9), np.ones((9, client.tables["user"].dim), np.float32))
    yield shards[0], server.endpoint
    server.stop()


@contextmanager
def busy(shard: Shard) -> Iterator[threading.Event]:
    """Hold the shard's upkeep for the time of the block, or until the event is set."""
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with shard.upkeep():
            held.set()
            leave.wait(600)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(600)
        yield leave
    finally:
        leave.set()
        thread.join()


def wait_until_begun(shard: Shard, calls: int) -> None:
    while len(shard._long_calls._calls) < calls:
        time.sleep(0.05)


def test_a_checkpoint_that_takes_longer_than_the_timeout_ends_well(served: tuple[Shard, str]) -> None:
    shard, endpoint = served
    with connect(endpoint, timeout_s=TIMEOUT_S) as client:
        with busy(shard) as leave:
            threading.Timer(3 * TIMEOUT_S, leave.set).start()
            assert [done.rows_written for done in client.checkpoint()] == [9]
        with busy(shard), pytest.raises(DeadlineExceededError):
            client.checkpoint(timeout_s=0.1)


def test_psctl_waits_for_a_shard_that_is_at_work(served: tuple[Shard, str]) -> None:
    shard, endpoint = served
    command = [sys.executable, "-m", "ps_server.psctl", "checkpoint", "--endpoints", endpoint, "--json"]
    with busy(shard) as leave, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        wait_until_begun(shard, 1)
        leave.set()
        told = json.loads(process.communicate()[0])
    assert (process.returncode, told[0]["rows_written"]) == (0, 9)


@pytest.mark.parametrize("command", ["psctl", "client"])
def test_ctrl_c_ends_the_wait_and_not_the_checkpoint(command: str, served: tuple[Shard, str]) -> None:
    shard, endpoint = served
    flags = {
        "psctl": ["-m", "ps_server.psctl", "checkpoint", "--endpoints", endpoint],
        "client": ["-c", f"import ps_client; ps_client.connect({endpoint!r}).checkpoint()"],
    }
    with (
        busy(shard),
        subprocess.Popen([sys.executable, *flags[command]], stderr=subprocess.PIPE, text=True) as process,
    ):
        wait_until_begun(shard, 1)
        process.send_signal(signal.SIGINT)
        told = process.communicate()[1]
        assert process.returncode != 0 and ("KeyboardInterrupt" in told or "psctl: interrupted" in told)
    (call,) = shard._long_calls._calls.values()
    assert call.ended.wait(600) and call.failure is None and shard.poison is None
    assert call.answer.rows_written == 9
