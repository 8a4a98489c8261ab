# SPDX-License-Identifier: Apache-2.0
"""`rowhouse.v1.ParameterService` over one shard: bytes in, bytes out, errors as gRPC statuses.

Pull and Push take and give raw bytes and go through rowhouse/codec.py; the other calls use the generated
stubs. What a call does is the shard's business; sockets, health and signals are server.py's.

Invariants: 1. every answer that is not OK carries the error's class name in the trailing metadata
`rowhouse-error`; 2. bytes of requests, and of the rows that pulls ask for, held at once stay at or below
the in-flight bound: they count until the peer has read the answer, or is gone; 3. an
answer past that bound or that of a message is refused before the shard works for it; 4. without a shard
(it is recovering, or closed) every call is UNAVAILABLE.
Thread safety: all methods may be called from any thread.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, Protocol

import grpc
from rowhouse import codec, frame
from rowhouse.control import METHODS, SERVICE_NAME, Method
from rowhouse.dtype import STORAGE
from rowhouse.error import (
    ERROR_METADATA_KEY,
    InternalError,
    LimitExceededError,
    RowhouseError,
    UnavailableError,
)
from rowhouse.limit import IN_FLIGHT_BYTES_MAX, MESSAGE_BYTES_MAX
from rowhouse.message import Contribution, PullRequest, PullResponse, PushRequest, PushResponse
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.serve.in_flight import InFlight

_DETAILS_BYTES_MAX: Final = 6000
"""Details of a status travel percent-encoded among the headers, of which gRPC may refuse more than 8 KiB."""

_ANSWER_OVERHEAD_BYTES: Final = 1024
"""Names and heads of one table in an answer: at most a 128-byte name and some varints."""

_GRPC_CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}

_log = logging.getLogger(__name__)


class ServedShard(Protocol):
    """What a shard must do to be served; `ps_server.shard.shard.Shard` does, and fakes in tests."""

    @property
    def poison(self) -> str | None:
        """Why the shard takes no more writes; None while it is healthy."""

    def pull(self, request: PullRequest) -> PullResponse:
        """Rows of the request's ids."""

    def push(self, request: PushRequest, encoded: bytes | memoryview | None = None) -> PushResponse:
        """Apply gradients once; `encoded` is the request's own bytes, for the log."""

    def contribute(self, request: Contribution) -> pb.ContributeResponse:
        """Hold one trainer's part of a step."""

    def call(self, method: str, request: Any) -> Any:
        """Answer a control call (rowhouse/control.py)."""

    def close(self) -> None:
        """Checkpoint, then let go of the directory."""


Call = Callable[[ServedShard, Any, grpc.ServicerContext], Any]
"""What a gRPC call does: the shard, the request and gRPC's context, to the answer."""


def abort_with(context: grpc.ServicerContext, error: RowhouseError) -> None:
    """End the call with `error` as status, details and trailing metadata (always raises)."""
    details = str(error) or type(error).__name__
    context.set_trailing_metadata(((ERROR_METADATA_KEY, type(error).__name__),))
    context.abort(_GRPC_CODES[error.code], _fitted(details))


def _fitted(details: str) -> str:
    """`details`, cut where its percent-encoding would pass _DETAILS_BYTES_MAX."""
    size_bytes = 0
    for position, character in enumerate(details):
        plain = " " <= character <= "~" and character != "%"
        size_bytes += 1 if plain else 3 * len(character.encode())
        if size_bytes > _DETAILS_BYTES_MAX:
            return details[:position] + "..."
    return details


class ParameterService:
    """The service of one shard, with or without the shard.

    Parameters
    ----------
    index
        The shard's index, for messages.
    in_flight_bytes_max
        Bound of the bytes of requests and answers held at once.
    message_bytes_max
        Bound of one request or answer. (rowhouse/limit.py derives both from memory_budget.)
    """

    def __init__(
        self,
        index: int,
        in_flight_bytes_max: int = IN_FLIGHT_BYTES_MAX,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
    ) -> None:
        self._index = index
        self.message_bytes_max = message_bytes_max
        self._in_flight = InFlight(in_flight_bytes_max)
        self.take, self.give = self._in_flight.take, self._in_flight.give
        self._data_endpoint, self._data_token = "", 0
        self._shard: ServedShard | None = None

    def attach(self, shard: ServedShard | None) -> None:
        """Serve `shard` from now on; None makes every call UNAVAILABLE again."""
        self._shard = shard

    def tell_data_port(self, endpoint: str, token: int) -> None:
        """Let GetCluster say where frames are taken, and which token they must carry."""
        self._data_endpoint, self._data_token = endpoint, token

    def answer(self, kind: int, data: memoryview, hold: Callable[[int], None]) -> list[codec.Part]:
        """The answer to one frame of the data port, in pieces; its bytes are counted by `take` and `give`.

        Parameters
        ----------
        kind
            frame.PULL, PUSH or CONTRIBUTE.
        data
            The request's own memory: it may be kept, nobody writes to it again.
        hold
            Counts bytes beside the request's, before they are there; BusyError past the bound. Answers to
            pushes are a few bytes and not worth it.

        Raises
        ------
        RowhouseError
            Whatever the call raises; InternalError for anything unforeseen.
        """
        try:
            return _answered(self._served(), kind, data, hold, self.message_bytes_max)
        except RowhouseError:
            raise
        except Exception as error:
            raise self._unforeseen(error) from error

    def handler(self) -> grpc.GenericRpcHandler:
        """The gRPC handler to register under SERVICE_NAME."""
        hot = {"Pull": frame.PULL, "Push": frame.PUSH, "Contribute": frame.CONTRIBUTE}
        calls = {name: self._hot(kind) for name, kind in hot.items()}
        calls |= {name: self._control(method) for name, method in METHODS.items()}
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]]
        methods = {n: grpc.unary_unary_rpc_method_handler(self._guard(call)) for n, call in calls.items()}
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    def _guard(self, call: Call) -> Callable[[Any, grpc.ServicerContext], Any]:
        """`call` with the shard looked up and every exception turned into a status."""

        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return call(self._served(), request, context)
            except RowhouseError as error:
                abort_with(context, error)
            except Exception as error:
                abort_with(context, self._unforeseen(error))

        return guarded

    def _unforeseen(self, error: Exception) -> InternalError:
        _log.exception("shard %d: a call failed", self._index)
        return InternalError(f"{type(error).__name__}: {error} (traceback in the shard's log)")

    def _served(self) -> ServedShard:
        shard = self._shard
        if shard is None:
            raise UnavailableError(f"shard {self._index} is starting or stopping; retry")
        return shard

    def _control(self, method: Method) -> Call:
        """A control call from bytes to bytes; GetCluster also says where the data port is."""

        def decode_and_call(shard: ServedShard, data: bytes, _context: grpc.ServicerContext) -> bytes:
            answer = shard.call(method.name, method.read_request(data))
            if isinstance(answer, pb.GetClusterResponse):
                answer.data_endpoint, answer.data_token = self._data_endpoint, self._data_token
                answer.message_bytes_max = self.message_bytes_max
            encoded: bytes = answer.SerializeToString()
            return encoded

        return decode_and_call

    def _hot(self, kind: int) -> Call:
        """A call of a training step from bytes to bytes."""

        def answer(shard: ServedShard, data: bytes, context: grpc.ServicerContext) -> bytes:
            with ExitStack() as held:
                hold = held.enter_context(self._in_flight.hold(len(data)))
                answer = b"".join(_answered(shard, kind, data, hold, self.message_bytes_max))
                if kind != frame.PULL:
                    return answer
                # gRPC keeps the rows until the peer has read them, which may be never; then the call ends
                unread = held.pop_all()
            if not context.add_callback(unread.close):
                unread.close()  # it has ended already
            return answer

        return answer


def _answered(
    shard: ServedShard,
    kind: int,
    data: bytes | memoryview,
    hold: Callable[[int], None],
    bytes_max: int,
) -> list[codec.Part]:
    """The answer to a hot call, in pieces; `hold` counts the bytes of its rows before they are there."""
    if kind == frame.PULL:
        pull = codec.decode_pull_request(data)
        hold(_answer_bytes(pull, bytes_max))
        return codec.pull_response_parts(shard.pull(pull))
    if kind == frame.PUSH:
        return [codec.encode_push_response(shard.push(codec.decode_push_request(data), data))]
    return [shard.contribute(codec.decode_contribution(data)).SerializeToString()]


def _answer_bytes(request: PullRequest, bytes_max: int) -> int:
    """What the answer has at most; LimitExceededError past `bytes_max`, which gRPC would refuse as
    RESOURCE_EXHAUSTED, and that reads as "busy, retry"."""
    element_bytes = STORAGE[request.dtype].itemsize
    answer_bytes: int = sum(
        t.ids.shape[0] * t.dim * element_bytes + _ANSWER_OVERHEAD_BYTES for t in request.tables
    )
    if answer_bytes > bytes_max:
        ids = sum(t.ids.shape[0] for t in request.tables)
        raise LimitExceededError(
            f"pull of {ids} ids: the answer has up to {answer_bytes} bytes; at most {bytes_max} for the "
            "memory_budget of this shard, ask for fewer ids"
        )
    return answer_bytes
