# SPDX-License-Identifier: Apache-2.0
"""A shard without tables, for tests of what stands before it: service, server, psctl."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from rowhouse import message
from rowhouse.dtype import STORAGE
from rowhouse.error import UnknownTableError
from rowhouse.placement import PartitionMap
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.table import Table


class FakeShard:
    """Answers zeros; `fail` is raised by every call."""

    def __init__(self) -> None:
        self.index = 0
        self.partition_map = PartitionMap.even(1)
        self.poison: str | None = None
        self.fail: Exception | None = None
        self.on_push: Callable[[], None] = lambda: None  # runs inside each push
        self.calls: list[tuple[str, Any]] = []
        self.encoded: list[bytes | memoryview | None] = []
        self.endpoints = ["fake"]
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

    def last_sequence(self, client_id: int) -> int:
        return 0

    def table_at_lsn(self, name: str) -> tuple[Table, int]:
        raise UnknownTableError(f"table {name!r}: a fake shard has none")

    def get_cluster(self, request: pb.GetClusterRequest) -> pb.GetClusterResponse:
        self._note("get_cluster", request)
        return pb.GetClusterResponse(map_version=2**64 - 1, shard=0, endpoints=self.endpoints)

    def create_checkpoint(self, request: pb.CreateCheckpointRequest) -> pb.CreateCheckpointResponse:
        self._note("create_checkpoint", request)
        return pb.CreateCheckpointResponse(lsn=2**63, rows_written=4)

    def get_stats(self, request: pb.GetStatsRequest) -> pb.GetStatsResponse:
        self._note("get_stats", request)
        table = pb.TableStats(
            name="user", rows=3, rows_exact=True, hot_hits=1, pulled_ids=4, disk_bytes=2**40
        )
        return pb.GetStatsResponse(applied_lsn=5, memory_used_bytes=2048, tables=[table])

    def set_table_freeze(self, request: pb.SetTableFreezeRequest) -> pb.SetTableFreezeResponse:
        self._note("set_table_freeze", request)
        return pb.SetTableFreezeResponse()

    def evict_rows(self, request: pb.EvictRowsRequest) -> pb.EvictRowsResponse:
        self._note("evict_rows", request)
        return pb.EvictRowsResponse(rows_evicted=2)

    def save_tables(self, request: pb.SaveTablesRequest) -> pb.SavedTables:
        self._note("save_tables", request)
        return pb.SavedTables(name=request.name, token=request.token)

    def get_saved_tables(self, request: pb.GetSavedTablesRequest) -> pb.SavedTables:
        self._note("get_saved_tables", request)
        return pb.SavedTables()

    def drop_saved_tables(self, request: pb.DropSavedTablesRequest) -> pb.DropSavedTablesResponse:
        self._note("drop_saved_tables", request)
        return pb.DropSavedTablesResponse()

    def close(self) -> None:
        self.calls.append(("close", None))
        self.closed.set()
