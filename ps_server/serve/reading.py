# SPDX-License-Identifier: Apache-2.0
"""How the message of a gRPC call is received: there is room for it first, and it has bounded time.

gRPC's core takes a window of a stream (64 KiB) from the socket and no more until somebody reads; then it
takes the whole message. So a call that has no room yet costs its window at most. A client of ours tells the
size of its message in the metadata `rowhouse-bytes`, and those bytes count as in flight from then on. Of any
other call nothing is known, so it stands in a line for one of a few places, each for the largest message.

Only the first message of a call is received, as gRPC does for a call that takes one.

Invariants: 1. no message is received before there is room for it; 2. a call that waits, for room or for its
message, holds no thread; 3. it waits for a bounded time; 4. a place is taken from a call that had it for
PATIENCE_S when another one waits, and addresses take turns, so silent peers stop nobody for long; 5. an
address that told too small a size is not believed for DISBELIEF_S; 6. a message that was told and does not
come has its room for PATIENCE_S, and a second for each PRESSED_RATE_BYTES_MIN, when others need it.
Thread safety: everything runs in one event loop.
"""

import asyncio
import time
from collections import OrderedDict, deque
from contextlib import suppress
from typing import Final

from rowhouse.control import SIZE_METADATA_KEY
from rowhouse.error import BusyError, InvalidRequestError, LimitExceededError, UnavailableError

from ps_server.serve.call import Call

STALL_S: Final = 30.0
"""A message, and the wait for a place to receive it, take so long at most, as a frame on the data port."""

RATE_BYTES_MIN: Final = 1 << 20
"""Bytes of a message that win it another second."""

PATIENCE_S: Final = 1.0

PRESSED_RATE_BYTES_MIN: Final = 8 << 20
"""Bytes of a message that win it another second while others are refused for want of room."""

PLACES: Final = 2
"""Messages of unknown size that are received at a time."""

DISBELIEF_S: Final = 60.0
_DISBELIEVED_MAX: Final = 1024


class Line:
    """Calls that wait for one of a few places.

    Parameters
    ----------
    places
        How many calls have one at a time.
    """

    def __init__(self, places: int = PLACES) -> None:
        self._free = places
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._overdue: dict[Call, None] = {}

    async def enter(self, peer: str) -> None:
        """Wait for a place; BusyError after STALL_S."""
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(peer, deque()).append(place)
        if self._overdue:
            self.patience_ends(next(iter(self._overdue)))
        try:
            async with asyncio.timeout(STALL_S):
                await place
        except BaseException as failure:
            if place.done() and not place.cancelled():
                self._pass_on()
            else:
                self._forget(peer, place)
            if isinstance(failure, TimeoutError):
                raise BusyError(f"no room to receive a call within {STALL_S:.0f} s: retry") from None
            raise

    def leave(self, call: Call) -> None:
        """Give the place of `call` back."""
        self._overdue.pop(call, None)
        self._pass_on()

    def patience_ends(self, call: Call) -> None:
        """A place was held for PATIENCE_S: it goes to whoever waits, or to the next one who does."""
        if self._waiting:
            self._overdue.pop(call, None)
            call.cut(BusyError(f"the message took over {PATIENCE_S:.0f} s while other calls waited: retry"))
        else:
            self._overdue[call] = None

    def _pass_on(self) -> None:
        """A place is free: it goes to the address whose turn it is."""
        while self._waiting:
            peer = next(iter(self._waiting))
            place = self._waiting[peer][0]
            self._forget(peer, place)
            if peer in self._waiting:
                self._waiting.move_to_end(peer)
            if not place.done():  # its call was cut and has not noticed yet
                place.set_result(None)
                return
        self._free += 1

    def _forget(self, peer: str, place: asyncio.Future[None]) -> None:
        places = self._waiting.get(peer, deque())
        if place in places:
            places.remove(place)
            if not places:
                del self._waiting[peer]


class Reading:
    """The calls of one server whose message is not here yet.

    Parameters
    ----------
    bytes_max
        Largest message.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._disbelieved: OrderedDict[str, float] = OrderedDict()
        self._awaited: dict[Call, float] = {}  # messages whose size was told, and when others need their room

    async def receive(self, call: Call, line: Line) -> bytes:
        """The message of `call`, whose bytes it holds from now on.

        Raises
        ------
        BusyError
            There is no room for it.
        LimitExceededError, InvalidRequestError
            It is too large, larger than was told, or there is none.
        """
        told = self._told(call)
        if told is None:
            data = await self.of_unknown_size(call, line)
            if data is not None:
                call.hold(len(data))
        else:
            call.hold(told)
            self._awaited[call] = time.monotonic() + PATIENCE_S + told / PRESSED_RATE_BYTES_MIN
            try:
                data = await self._message(call, told)
            finally:
                del self._awaited[call]
        if data is None:
            raise InvalidRequestError("a call without a message")
        if told is None:
            return data
        if len(data) > told:
            self._disbelieve(call.peer)
            raise InvalidRequestError(f"a message of {len(data)} bytes; {SIZE_METADATA_KEY} told {told}")
        call.shrink(told - len(data))
        return data

    def press(self) -> None:
        """Others are refused: cut the calls whose message was told and does not come."""
        now_s = time.monotonic()
        for call, due_s in list(self._awaited.items()):
            if due_s < now_s:
                call.cut(BusyError("the message did not come while other calls needed its room: retry"))

    async def of_unknown_size(self, call: Call, line: Line) -> bytes | None:
        """The next message of `call`, whose bytes nobody counts once it is here; None at its end."""
        await line.enter(call.peer)
        patience = asyncio.get_running_loop().call_later(PATIENCE_S, line.patience_ends, call)
        try:
            return await self._message(call, self._bytes_max)
        finally:
            patience.cancel()
            line.leave(call)

    async def _message(self, call: Call, size_bytes: int) -> bytes | None:
        late = UnavailableError(f"a message of up to {size_bytes} bytes did not come in time; retry")
        seconds = STALL_S + size_bytes / RATE_BYTES_MIN
        timer = asyncio.get_running_loop().call_later(seconds, call.cut, late)
        try:
            data = await call.context.read()
        finally:
            timer.cancel()
        return data if isinstance(data, bytes) else None

    def _told(self, call: Call) -> int | None:
        """What the client says that its message has; None when it does not, or is not believed."""
        told = None
        for key, value in call.context.invocation_metadata() or ():
            if key == SIZE_METADATA_KEY:
                with suppress(ValueError):
                    told = int(value)
        if told is None or told < 0 or self._is_disbelieved(call.peer):
            return None
        if told > self._bytes_max:
            raise LimitExceededError(
                f"a request of {told} bytes; at most {self._bytes_max} for the memory_budget of this shard, "
                "use smaller steps"
            )
        return told

    def _is_disbelieved(self, peer: str) -> bool:
        return self._disbelieved.get(peer, 0.0) > time.monotonic()

    def _disbelieve(self, peer: str) -> None:
        self._disbelieved[peer] = time.monotonic() + DISBELIEF_S
        self._disbelieved.move_to_end(peer)
        if len(self._disbelieved) > _DISBELIEVED_MAX:
            self._disbelieved.popitem(last=False)
