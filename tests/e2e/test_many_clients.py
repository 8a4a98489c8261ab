# SPDX-License-Identifier: Apache-2.0
"""Thousands of idle connections and hundreds of clients that pull at once: memory bounded, no answer lost.

Over gRPC, and over the data port. `pytest -m soak` opens 10,000 connections and 500 clients.
"""

import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from rowhouse import codec, dtype, frame, message
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client import connect
from ps_client.transport.frame import FrameTransport
from ps_server.serve.connection_limit import connections_max
from tests.conftest import MakeConfig
from tests.process import ServerProcess

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty settings
CONNECTION_BYTES_MAX = 32 << 10
"""What an idle connection may cost the server: gRPC's own buffers and tables, measured at 14 KiB."""

CLIENT_BYTES_MAX = 512 << 10
"""And one that pulls 10,000 ids four times at once: requests that wait for a thread wait in its socket.
Measured: 240 KiB."""

DATA_CONNECTION_BYTES_MAX = 4 << 10
"""An idle data connection is an entry and a head, measured at 0.4 KiB; the socket is the system's."""

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


def cluster_of(endpoint: str) -> pb.GetClusterResponse:
    """What the shard says of itself."""
    with grpc.insecure_channel(endpoint) as channel:
        call: Any = channel.unary_unary("/rowhouse.v1.ParameterService/GetCluster")
        return pb.GetClusterResponse.FromString(call(b""))


@contextmanager
def idle_data_connections(endpoint: str, count: int) -> Iterator[list[socket.socket]]:
    """Data connections that have said hello and say nothing further."""
    told = cluster_of(endpoint)
    host, port = endpoint.rpartition(":")[0], int(told.data_endpoint[1:])
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(socket.create_connection((host, port), timeout=60))
            opened[-1].sendall(frame.encode_head(frame.HELLO, 0, told.data_token))
        for one in opened:
            assert len(one.recv(frame.HEAD.size, socket.MSG_WAITALL)) == frame.HEAD.size
        yield opened
    finally:
        for one in opened:
            one.close()


def pull_frames_at_once(endpoint: str, clients: int) -> list[float]:
    """Each client, over a data connection of its own, pulls PULLS times; the seconds of each answer."""
    told = cluster_of(endpoint)
    ids = np.random.default_rng(0).integers(0, 2**64, (clients, IDS), np.uint64)
    together = threading.Barrier(clients)

    def pull(number: int) -> list[float]:
        frames = FrameTransport(endpoint, told.data_endpoint, told.data_token)
        table = message.TableIds("user", 16, ids[number])
        parts = codec.pull_request_parts(
            message.PullRequest(told.map_version, dtype.FLOAT32, False, (table,))
        )
        seconds = []
        together.wait(120)
        for _ in range(PULLS):
            started_s = time.monotonic()
            rows = codec.decode_pull_response(frames.send(frame.PULL, parts, 300).result()).tables[0].rows
            seconds.append(time.monotonic() - started_s)
            assert rows.shape == (IDS, 16) and np.isfinite(rows).all()
        frames.close()
        return seconds

    with ThreadPoolExecutor(clients) as pool:
        return [s for seconds in pool.map(pull, range(clients)) for s in seconds]


@dataclass(frozen=True)
class Way:
    """How clients come: idle connections, pulls at once, bytes that an idle connection may cost."""

    idle: Callable[[str, int], AbstractContextManager[list[socket.socket]]]
    pull: Callable[[str, int], list[float]]
    connection_bytes_max: int


WAYS = {
    "grpc": Way(idle_connections, pull_at_once, CONNECTION_BYTES_MAX),
    "data port": Way(idle_data_connections, pull_frames_at_once, DATA_CONNECTION_BYTES_MAX),
}


def _run(make_config: MakeConfig, way: str, connections: int, clients: int) -> None:
    idle_at, pull, connection_bytes_max = WAYS[way].idle, WAYS[way].pull, WAYS[way].connection_bytes_max
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:  # what the server takes
        connections = min(connections, connections_max(hard, ports=2) - clients - 100)
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
            pull(endpoint, 4)  # what is loaded and allocated once is not counted
            start = memory_of(server)
            with idle_at(endpoint, connections) as idle:
                held = memory_of(server) - start
                seconds = pull(endpoint, clients)
                client.pull("user", np.arange(1000))
                assert all(one.fileno() >= 0 for one in idle)
                grown = memory_of(server) - start
            client.push("user", np.arange(1000), np.ones((1000, 16)))
        print(
            f"{way}: {connections} connections: {held / 2**20:.1f} MiB; {clients} clients, {len(seconds)} "
            f"pulls of {IDS} ids: {grown / 2**20:.0f} MiB with them, {max(seconds):.1f} s the slowest"
        )
        assert len(seconds) == clients * PULLS
        assert held <= connections * connection_bytes_max + (32 << 20)
        assert grown <= connections * connection_bytes_max + clients * CLIENT_BYTES_MAX + (96 << 20)
        assert server.stop() == 0


@pytest.mark.parametrize("way", list(WAYS))
def test_hundreds_of_connections_and_dozens_of_clients(make_config: MakeConfig, way: str) -> None:
    _run(make_config, way, connections=500, clients=40)


@pytest.mark.soak
@pytest.mark.parametrize("way", list(WAYS))
def test_ten_thousand_connections_and_five_hundred_clients(make_config: MakeConfig, way: str) -> None:
    _run(make_config, way, connections=10_000, clients=500)
