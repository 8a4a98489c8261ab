# SPDX-License-Identifier: Apache-2.0
"""The client of shards that are killed: it sends, waits for the answer, and after a kill sends again.

What it sends goes to a shard that nobody disturbs as well, as soon as it is acknowledged. `power_cut` takes
from a dead shard's directory what was never synced.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, Self

import numpy as np
from rowhouse.codec import encode_push_request

from tests.conftest import ROOT
from tests.crash.host import Failure, Life, load
from tests.driver import Driver, assert_equal_dumps, dump, shard_config
from tests.workload import BUDGET, DIMS, EVICTING, POINTS, POOL, SPARE, TABLES, make_edits, make_gradients

TIMER, INGEST = "timer", "mid SST ingest"
CLIENTS = (11, 12)
STEPS_MAX = 25
"""Operations after which a life whose failpoint never came is killed anyway."""


class Host:
    """The process that forks the lives (host.py)."""

    def __init__(self, folder: Path) -> None:
        self._address = str(folder / "host.socket")
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.host", self._address],
            stdout=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with Client(self._address, "AF_UNIX") as connection:
            connection.send(None)
        self._process.communicate(timeout=600)

    def start(self, life: Life) -> tuple[Connection, int]:
        """A new life: the connection to it, and a descriptor of its process to kill it by."""
        connection = Client(self._address, "AF_UNIX")
        connection.send(life)
        return connection, os.pidfd_open(connection.recv())


class Undisturbed:
    """The shard that nobody kills; it holds everything in memory."""

    def __init__(self, folder: Path) -> None:
        config = shard_config(folder, TABLES, memory_budget="64MiB", durability="none")
        self.driver = Driver(config, folder / "undisturbed")

    @property
    def lsn(self) -> int:
        """Records applied."""
        return self.driver.shard._applied_lsn


class KilledShard:
    """A shard, its many lives, and what its client must see.

    Every life gets another durability-preserving end: a SIGKILL at a random instant (also while it recovers),
    or at a hit of a named point. With `power_cuts`, half of the ends take what was not synced as well.
    """

    def __init__(
        self, host: Host, folder: Path, *, durability: str, seed: int, power_cuts: bool = False
    ) -> None:
        self._host, self._power_cuts = host, power_cuts
        self._rng = np.random.default_rng(seed)
        self._other = Undisturbed(folder)
        self._notes = folder / "synced.jsonl"
        self._life = Life(
            directory=str(folder / "killed"), budget=BUDGET, durability=durability, now_s=1_000.0,
            synced=str(self._notes) if power_cuts else "",
        )  # fmt: skip
        self.points = [*POINTS, INGEST, *[SPARE] * (durability != "fsync")]
        self._now_s = 1_000.0
        self._numbers = dict.fromkeys(CLIENTS, 0)
        self._pending: tuple[str, Any] | None = None
        self.kills: Counter[str] = Counter()
        self.acknowledged = 0
        self.retried = 0

    # ------------------------------------------------------------ operations
    def _next_operation(self) -> tuple[str, Any]:
        """(kind, what) of something that a client or an operator does."""
        rng, kind = self._rng, self._rng.random()
        self._now_s += float(rng.integers(0, 12))
        if kind < 0.75:
            names = list(rng.choice(sorted(DIMS), int(rng.integers(1, 6)), replace=False))
            spread = int(rng.choice([40, 300, 1_000]))
            if rng.random() < 0.15:
                return "push", (CLIENTS[self.acknowledged % 2], make_edits(names, rng, spread))
            return "push", (CLIENTS[self.acknowledged % 2], make_gradients(names, rng, spread))
        if kind < 0.85:
            return "pull", str(rng.choice(sorted(DIMS)))
        if kind < 0.92:
            return "checkpoint", None
        if kind < 0.94:
            return self._next_load()
        return "evict", str(rng.choice(EVICTING))

    def _next_load(self) -> tuple[str, Any]:
        table = str(self._rng.choice(sorted(DIMS)))
        ids = self._rng.choice(POOL, 50, replace=False)
        return "load", (table, ids, self._rng.standard_normal((50, DIMS[table])).astype(np.float32))

    def _do(self, connection: Connection) -> None:
        """One operation, answered; it stays pending when the connection breaks."""
        again = self._pending is not None and self._pending[0] != "load"
        if self._pending is None:
            self._pending = self._next_operation()
        kind, what = self._pending
        self.retried += again
        if kind != "push":
            answer = _ask(connection, kind, what, self._now_s)
            if kind == "pull":
                np.testing.assert_array_equal(answer, self._other.driver.pull(what, POOL[::7]), err_msg=what)
            elif kind == "evict":
                self._evict_other(what)
            elif kind == "load":
                self._other.driver.now_s = self._now_s
                load(self._other.driver, *what)
        else:
            client, changes = what
            number, driver = self._numbers[client] + 1, self._other.driver
            make = driver.edit_request if isinstance(changes, list) else driver.request
            request = make(changes, client=client, sequence=number)
            lsn, duplicate = _ask(connection, "push", encode_push_request(request), self._now_s)
            assert again or not duplicate, "a push was answered as a repeat at its first try"
            self._other.driver.now_s = self._now_s
            assert self._other.driver.send(request).lsn == lsn, "a push was lost or doubled"
            self._numbers[client] = number
            self.acknowledged += 1
        self._pending = None

    def _evict_other(self, table: str) -> None:
        self._other.driver.now_s = self._now_s
        self._other.driver.evict(table)

    def _greet(self, connection: Connection) -> None:
        """See what the shard knows after a start: an eviction is not numbered, its record is."""
        lsn = _receive(connection)
        if self._pending is not None and self._pending[0] == "evict" and lsn > self._other.lsn:
            self._evict_other(self._pending[1])
            self._pending = None
        pushing = self._pending is not None and self._pending[0] == "push"
        assert self._other.lsn <= lsn <= self._other.lsn + pushing, (
            "acknowledged pushes are lost, or too many"
        )

    # ------------------------------------------------------------ lives
    def live_and_die(self) -> None:
        """One life, to its end by SIGKILL."""
        rng = self._rng
        point = str(rng.choice([TIMER, TIMER, *self.points]))
        hits = {"mid checkpoint": 8, INGEST: 2, SPARE: 8}.get(point, 12)
        life = replace(self._life, point=point, hit=int(rng.integers(1, hits + 1)), now_s=self._now_s)
        connection, process = self._host.start(life)
        timer = threading.Timer(rng.exponential(0.08), signal.pidfd_send_signal, (process, signal.SIGKILL))
        if point == TIMER:
            timer.start()
        try:
            self._greet(connection)
            for step in range(STEPS_MAX):
                if point in ("mid checkpoint", SPARE) and step % 3 == 2:
                    _ask(connection, "checkpoint", None, self._now_s)
                if point == INGEST and step % 3 == 2 and self._pending is None:
                    self._pending = self._next_load()
                self._do(connection)
            point = TIMER
            signal.pidfd_send_signal(process, signal.SIGKILL)
            _receive(connection)
        except (EOFError, ConnectionError):
            self.kills[point] += 1
        else:
            raise AssertionError("a killed shard answered")
        finally:
            timer.cancel()
            if timer.ident is not None:
                timer.join()  # before its descriptor is closed, and given to somebody else
            connection.close()
            os.close(process)
        if self._power_cuts and rng.random() < 0.5:
            power_cut(Path(self._life.directory), self._notes, rng)

    def finish(self) -> None:
        """A last life that ends cleanly; every stored byte must be that of the undisturbed shard."""
        connection, process = self._host.start(replace(self._life, now_s=self._now_s))
        self._greet(connection)
        while self._pending is not None:
            self._do(connection)
        _ask(connection, "close", None, self._now_s)
        connection.close()
        os.close(process)
        other = self._other.driver
        other.shard.close()
        config = self._life.config()
        assert_equal_dumps(dump(config, Path(self._life.directory)), dump(other.config, other.directory))


def _ask(connection: Connection, kind: str, payload: Any, now_s: float) -> Any:
    connection.send((kind, payload, now_s))
    return _receive(connection)


def _receive(connection: Connection) -> Any:
    """The next answer; a shard that ended by an exception was not killed: the test fails with it."""
    answer = connection.recv()
    assert not isinstance(answer, Failure), f"the shard failed:\n{answer}"
    return answer


def power_cut(directory: Path, notes: Path, rng: np.random.Generator) -> None:
    """Take from the push log of a dead shard what a power cut may take.

    Files whose name was not in the folder at its last sync are gone. Of the others everything up to the last
    sync is there; what came after is cut off, or zeros (the space was allocated), or there up to some byte.
    The store keeps what it has: RocksDB refers only to files that it has synced, and rows that are newer
    than the log are the danger that the write-ahead rule must exclude.
    """
    sizes: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    for line in notes.read_text().splitlines() if notes.exists() else []:
        fact = json.loads(line)
        if "folder" in fact:
            names[fact["folder"]] = fact["names"]
        elif "from" in fact:
            sizes[fact["to"]] = sizes.pop(fact["from"], 0)
        else:
            sizes[fact["path"]] = fact["size"]
    log = directory / "log"
    if log.exists() and log.name not in names.get(str(directory), []):
        shutil.rmtree(log)
    for path in sorted(log.glob("*.log")):
        if path.name not in names.get(str(log), []):
            path.unlink()
            continue
        data, synced = path.read_bytes(), sizes[str(path)]
        kept = synced + int(rng.integers(0, len(data) - synced + 1)) * int(rng.integers(0, 2))
        tail = bytes(len(data) - kept) * int(rng.integers(0, 2))
        path.write_bytes(data[:kept] + tail)
