# SPDX-License-Identifier: Apache-2.0
"""A shard in a process of its own, its memory seen from outside, and connections that send it anything."""

import socket
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
from rowhouse import codec, dtype, frame, message
from rowhouse.v1 import rowhouse_pb2 as pb
from rowhouse.v1 import rowhouse_pb2_grpc

from tests.process import ServerProcess

BUDGET = 192 << 20
TABLES: list[dict[str, Any]] = [
    {"name": "narrow", "dim": 1, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
    {"name": "user", "dim": 16, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}},
]
_BIG = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Victim(ServerProcess):
    """`ps-server serve` with a memory_budget of BUDGET."""

    def __init__(self, folder: Path, files_max: int | None = None, **keys: Any) -> None:
        config = {"data_dir": str(folder / "data"), "memory_budget": BUDGET, "tables": TABLES}
        config |= {"shards": ["127.0.0.1:0"], **keys}
        super().__init__("serve", config, "--shard", "0", files_max=files_max)
        self.address = self.endpoint()
        self.channel = self.dial()
        self.stub: Any = rowhouse_pb2_grpc.ParameterServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.cluster = self.stub.GetCluster(pb.GetClusterRequest(), wait_for_ready=True, timeout=60)
        self.message_bytes_max = self.cluster.message_bytes_max or 256 << 20

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *end: object) -> None:
        self.channel.close()
        super().__exit__(*end)

    def dial(self) -> grpc.Channel:
        """A connection of its own."""
        return grpc.insecure_channel(self.address, [*_BIG, ("grpc.use_local_subchannel_pool", 1)])

    def memory(self, key: str) -> int:
        """VmRSS, or VmHWM (the most since `forget_peak`), of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.split(f"{key}:")[1].split()[0]) << 10

    def forget_peak(self) -> None:
        """The peak counts from here."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")

    def counted(self) -> int:
        """What the shard itself counts against memory_budget."""
        return int(self.stub.GetStats(pb.GetStatsRequest(), timeout=60).memory_used_bytes)

    def frames(self) -> "Frames":
        """A connection to the data port."""
        return Frames(int(self.cluster.data_endpoint[1:]), self.cluster.data_token)

    def pull(self, table: str, ids: Any) -> bytes:
        """A pull of ids, encoded."""
        dim = next(t["dim"] for t in TABLES if t["name"] == table)
        asked = message.TableIds(table, dim, np.asarray(ids, np.uint64))
        return codec.encode_pull_request(
            message.PullRequest(self.cluster.map_version, dtype.FLOAT32, True, (asked,))
        )

    def push(self, table: str, count: int, client: int, sequence: int, value: float = 0.1) -> bytes:
        """A push of `count` ids, encoded; NaN is refused when it is looked at."""
        dim = next(t["dim"] for t in TABLES if t["name"] == table)
        ids = np.arange(count, dtype=np.uint64)
        part = message.TableGradients(table, dtype.FLOAT32, ids, np.full((count, dim), value, np.float32))
        return codec.encode_push_request(
            message.PushRequest(self.cluster.map_version, client, sequence, (part,))
        )


class Frames:
    """A connection to a data port."""

    def __init__(self, port: int, token: int) -> None:
        self._token = token
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def head(self, kind: int, size: int) -> None:
        """Say that `size` bytes follow."""
        self.socket.sendall(frame.encode_head(kind, size, self._token))

    def send(self, kind: int, body: bytes | memoryview) -> None:
        """A whole frame."""
        self.head(kind, len(body))
        self.socket.sendall(body)

    def read(self) -> tuple[int, bytes]:
        """Kind and body of the answer."""
        kind, size, _ = frame.decode_head(self._exactly(frame.HEAD.size))
        return kind, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            more = self.socket.recv(min(size - len(got), 1 << 20))
            if not more:
                raise EOFError
            got += more
        return bytes(got)

    def call(self, kind: int, body: bytes | memoryview) -> str:
        """The name of the error that a call gets; "" when it succeeds."""
        self.send(kind, body)
        answer, data = self.read()
        return type(frame.decode_error(memoryview(data), "")).__name__ if answer == frame.ERROR else ""
