# SPDX-License-Identifier: Apache-2.0
"""The seam between the client's core and one shard: what a transport must do, and nothing else.

    FallbackTransport ── hot calls, while the port serves ──▶ FrameTransport   (frame.py, the data port)
            └─────────── every other call ──────────────────▶ GrpcTransport    (grpc.py, the whole API)
    EmbeddedTransport ──────────────────────────────────────▶ a shard of this process   (embedded.py)

A wrapper is a transport itself; tests give their own. A transport does not retry, does not route and knows
no sequence numbers. Hot calls are typed methods; every other RPC goes through `call`, by the name that the
.proto gives it (rowhouse/control.py).
"""

import select
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from rowhouse.error import PreconditionError
from rowhouse.message import Contribution, PullRequest, PullResponse, PushRequest, PushResponse
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.interrupt import interruptible

LOOK_S: Final = 1.0
"""How often a call that gets no answer looks at the time."""

K = TypeVar("K")
T = TypeVar("T")


class Underway(Protocol):
    """A call whose request is on its way; it belongs to one thread at a time."""

    deadline_s: float
    """When the answer must be here, of time.monotonic."""

    @property
    def succeeded(self) -> bool:
        """Whether the answer is here, and is no error."""

    @property
    def waits_for(self) -> int:
        """What must happen to the connection before the call can go on, in the words of select.poll."""

    def fileno(self) -> int:
        """The connection's number; -1 when the call has ended."""

    def advance(self) -> bool:
        """Go on as far as it goes; whether the call has ended."""

    def cancel(self) -> None:
        """Wait for no answer; nothing if the call has ended. What the shard makes of it is not known."""


@dataclass(frozen=True, slots=True)
class Begun(Generic[T]):
    """A call that was begun.

    Attributes
    ----------
    call
        Goes on whenever it is given a turn (`as_ended`).
    result
        Waits for the answer; raises as the call itself.
    """

    call: Underway
    result: Callable[[], T]


def as_ended(calls: Mapping[K, Underway]) -> Iterator[K]:
    """Keys of calls as these end: all of them go on meanwhile, each as far as it can.

    Parameters
    ----------
    calls
        Each ends by itself, at its deadline at the latest.
    """
    try:
        poller = select.poll()
        waiting: dict[int, K] = {}
        for key, call in calls.items():
            number = call.fileno()  # before it ends
            if call.advance():
                yield key
            else:
                waiting[number] = key
                poller.register(number, call.waits_for)
        while waiting:
            now_s = time.monotonic()
            due_s = min(calls[key].deadline_s for key in waiting.values())
            with interruptible():
                events = poller.poll(min(max(due_s - now_s, 0.0), LOOK_S) * 1e3)
            ready = {number for number, _ in events}
            if due_s <= now_s or not ready:  # each looks at its own time
                ready = set(waiting)
            for number in ready:
                call = calls[waiting[number]]
                if call.advance():
                    poller.unregister(number)
                    yield waiting.pop(number)
                else:
                    poller.register(number, call.waits_for)
    finally:  # an interrupted wait, or a caller that wants no more of them
        for call in calls.values():
            call.cancel()


class HotTransport(Protocol):
    """The calls of a training step to one shard. Each raises an error of rowhouse.error.

    `timeout_s` is what the answer may take, in seconds. Thread safety: any number of threads.
    """

    endpoint: str
    """Where the shard is, for messages of errors."""

    def pull(self, request: PullRequest, timeout_s: float) -> PullResponse:
        """Rows of one step."""

    def push(self, request: PushRequest, timeout_s: float) -> PushResponse:
        """Gradients of one step."""

    def contribute(self, request: Contribution, timeout_s: float) -> pb.ContributeResponse:
        """One trainer's gradients of one step."""

    def begin(self, request: PullRequest | PushRequest, timeout_s: float) -> Begun[Any] | None:
        """A pull or push that is sent, and not waited for; None where that cannot be had at once."""
        return None

    def close(self) -> None:
        """Let go of the shard; calls under way break off, and no call may follow."""


class Transport(HotTransport, Protocol):
    """Every call to one shard."""

    def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """Answer of a control call, by its name; InvalidRequestError where there is none of that name."""


def closed_in_call(endpoint: str) -> PreconditionError:
    """What a call raises whose transport was closed meanwhile."""
    return PreconditionError(f"shard at {endpoint}: the client was closed during the call")
