# SPDX-License-Identifier: Apache-2.0
"""Thousands of idle connections and hundreds of clients that pull at once: memory bounded, no answer lost.

`pytest -m soak` opens 10,000 connections and 500 clients.
"""

import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from rowhouse import codec, dtype, message
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client import connect
from tests.conftest import MakeConfig
from tests.process import ServerProcess

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty settings
CONNECTION_BYTES_MAX = 32 << 10
"""What an idle connection may cost the server: gRPC's own buffers and tables, measured at 14 KiB."""

CLIENT_BYTES_MAX = 512 << 10
"""And one that pulls 10,000 ids four times at once: requests that wait for a thread wait in its socket.
Measured: 240 KiB."""

IDS = 10_000
PULLS = 4


def memory_of(server: ServerProcess) -> int:
    """Resident bytes of the server's process."""
    return int(psutil.Process(server.process.pid).memory_info().rss)


@contextmanager
def idle_connections(endpoint: str, count: int) -> Iterator[list[socket.socket]]:
    """Connections that speak HTTP/2 and say nothing further."""
    host, _, port = endpoint.rpartition(":")
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(socket.create_connection((host, int(port)), timeout=30))
            opened[-1].sendall(PREFACE)
        for one in opened:  # the server's own settings: it has taken the connection
            one.settimeout(60)
            assert len(one.recv(9)) == 9
        yield opened
    finally:
        for one in opened:
            one.close()


def pull_at_once(endpoint: str, clients: int) -> list[float]:
    """Each client, over a connection of its own, pulls PULLS times at once; the seconds of each answer."""
    ids = np.random.default_rng(0).integers(0, 2**64, (clients, IDS), np.uint64)
    with ExitStack() as stack:
        calls: list[Any] = []
        cluster: Any = None
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        for _ in range(clients):
            channel = stack.enter_context(grpc.insecure_channel(endpoint, options))
            calls.append(channel.unary_unary("/rowhouse.v1.ParameterService/Pull"))
            cluster = channel.unary_unary("/rowhouse.v1.ParameterService/GetCluster")
        version = pb.GetClusterResponse.FromString(cluster(b"")).map_version
        lock, seconds, wrong = threading.Lock(), list[float](), list[str]()

        def check(number: int, started_s: float, future: Any) -> None:
            try:
                rows = codec.decode_pull_response(future.result()).tables[0].rows
                fault = "" if rows.shape == (IDS, 16) and np.isfinite(rows).all() else f"{rows.shape}"
            except Exception as failure:
                fault = f"client {number}: {failure}"
            with lock:
                seconds.append(time.monotonic() - started_s)
                if fault:
                    wrong.append(fault)

        futures = []
        for _ in range(PULLS):
            for number, call in enumerate(calls):
                table = message.TableIds("user", 16, ids[number])
                request = message.PullRequest(version, dtype.FLOAT32, False, (table,))
                future = call.future(codec.encode_pull_request(request), timeout=300, wait_for_ready=True)
                started_s = time.monotonic()
                future.add_done_callback(lambda f, n=number, s=started_s: check(n, s, f))
                futures.append(future)
        for future in futures:
            future.exception(timeout=300)
        deadline_s = time.monotonic() + 60
        while len(seconds) < len(futures):
            assert time.monotonic() < deadline_s, "answers are missing"
            time.sleep(0.01)
        assert not wrong, wrong[:3]
    return seconds


def _run(make_config: MakeConfig, connections: int, clients: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + 20 * clients // 4 + 500
    if soft < needed:
        if hard < needed:
            pytest.skip(f"needs {needed} open files; the limit is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    table = {"name": "user", "dim": 16, "optimizer": {"kind": "sgd", "learning_rate": 0.1}}
    config = make_config(tables=[table], memory_budget="64MiB", shards=["127.0.0.1:0"])
    with ServerProcess("serve", config, "--shard", "0") as server:
        endpoint = server.endpoint()
        with connect(endpoint) as client:
            client.push("user", np.arange(1000), np.ones((1000, 16)))
            pull_at_once(endpoint, 4)  # what is loaded and allocated once is not counted
            start = memory_of(server)
            with idle_connections(endpoint, connections) as idle:
                held = memory_of(server) - start
                seconds = pull_at_once(endpoint, clients)
                client.pull("user", np.arange(1000))
                assert all(one.fileno() >= 0 for one in idle)
                grown = memory_of(server) - start
            client.push("user", np.arange(1000), np.ones((1000, 16)))
        print(
            f"{connections} connections: {held / 2**20:.0f} MiB; {clients} clients, {len(seconds)} pulls of "
            f"{IDS} ids: {grown / 2**20:.0f} MiB with them, {max(seconds):.1f} s the slowest"
        )
        assert len(seconds) == clients * PULLS
        assert held <= connections * CONNECTION_BYTES_MAX + (32 << 20)
        assert grown <= connections * CONNECTION_BYTES_MAX + clients * CLIENT_BYTES_MAX + (96 << 20)
        assert server.stop() == 0


def test_hundreds_of_connections_and_dozens_of_clients(make_config: MakeConfig) -> None:
    _run(make_config, connections=500, clients=40)


@pytest.mark.soak
def test_ten_thousand_connections_and_five_hundred_clients(make_config: MakeConfig, tmp_path: Path) -> None:
    _run(make_config, connections=10_000, clients=500)
