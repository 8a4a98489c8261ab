# SPDX-License-Identifier: Apache-2.0
"""What every command says: its tables, and at its end what went wrong in one line on stderr and an exit code
that a script can use.

Thread safety: a process's main thread.
"""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from rowhouse.error import StoreError

if TYPE_CHECKING:  # rich takes 50 ms to import
    from rich.console import Console
    from rich.table import Table

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells give it."""


_PIPE_WIDTH: Final = 10_000
"""Columns of an output that nobody watches: a line that was wrapped cannot be searched for."""


def screen(*, stderr: bool = False) -> "Console":
    """Where a command prints tables: as wide as the terminal, and where there is none nothing is wrapped.

    Parameters
    ----------
    stderr
        Whether it is stderr, not stdout.
    """
    from rich.console import Console  # noqa: PLC0415

    _escape_letters()
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=_PIPE_WIDTH)


def show_table(table: "Table", to: "Console") -> None:
    """Print a table under its title, which is one line: rich would wrap it, with the paths in it.

    Parameters
    ----------
    table
        The table; its title is taken off.
    to
        Where to.
    """
    title, table.title = table.title, None
    if title is not None:
        to.print(title, soft_wrap=True, markup=False, highlight=False)
    to.print(table)


def _escape_letters() -> None:
    """A terminal that is not UTF-8 shows the letters that it has, and the others as \\uXXXX."""
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:  # a test's may have none
            reconfigure(errors="backslashreplace")


def run_program(
    name: str, work: Callable[[], int | None], *, named: bool = True, interrupted: str = "interrupted",
    refused: int = StoreError.exit_code,
) -> int:  # fmt: skip
    """Do the work of a command, and turn what goes wrong into its exit code.

    Parameters
    ----------
    name
        Of the command, for the line on stderr.
    work
        Gives the exit code; None is 0.
    named
        Whether the line has the name of the error's class.
    interrupted
        What Ctrl-C is told as.
    refused
        Exit code of an error of the system (a file that cannot be read or written).

    Returns
    -------
    int
        The work's code; the `exit_code` of an error that has one (those of rowhouse and feature_cross);
        `refused`; 130 after Ctrl-C; 0 when the reader of the output (`head`) had enough.
    """
    _escape_letters()
    try:
        code = work() or 0
        sys.stdout.flush()  # here, where a reader that has gone is no error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, SystemError) as error:
        # an interrupt inside a compiled kernel comes out of it as the cause of a SystemError
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        print(f"{name}: {interrupted}", file=sys.stderr, flush=True)
        return INTERRUPTED
    except Exception as error:
        told = getattr(error, "exit_code", refused if isinstance(error, OSError) else None)
        if told is None:
            raise
        kind = f"{type(error).__name__}: " if named else ""
        print(f"{name}: {kind}{error}", file=sys.stderr, flush=True)
        return int(told)
    return code
