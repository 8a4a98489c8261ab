# SPDX-License-Identifier: Apache-2.0
"""One gRPC call: whose it is, which bytes count for it, and how it ends with an error.

Invariants: 1. what the call holds is given back once, when it has ended and its work has ended too; 2. every
answer that is not OK carries the error's class name in the trailing metadata `rowhouse-error`.
Thread safety: everything runs in the event loop, but `hold`, which the thread at work may call too; the loop
does not meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import grpc
import grpc.aio
from rowhouse.error import ERROR_METADATA_KEY, RowhouseError, UnavailableError

from ps_server.serve.in_flight import Counting, peer_of

_DETAILS_BYTES_MAX: Final = 6000
"""Details of a status travel percent-encoded among the headers, of which gRPC may refuse more than 8 KiB."""

_GRPC_CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}

Context = grpc.aio.ServicerContext[Any, Any]

_GONE: Final = UnavailableError("the peer is gone")

R = TypeVar("R")


def share_of(peer: str) -> str:
    """Whose share of the bytes in flight counts, from what gRPC calls a peer: "ipv4:10.0.0.7:4711"."""
    address = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    return peer_of(address, peer)


class Call:
    """A call, from its headers to its end.

    Attributes
    ----------
    context
        gRPC's.
    peer
        Whose share of what is in flight it takes from.
    """

    __slots__ = ("_held_bytes", "_in_flight", "_task", "_why", "_work", "context", "peer")

    def __init__(self, context: Context, in_flight: Counting) -> None:
        self.context, self.peer = context, share_of(context.peer())
        self._in_flight, self._held_bytes = in_flight, 0
        self._work: Future[Any] | None = None
        self._why: RowhouseError = _GONE
        task = asyncio.current_task()  # gRPC's, which ends when the answer is written or the peer is gone
        assert task is not None
        self._task: asyncio.Task[Any] = task
        task.add_done_callback(self._ended)

    def hold(self, size_bytes: int) -> None:
        """Count bytes as in flight until the call has ended; BusyError past the bound."""
        self._in_flight.take(size_bytes, peer=self.peer, own_bytes=self._held_bytes)
        self._held_bytes += size_bytes

    def shrink(self, size_bytes: int) -> None:
        """Count so many bytes less."""
        self._held_bytes -= size_bytes
        self._in_flight.give(size_bytes, peer=self.peer)

    async def work(self, pool: Executor, function: Callable[..., R], *arguments: Any) -> R:
        """What `function` returns, in a thread of `pool`. A call that ends while it waits for one is not
        worked for."""
        self._work = pool.submit(function, *arguments)
        try:
            return await asyncio.wrap_future(self._work)
        finally:
            if self._work.done():
                self._work = None  # it may hold an error, whose frames hold the message

    def cut(self, error: RowhouseError) -> None:
        """End the call with `error` wherever it waits."""
        if self._why is _GONE:
            self._why = error
            self._task.cancel()

    async def answer(self, handle: "Handle", unforeseen: Callable[[Exception], RowhouseError]) -> Any:
        """What `handle` returns; whatever it raises becomes the status, details and trailing metadata."""
        try:
            return await handle(self)
        except RowhouseError as failure:
            error = failure
        except asyncio.CancelledError:
            if self._why is _GONE:
                raise  # nobody is left to be told
            self._task.uncancel()
            error = self._why
        except grpc.aio.AbortError:
            raise  # a library's own status
        except Exception as failure:
            error = unforeseen(failure)
        # Not inside `except`: gRPC keeps what `abort` raises, and with it the frames of an error behind it.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        await self._fail(error)

    async def _fail(self, error: RowhouseError) -> None:
        details = fitted(str(error) or type(error).__name__)
        trailing = ((ERROR_METADATA_KEY, type(error).__name__),)
        await self.context.abort(_GRPC_CODES[error.code], details, trailing)

    def _ended(self, _: Any) -> None:
        if self._work is None:
            self._let_go()
        else:
            self._work.add_done_callback(self._let_go)

    def _let_go(self, _: Any = None) -> None:
        held_bytes, self._held_bytes = self._held_bytes, 0
        self._in_flight.give(held_bytes, peer=self.peer)


Handle = Callable[[Call], Awaitable[Any]]
"""What one kind of call does, from the call to its answer."""


def fitted(details: str) -> str:
    """`details`, cut where its percent-encoding would pass what headers hold."""
    size_bytes = 0
    for position, character in enumerate(details):
        plain = " " <= character <= "~" and character != "%"
        size_bytes += 1 if plain else 3 * len(character.encode())
        if size_bytes > _DETAILS_BYTES_MAX:
            return details[:position] + "..."
    return details
