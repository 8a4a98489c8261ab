# SPDX-License-Identifier: Apache-2.0
"""Entry point of `feature-cross`. It imports nothing large itself, so Ctrl-C ends even the imports quietly.

What the commands are is feature_cross/author/program.py. Thread safety: a process's main thread.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

__all__ = ["main"]

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        run = _program()
        return run(arguments)
    except KeyboardInterrupt:  # between the imports and the command, or while it leaves
        return _INTERRUPTED


def _program() -> Callable[[Sequence[str] | None], int]:
    """The command, imported. Extension modules turn a KeyboardInterrupt into other errors, so an interrupt
    ends the process here; nothing has been opened yet."""
    # a process that was started with interrupts ignored (nohup, &) goes on ignoring them
    ours = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, _leave)
    try:
        from feature_cross.author.program import run_program  # noqa: PLC0415  # a second of imports
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    return run_program


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
