# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C as a wish to stop at the next batch, so that what was read so far can be told.

Thread safety: a process's main thread; elsewhere it does nothing and Ctrl-C is left as it is.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupt"]


class Interrupt:
    """A context manager; `wanted` turns true at the first Ctrl-C. The second one is a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.wanted = False
        self._before: Any = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
