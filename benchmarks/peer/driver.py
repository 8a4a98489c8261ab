# SPDX-License-Identifier: Apache-2.0
"""The peer's side of a contest: a process in the peer's own environment that obeys one JSON line at a time.

    python -m benchmarks.peer.NAME --work FOLDER --optimizer adagrad

The adapter (one module per peer) says how rows are loaded, pulled and stepped; this module does the rest:
it reads the batches that `remote.py` left in FOLDER, answers on what was standard output, and sends
whatever the peer's libraries print to the log instead. It needs NumPy and nothing of ours.

Thread safety: one thread. Invariants: 1. every command gets one line back; 2. the end of standard input ends
the process, and the servers that it started with it (`start_server`).
"""

import argparse
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

DIM: Final = 16
LEARNING_RATE: Final = 0.01
INITIAL_ACCUMULATOR: Final = 0.1
EPSILON: Final = 1e-8
CHUNK_IDS: Final = 50_000
PR_SET_PDEATHSIG: Final = 1

Ids = NDArray[np.uint64]
Rows = NDArray[np.float32]


class Adapter(Protocol):
    """What a peer can do. Arrays that it is given stay unchanged; what it returns may be reused by it.

    Attributes
    ----------
    name
        Product, version and configuration, for the report.
    durability
        What survives a kill of the server, in a few words.
    formula
        "adagrad" (w -= lr·g / (sqrt(sum of g² with this one) + eps)) or "paddle" (before_rule below).
    server_pids
        Processes whose memory holds the rows.
    """

    name: str
    durability: str
    formula: str
    server_pids: list[int]

    def load(self, ids: Ids, rows: Rows) -> None:
        """Make the rows of (n,) ids hold (n, DIM) weights; under "adagrad", zeros may stand instead."""

    def pull(self, ids: Ids) -> Rows:
        """(n, DIM) rows of n ids, repeats and all, in their order."""

    def step(self, distinct: Ids, gradients: Rows) -> None:
        """Pull the rows of distinct ids, then apply one gradient to each."""

    def finish(self) -> None:
        """Wait until everything that was sent is applied."""

    def close(self) -> None:
        """End the servers."""


class Prepared:
    """Batches from the folder: arrays as a trainer has them.

    Parameters
    ----------
    folder
        Where `remote.write_batches` put them.
    """

    def __init__(self, folder: Path) -> None:
        self.requested: NDArray[np.uint64] = np.load(folder / "requested.npy")
        distinct = np.load(folder / "distinct.npy")
        ends = np.load(folder / "ends.npy")
        pool = np.load(folder / "gradients.npy")
        self.distinct = [part.copy() for part in np.split(distinct, ends[:-1])]
        self.gradients = [pool[: part.shape[0]].copy() for part in self.distinct]


def start_server(arguments: Sequence[str], **further: Any) -> "subprocess.Popen[bytes]":
    """A child that the kernel kills when this process ends, however it ends; its output goes to our log."""
    libc = ctypes.CDLL(None)
    return subprocess.Popen(
        list(arguments), stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 # one system call
        **further,
    )  # fmt: skip


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, ready: Callable[[], bool], seconds: float = 60.0) -> None:
    """Poll until `ready`; a TimeoutError names what did not come."""
    deadline_s = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} was not there after {seconds:g} s")
        time.sleep(0.05)


def listening(port: int) -> bool:
    """Whether somebody accepts connections at this port of loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except OSError:
        return False
    return True


def resident_bytes(pids: Sequence[int]) -> int:
    """Resident memory of the processes together, in bytes."""
    pages = 0
    for pid in pids:
        pages += int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _turn(adapter: Adapter, batches: Prepared, command: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each batch of one turn, and of the wait for what was outstanding at its end."""
    place, count = int(command["place"]), len(batches.distinct)
    took: list[float] = []
    spent_s = 0.0
    while spent_s < command["seconds"] or len(took) < command["batches_min"]:
        number = place % count
        before_s = time.perf_counter()
        if command["what"] == "pull":
            adapter.pull(batches.requested[number])
        else:
            adapter.step(batches.distinct[number], batches.gradients[number])
        took.append(time.perf_counter() - before_s)
        spent_s += took[-1]
        place += 1
    before_s = time.perf_counter()
    adapter.finish()
    return {"took_s": took, "tail_s": time.perf_counter() - before_s, "place": place}


def obey(adapter: Adapter, batches: Prepared, command: dict[str, Any]) -> dict[str, Any]:
    """Do one command: load, pull, step or turn."""
    match command["do"]:
        case "load":
            ids, rows = np.load(command["ids"]), np.load(command["rows"])
            before_s, before = time.perf_counter(), resident_bytes(adapter.server_pids)
            for first in range(0, ids.shape[0], CHUNK_IDS):
                adapter.load(ids[first : first + CHUNK_IDS], rows[first : first + CHUNK_IDS])
            adapter.finish()
            grown = resident_bytes(adapter.server_pids) - before
            return {"seconds": time.perf_counter() - before_s, "grown_bytes": grown}
        case "pull":
            rows = adapter.pull(np.load(command["ids"]))
            np.save(command["out"], np.ascontiguousarray(rows, np.float32).reshape(-1, DIM))
        case "step":
            number = int(command["batch"])
            adapter.step(batches.distinct[number], batches.gradients[number])
            adapter.finish()
        case "turn":
            return _turn(adapter, batches, command)
        case other:
            raise ValueError(f"command {other!r} is unknown; load, pull, step, turn are")
    return {}


def main(make: Callable[[Path, str], Adapter]) -> None:
    """Entry point of an adapter.

    Parameters
    ----------
    make
        Starts the peer: (work folder, "sgd" or "adagrad") → adapter.
    """
    parser = argparse.ArgumentParser(
        description="One peer of the benchmarks; started by benchmarks.peer.remote."
    )
    parser.add_argument("--work", type=Path, required=True, help="folder with the batches")
    parser.add_argument("--optimizer", choices=["sgd", "adagrad"], required=True)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print as they like; the answers keep a line of their own

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    adapter = make(arguments.work, arguments.optimizer)
    batches = Prepared(arguments.work)
    keys = ("name", "durability", "formula")
    answer({key: getattr(adapter, key) for key in keys} | {"pids": list(adapter.server_pids)})
    for line in sys.stdin:
        try:
            answer(obey(adapter, batches, json.loads(line)))
        except Exception as error:  # whatever a foreign library raises is told, not swallowed
            answer({"error": f"{type(error).__name__}: {error}"})
    adapter.close()
    os._exit(0)  # libraries with threads of their own may never come to an end
