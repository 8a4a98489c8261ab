# SPDX-License-Identifier: Apache-2.0
"""Embedded mode: the server's own code in the caller's process, with no socket and no encoding.

This module never imports ps_server. The installed server declares the entry point `open` of the group
`rowhouse.embedded`, and that is how it is found. Thread safety: that of the shard it opens.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, Protocol, cast

from rowhouse.distribution import install_hint
from rowhouse.error import ConfigError
from rowhouse.message import Contribution, PullRequest, PullResponse, PushRequest, PushResponse
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.transport import Begun

ENTRY_POINT_GROUP: Final = "rowhouse.embedded"
ENTRY_POINT_NAME: Final = "open"

Config = Mapping[str, Any] | str | Path | None


class EmbeddedShard(Protocol):
    """What the entry point returns: a shard that raises errors of rowhouse.error."""

    def pull(self, request: PullRequest) -> PullResponse:
        """Rows of one step."""

    def push(self, request: PushRequest) -> PushResponse:
        """Gradients of one step."""

    def call(self, method: str, request: Any) -> Any:
        """Answer a control call."""

    def close(self) -> None:
        """Write what is dirty and release the directory."""


def open_shard(directory: str, config: Config) -> EmbeddedShard:
    """Open the shard in `directory` through the installed server.

    Raises
    ------
    ConfigError
        No installed package declares the entry point; or the config is wrong.
    DirectoryInUseError
        Another process holds the directory.
    """
    found = list(entry_points(group=ENTRY_POINT_GROUP, name=ENTRY_POINT_NAME))
    if not found:
        raise ConfigError(
            f"embedded mode needs a package with the entry point {ENTRY_POINT_NAME!r} of group "
            f"{ENTRY_POINT_GROUP!r}; none is installed: {install_hint()}"
        )
    return cast("EmbeddedShard", found[0].load()(directory, config))


class EmbeddedTransport:
    """A Transport into a shard of this process. Timeouts do not apply: there is no wire to wait for."""

    def __init__(self, shard: EmbeddedShard, directory: str) -> None:
        self._shard = shard
        self.endpoint = f"embedded:{directory}"

    def pull(self, request: PullRequest, timeout_s: float) -> PullResponse:
        """Rows of one step."""
        return self._shard.pull(request)

    def push(self, request: PushRequest, timeout_s: float) -> PushResponse:
        """Gradients of one step."""
        return self._shard.push(request)

    def begin_pull(self, request: PullRequest, timeout_s: float) -> Begun[PullResponse] | None:
        """None: a shard in this process has answered once it was asked."""
        return None

    def begin_push(self, request: PushRequest, timeout_s: float) -> Begun[PushResponse] | None:
        """None: same."""
        return None

    def get_cluster(self, request: pb.GetClusterRequest, timeout_s: float) -> pb.GetClusterResponse:
        """Tables and the partition map."""
        return cast("pb.GetClusterResponse", self._shard.call("GetCluster", request))

    def create_checkpoint(
        self, request: pb.CreateCheckpointRequest, timeout_s: float
    ) -> pb.CreateCheckpointResponse:
        """Write every dirty row to the store."""
        return cast("pb.CreateCheckpointResponse", self._shard.call("CreateCheckpoint", request))

    def get_stats(self, request: pb.GetStatsRequest, timeout_s: float) -> pb.GetStatsResponse:
        """Live counters."""
        return cast("pb.GetStatsResponse", self._shard.call("GetStats", request))

    def set_table_freeze(
        self, request: pb.SetTableFreezeRequest, timeout_s: float
    ) -> pb.SetTableFreezeResponse:
        """Stop pushes to one table, or allow them again."""
        return cast("pb.SetTableFreezeResponse", self._shard.call("SetTableFreeze", request))

    def evict_rows(self, request: pb.EvictRowsRequest, timeout_s: float) -> pb.EvictRowsResponse:
        """Run one table's eviction policies now."""
        return cast("pb.EvictRowsResponse", self._shard.call("EvictRows", request))

    def save_tables(self, request: pb.SaveTablesRequest, timeout_s: float) -> pb.SavedTables:
        """Keep a copy of every table under a name."""
        return cast("pb.SavedTables", self._shard.call("SaveTables", request))

    def get_saved_tables(self, request: pb.GetSavedTablesRequest, timeout_s: float) -> pb.SavedTables:
        """What the shard was last saved as."""
        return cast("pb.SavedTables", self._shard.call("GetSavedTables", request))

    def drop_saved_tables(
        self, request: pb.DropSavedTablesRequest, timeout_s: float
    ) -> pb.DropSavedTablesResponse:
        """Forget a saved copy."""
        return cast("pb.DropSavedTablesResponse", self._shard.call("DropSavedTables", request))

    def join_group(self, request: pb.JoinGroupRequest, timeout_s: float) -> pb.JoinGroupResponse:
        """A shard in one trainer's process has no others: ConfigError."""
        raise ConfigError(f"{self.endpoint}: trainers that keep pace need shards that are served (ps-server)")

    def contribute(self, request: Contribution, timeout_s: float) -> pb.ContributeResponse:
        """Cannot come: `join_group` comes first."""
        raise AssertionError("nobody joined")

    def await_step(self, request: pb.AwaitStepRequest, timeout_s: float) -> pb.AwaitStepResponse:
        """Cannot come: `join_group` comes first."""
        raise AssertionError("nobody joined")

    def close(self) -> None:
        """Close the shard: it writes what is dirty and releases its directory."""
        self._shard.close()
