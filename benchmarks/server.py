# SPDX-License-Identifier: Apache-2.0
"""Server processes of a workload: `ps-server serve`, and peers that serve from a module of ours.

A server gets its own process, as in production, and dies with the block that started it.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rowhouse.document import dump

READY_S: Final = 600.0
"""Recovery of a large log is part of a start; a minute of silence more is a hang."""

POLL_S: Final = 0.02


class Server:
    """A child process that says where it serves.

    Parameters
    ----------
    arguments
        Arguments of the Python interpreter.
    output
        File for what it prints.
    """

    def __init__(self, arguments: Sequence[str], output: Path) -> None:
        self.output = output
        with output.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
            )

    def endpoint(self) -> str:
        """Where it serves, once it does; RuntimeError with its output if it ends before."""
        deadline_s = time.monotonic() + READY_S
        while True:
            text = self.output.read_text(encoding="utf-8")
            if " serves at " in text:
                return text.split(" serves at ")[1].split()[0]
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"server {self.process.args!r} did not start:\n{text[-2000:]}")
            time.sleep(POLL_S)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self.process.terminate()
        self.process.wait()


@contextmanager
def serving(arguments: Sequence[str], output: Path) -> Iterator[Server]:
    """A server that is killed at the end of the block; what it holds is not needed any more."""
    server = Server(arguments, output)
    try:
        yield server
    finally:
        server.kill()


def shard_arguments(folder: Path, config: dict[str, Any], index: int = 0) -> list[str]:
    """Arguments of shard `index`, on a free port unless `config` names endpoints, its config in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cluster.yaml"
    resolved = {"data_dir": str(folder / "data"), "shards": ["127.0.0.1:0"], **config}
    path.write_text(dump(resolved), encoding="utf-8")
    return ["-m", "ps_server.cli", "serve", "--config", str(path), "--shard", str(index), "--quiet"]
