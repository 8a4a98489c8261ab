# SPDX-License-Identifier: Apache-2.0
"""Child processes that never outlive the demo.

Each child leads a session of its own, so that a Ctrl-C reaches the demo alone and the demo decides the
order of the end; leash.py ends it when the demo dies without a word. What a child prints to stderr goes
into a log file, whose end is part of the error when the child fails.
Thread safety: one thread per Child.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

ROOT: Final = Path(__file__).resolve().parent.parent
LOG_TAIL_BYTES: Final = 2000


class ChildError(Exception):
    """A child ended with another code than 0."""


class Child:
    """A process, stopped at the end of its `with` block.

    Parameters
    ----------
    name
        For errors.
    command
        Program and arguments.
    log
        File that takes its stderr, appended to.
    environment
        Variables beside the demo's own.
    stop_s
        Seconds that it gets to end after SIGTERM; then its whole session is killed.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: dict[str, str] | None = None,
        stop_s: float = 30.0,
    ) -> None:
        self.name, self.log, self._stop_s = name, log, stop_s
        leashed = [sys.executable, str(ROOT / "examples" / "leash.py"), str(os.getpid()), *command]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                leashed, cwd=ROOT, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def lines(self) -> Iterator[str]:
        """Lines of its stdout until it closes that."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield line.rstrip("\n")

    def finish(self) -> None:
        """Wait for its end; ChildError, with the end of its log, unless its exit code is 0."""
        if self.process.wait() != 0:
            raise self.failure()

    def failure(self) -> ChildError:
        """The error that tells how it ended."""
        code = self.process.poll()
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return ChildError(f"{self.name} ended with {how}; the end of {self.log}:\n{self._tail()}")

    def stop(self) -> None:
        """End it, and whatever it started in its session: SIGTERM, then SIGKILL when that takes too long."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self._stop_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the session's id outlives its leader
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _tail(self) -> str:
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
