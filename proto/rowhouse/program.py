# SPDX-License-Identifier: Apache-2.0
"""The end of every command: what went wrong is one line on stderr, and an exit code that a script can use.

Thread safety: a process's main thread.
"""

import os
import sys
from collections.abc import Callable
from typing import Final

from rowhouse.error import RowhouseError, StoreError

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells give it."""


def run_program(name: str, work: Callable[[], int | None], *, interrupted: str = "interrupted") -> int:
    """Do the work of a command, and turn what goes wrong into its exit code.

    Parameters
    ----------
    name
        Of the command, for the line on stderr.
    work
        Gives the exit code; None is 0.
    interrupted
        What Ctrl-C is told as.

    Returns
    -------
    int
        The work's code; the `exit_code` of an error of ours; 74 for an error of the system; 130 after Ctrl-C;
        0 when the reader of the output (`head`) had enough.
    """
    try:
        code = work() or 0
        sys.stdout.flush()  # here, where a reader that has gone is no error
    except RowhouseError as error:
        return _told(name, error, error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _told(name, error, StoreError.exit_code)
    except (KeyboardInterrupt, SystemError) as error:
        # an interrupt inside a compiled kernel comes out of it as the cause of a SystemError
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        print(f"{name}: {interrupted}", file=sys.stderr, flush=True)
        return INTERRUPTED
    return code


def _told(name: str, error: Exception, code: int) -> int:
    print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return code
