# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C during a call: it comes when the call waits or has ended, and nowhere else.

Python raises KeyboardInterrupt between any two instructions of the main thread: after a lock was taken and
before anything would let go of it, or inside a numba kernel that is being loaded, which ends the process.
So a call of the client is `whole`: while it runs, SIGINT is noted. It is raised as soon as the call waits for
something that may take long (`interruptible`, `acquired`, `result_of`, `wait_for`), or at the call's end.

Invariants: 1. inside a whole call an interrupt is raised by these functions alone, and by none of them after
it has taken a lock; 2. the handler that the program had is called, once, and is SIGINT's again afterwards.
Thread safety: interrupts reach the main thread alone; in other threads nothing here has an effect.
"""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import wraps
from importlib import import_module
from types import FrameType, TracebackType
from typing import Any, Final, ParamSpec, TypeVar

_signal: Final[Any] = import_module("_signal")
"""What `signal` wraps: 0.3 µs for what takes 3 with its enums, at each pull and push."""

_SIGINT: Final = int(signal.SIGINT)

SLICE_S: Final = 0.1
"""How late an interrupt may be raised by a wait that must not be broken off at any instant."""

P = ParamSpec("P")
T = TypeVar("T")


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class _Noting:
    """SIGINT's handler during a whole call.

    Attributes
    ----------
    before
        The program's own.
    noted
        Whether an interrupt waits to be raised.
    open
        Whether one may be raised at once.
    """

    def __init__(self, before: Callable[[int, FrameType | None], Any]) -> None:
        self.before, self.noted, self.open = before, False, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.open:
            self.noted = True
            return
        self.open = False  # what is cleaned up now is not interrupted again
        self.before(number, frame)
        self.open = True

    def deliver(self) -> None:
        """Raise what was noted."""
        if self.noted:
            self.noted = False
            self.before(_SIGINT, None)


class _Whole:
    """A block that no interrupt breaks off, but where it waits."""

    __slots__ = ("_handler",)
    _handler: _Noting | None

    def __enter__(self) -> None:
        self._handler = None
        if _in_main_thread():
            before = _signal.getsignal(_SIGINT)
            if callable(before) and not isinstance(before, _Noting):
                self._handler = _Noting(before)
                _signal.signal(_SIGINT, self._handler)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        handler = self._handler
        if handler is not None:
            if _signal.getsignal(_SIGINT) is handler:
                _signal.signal(_SIGINT, handler.before)
            if not isinstance(value, KeyboardInterrupt):
                handler.deliver()


def whole(call: Callable[P, T]) -> Callable[P, T]:
    """A call that an interrupt breaks off only where it waits; else the interrupt is raised at its end."""

    @wraps(call)
    def held(*arguments: P.args, **keys: P.kwargs) -> T:
        with _Whole():
            return call(*arguments, **keys)

    return held


def _noting() -> _Noting | None:
    """The handler of the whole call that this thread is in, if it is in one."""
    handler = _signal.getsignal(_SIGINT)
    return handler if isinstance(handler, _Noting) and _in_main_thread() else None


class interruptible:  # noqa: N801 # used as a function
    """A block inside a whole call that may be broken off at any instant: it waits, and holds nothing."""

    __slots__ = ("_handler",)

    def __enter__(self) -> None:
        self._handler = _noting()
        if self._handler is not None:
            self._handler.deliver()
            self._handler.open = True

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            self._handler.open = False


def check_interrupt() -> None:
    """Raise an interrupt that was noted during the whole call that this thread is in."""
    handler = _noting()
    if handler is not None:
        handler.deliver()


def acquired(lock: threading.Lock, timeout_s: float) -> bool:
    """Whether the lock could be taken in time. An interrupt is raised before it is taken, never after."""
    deadline_s = time.monotonic() + timeout_s
    while not lock.acquire(timeout=max(0.0, min(SLICE_S, deadline_s - time.monotonic()))):
        if time.monotonic() >= deadline_s:
            return False
        check_interrupt()
    return True


def result_of(future: "Future[T]") -> T:
    """The future's result; an interrupt ends the wait and leaves the future as it is."""
    while True:
        try:
            return future.result(SLICE_S)
        except TimeoutError:
            if future.done():
                return future.result()  # it may be the future's own error
            check_interrupt()


def wait_for(condition: threading.Condition, predicate: Callable[[], bool]) -> None:
    """Wait until `predicate` holds; the caller has the condition's lock, also when an interrupt is raised."""
    while not condition.wait_for(predicate, SLICE_S):
        check_interrupt()
