# SPDX-License-Identifier: Apache-2.0
"""A Transport over one gRPC channel.

Pull and Push go through the hand-written codec (rowhouse/codec.py), the other calls through the
generated messages; on the wire both are the same protobuf. A status becomes the error that the shard
raised, with the shard's endpoint in its message. Retries are not made here: gRPC's own are off, so
that each attempt is one that retry.py knows of.

Thread safety: a channel may be called by any number of threads.
"""

from collections.abc import Callable
from typing import Any, Final

import grpc
from rowhouse import codec, error
from rowhouse.limit import MESSAGE_BYTES_MAX
from rowhouse.message import Contribution, PullRequest, PullResponse, PushRequest, PushResponse
from rowhouse.v1 import rowhouse_pb2 as pb

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


def to_error(failure: grpc.RpcError, endpoint: str) -> error.RowhouseError:
    """The error that the shard raised, from the status, details and trailing metadata of an answer."""
    assert isinstance(failure, grpc.Call)
    trailing = failure.trailing_metadata() or ()
    names = [value for key, value in trailing if key == error.ERROR_METADATA_KEY]
    name = names[0].decode() if names and isinstance(names[0], bytes) else (names[0] if names else None)
    details = failure.details() or f"no details; gRPC status {failure.code().name}"
    return error.from_status(failure.code(), f"shard at {endpoint}: {details}", name)


class GrpcTransport:
    """One shard at `endpoint` ("host:port", or "unix:/path")."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._closed = False
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
            text = f"shard at {self.endpoint}: the client was closed during the call"
            raise error.PreconditionError(text) from None

    def pull(self, request: PullRequest, timeout_s: float) -> PullResponse:
        """Rows of one step."""
        response: PullResponse = self._call(self._pull, request, timeout_s)
        return response

    def push(self, request: PushRequest, timeout_s: float) -> PushResponse:
        """Gradients of one step."""
        response: PushResponse = self._call(self._push, request, timeout_s)
        return response

    def get_cluster(self, request: pb.GetClusterRequest, timeout_s: float) -> pb.GetClusterResponse:
        """Tables, shards and the partition map."""
        response: pb.GetClusterResponse = self._call(self._get_cluster, request, timeout_s)
        return response

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

    def contribute(self, request: Contribution, timeout_s: float) -> pb.ContributeResponse:
        """One trainer's gradients of one step."""
        response: pb.ContributeResponse = self._call(self._contribute, request, timeout_s)
        return response

    def await_step(self, request: pb.AwaitStepRequest, timeout_s: float) -> pb.AwaitStepResponse:
        """Wait a moment for the other trainers."""
        response: pb.AwaitStepResponse = self._call(self._await_step, request, timeout_s)
        return response

    def close(self) -> None:
        """Close the channel: calls under way are cancelled, and their retries are refused."""
        self._closed = True
        self._channel.close()
