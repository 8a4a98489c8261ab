# SPDX-License-Identifier: Apache-2.0
"""The seam between the client's core and one shard: what a transport must do, and nothing else.

`channel.py` carries calls over gRPC, `embedded.py` into a shard in the caller's process; tests give
their own. A transport does not retry, does not route and knows no sequence numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rowhouse.message import Contribution, PullRequest, PullResponse, PushRequest, PushResponse
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.transport.frame import DataCall

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Begun(Generic[T]):
    """A call whose request is on its way.

    Attributes
    ----------
    call
        Goes on whenever it is given a turn (data_link.as_ended).
    result
        Waits for the answer; raises as the call itself.
    """

    call: DataCall
    result: Callable[[], T]


class Transport(Protocol):
    """Calls to one shard. Each raises an error of rowhouse.error; `timeout_s` is what the answer may take.

    Thread safety: any number of threads may call at once.
    """

    @property
    def endpoint(self) -> str:
        """Where the shard is, for messages of errors."""

    def pull(self, request: PullRequest, timeout_s: float) -> PullResponse:
        """Rows of one step."""

    def push(self, request: PushRequest, timeout_s: float) -> PushResponse:
        """Gradients of one step."""

    def begin_pull(self, request: PullRequest, timeout_s: float) -> Begun[PullResponse] | None:
        """A pull that is sent, and not waited for; None where only `pull` can be had."""

    def begin_push(self, request: PushRequest, timeout_s: float) -> Begun[PushResponse] | None:
        """A push that is sent, and not waited for; None where only `push` can be had."""

    def get_cluster(self, request: pb.GetClusterRequest, timeout_s: float) -> pb.GetClusterResponse:
        """Tables, shards and the partition map."""

    def create_checkpoint(
        self, request: pb.CreateCheckpointRequest, timeout_s: float
    ) -> pb.CreateCheckpointResponse:
        """Write every dirty row to the store."""

    def get_stats(self, request: pb.GetStatsRequest, timeout_s: float) -> pb.GetStatsResponse:
        """Live counters."""

    def set_table_freeze(
        self, request: pb.SetTableFreezeRequest, timeout_s: float
    ) -> pb.SetTableFreezeResponse:
        """Stop pushes to one table, or allow them again."""

    def evict_rows(self, request: pb.EvictRowsRequest, timeout_s: float) -> pb.EvictRowsResponse:
        """Run one table's eviction policies now."""

    def save_tables(self, request: pb.SaveTablesRequest, timeout_s: float) -> pb.SavedTables:
        """Keep a copy of every table under a name."""

    def get_saved_tables(self, request: pb.GetSavedTablesRequest, timeout_s: float) -> pb.SavedTables:
        """What the shard was last saved as."""

    def drop_saved_tables(
        self, request: pb.DropSavedTablesRequest, timeout_s: float
    ) -> pb.DropSavedTablesResponse:
        """Forget a saved copy."""

    def join_group(self, request: pb.JoinGroupRequest, timeout_s: float) -> pb.JoinGroupResponse:
        """Take part in a group of trainers."""

    def contribute(self, request: Contribution, timeout_s: float) -> pb.ContributeResponse:
        """One trainer's gradients of one step."""

    def await_step(self, request: pb.AwaitStepRequest, timeout_s: float) -> pb.AwaitStepResponse:
        """Wait a moment for the other trainers."""

    def close(self) -> None:
        """Let go of the shard; no call may follow."""
