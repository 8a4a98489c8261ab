# SPDX-License-Identifier: Apache-2.0
"""Real `ps-server` processes for the e2e and crash tiers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from rowhouse.document import dump

READY_S = 900.0
"""A first start compiles kernels: a minute and more on a busy machine, ten times that on a slow one."""


class ServerProcess:
    """`ps-server COMMAND --config FILE …` with its output in a file beside the config.

    `files_max` is its limit of open files.
    Use as a context manager: what still runs at the end is killed, the supervisor's children with it.
    """

    def __init__(
        self, command: str, config: dict[str, Any], *flags: str, files_max: int | None = None
    ) -> None:
        self.data_dir = Path(config["data_dir"])
        folder = self.data_dir.parent
        self.config_path = folder / "cluster.yaml"
        self.config_path.write_text(dump(config), encoding="utf-8")
        self.output = folder / f"output-{time.monotonic_ns()}.txt"
        arguments = [command, "--config", str(self.config_path), *flags]
        limited = ["prlimit", f"--nofile={files_max}"] if files_max else []
        with self.output.open("wb") as sink:
            self.process = subprocess.Popen(
                [*limited, sys.executable, "-m", "ps_server.cli", *arguments],
                stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def text(self) -> str:
        """Everything it printed so far."""
        return self.output.read_text(encoding="utf-8")

    def wait_for(self, text: str) -> str:
        """Wait until it printed `text`; returns everything printed."""
        deadline_s = time.monotonic() + READY_S
        while text not in self.text():
            assert self.process.poll() is None, f"it ended with {self.process.poll()}:\n{self.text()}"
            assert time.monotonic() < deadline_s, f"no {text!r} in:\n{self.text()}"
            time.sleep(0.05)
        return self.text()

    def endpoint(self) -> str:
        """Where `serve` serves, once it does."""
        return self.wait_for(" serves at ").split(" serves at ")[1].split(" ")[0]

    def facts(self) -> dict[str, Any]:
        """The supervisor's endpoints.json."""
        found: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_text(encoding="utf-8"))
        return found

    def endpoints(self) -> str:
        """Where `up` serves, once every shard does."""
        self.wait_for("ps_client.connect(")
        return ",".join(self.facts()["endpoints"])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(READY_S)

    def finish(self) -> int:
        """Wait for it to end by itself; returns the exit code."""
        return self.process.wait(READY_S)


def free_ports(count: int) -> int:
    """First of `count` ports in a row that nobody listens on now."""
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            with suppress(OSError, OverflowError):
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
                return int(first)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    deadline_s = time.monotonic() + READY_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process exists that is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pids: list[int]) -> None:
    """Wait until none of the processes runs."""
    wait_until(lambda: not any(is_running(p) for p in pids))


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    wait_until_gone([pid])
