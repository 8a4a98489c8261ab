# SPDX-License-Identifier: Apache-2.0
"""Control calls that may take long: checkpoint, save, drop, evict, freeze.

    request with a ticket ──▶ begun once, on a thread of its own ──▶ ended: its answer, or its error
            └──────── each further request of that ticket waits POLL_S at most: StillRunningError, or the end

So no answer has to come within a client's deadline, and a connection that breaks ends nothing: the client
asks about the same ticket again. A request without a ticket (older clients) waits for the end.

Invariants: 1. a ticket is begun once in the life of this process; after a restart, or where it ended with
BusyError and changed nothing, it is begun anew, which all of these calls allow; 2. at most CALLS_MAX are
remembered, and one that has not ended is never forgotten.
Thread safety: any thread.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from rowhouse.error import BusyError, StillRunningError

CALLS_MAX: Final = 64
"""Long calls that a shard remembers: an operator makes one at a time, and asks about it twice a second."""

POLL_S: Final = 0.5
"""How long one request waits for the end of its call. It holds a thread, and a stop waits for it."""


@dataclass
class _Call:
    """One call; `answer` and `failure` are read once `ended` is set."""

    began_s: float
    before: int
    ended: threading.Event = field(default_factory=threading.Event)
    answer: Any = None
    failure: BaseException | None = None

    def run(self, work: Callable[[], Any]) -> None:
        try:
            self.answer = work()
        except BaseException as failure:
            self.failure = failure
        finally:
            self.ended.set()


class LongCalls:
    """The long calls of one shard.

    Parameters
    ----------
    index
        The shard's, for messages.
    moved
        Rows that such calls have written or evicted so far: how far they are.
    background
        False: a call is made by the thread that begins it, so it has ended when it is answered.
    """

    def __init__(self, index: int, moved: Callable[[], int], *, background: bool = True) -> None:
        self._index, self._moved, self._background = index, moved, background
        self._lock = threading.Lock()
        self._calls: OrderedDict[int, _Call] = OrderedDict()

    def answer(self, method: str, ticket: int, work: Callable[[], Any]) -> Any:
        """What `work` gives or raises, begun unless this ticket was; StillRunningError until it ends."""
        call = self._call(method, ticket, work)
        if not call.ended.wait(POLL_S):
            rows, spent_s = self._moved() - call.before, time.monotonic() - call.began_s
            raise StillRunningError(
                f"{method} is at work since {spent_s:.0f} s, {rows} rows were written or evicted meanwhile"
            )
        if call.failure is not None:
            if isinstance(call.failure, BusyError):  # the client asks again: then it may go
                self._forget(ticket, call)
            raise call.failure
        return call.answer

    def _call(self, method: str, ticket: int, work: Callable[[], Any]) -> _Call:
        with self._lock:
            known = self._calls.get(ticket)
            if known is not None:
                return known
            self._make_room()
            call = self._calls[ticket] = _Call(time.monotonic(), self._moved())
        if self._background:
            threading.Thread(target=call.run, args=(work,), name=f"long-{method}", daemon=True).start()
        else:
            call.run(work)
        return call

    def _forget(self, ticket: int, call: _Call) -> None:
        with self._lock:
            if self._calls.get(ticket) is call:
                del self._calls[ticket]

    def _make_room(self) -> None:
        if len(self._calls) < CALLS_MAX:
            return
        ended = next((ticket for ticket, call in self._calls.items() if call.ended.is_set()), None)
        if ended is None:
            raise BusyError(f"shard {self._index}: {CALLS_MAX} long calls are at work; try again later")
        del self._calls[ended]
