# SPDX-License-Identifier: Apache-2.0
"""A shard for tests: a dict of rows and SGD, slow and obvious, with faults on demand.

It offers what an embedded shard offers, the same over gRPC on a free port (`serve`), and is the
oracle: `rows` is what the table must hold. `local_client` gives a client over such shards without a wire.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype, error, message
from rowhouse.mix import mix64
from rowhouse.placement import PartitionMap
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client import Client
from ps_client.cluster import Cluster
from ps_client.retry import Retry
from ps_client.transport.embedded import EmbeddedTransport
from ps_client.transport.transport import Transport
from ps_server.serve.grpc_port import GrpcPort
from ps_server.serve.service import ParameterService

Fault = Callable[[], object]
Row = NDArray[np.float32]


def first_row(row_id: int, dim: int) -> Row:
    """The row that an id starts from: a pure function of the id, in -0.5 to 0.5."""
    seeds: NDArray[np.uint64] = np.arange(dim, dtype=np.uint64) + np.uint64(31 * row_id % 2**64)
    return ((mix64(seeds) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)) - np.float32(0.5)


class FakeShard:
    """One shard; `before`, `refuse` and `after` hold the faults of the next calls, by "pull" or "push".

    A fault raises an error of rowhouse.error; one in `before` strikes before the shard looks at the call,
    one in `refuse` when it is known to be no repeat, one in `after` when it has taken effect and only the
    answer is lost.
    """

    def __init__(
        self, tables: dict[str, int], shard: int = 0, shard_count: int = 1, rate: float = 0.5
    ) -> None:
        self.tables, self.shard, self.rate = tables, shard, np.float32(rate)
        self.map = PartitionMap.even(shard_count)
        self.endpoints: list[str] = [""] * shard_count
        self.rows: dict[tuple[str, int], Row] = {}
        self.sequences: dict[int, int] = {}
        self.frozen: dict[str, int] = {}
        self.before: dict[str, list[Fault | None]] = {"pull": [], "push": []}
        self.refuse: dict[str, list[Fault | None]] = {"pull": [], "push": []}
        self.after: dict[str, list[Fault | None]] = {"pull": [], "push": []}
        self.pulls: list[message.PullRequest] = []
        self.pushes: list[message.PushRequest] = []
        self.push_rows_max = 0
        self.message_bytes_max = 0
        self.applied = 0
        self.closed = False
        self.poison = None
        self.lock = threading.Lock()

    def row(self, table: str, row_id: int) -> Row:
        return self.rows.get((table, row_id), first_row(row_id, self.tables[table]))

    def _strike(self, faults: dict[str, list[Fault | None]], call: str) -> None:
        fault = faults[call].pop(0) if faults[call] else None
        if fault is not None:
            fault()

    def _check(self, request: message.PullRequest | message.PushRequest) -> None:
        if not self.map.accepts(request.map_version):
            raise error.StalePartitionMapError(f"map {request.map_version:#x}, not {self.map.version:#x}")
        for part in request.tables:
            if part.table not in self.tables:
                raise error.UnknownTableError(f"no table {part.table!r}")
            owners = self.map.shards_of(part.ids)
            if (owners != self.shard).any():
                raise error.InternalError("the client sent an id to the wrong shard")

    def pull(self, request: message.PullRequest) -> message.PullResponse:
        with self.lock:
            self.pulls.append(request)
            self._strike(self.before, "pull")
            self._strike(self.refuse, "pull")
            self._check(request)
            answers = []
            for part in request.tables:
                rows = np.zeros((part.ids.shape[0], self.tables[part.table]), np.float32)
                for i, row_id in enumerate(part.ids.tolist()):
                    rows[i] = self.row(part.table, row_id)
                answers.append(
                    message.TableRows(part.table, request.dtype, dtype.narrow(rows, request.dtype))
                )
            self._strike(self.after, "pull")
            return message.PullResponse(self.applied, tuple(answers))

    def push(
        self, request: message.PushRequest, encoded: bytes | memoryview | None = None
    ) -> message.PushResponse:
        with self.lock:
            self.pushes.append(request)
            self._strike(self.before, "push")
            last = self.sequences.get(request.client_id, 0)
            if 0 < request.sequence <= last:
                return message.PushResponse(self.applied, True)
            if request.sequence != last + 1:
                raise error.SequenceGapError(f"sequence is {request.sequence}; expected {last + 1}")
            self._strike(self.refuse, "push")
            self._check(request)
            for part in request.tables:
                if self.frozen.get(part.table) == pb.FREEZE_MODE_REFUSE:
                    raise error.TableFrozenError(f"table {part.table!r} is frozen")
            for part in request.tables:
                self._apply(part)
            self.sequences[request.client_id] = request.sequence
            self.applied += 1
            self._strike(self.after, "push")
            return message.PushResponse(self.applied, False)

    def _apply(self, part: message.TableGradients) -> None:
        if self.frozen.get(part.table) == pb.FREEZE_MODE_IGNORE:
            return
        assert len(set(part.ids.tolist())) == part.ids.shape[0], "the client sent an id twice"
        rate = self.rate if part.learning_rate is None else np.float32(part.learning_rate)
        gradients = dtype.widen(part.gradients, part.dtype)
        for row_id, gradient in zip(part.ids.tolist(), gradients, strict=True):
            self.rows[part.table, row_id] = self.row(part.table, row_id) - rate * gradient

    def get_cluster(self, request: pb.GetClusterRequest) -> pb.GetClusterResponse:
        infos = [
            pb.TableInfo(
                name=n, dim=d, dtype=pb.DTYPE_FLOAT32, config_json='{"optimizer": {"kind": "sgd"}}',
                push_rows_max=self.push_rows_max,
            )
            for n, d in self.tables.items()
        ]  # fmt: skip
        return pb.GetClusterResponse(
            map_version=self.map.version, shard=self.shard, endpoints=self.endpoints,
            partition_shards=self.map.shards.tobytes(), tables=infos,
            message_bytes_max=self.message_bytes_max, cluster_id=self.map.cluster_id,
        )  # fmt: skip

    def create_checkpoint(self, request: pb.CreateCheckpointRequest) -> pb.CreateCheckpointResponse:
        return pb.CreateCheckpointResponse(lsn=self.applied, rows_written=len(self.rows))

    def get_stats(self, request: pb.GetStatsRequest) -> pb.GetStatsResponse:
        counts = {n: sum(t == n for t, _ in self.rows) for n in self.tables}
        tables = [pb.TableStats(name=n, rows=c, rows_exact=True) for n, c in counts.items()]
        return pb.GetStatsResponse(shard=self.shard, applied_lsn=self.applied, tables=tables)

    def set_table_freeze(self, request: pb.SetTableFreezeRequest) -> pb.SetTableFreezeResponse:
        self.frozen[request.table] = request.mode
        return pb.SetTableFreezeResponse()

    def evict_rows(self, request: pb.EvictRowsRequest) -> pb.EvictRowsResponse:
        gone = [key for key in self.rows if key[0] == request.table]
        for key in gone:
            del self.rows[key]
        return pb.EvictRowsResponse(rows_evicted=len(gone))

    def contribute(self, request: message.Contribution) -> pb.ContributeResponse:
        raise AssertionError("no test of a FakeShard has a group")

    def call(self, method: str, request: Any) -> Any:
        calls: dict[str, Callable[[Any], Any]] = {
            "GetCluster": self.get_cluster,
            "CreateCheckpoint": self.create_checkpoint,
            "GetStats": self.get_stats,
            "SetTableFreeze": self.set_table_freeze,
            "EvictRows": self.evict_rows,
        }
        return calls[method](request)

    def close(self) -> None:
        self.closed = True


def local_client(
    shards: Sequence[FakeShard],
    wire_dtype: str = "fp32",
    retry: Retry | None = None,
    transport: Callable[[FakeShard, str], Transport] = EmbeddedTransport,
) -> Client:
    """A client of shards in this process; retries take no time unless `retry` says so."""
    retry = retry or Retry(timeout_s=5.0, sleep=lambda _: None)
    names = [str(number) for number in range(len(shards))]
    dial = lambda name: transport(shards[int(name)], name)  # noqa: E731
    return Client(Cluster.join(names, dial, retry.start()), retry, wire_dtype)


def make_shards(count: int, tables: dict[str, int] | None = None) -> list[FakeShard]:
    """The shards of one cluster; tables "user" (dim 4) and "item" (dim 3) unless given."""
    return [FakeShard(tables or {"user": 4, "item": 3}, shard, count) for shard in range(count)]


def raising(failure: type[error.RowhouseError], text: str = "on purpose") -> Fault:
    """A fault that raises."""

    def strike() -> None:
        raise failure(text)

    return strike


def start(shard: FakeShard, address: str = "127.0.0.1:0") -> tuple[GrpcPort, str]:
    """A gRPC port for the shard, and its endpoint."""
    service = ParameterService(shard.shard)
    service.attach(shard)
    port = GrpcPort(service, 8)
    bound = port.listen(address)
    port.start()
    return port, address if address.startswith("unix:") else f"127.0.0.1:{bound}"


@contextmanager
def serve(shards: Sequence[FakeShard]) -> Iterator[list[str]]:
    """The shards over gRPC on free ports; gives their endpoints."""
    running = [start(shard) for shard in shards]
    endpoints = [endpoint for _, endpoint in running]
    for shard in shards:
        shard.endpoints = endpoints
    try:
        yield endpoints
    finally:
        for port, _ in running:
            port.stop(0)
