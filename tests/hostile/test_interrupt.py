# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at every line of a push: the client goes on, and no push is applied twice or breaks a shard.

A trace function raises SIGINT just before the n-th line that runs in our code, for every n, as a signal that
comes there would be handled. And a process of its own is interrupted by real signals at random instants.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from rowhouse.document import dump
from rowhouse.placement import PartitionMap

import ps_client
from ps_client import Client
from tests.conftest import ROOT, MakeConfig
from tests.process import READY_S, ServerProcess

OURS = tuple(str(ROOT / name) for name in ("ps_client", "ps_server", "proto"))
IDS = np.arange(60, dtype=np.uint64)
ONES = np.ones((60, 4), np.float32)
TABLE = {
    "name": "user", "dim": 4, "optimizer": {"kind": "sgd", "learning_rate": 1.0},
    "initializer": {"kind": "constant", "value": 0.0},
}  # fmt: skip


class Interrupter:
    """Raises SIGINT before the line `at` of those that run in our code; counts them all."""

    def __init__(self, at: int) -> None:
        self.at, self.lines = at, 0

    def __call__(self, frame: FrameType, event: str, _: object) -> "Interrupter | None":
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                signal.raise_signal(signal.SIGINT)
        return self


def interrupted(at: int, call: Callable[[], object]) -> tuple[bool, int]:
    """Whether the interrupt came out of the call, and how many lines ran."""
    tracer = Interrupter(at)
    sys.settrace(tracer)
    try:
        call()
    except KeyboardInterrupt:
        return True, tracer.lines
    finally:
        sys.settrace(None)
    return False, tracer.lines


@contextmanager
def embedded(tmp_path: Path) -> Iterator[Client]:
    with ps_client.connect(
        f"embedded:{tmp_path / 'shard'}", config={"tables": [TABLE], "memory_budget": "16MiB"}
    ) as client:
        yield client


@contextmanager
def served(make_config: MakeConfig, shards: int, data_port: str) -> Iterator[Client]:
    config = make_config(tables=[TABLE], shards=shards, data_port=data_port)
    with ServerProcess("up", config) as server, ps_client.connect(server.endpoints()) as client:
        yield client


@pytest.mark.parametrize("way", ["embedded", "frames", "frames of two shards", "grpc"])
def test_an_interrupt_at_any_line_of_a_push_leaves_a_client_that_works(
    tmp_path: Path, make_config: MakeConfig, way: str
) -> None:
    shards = 2 if "two" in way else 1
    opened = (
        embedded(tmp_path) if way == "embedded"
        else served(make_config, shards, "off" if way == "grpc" else "auto")
    )  # fmt: skip
    with opened as client:
        client._exchange._retry = type(client._exchange._retry)(timeout_s=READY_S)
        client.push("user", IDS, ONES)
        _, lines = interrupted(0, lambda: client.push("user", IDS, ONES))
        assert lines > 50
        owners = PartitionMap.even(shards).shards_of(IDS)
        applied = np.full(shards, 2.0)
        came = 0
        for at in range(1, lines + 1):
            came += interrupted(at, lambda: client.push("user", IDS, ONES))[0]
            client.push("user", IDS, ONES)
            rows = -client.pull("user", IDS)
            for shard in range(shards):
                own = rows[owners == shard]
                assert (own == own[0, 0]).all(), f"line {at}: a push was applied in part"
                more = own[0, 0] - applied[shard]
                assert more in (1, 2), f"line {at}: {more} of 2 pushes are applied on shard {shard}"
                applied[shard] = own[0, 0]
        assert came > 0.9 * lines, "an interrupt is told, if not at once"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Watched:
    """A lock that tells when somebody is about to wait for it."""

    def __init__(self, lock: Any) -> None:
        self.lock, self.waited_for = lock, threading.Event()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self.waited_for.set()
        return bool(self.lock.acquire(blocking, timeout))

    def release(self) -> None:
        self.lock.release()


def test_an_interrupt_ends_a_wait_for_another_threads_push(make_config: MakeConfig) -> None:
    with served(make_config, 1, "auto") as client:
        lane = client._cluster.lanes[0]
        lock = Watched(lane.lock)
        lane.lock = lock  # type: ignore[assignment]

        def shoot() -> None:
            lock.waited_for.wait()
            signal.raise_signal(signal.SIGINT)

        with lock.lock:
            threading.Thread(target=shoot).start()
            with pytest.raises(KeyboardInterrupt):
                client.push("user", IDS, ONES)
        client.push("user", IDS, ONES)
        np.testing.assert_array_equal(client.pull("user", IDS), -ONES)


PROGRAM = """
import random, signal, sys, threading, time
import numpy as np, ps_client
target, config, times, wait_s = sys.argv[1], sys.argv[2] or None, int(sys.argv[3]), float(sys.argv[4])
client = ps_client.connect(target, config=config)
ids, ones = np.arange(60, dtype=np.uint64), np.ones((60, 4), np.float32)
client.push("user", ids, ones); client.pull("user", ids)
main, chance, pushed = threading.main_thread().ident, random.Random(7), 1
begun = threading.Semaphore(0)
def shoot():
    for _ in range(times):
        begun.acquire()
        time.sleep(chance.uniform(0, wait_s))
        signal.pthread_kill(main, signal.SIGINT)
threading.Thread(target=shoot, daemon=True).start()
for _ in range(times):
    tried = pushed
    try:
        begun.release()
        while True:
            tried += 1
            client.push("user", ids, ones)
            pushed += 1
            client.pull("user", ids)
    except KeyboardInterrupt:
        pass
    client.push("user", ids, ones)
    rows = -client.pull("user", ids)
    assert (rows == rows[0, 0]).all(), "a push was applied in part"
    assert pushed + 1 <= rows[0, 0] <= tried + 1, (pushed, tried, rows[0, 0])
    pushed = int(rows[0, 0])
client.close()
print("went on after", times)
"""


@pytest.mark.parametrize("way", ["embedded", "frames", "grpc"])
def test_a_process_goes_on_after_real_interrupts(tmp_path: Path, make_config: MakeConfig, way: str) -> None:
    times = "150"
    # An interrupt between the acquire and the release of coverage's own lock would hang the process.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}

    def run(target: str, config: str = "") -> None:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, target, config, times, "0.004"],
            capture_output=True, text=True, timeout=4 * READY_S, check=False, env=environment,
        )  # fmt: skip
        assert ended.stdout.strip() == f"went on after {times}", ended.stderr

    if way == "embedded":
        path = tmp_path / "c.yaml"
        path.write_text(dump({"tables": [TABLE], "memory_budget": "16MiB"}), encoding="utf-8")
        run(f"embedded:{tmp_path / 'shard'}", str(path))
        return
    config = make_config(tables=[TABLE], data_port="off" if way == "grpc" else "auto")
    with ServerProcess("up", config) as server:
        run(server.endpoints())
