# SPDX-License-Identifier: Apache-2.0
"""A shard without rows, for tests of what stands before one: service, server, psctl. With rows: FakeShard."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from rowhouse import message
from rowhouse.control import METHODS
from rowhouse.dtype import STORAGE
from rowhouse.v1 import rowhouse_pb2 as pb


class StubShard:
    """Answers zeros; `fail` is raised by every call."""

    def __init__(self) -> None:
        table = pb.TableStats(
            name="user", rows=3, rows_exact=True, hot_hits=1, pulled_ids=4, disk_bytes=2**40
        )
        self.poison: str | None = None
        self.fail: Exception | None = None
        self.on_push: Callable[[], None] = lambda: None  # runs inside each push
        self.calls: list[tuple[str, Any]] = []
        self.encoded: list[bytes | memoryview | None] = []
        self.endpoints = ["fake"]
        self.answers: dict[str, Any] = {
            "CreateCheckpoint": pb.CreateCheckpointResponse(lsn=2**63, rows_written=4),
            "GetStats": pb.GetStatsResponse(applied_lsn=5, memory_used_bytes=2048, tables=[table]),
            "EvictRows": pb.EvictRowsResponse(rows_evicted=2),
        }
        self.closed = threading.Event()

    def _note(self, name: str, request: Any) -> None:
        self.calls.append((name, request))
        if self.fail is not None:
            raise self.fail

    def hold_pushes(self, entered: threading.Event, leave: threading.Event) -> None:
        """Have each push set `entered` and wait for `leave`."""

        def hold() -> None:
            entered.set()
            assert leave.wait(10)

        self.on_push = hold

    def pull(self, request: message.PullRequest) -> message.PullResponse:
        self._note("pull", request)
        dtype = STORAGE[request.dtype]
        rows = (np.zeros((t.ids.shape[0], t.dim), dtype) for t in request.tables)
        answers = (
            message.TableRows(t.table, request.dtype, r) for t, r in zip(request.tables, rows, strict=True)
        )
        return message.PullResponse(7, tuple(answers))

    def push(
        self, request: message.PushRequest, encoded: bytes | memoryview | None = None
    ) -> message.PushResponse:
        self._note("push", request)
        self.encoded.append(encoded)
        self.on_push()
        return message.PushResponse(request.sequence, False)

    def contribute(self, request: message.Contribution) -> pb.ContributeResponse:
        self._note("contribute", request)
        return pb.ContributeResponse()

    def call(self, method: str, request: Any) -> Any:
        self._note(method, request)
        if method == "GetCluster":
            return pb.GetClusterResponse(map_version=2**64 - 1, shard=0, endpoints=self.endpoints)
        return self.answers.get(method, METHODS[method].response())

    def close(self) -> None:
        self.calls.append(("close", None))
        self.closed.set()
