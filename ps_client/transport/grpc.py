# SPDX-License-Identifier: Apache-2.0
"""A Transport over one gRPC channel: the whole API.

Pull, Push and Contribute go through the hand-written codec (rowhouse/codec.py), the other calls through the
generated messages; on the wire both are the same protobuf. A status becomes the error that the shard raised,
with the shard's endpoint in its message. Retries are not made here: gRPC's own are off, so that each attempt
is one that retry.py knows of.

Thread safety: a channel may be called by any number of threads.
"""

from collections.abc import Callable
from typing import Any, Final, cast

import grpc
from rowhouse import codec, error
from rowhouse.control import SERVICE_NAME, SIZE_METADATA_KEY, method_of
from rowhouse.limit import MESSAGE_BYTES_MAX
from rowhouse.message import Contribution, PullRequest, PullResponse, PushRequest, PushResponse
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.interrupt import interruptible
from ps_client.transport.transport import Transport, closed_in_call

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

_OUR_WORDS: Final = {
    "Connection refused": "nobody listens there",
    "No such file or directory": "there is no such socket file: nobody listens there",
    "Permission denied": "the socket file may not be used by this user",
    "DNS resolution failed": "the host has no address: is its name right?",
    "hostname lookup error": "the host has no address: is its name right?",
    "Network is unreachable": "the network has no way to it",
    "No route to host": "the network has no way to it",
    "Deadline Exceeded": "no answer in time",
    "Connection reset": "the connection was lost",
    "Socket closed": "the connection was lost",
}
"""What gRPC's own words for a shard that cannot be reached mean; it tells addresses and codes at length."""

Stub = Callable[..., Any]


def to_error(failure: grpc.RpcError, endpoint: str) -> error.RowhouseError:
    """The error that the shard raised, from the status, details and trailing metadata of an answer."""
    assert isinstance(failure, grpc.Call)
    trailing = failure.trailing_metadata() or ()
    names = [value for key, value in trailing if key == error.ERROR_METADATA_KEY]
    name = names[0].decode() if names and isinstance(names[0], bytes) else (names[0] if names else None)
    details = failure.details() or f"no details; gRPC status {failure.code().name}"
    if name is None:
        details = next((ours for word, ours in _OUR_WORDS.items() if word in details), details)
    return error.from_status(failure.code().value[0], f"shard at {endpoint}: {details}", name)


class GrpcTransport(Transport):
    """One shard at `endpoint` ("host:port", or "unix:/path")."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._closed = False
        self._channel = grpc.insecure_channel(endpoint, OPTIONS)
        self._pull = self._stub("Pull", codec.decode_pull_response)
        self._push = self._stub("Push", codec.decode_push_response)
        self._contribute = self._stub("Contribute", pb.ContributeResponse.FromString)
        self._control: dict[str, Stub] = {}

    def _stub(self, method: str, decode: Callable[[bytes], Any]) -> Stub:
        return self._channel.unary_unary(f"/{SERVICE_NAME}/{method}", response_deserializer=decode)

    def _ask(self, stub: Stub, request: bytes, timeout_s: float) -> Any:
        """The answer to an encoded request; the shard is told its size, and makes room before it comes."""
        try:
            with interruptible():
                return stub(request, timeout=timeout_s, metadata=((SIZE_METADATA_KEY, str(len(request))),))
        except grpc.RpcError as failure:
            raise to_error(failure, self.endpoint) from None
        except ValueError:  # gRPC's word for a closed channel
            if not self._closed:
                raise
            raise closed_in_call(self.endpoint) from None

    def pull(self, request: PullRequest, timeout_s: float) -> PullResponse:
        """Rows of one step."""
        return cast("PullResponse", self._ask(self._pull, codec.encode_pull_request(request), timeout_s))

    def push(self, request: PushRequest, timeout_s: float) -> PushResponse:
        """Gradients of one step."""
        return cast("PushResponse", self._ask(self._push, codec.encode_push_request(request), timeout_s))

    def contribute(self, request: Contribution, timeout_s: float) -> pb.ContributeResponse:
        """One trainer's gradients of one step."""
        return cast(
            "pb.ContributeResponse",
            self._ask(self._contribute, codec.encode_contribution(request), timeout_s),
        )

    def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """Answer of a control call, by its name; InvalidRequestError where there is none of that name."""
        stub = self._control.get(method)
        if stub is None:
            stub = self._stub(method, method_of(method).response.FromString)
            self._control[method] = stub  # two threads at once make two that do the same
        return self._ask(stub, request.SerializeToString(), timeout_s)

    def close(self) -> None:
        """Close the channel: calls under way are cancelled, and their retries are refused."""
        self._closed = True
        self._channel.close()
