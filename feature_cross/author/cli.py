# SPDX-License-Identifier: Apache-2.0
"""Entry point of `feature-cross`. It imports nothing large: parser.py has the flags of every command, and the
room of one command, command/NAME.py, is imported when that command runs.

Exit codes: 0 done; 1 the data do not fit, a file cannot be read or written, `check` found an error, or a
golden vector does not hold; 2 a wrong flag or config; 3 past a bound (`estimate --budget`, rows lost in
`diff`); 130 Ctrl-C.
Thread safety: a process's main thread.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Final

from rowhouse.distribution import install_hint
from rowhouse.program import INTERRUPTED, run_program

from feature_cross.error import FlagError

__all__ = ["main"]

_EXTRA: Final = ("datasketches", "matplotlib")
"""What only some commands need; the extra `author` installs them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """One command; returns the exit code. SystemExit, with 0 or 2, from argparse."""
    return run_program(
        "feature-cross", lambda: _run(arguments),
        named=False, interrupted="interrupted; nothing was written", refused=1,
    )  # fmt: skip


def _run(arguments: Sequence[str] | None) -> int:
    flags = _imported("feature_cross.author.parser").make_parser().parse_args(arguments)
    try:
        room = _imported(f"feature_cross.author.command.{flags.command}")
    except ModuleNotFoundError as error:
        library = (error.name or "").split(".", maxsplit=1)[0]
        if library not in _EXTRA:
            raise
        message = f"{flags.command} needs {library}, which is not installed: {install_hint('author')}"
        raise FlagError(message) from error
    code: int = room.run(flags)
    return code


def _imported(name: str) -> ModuleType:
    """A module. Extension modules turn a KeyboardInterrupt into other errors, so an interrupt ends the
    process here; nothing has been opened yet."""
    # a process that was started with interrupts ignored (nohup, &) goes on ignoring them
    ours = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        return import_module(name)
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
