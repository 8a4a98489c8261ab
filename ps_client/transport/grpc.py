# SPDX-License-Identifier: Apache-2.0
"""A Transport over one gRPC channel, and over data connections for the hot calls.

Pull, Push and Contribute go through the hand-written codec (rowhouse/codec.py), the other calls through
the generated messages; on the wire both are the same protobuf. A status becomes the error that the shard
raised, with the shard's endpoint in its message. Retries are not made here: gRPC's own are off, so
that each attempt is one that retry.py knows of.

Where GetCluster tells a data port, the hot calls take it (data_link.py). After a lost connection the next
attempt goes over gRPC, which knows how to wait for a shard that restarts; once that is answered, the data
port is asked for anew. A port that cannot be reached, or never answers, is tried again ever more rarely.

Thread safety: a channel may be called by any number of threads.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError
from rowhouse import codec, error, frame
from rowhouse.limit import MESSAGE_BYTES_MAX
from rowhouse.message import Contribution, PullRequest, PullResponse, PushRequest, PushResponse
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.transport.frame import DataLink
from ps_client.transport.transport import Begun

SERVICE: Final = "/rowhouse.v1.ParameterService/"

OPTIONS: Final = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.enable_retries", 0),
    # A shard that restarts is found again within a second; gRPC's own back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A connection whose other end vanished without a word is noticed while a call waits on it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # No proxy from the environment: shards are addressed directly.
    ("grpc.enable_http_proxy", 0),
)
"""Channel options, each where gRPC's default does not fit."""

_RELINK_S: Final = 5.0
"""Time for asking a shard, which has just answered, for its data port."""

_LINK_RETRY_S: Final = 5.0
"""A data port that did not serve one call is tried again after so long, then twice as long, and so on."""

_LINK_RETRY_MAX_S: Final = 600.0

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Method(Generic[T]):
    """A hot call as frames."""

    kind: int
    encode: Callable[[Any], list[codec.Part]]
    decode: Callable[[memoryview], T]


_PULL: Final = _Method(frame.PULL, codec.pull_request_parts, codec.decode_pull_response)
_PUSH: Final = _Method(frame.PUSH, codec.push_request_parts, codec.decode_push_response)
_CONTRIBUTE: Final = _Method(
    frame.CONTRIBUTE, codec.contribution_parts, lambda data: pb.ContributeResponse.FromString(bytes(data))
)


def to_error(failure: grpc.RpcError, endpoint: str) -> error.RowhouseError:
    """The error that the shard raised, from the status, details and trailing metadata of an answer."""
    assert isinstance(failure, grpc.Call)
    trailing = failure.trailing_metadata() or ()
    names = [value for key, value in trailing if key == error.ERROR_METADATA_KEY]
    name = names[0].decode() if names and isinstance(names[0], bytes) else (names[0] if names else None)
    details = failure.details() or f"no details; gRPC status {failure.code().name}"
    return error.from_status(failure.code(), f"shard at {endpoint}: {details}", name)


def _open(endpoint: str, offer: tuple[str, int]) -> DataLink | None:
    """A link to the data port that `endpoint` told; None when it cannot be used."""
    try:
        link = DataLink(endpoint, *offer)
    except ValueError as failure:  # the words of a newer shard
        _log.info("shard at %s: %s", endpoint, failure)
        return None
    return link if link.open() else None


class GrpcTransport:
    """One shard at `endpoint` ("host:port", or "unix:/path")."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._closed = False
        self._link: DataLink | None = None
        self._links_retired: list[DataLink] = []
        self._link_told: tuple[str, int] | None = None
        self._link_offer: tuple[str, int] | None = None  # what was told, while it may be tried
        self._link_lost = False
        self._link_failures, self._link_retry_s = 0, 0.0
        self._link_lock = threading.Lock()
        self._channel = grpc.insecure_channel(endpoint, OPTIONS)
        self._pull = self._channel.unary_unary(
            SERVICE + "Pull",
            request_serializer=codec.encode_pull_request,
            response_deserializer=codec.decode_pull_response,
        )
        self._push = self._channel.unary_unary(
            SERVICE + "Push",
            request_serializer=codec.encode_push_request,
            response_deserializer=codec.decode_push_response,
        )
        self._contribute = self._channel.unary_unary(
            SERVICE + "Contribute",
            request_serializer=codec.encode_contribution,
            response_deserializer=pb.ContributeResponse.FromString,
        )
        self._get_cluster = self._stub("GetCluster", pb.GetClusterResponse)
        self._create_checkpoint = self._stub("CreateCheckpoint", pb.CreateCheckpointResponse)
        self._get_stats = self._stub("GetStats", pb.GetStatsResponse)
        self._set_table_freeze = self._stub("SetTableFreeze", pb.SetTableFreezeResponse)
        self._evict_rows = self._stub("EvictRows", pb.EvictRowsResponse)
        self._save_tables = self._stub("SaveTables", pb.SavedTables)
        self._get_saved_tables = self._stub("GetSavedTables", pb.SavedTables)
        self._drop_saved_tables = self._stub("DropSavedTables", pb.DropSavedTablesResponse)
        self._join_group = self._stub("JoinGroup", pb.JoinGroupResponse)
        self._await_step = self._stub("AwaitStep", pb.AwaitStepResponse)

    def _stub(self, method: str, response: Any) -> Callable[..., Any]:
        return self._channel.unary_unary(
            SERVICE + method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def _call(self, method: Callable[..., Any], request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as failure:
            raise to_error(failure, self.endpoint) from None
        except ValueError:  # gRPC's word for a closed channel
            if not self._closed:
                raise
            raise self._closed_in_call() from None

    def _closed_in_call(self) -> error.PreconditionError:
        return error.PreconditionError(f"shard at {self.endpoint}: the client was closed during the call")

    def pull(self, request: PullRequest, timeout_s: float) -> PullResponse:
        """Rows of one step."""
        begun = self._begin(self._link or self._open_link(), _PULL, request, timeout_s)
        response: PullResponse = begun.result() if begun else self._call_hot(self._pull, request, timeout_s)
        return response

    def push(self, request: PushRequest, timeout_s: float) -> PushResponse:
        """Gradients of one step."""
        begun = self._begin(self._link or self._open_link(), _PUSH, request, timeout_s)
        response: PushResponse = begun.result() if begun else self._call_hot(self._push, request, timeout_s)
        return response

    def contribute(self, request: Contribution, timeout_s: float) -> pb.ContributeResponse:
        """One trainer's gradients of one step."""
        begun = self._begin(self._link or self._open_link(), _CONTRIBUTE, request, timeout_s)
        response: pb.ContributeResponse = (
            begun.result() if begun else self._call_hot(self._contribute, request, timeout_s)
        )
        return response

    def begin_pull(self, request: PullRequest, timeout_s: float) -> Begun[PullResponse] | None:
        """A pull that is sent, and not waited for; None without a link, whose opening would be waited for."""
        return self._begin(self._link, _PULL, request, timeout_s)

    def begin_push(self, request: PushRequest, timeout_s: float) -> Begun[PushResponse] | None:
        """A push that is sent, and not waited for; None as for `begin_pull`."""
        return self._begin(self._link, _PUSH, request, timeout_s)

    def get_cluster(self, request: pb.GetClusterRequest, timeout_s: float) -> pb.GetClusterResponse:
        """Tables, shards and the partition map; and where the data port is, for the next hot call."""
        response: pb.GetClusterResponse = self._call(self._get_cluster, request, timeout_s)
        offer = (response.data_endpoint, response.data_token)
        with self._link_lock:
            if offer != self._link_told:
                self._link_told, self._link_failures, self._link_retry_s = offer, 0, 0.0
            elif self._link is not None or time.monotonic() < self._link_retry_s:
                return response
            self._retire()
            self._link_offer, self._link_lost = (offer if offer[0] else None), False
        return response

    def _decoded(self, decode: Callable[[memoryview], T], data: memoryview) -> T:
        try:
            return decode(data)
        except (error.InvalidRequestError, DecodeError) as failure:  # as gRPC takes such an answer
            text = f"shard at {self.endpoint}: an answer that cannot be read: {failure}"
            raise error.InternalError(text) from failure

    def _begin(
        self, link: DataLink | None, method: _Method[T], request: Any, timeout_s: float
    ) -> Begun[T] | None:
        """A call over the data port; None without a link."""
        if link is None:
            return None
        call = link.begin(method.kind, method.encode(request), timeout_s)

        def result() -> T:
            try:
                data = call.result()
            except error.RowhouseError as failure:
                if self._closed:
                    raise self._closed_in_call() from failure
                if link.lost:
                    self._lose(link)
                raise
            return self._decoded(method.decode, data)

        return Begun(call, result)

    def _open_link(self) -> DataLink | None:
        if self._link_offer is None:
            return None
        with self._link_lock:
            if self._link is None and self._link_offer is not None and not self._closed:
                link = _open(self.endpoint, self._link_offer)
                if link is None and not self._link_failures:
                    _log.warning(
                        "shard at %s: its data port %s cannot be reached; going on over gRPC, which is "
                        "slower (data_port in the cluster's config sets the port)",
                        self.endpoint, self._link_offer[0],
                    )  # fmt: skip
                self._link = link
                if link is None:
                    self._set_aside(served=False)
            return self._link

    def _lose(self, link: DataLink) -> None:
        """Go on over gRPC until the shard tells its data port anew."""
        with self._link_lock:
            if self._link is link:
                self._retire()
                self._set_aside(link.served)

    def _set_aside(self, served: bool) -> None:
        self._link_offer, self._link_lost = None, True
        wait_s = 0.0 if served else _LINK_RETRY_S * 2 ** min(self._link_failures, 32)
        self._link_failures = 0 if served else self._link_failures + 1
        self._link_retry_s = time.monotonic() + min(wait_s, _LINK_RETRY_MAX_S)

    def _retire(self) -> None:
        """Use the link no more; `close` still ends the calls that are under way on it."""
        if self._link is not None:
            self._link.retire()
            self._links_retired = [one for one in (*self._links_retired, self._link) if one.busy]
            self._link = None

    def _call_hot(self, method: Callable[..., Any], request: Any, timeout_s: float) -> Any:
        """A hot call over gRPC; its answer says that the shard is there, so a lost link is looked for."""
        answer = self._call(method, request, timeout_s)
        if self._link_lost and time.monotonic() >= self._link_retry_s:
            try:
                self.get_cluster(pb.GetClusterRequest(), _RELINK_S)
            except error.RowhouseError as failure:
                _log.info("shard at %s: %s", self.endpoint, failure)
        return answer

    def create_checkpoint(
        self, request: pb.CreateCheckpointRequest, timeout_s: float
    ) -> pb.CreateCheckpointResponse:
        """Write every dirty row to the store."""
        response: pb.CreateCheckpointResponse = self._call(self._create_checkpoint, request, timeout_s)
        return response

    def get_stats(self, request: pb.GetStatsRequest, timeout_s: float) -> pb.GetStatsResponse:
        """Live counters."""
        response: pb.GetStatsResponse = self._call(self._get_stats, request, timeout_s)
        return response

    def set_table_freeze(
        self, request: pb.SetTableFreezeRequest, timeout_s: float
    ) -> pb.SetTableFreezeResponse:
        """Stop pushes to one table, or allow them again."""
        response: pb.SetTableFreezeResponse = self._call(self._set_table_freeze, request, timeout_s)
        return response

    def evict_rows(self, request: pb.EvictRowsRequest, timeout_s: float) -> pb.EvictRowsResponse:
        """Run one table's eviction policies now."""
        response: pb.EvictRowsResponse = self._call(self._evict_rows, request, timeout_s)
        return response

    def save_tables(self, request: pb.SaveTablesRequest, timeout_s: float) -> pb.SavedTables:
        """Keep a copy of every table under a name."""
        response: pb.SavedTables = self._call(self._save_tables, request, timeout_s)
        return response

    def get_saved_tables(self, request: pb.GetSavedTablesRequest, timeout_s: float) -> pb.SavedTables:
        """What the shard was last saved as."""
        response: pb.SavedTables = self._call(self._get_saved_tables, request, timeout_s)
        return response

    def drop_saved_tables(
        self, request: pb.DropSavedTablesRequest, timeout_s: float
    ) -> pb.DropSavedTablesResponse:
        """Forget a saved copy."""
        response: pb.DropSavedTablesResponse = self._call(self._drop_saved_tables, request, timeout_s)
        return response

    def join_group(self, request: pb.JoinGroupRequest, timeout_s: float) -> pb.JoinGroupResponse:
        """Take part in a group of trainers."""
        response: pb.JoinGroupResponse = self._call(self._join_group, request, timeout_s)
        return response

    def await_step(self, request: pb.AwaitStepRequest, timeout_s: float) -> pb.AwaitStepResponse:
        """Wait a moment for the other trainers."""
        response: pb.AwaitStepResponse = self._call(self._await_step, request, timeout_s)
        return response

    def close(self) -> None:
        """Close the channel: calls under way are cancelled, and their retries are refused."""
        self._closed = True
        self._channel.close()
        with self._link_lock:
            for link in (*self._links_retired, *([self._link] if self._link else [])):
                link.close()
