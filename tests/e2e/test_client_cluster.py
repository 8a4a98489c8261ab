# SPDX-License-Identifier: Apache-2.0
"""One trainer against two real shard processes that are killed, frozen and cut off while it trains.

The run must end with the same bits as the same steps in one embedded shard that nothing happens to.
"""

import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rowhouse.document import read_document
from rowhouse.error import InvalidRequestError, UnavailableError, UnknownTableError

from ps_client import Client, connect
from tests.conftest import MakeConfig
from tests.process import ServerProcess, free_ports

STEPS, BATCH, VOCABULARY = 60, 2_000, 5_000
TABLES = [
    {"name": "user", "dim": 16, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}},
    {"name": "item", "dim": 4, "optimizer": {"kind": "adam", "learning_rate": 0.01}},
]


def train(
    client: Client, at_step: Callable[[int], None] = lambda step: None, steps: Iterable[int] = range(STEPS)
) -> dict[str, NDArray[np.float32]]:
    """Steps whose gradients depend on the rows pulled, so that one lost or doubled push shows."""
    rng = np.random.default_rng(9)
    for step in steps:
        at_step(step)
        ids = {t: (rng.zipf(1.2, BATCH) % VOCABULARY).astype(np.uint64) for t in ("user", "item")}
        rows = client.pull_many(ids)
        noise = rng.normal(0.01, 0.01, (BATCH, 1)).astype(np.float32)  # else long runs end in one point
        client.push_many({t: (ids[t], np.float32(1.5) * rows[t] + noise) for t in ids})
        if step % 5 == 3:  # rows by hand, in the order of the pushes
            client.delete("user", ids["user"][:40])
            some = np.unique(ids["item"])[:40]
            client.assign(
                "item", some, rng.normal(0, 0.1, (some.shape[0], 4)), state=np.zeros((some.shape[0], 9))
            )
    everything = np.arange(VOCABULARY)
    return client.pull_many({"user": everything, "item": everything}, read_only=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.float32]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with connect(f"embedded:{folder}", config={"tables": TABLES}) as client:
        return train(client)


def assert_same_bits(rows: dict[str, NDArray[np.float32]], want: dict[str, NDArray[np.float32]]) -> None:
    for table, values in want.items():
        np.testing.assert_array_equal(rows[table], values)
        assert len(np.unique(values[:, 0])) > 1000, "the rows must differ, or equality says little"


@pytest.fixture
def cluster(make_config: MakeConfig) -> Iterator[ServerProcess]:
    config = make_config(tables=TABLES, shards=2, memory_budget="64MiB", data_port=free_ports(2))
    with ServerProcess("up", config) as running:
        running.endpoints()
        yield running
        assert running.stop() == 0


def test_shards_killed_while_training_lose_and_double_nothing(
    cluster: ServerProcess, undisturbed: dict[str, Any]
) -> None:
    killed: list[int] = []

    def kill_one(step: int) -> None:
        if step in (10, 25, 40):
            pid = cluster.facts()["pids"][step % 2]
            # In the middle of the next calls, not between them.
            threading.Timer(random.uniform(0, 0.02), os.kill, (pid, signal.SIGKILL)).start()
            killed.append(pid)

    with connect(cluster.endpoints(), timeout_s=120) as client:
        rows = train(client, kill_one)
    assert len(set(killed)) == 3
    assert_same_bits(rows, undisturbed)


def test_a_frozen_shard_is_waited_for(cluster: ServerProcess, undisturbed: dict[str, Any]) -> None:
    def freeze(step: int) -> None:
        if step in (5, 30):
            pid = cluster.facts()["pids"][0]
            os.kill(pid, signal.SIGSTOP)
            threading.Timer(1.0, os.kill, (pid, signal.SIGCONT)).start()

    with connect(cluster.endpoints(), timeout_s=120) as client:
        rows = train(client, freeze)
    assert_same_bits(rows, undisturbed)


def test_a_deadline_while_a_shard_is_frozen_keeps_the_push(cluster: ServerProcess) -> None:
    ids = np.arange(1000)
    with connect(cluster.endpoints(), timeout_s=120) as watcher:
        before = watcher.pull("user", ids)
        with connect(cluster.endpoints(), timeout_s=1.0) as client:
            pid = cluster.facts()["pids"][1]
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(UnavailableError, match=r"push 1 was applied is not known: it is kept"):
                    client.push("user", ids, np.ones((1000, 16)))
            finally:
                os.kill(pid, signal.SIGCONT)
            client.flush()
            once = watcher.pull("user", ids)
            # Adagrad's first step from a zero accumulator is the rate itself; a second one is shorter.
            np.testing.assert_allclose(once, before - 0.1, rtol=1e-5)
            client.push("user", ids, np.ones((1000, 16)))
            np.testing.assert_allclose(watcher.pull("user", ids), once - 0.1 / np.sqrt(2), rtol=1e-4)


class CuttingProxy:
    """Forwards TCP to a shard and cuts each connection after some random number of bytes."""

    def __init__(self, upstream: tuple[str, int], cut_bytes: Callable[[], int], port: int = 0) -> None:
        self._upstream, self._cut_bytes = upstream, cut_bytes
        # Another address of loopback: clients look for the data port on the host that they called.
        self._listener = socket.create_server(("127.0.0.2", port))
        self.endpoint = f"127.0.0.2:{self._listener.getsockname()[1]}"
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near = self._listener.accept()[0]
                try:
                    far = socket.create_connection(self._upstream)
                except OSError:  # the shard is away, so this end is too
                    near.close()
                    continue
                left = [self._cut_bytes()]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink, left), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, left: list[int]) -> None:
        with suppress(OSError):
            while data := source.recv(8192):
                left[0] -= len(data)
                if left[0] < 0:
                    self.cuts += 1
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def cut_off(cluster: ServerProcess, seed: int) -> Iterator[tuple[list[CuttingProxy], list[CuttingProxy]]]:
    """Proxies of the shards' gRPC ports, and of their data ports."""
    # A step carries about 130 kB each way and shard: most connections end within some steps, in mid-message.
    rng = random.Random(seed)
    endpoints = [e.rpartition(":") for e in cluster.endpoints().split(",")]
    calls = [
        CuttingProxy((host, int(port)), lambda: rng.randrange(50_000, 2_000_000))
        for host, _, port in endpoints
    ]
    data_port = read_document(cluster.config_path).value["data_port"]
    ports = [] if data_port == "off" else range(data_port, data_port + len(calls))
    data = [CuttingProxy(("127.0.0.1", p), lambda: rng.randrange(50_000, 2_000_000), p) for p in ports]
    try:
        yield calls, data
    finally:
        for proxy in calls + data:
            proxy.close()


@pytest.mark.parametrize("data_port", ["on", "off"])
def test_connections_cut_in_mid_message(
    make_config: MakeConfig, undisturbed: dict[str, Any], data_port: str
) -> None:
    config = make_config(tables=TABLES, shards=2, data_port=free_ports(2) if data_port == "on" else "off")
    with ServerProcess("up", config) as cluster, cut_off(cluster, seed=5) as (calls, data):
        target = ",".join(proxy.endpoint for proxy in calls)
        with connect(target, timeout_s=60) as client:
            rows = train(client)
        assert sum(proxy.cuts for proxy in data or calls) >= 4
    assert_same_bits(rows, undisturbed)


@pytest.mark.soak
def test_five_minutes_of_kills_freezes_and_cuts(cluster: ServerProcess, tmp_path: Path) -> None:
    """Every 2 seconds a shard is killed or frozen, while its connections are cut in mid-message."""
    seed = int(os.environ.get("SOAK_SEED", time.time_ns() % 2**32))
    deadline_s = time.monotonic() + float(os.environ.get("SOAK_S", "300"))
    rng, done, count = random.Random(seed), threading.Event(), Counter[str]()
    killed_s, quick = [0.0, 0.0], [0, 0]

    def may_be_killed(shard: int) -> bool:
        # A supervisor gives up on a shard that dies five times in a row within 10 s of a start (and a wait).
        quick[shard] = quick[shard] + 1 if time.monotonic() < killed_s[shard] + 15 else 0
        return quick[shard] < 4

    def disturb() -> None:
        while not done.wait(2):
            shard = rng.randrange(2)
            pid = cluster.facts()["pids"][shard]
            with suppress(ProcessLookupError):
                if pid and rng.random() < 0.5 and may_be_killed(shard):
                    os.kill(pid, signal.SIGKILL)
                    killed_s[shard] = time.monotonic()
                    count["kill"] += 1
                elif pid:
                    os.kill(pid, signal.SIGSTOP)
                    done.wait(rng.uniform(0, 3))
                    os.kill(pid, signal.SIGCONT)
                    count["freeze"] += 1

    steps: list[int] = []

    def while_time() -> Iterator[int]:
        while time.monotonic() < deadline_s:
            steps.append(len(steps))
            yield steps[-1]

    with cut_off(cluster, seed) as (calls, data):
        disturber = threading.Thread(target=disturb)
        disturber.start()
        try:
            with connect(",".join(proxy.endpoint for proxy in calls), timeout_s=300) as client:
                rows = train(client, steps=while_time())
        finally:
            done.set()
            disturber.join()
        cuts = sum(proxy.cuts for proxy in calls + data)
    print(f"seed {seed}: {len(steps)} steps, {count['kill']} kills, {count['freeze']} freezes, {cuts} cuts")
    with connect(f"embedded:{tmp_path}/undisturbed", config={"tables": TABLES}) as client:
        assert_same_bits(rows, train(client, steps=range(len(steps))))


def test_errors_of_a_real_shard_keep_their_class(cluster: ServerProcess, tmp_path: Path) -> None:
    with connect(cluster.endpoints()) as client:
        with pytest.raises(UnknownTableError, match="did you mean 'user'"):
            client.pull("usr", [1])
        # The client refuses before it sends; the shard's own words come through when a policy is missing.
        with pytest.raises(InvalidRequestError, match=r"shard at 127\.0\.0\.1:\d+: .*no eviction policy"):
            client.evict("user")
        client.push("user", np.arange(100), np.ones((100, 16)))
        assert sum(c.rows_written for c in client.checkpoint()) == 100
        assert sum(t.rows for s in client.stats() for t in s.tables) == 100


def test_a_stopped_cluster_is_unavailable_within_the_timeout(make_config: MakeConfig) -> None:
    with ServerProcess("serve", make_config(), "--shard", "0") as server:
        endpoint = server.endpoint()
        with connect(endpoint, timeout_s=2) as client:
            client.pull("user", [1])
            assert server.stop() == 0
            began_s = time.monotonic()
            with pytest.raises(UnavailableError, match=f"shard at {endpoint}: .*gave up after"):
                client.pull("user", [1])
            assert time.monotonic() - began_s < 5
