# SPDX-License-Identifier: Apache-2.0
"""A served shard under wild messages, over gRPC and over its data port, and under wild frames: it stays up,
answers each properly, counts no byte for ever, and holds what it acknowledged.

`pytest -m soak` sends a million (FUZZ_MESSAGES, FUZZ_SEED change that).
"""

import logging
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rowhouse import frame, message
from rowhouse.error import ERROR_METADATA_KEY, InternalError, StoreError, error_class_names
from rowhouse.limit import MESSAGE_BYTES_MAX
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.config.cluster import ClusterConfig, load_config
from ps_server.serve.server import Server
from ps_server.shard.shard import Shard
from tests.data_peer import Peer, until
from tests.driver import assert_equal_dumps, dump
from tests.property.wire_fuzz import KINDS, POOL, Fuzzed, fuzzed, pull, whole_frames, wild_stream

METHODS = {kind: method for method, kind in KINDS.items()}
NAMES = error_class_names()
SERVICE = "/rowhouse.v1.ParameterService/"


class Rig:
    """The shard that is fuzzed, behind gRPC and its data port; one that gets what the first acknowledged."""

    def __init__(self, folder: Path, address: str) -> None:
        self.config = self._config(folder / "fuzzed", [address])
        self.server = Server(self.config, 0, Shard.open)
        self.server.start()
        plain = self._config(folder / "plain", 1)
        self.plain_config = plain
        self.plain = Shard.open(plain, 0, plain.data_dir / "shard-0000")
        self.channel = grpc.insecure_channel(
            self.server.endpoint, [("grpc.max_send_message_length", 2 * MESSAGE_BYTES_MAX)]
        )
        self.calls: dict[str, Any] = {}
        self.map_version = pb.GetClusterResponse.FromString(self.call("GetCluster", b"")).map_version
        self.sequence = 1
        self.seen: Counter[str] = Counter()
        self.data_port = self.server._data_port
        self.peer = Peer(self.data_port)

    @staticmethod
    def _config(folder: Path, shards: Any) -> ClusterConfig:
        table = {"name": "user", "dim": 4, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}}
        base = {"data_dir": str(folder), "tables": [table], "memory_budget": "16MiB", "worker_threads": 2}
        return load_config({**base, "shards": shards, "durability": "none"})

    def call(self, method: str, data: bytes) -> bytes:
        if method not in self.calls:
            self.calls[method] = self.channel.unary_unary(SERVICE + method)
        answer: bytes = self.calls[method](data, timeout=60)
        return answer

    def send(self, way: int, seed: int, number: int, wild: Fuzzed) -> None:
        """Send one message over gRPC (way 0), as a frame (1), or as a stream of frames gone wrong (2)."""
        if way == 0 or wild.method not in KINDS:
            self._send_call(wild.method, wild.data)
        elif way == 1:
            self.peer.send(KINDS[wild.method], wild.data)
            self._judge(wild.method, wild.data, *self.peer.receive())
        else:
            self._send_stream(wild_stream(seed, number, wild.method, wild.data, self.data_port.token))

    def _send_call(self, method: str, data: bytes) -> None:
        refusal: Any = None
        answer = b""
        try:
            answer = self.call(method, data)
        except grpc.RpcError as failure:
            refusal = failure
        if refusal is None:
            self._judge(method, data, frame.ANSWER, answer)
            return
        names = [str(m.value) for m in refusal.trailing_metadata() or () if m.key == ERROR_METADATA_KEY]
        assert names, f"{refusal.code()}: {refusal.details()}"
        self._refused(names[0], refusal.details())

    def _send_stream(self, stream: bytes) -> None:
        """Every whole frame is answered in its turn, then the connection ends and nothing of it is held."""
        with Peer(self.data_port) as peer:
            with suppress(ConnectionError):  # it may hang up before the rest is out
                peer.socket.sendall(stream)
                peer.socket.shutdown(socket.SHUT_WR)
            for kind, body in whole_frames(stream, self.data_port.token):
                answer = peer.receive()
                if kind == frame.HELLO:
                    assert answer == (frame.ANSWER, b"")
                else:
                    self._judge(METHODS[kind], body, *answer)
            assert peer.is_closed()
        self.seen["stream"] += 1

    def _judge(self, method: str, data: bytes, kind: int, answer: bytes) -> None:
        """The answer must be right, or an error of ours that blames the sender."""
        if kind == frame.ERROR:
            failure = frame.decode_error(memoryview(answer), "port")
            self._refused(type(failure).__name__, str(failure).removeprefix("port: "))
            return
        assert kind == frame.ANSWER
        self.seen[f"{method} OK"] += 1
        if method == "Push":
            self._acknowledged(data, pb.PushResponse.FromString(answer))

    def _refused(self, name: str, details: str) -> None:
        assert not issubclass(NAMES[name], InternalError | StoreError), details
        assert details
        self.seen[name] += 1

    def _acknowledged(self, data: bytes, answer: pb.PushResponse) -> None:
        """Push to the plain shard what the generated stub reads in the bytes."""
        stub = pb.PushRequest.FromString(data)
        if answer.duplicate:
            return
        parts = []
        for t in stub.tables:
            gradients = np.frombuffer(t.gradients, {1: "<f4", 2: "<f2", 3: "<u2"}[t.dtype]).reshape(-1, t.dim)
            ids = np.frombuffer(t.ids, "<u8")
            rate = t.learning_rate if t.HasField("learning_rate") else None
            parts.append(message.TableGradients(t.table, t.dtype, ids, gradients, rate))
        request = message.PushRequest(stub.map_version, stub.client_id, stub.sequence, tuple(parts))
        assert not self.plain.push(request).duplicate
        if stub.client_id == 9:
            self.sequence = stub.sequence + 1

    @property
    def held_bytes(self) -> int:
        """Request bytes that the shard counts as in flight."""
        return self.server._service._in_flight._held_bytes

    def finish(self) -> None:
        """Both hold the same, bit for bit."""
        with self.peer:
            assert self.peer.call(frame.HELLO, b"") == b""
        until(lambda: self.held_bytes == 0)
        self.channel.close()
        self.server.stop()
        self.plain.close()
        shard = "shard-0000"
        found = dump(self.config, self.config.data_dir / shard)
        assert_equal_dumps(found, dump(self.plain_config, self.plain_config.data_dir / shard))
        assert found["row.user"][0].shape[0] > POOL.shape[0] // 2


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(
        prefix="fuzz", dir="/dev/shm" if os.path.isdir("/dev/shm") else None
    ) as name:
        one = Rig(Path(name), f"unix:{name}/socket")
        yield one
        one.peer.socket.close()


def _fuzz(rig: Rig, seed: int, messages: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "ps_server.serve.data_port")  # each wrong frame is a warning
    started_s = told_s = time.monotonic()
    for number in range(messages):
        wild = fuzzed(seed, number, rig.map_version, rig.sequence)
        way = number // 8 % 3
        try:
            rig.send(way, seed, number, wild)
            if way == 2:
                until(lambda: rig.held_bytes == 0)
        except AssertionError as failure:
            text = f"seed {seed}, message {number}, way {way}: {wild.method} {wild.data!r}"
            raise AssertionError(text) from failure
        if time.monotonic() - told_s > 30:
            told_s = time.monotonic()
            print(f"{number} messages, {number / (told_s - started_s):.0f}/s", flush=True)
    print(f"seed {seed}: {messages} messages, {dict(rig.seen)}")
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    refused = sum(n for name, n in rig.seen.items() if name in NAMES)
    assert refused > messages * 0.3, rig.seen
    assert rig.seen["stream"] > messages * 0.15, rig.seen
    assert rig.seen["Push OK"] > messages * 0.02 and rig.seen["Pull OK"] > messages * 0.02, rig.seen
    assert {"InvalidRequestError", "LimitExceededError", "StalePartitionMapError"} <= set(rig.seen), rig.seen
    rig.finish()


def test_wild_messages_change_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    _fuzz(rig, 1, 6_000, caplog)


@pytest.mark.soak
def test_a_million_wild_messages_change_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    seed = int(os.environ.get("FUZZ_SEED", time.time_ns() % 2**32))
    _fuzz(rig, seed, int(os.environ.get("FUZZ_MESSAGES", "1000000")), caplog)


@pytest.mark.soak
def test_a_message_past_the_bound_is_refused(rig: Rig) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        rig.call("Push", bytes(MESSAGE_BYTES_MAX + 1))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    rig.call("Pull", pull(np.random.default_rng(0), rig.map_version).SerializeToString())


def test_bytes_that_are_no_grpc_leave_the_server_up() -> None:
    """Random bytes, HTTP/2 that breaks off, frames of forged lengths, on both TCP ports."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        rig = Rig(Path(name), "127.0.0.1:0")
        host, _, port = rig.server.endpoint.rpartition(":")
        for number in range(200):
            junk = rng.bytes(int(rng.integers(0, 2_000)))
            head = int(rng.integers(0, 1 << 24)).to_bytes(3, "big") + rng.bytes(6)
            data = (junk, preface + junk, preface + head + junk, preface + b"\0" * 9 + head + junk)[
                number % 4
            ]
            to = int(port) if number % 8 < 4 else int(rig.data_port.endpoint[1:])
            with socket.create_connection((host, to), timeout=10) as one:
                try:
                    one.sendall(data)
                    if number % 3 == 0:
                        one.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # it hung up on us, as it may
        for number in range(64):
            wild = fuzzed(2, 8 * number, rig.map_version, rig.sequence)
            rig.send(number % 2, 2, number, wild)
        assert rig.seen["Push OK"] > 5
        rig.peer.socket.close()
        rig.channel.close()
        rig.server.stop()
        rig.plain.close()
