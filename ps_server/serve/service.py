# SPDX-License-Identifier: Apache-2.0
"""`rowhouse.v1.ParameterService` over one shard: bytes in, bytes out.

Pull, Push and Contribute go through rowhouse/codec.py; the other calls use the generated messages. What a
call does is the shard's business; how it comes and goes is that of grpc_port.py and data_port.py.

Invariants: 1. bytes of requests, and of the rows that pulls ask for, held at once stay at or below the
in-flight bound: they count until the peer has read the answer, or is gone; 2. an answer past that bound or
that of a message is refused before the shard works for it; 3. without a shard (it is recovering, or closed)
every call is UNAVAILABLE.
Thread safety: all methods may be called from any thread.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from rowhouse import codec, frame
from rowhouse.control import METHODS
from rowhouse.dtype import STORAGE
from rowhouse.error import (
    InternalError,
    LimitExceededError,
    RowhouseError,
    UnavailableError,
)
from rowhouse.limit import ANSWER_HEAD_BYTES, IN_FLIGHT_BYTES_MAX, MESSAGE_BYTES_MAX
from rowhouse.message import (
    Contribution,
    PullRequest,
    PullResponse,
    PushRequest,
    PushResponse,
    TableChange,
    TableEdit,
    TableIds,
)
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.serve.in_flight import InFlight, Work
from ps_server.table.table import PULL_BYTES

PUSH_COPIES: Final = 3
"""What a push needs at most, in its own size in fp32: sums of duplicates, clipped gradients, new rows."""

PULL_WORK_BYTES: Final = 5 * PULL_BYTES
"""What a pull needs at most: the cold rows of one part of it, as the store gives them and as they go on."""

_ID_BYTES: Final = 32
"""Places, hashes and numbers of one id."""

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
        self.was_used, self.when_refused = self._in_flight.was_used, self._in_flight.when_refused
        self._work = Work(in_flight_bytes_max)
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
            return self._answered(kind, data, hold)
        except RowhouseError:
            raise
        except Exception as error:
            raise self.unforeseen(error) from error

    def answer_whole(self, kind: int, data: bytes, hold: Callable[[int], None]) -> bytes:
        """The answer to one hot call over gRPC, which takes it whole; raises whatever the call does."""
        return b"".join(self._answered(kind, data, hold))

    def control(self, name: str, data: bytes) -> bytes:
        """The answer to a control call, by its name; GetCluster also says where the data port is.

        Raises
        ------
        RowhouseError
            Whatever the call raises.
        """
        method = METHODS[name]
        answer = self._served().call(name, method.read_request(data))
        if isinstance(answer, pb.GetClusterResponse):
            answer.data_endpoint, answer.data_token = self._data_endpoint, self._data_token
            answer.message_bytes_max = self.message_bytes_max
        encoded: bytes = answer.SerializeToString()
        return encoded

    def unforeseen(self, error: Exception) -> InternalError:
        """What a caller is told of an error that is no RowhouseError."""
        _log.exception("shard %d: a call failed", self._index)
        return InternalError(f"{type(error).__name__}: {error} (traceback in the shard's log)")

    def _answered(self, kind: int, data: bytes | memoryview, hold: Callable[[int], None]) -> list[codec.Part]:
        """The answer to a hot call, in pieces; `hold` counts the bytes of its rows before they are there."""
        shard = self._served()
        if kind == frame.PULL:
            pull = codec.decode_pull_request(data)
            hold(_answer_bytes(pull, self.message_bytes_max))
            with self._work.room(min(_work_bytes(pull.tables), PULL_WORK_BYTES)):
                return codec.pull_response_parts(shard.pull(pull))
        if kind == frame.PUSH:
            push = codec.decode_push_request(data)
            with self._work.room(PUSH_COPIES * _work_bytes(push.changes)):
                return [codec.encode_push_response(shard.push(push, data))]
        contribution = codec.decode_contribution(data)
        with self._work.room(PUSH_COPIES * _work_bytes(contribution.push.tables)):
            return [shard.contribute(contribution).SerializeToString()]

    def _served(self) -> ServedShard:
        shard = self._shard
        if shard is None:
            raise UnavailableError(f"shard {self._index} is starting or stopping; retry")
        return shard


def _work_bytes(tables: Sequence[TableIds | TableChange]) -> int:
    """Bytes of the rows of a call in fp32, and of some numbers for each id."""
    return sum(t.ids.shape[0] * _ID_BYTES + _row_bytes(t) for t in tables)


def _row_bytes(part: TableIds | TableChange) -> int:
    if isinstance(part, TableEdit):
        return 2 * part.nbytes  # at most what fp32 takes
    width = part.dim if isinstance(part, TableIds) else part.gradients.shape[1]
    return int(4 * width * part.ids.shape[0])


def _answer_bytes(request: PullRequest, bytes_max: int) -> int:
    """What the answer has at most; LimitExceededError past `bytes_max`, which gRPC would refuse as
    RESOURCE_EXHAUSTED, and that reads as "busy, retry"."""
    element_bytes = STORAGE[request.dtype].itemsize
    answer_bytes: int = sum(
        t.ids.shape[0] * t.dim * element_bytes + ANSWER_HEAD_BYTES for t in request.tables
    )
    if answer_bytes > bytes_max:
        ids = sum(t.ids.shape[0] for t in request.tables)
        raise LimitExceededError(
            f"pull of {ids} ids: the answer has up to {answer_bytes} bytes; at most {bytes_max} for the "
            "memory_budget of this shard, ask for fewer ids"
        )
    return answer_bytes
