# SPDX-License-Identifier: Apache-2.0
"""Our end of a peer in its own process: start it, hand it rows, check its answers, give it its turns.

Thread safety: one thread. A RemotePeer is a side of `contest` (it has `warm_up` and `turn`).
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.batch import DIM, Batch
from benchmarks.peer.driver import EPSILON, INITIAL_ACCUMULATOR, LEARNING_RATE
from benchmarks.peer.environment import Unavailable, cache_folder, prepare
from benchmarks.peer.roster import PEERS

ROOT: Final = Path(__file__).resolve().parents[2]
LOG_CHARACTERS: Final = 400
QUIT_S: Final = 20.0


def write_batches(folder: Path, batches: Sequence[Batch]) -> None:
    """Leave the batches where a driver reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "requested.npy", np.stack([batch.requested for batch in batches]))
    np.save(folder / "distinct.npy", np.concatenate([batch.distinct for batch in batches]))
    np.save(folder / "ends.npy", np.cumsum([batch.distinct.shape[0] for batch in batches]))
    np.save(folder / "gradients.npy", max((batch.gradients for batch in batches), key=len))


class RemotePeer:
    """A running peer.

    Parameters
    ----------
    name
        As the roster has it.
    work
        Folder with the batches (`write_batches`); its log goes there too.
    optimizer
        "sgd" or "adagrad".

    Raises
    ------
    Unavailable
        No environment, or it did not start.
    """

    def __init__(self, name: str, work: Path, optimizer: str) -> None:
        peer = PEERS[name]
        ready = prepare(peer.environment, cache_folder())
        variables = {**os.environ, **ready.variables, **dict(peer.variables), "PYTHONPATH": str(ROOT)}
        self._log = work / f"{name}-{optimizer}.log"
        self._work, self.key, self._stopped = work, name, False
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(ready.interpreter), "-m", peer.module, "--work", str(work), "--optimizer", optimizer],
                cwd=ROOT, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        try:
            facts = self._answer()
        except Unavailable:
            self.close()
            raise
        self.name, self.durability, self.formula = facts["name"], facts["durability"], facts["formula"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            text = self._log.read_text(encoding="utf-8", errors="replace").strip()
            raise Unavailable(f"{self.key} ended with {self.process.returncode}: {text[-LOG_CHARACTERS:]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Unavailable(f"{self.key}: {answer['error']}")
        return answer

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; the answer that is missing tells why
        return self._answer()

    def load(self, ids: NDArray[np.uint64], rows: NDArray[np.float32]) -> dict[str, Any]:
        """Hand it rows; returns seconds, and bytes by which its servers grew."""
        places = [self._work / "load-ids.npy", self._work / "load-rows.npy"]
        np.save(places[0], ids)
        np.save(places[1], rows)
        facts = self._ask(do="load", ids=str(places[0]), rows=str(places[1]))
        for place in places:
            place.unlink()
        return facts

    def pull(self, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Its rows of the ids, (n, DIM) float32, for a check."""
        asked, out = self._work / "pull-ids.npy", self._work / "pull-rows.npy"
        np.save(asked, ids)
        self._ask(do="pull", ids=str(asked), out=str(out))
        rows: NDArray[np.float32] = np.load(out)
        return rows

    def step(self, batch: int) -> None:
        """One step of batch number `batch`."""
        self._ask(do="step", batch=batch)

    def side(self, what: str) -> "RemoteSide":
        """A side of a contest that pulls, or steps."""
        return RemoteSide(self, what)

    def run_turn(self, what: str, place: int, seconds: float, batches_min: int) -> dict[str, Any]:
        """One turn; seconds of each batch and of the wait at its end. Between turns it is stopped.

        Some peers poll without pause (torch's RPC takes a whole core when idle), which ours would pay for.
        """
        answer = self._ask(do="turn", what=what, place=place, seconds=seconds, batches_min=batches_min)
        self._signal(signal.SIGSTOP)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        """To its process and all below it, unless they are in that state already."""
        stop = number == signal.SIGSTOP
        if stop == self._stopped:
            return
        self._stopped = stop
        for process in [self.process.pid, *(p.pid for p in psutil.Process(self.process.pid).children(True))]:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def close(self) -> None:
        """End it and its servers."""
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.process.poll() is None:
            self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(QUIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()  # its servers die with it: PR_SET_PDEATHSIG
            self.process.wait()
        self.process.stdout.close()


class RemoteSide:
    """A peer's pull or step, as `contest` takes it.

    Parameters
    ----------
    peer
        The running peer.
    what
        "pull" or "step".
    """

    def __init__(self, peer: RemotePeer, what: str) -> None:
        self._peer, self._what = peer, what

    def warm_up(self, place: int, batches: int) -> None:
        """Run batches before the clock starts."""
        self._peer.run_turn(self._what, place, 0.0, batches)

    def turn(self, place: int, seconds: float, batches_min: int) -> tuple[list[float], float]:
        """Seconds of each batch, and of the wait for outstanding work at the end."""
        answer = self._peer.run_turn(self._what, place, seconds, batches_min)
        return answer["took_s"], answer["tail_s"]


@contextmanager
def running(name: str, work: Path, optimizer: str) -> Iterator[RemotePeer]:
    """A peer that is ended at the end of the block."""
    peer = RemotePeer(name, work, optimizer)
    try:
        yield peer
    finally:
        peer.close()


def expected_adagrad(
    rows: NDArray[np.float32], gradients: Sequence[Batch], formula: str
) -> NDArray[np.float32]:
    """Rows of the first batch's distinct ids after steps over the batches, in float64.

    Parameters
    ----------
    rows
        (u, DIM) where the first batch's distinct ids start.
    gradients
        The batches, in the order in which they were stepped.
    formula
        "adagrad", or "paddle", whose rate is that of the sum without this gradient:
        lr·g·sqrt(g0 / (g0 + sum)).
    """
    ids = gradients[0].distinct
    weights = rows.astype(np.float64)
    total = np.zeros((ids.shape[0], DIM))
    for batch in gradients:
        places = np.searchsorted(batch.distinct, ids)
        found = places < batch.distinct.shape[0]
        found[found] = batch.distinct[places[found]] == ids[found]
        gradient = batch.gradients[places[found]].astype(np.float64)
        if formula == "paddle":
            rate = np.sqrt(INITIAL_ACCUMULATOR / (INITIAL_ACCUMULATOR + total[found]))
            total[found] += gradient**2
            weights[found] -= LEARNING_RATE * gradient * rate
            continue
        total[found] += gradient**2
        rate = 1 / (np.sqrt(INITIAL_ACCUMULATOR + total[found]) + EPSILON)
        weights[found] -= LEARNING_RATE * gradient * rate
    return weights.astype(np.float32)
