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
from rowhouse.error import ConfigError, PoisonedError
from rowhouse.message import Contribution, PullRequest, PullResponse, PushRequest, PushResponse
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.transport.transport import Transport

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


class _NobodyRestarts:
    """A block after which a poisoned shard is not tried again: nobody restarts it in this process."""

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, _kind: object, value: BaseException | None, _trace: object) -> None:
        if isinstance(value, PoisonedError):
            value.retryable = False


_NOBODY_RESTARTS: Final = _NobodyRestarts()


class EmbeddedTransport(Transport):
    """A Transport into a shard of this process. Timeouts do not apply: there is no wire to wait for."""

    def __init__(self, shard: EmbeddedShard, directory: str) -> None:
        self._shard = shard
        self.endpoint = f"embedded:{directory}"

    def pull(self, request: PullRequest, timeout_s: float) -> PullResponse:
        """Rows of one step."""
        with _NOBODY_RESTARTS:
            return self._shard.pull(request)

    def push(self, request: PushRequest, timeout_s: float) -> PushResponse:
        """Gradients of one step."""
        with _NOBODY_RESTARTS:
            return self._shard.push(request)

    def contribute(self, request: Contribution, timeout_s: float) -> pb.ContributeResponse:
        """Cannot come: JoinGroup comes first, and is refused."""
        raise AssertionError("nobody joined")

    def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """Answer of a control call; ConfigError where a trainer joins others, which this process has not."""
        if method == "JoinGroup":
            raise ConfigError(
                f"{self.endpoint}: trainers that keep pace need shards that are served (ps-server)"
            )
        with _NOBODY_RESTARTS:
            return self._shard.call(method, request)

    def close(self) -> None:
        """Close the shard: it writes what is dirty and releases its directory."""
        self._shard.close()
