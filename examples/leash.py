# SPDX-License-Identifier: Apache-2.0
"""A process that ends when its parent does, even if the parent was killed and could not say so.

    python examples/leash.py PARENT_PID PROGRAM ARGUMENT…

becomes PROGRAM, on a leash: the kernel sends it SIGTERM when the parent dies (Linux; elsewhere it does
nothing). Thread safety: pure functions on the process.
"""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that a process gets when its parent dies. It survives exec."""


def follow_parent(parent_pid: int | None = None) -> None:
    """Get SIGTERM when the parent dies; SystemExit if it is not `parent_pid` any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        raise SystemExit(f"parent process {parent_pid} is gone")


if __name__ == "__main__":
    follow_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
