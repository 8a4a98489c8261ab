# SPDX-License-Identifier: Apache-2.0
"""A served shard under wild messages: it stays up, answers each properly, and holds what it acknowledged.

`pytest -m soak` sends a million (FUZZ_MESSAGES, FUZZ_SEED change that).
"""

import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rowhouse import message
from rowhouse.error import ERROR_METADATA_KEY, InternalError, StoreError, error_class_names
from rowhouse.limit import MESSAGE_BYTES_MAX
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.config import ClusterConfig, load_config
from ps_server.server import Server
from ps_server.shard import Shard
from tests.driver import assert_equal_dumps, dump
from tests.property.wire_fuzz import POOL, fuzzed, pull

NAMES = error_class_names()
SERVICE = "/rowhouse.v1.ParameterService/"


class Rig:
    """The shard that is fuzzed, behind gRPC, and one that gets what the first acknowledged."""

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

    def send(self, method: str, data: bytes) -> None:
        """Send one message; the answer must be right, or an error of ours that blames the sender."""
        refusal: Any = None
        answer = b""
        try:
            answer = self.call(method, data)
        except grpc.RpcError as failure:
            refusal = failure
        if refusal is None:
            self.seen[f"{method} OK"] += 1
            if method == "Push":
                self._acknowledged(data, pb.PushResponse.FromString(answer))
            return
        names = [str(m.value) for m in refusal.trailing_metadata() or () if m.key == ERROR_METADATA_KEY]
        assert names, f"{refusal.code()}: {refusal.details()}"
        assert not issubclass(NAMES[names[0]], InternalError | StoreError), refusal.details()
        assert refusal.details()
        self.seen[names[0]] += 1

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

    def finish(self) -> None:
        """Both hold the same, bit for bit."""
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
        yield Rig(Path(name), f"unix:{name}/socket")


def _fuzz(rig: Rig, seed: int, messages: int) -> None:
    started_s = told_s = time.monotonic()
    for number in range(messages):
        wild = fuzzed(seed, number, rig.map_version, rig.sequence)
        try:
            rig.send(wild.method, wild.data)
        except AssertionError as failure:
            raise AssertionError(f"seed {seed}, message {number}: {wild.method} {wild.data!r}") from failure
        if time.monotonic() - told_s > 30:
            told_s = time.monotonic()
            print(f"{number} messages, {number / (told_s - started_s):.0f}/s", flush=True)
    print(f"seed {seed}: {messages} messages, {dict(rig.seen)}")
    refused = sum(n for name, n in rig.seen.items() if name in NAMES)
    assert refused > messages * 0.4, rig.seen
    assert rig.seen["Push OK"] > messages * 0.02 and rig.seen["Pull OK"] > messages * 0.02, rig.seen
    assert {"InvalidRequestError", "LimitExceededError", "StalePartitionMapError"} <= set(rig.seen), rig.seen
    rig.finish()


def test_wild_messages_change_nothing(rig: Rig) -> None:
    _fuzz(rig, seed=1, messages=4_000)


@pytest.mark.soak
def test_a_million_wild_messages_change_nothing(rig: Rig) -> None:
    seed = int(os.environ.get("FUZZ_SEED", time.time_ns() % 2**32))
    _fuzz(rig, seed, int(os.environ.get("FUZZ_MESSAGES", "1000000")))


@pytest.mark.soak
def test_a_message_past_the_bound_is_refused(rig: Rig) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        rig.call("Push", bytes(MESSAGE_BYTES_MAX + 1))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    rig.call("Pull", pull(np.random.default_rng(0), rig.map_version).SerializeToString())


def test_bytes_that_are_no_grpc_leave_the_server_up() -> None:
    """Random bytes, HTTP/2 that breaks off, frames of forged lengths, on a TCP port."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        rig = Rig(Path(name), "127.0.0.1:0")
        host, _, port = rig.server.endpoint.rpartition(":")
        for number in range(200):
            junk = rng.bytes(int(rng.integers(0, 2_000)))
            frame = int(rng.integers(0, 1 << 24)).to_bytes(3, "big") + rng.bytes(6)
            data = (junk, preface + junk, preface + frame + junk, preface + b"\0" * 9 + frame + junk)[
                number % 4
            ]
            with socket.create_connection((host, int(port)), timeout=10) as one:
                try:
                    one.sendall(data)
                    if number % 3 == 0:
                        one.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # it hung up on us, as it may
        for number in range(64):
            wild = fuzzed(2, 8 * number, rig.map_version, rig.sequence)
            rig.send(wild.method, wild.data)
        assert rig.seen["Push OK"] > 5
        rig.channel.close()
        rig.server.stop()
        rig.plain.close()
