# SPDX-License-Identifier: Apache-2.0
"""A warm process that forks one child per life of a shard: `python -m tests.crash.host SOCKET`.

Importing everything and loading the kernels takes seconds; a fork of a process that has done so takes
milliseconds. RocksDB's threads would not survive a fork, so the kernels are warmed over families that are
dicts, and only the children open a store. A child tells its pid, opens the shard, and then answers one
operation after the other until it is killed. Where a life asks for it, it writes down what a power cut
would leave of the push log: the size of each file at its last sync, the names in a folder at its last.
"""

import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rowhouse.codec import decode_push_request, encode_push_request

from ps_server.bulk.column import RESETTABLE
from ps_server.bulk.load import bulk_load
from ps_server.config.cluster import ClusterConfig
from ps_server.shard.request import checked_parts
from ps_server.table.budget import Budget
from ps_server.table.table import Table
from ps_server.table.tier import TierParts
from tests.driver import Driver, Gradients, shard_config
from tests.workload import DIMS, POOL, TABLES, make_gradients


@dataclass(frozen=True, kw_only=True)
class Life:
    """How one child lives: where, until which hit of which failpoint, and what it writes down."""

    directory: str
    budget: str
    durability: str
    now_s: float
    point: str = ""
    hit: int = 0
    synced: str = ""

    def config(self) -> ClusterConfig:
        """The cluster's config."""
        return shard_config(
            Path(self.directory), TABLES, memory_budget=self.budget, durability=self.durability,
            checkpoint_log_bytes="1MiB",
        )  # fmt: skip


class Failure(str):
    """What a child sends instead of an answer when it ends by an exception: its traceback."""


class DictFamily:
    """RowFamily over a dict: enough of it to run every kernel without RocksDB."""

    def __init__(self, value_bytes: int) -> None:
        self.value_bytes = value_bytes
        self._rows: dict[int, bytes] = {}

    def get(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
        found = [self._rows.get(k) for k in keys.tolist()]
        data = b"".join(value for value in found if value is not None)
        values = np.frombuffer(data, np.uint8).reshape(-1, self.value_bytes)
        return np.array([value is not None for value in found], np.bool_), values

    def put(self, keys: NDArray[np.uint64], values: NDArray[np.uint8], new: NDArray[np.bool_]) -> None:
        self._rows.update(zip(keys.tolist(), map(bytes, values), strict=True))

    def delete(self, keys: NDArray[np.uint64]) -> None:
        for key in keys.tolist():
            self._rows.pop(key, None)

    def scan(self, chunk_rows: int, **_: Any) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint8]]]:
        keys = np.array(sorted(self._rows), np.uint64)[:chunk_rows]
        yield keys, self.get(keys)[1]

    def disk_bytes(self) -> int:
        return 0


def warm(config: ClusterConfig) -> dict[str, Table]:
    """Run pushes, pulls, spills and evictions over dicts, so that every kernel is loaded."""
    budget = Budget(800_000, [t.name for t in config.tables])
    tables = {}
    for table in config.tables:
        layout = table.layout
        rows: Any = DictFamily(layout.value_bytes)
        parts = TierParts(
            name=table.name, layout=layout, rows=rows, budget=budget,
            barrier=lambda _lsn: None, failpoint=lambda _name: None,
        )  # fmt: skip
        tables[table.name] = Table(table, parts)
    rng = np.random.default_rng(0)
    for lsn in range(1, 60):
        request = _push_of(make_gradients(sorted(DIMS), rng, POOL.shape[0]), lsn)
        for checked, push in checked_parts(decode_push_request(encode_push_request(request)), tables):
            checked.change(push, lsn, 1)
            checked.pull(POOL, promote=True)
            checked.prefetch(POOL)
            checked.stats()
    for table_ in tables.values():
        table_.tier.write_back_from(0)
        table_.tier.remove(POOL[:50], 100)
        table_.initial_rows(POOL)
    return tables


def _push_of(gradients: Gradients, sequence: int) -> Any:
    from rowhouse import dtype, message

    parts = tuple(message.TableGradients(n, dtype.FLOAT32, ids, rows) for n, (ids, rows) in gradients.items())
    return message.PushRequest(0, 1, sequence, parts)


# ------------------------------------------------------------ what a power cut leaves
class SyncWatch:
    """Wraps os.write, pwrite, pwritev, rename, fsync and fdatasync; writes to `path` what is synced now."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._ends: dict[int, int] = {}
        self._write, self._open, self._close = os.write, os.open, os.close
        for name in ("write", "pwrite", "pwritev", "open", "fsync", "fdatasync", "rename"):
            setattr(os, name, getattr(self, f"_on_{name}")(getattr(os, name)))

    def _on_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def opened(*arguments: Any, **keys: Any) -> int:
            handle = real(*arguments, **keys)
            self._ends.pop(handle, None)
            return handle

        return opened

    def _on_write(self, real: Callable[..., int]) -> Callable[..., int]:
        def written(handle: int, data: Any) -> int:
            count = real(handle, data)
            self._ends[handle] = self._ends.get(handle, 0) + count
            return count

        return written

    def _on_pwrite(self, real: Callable[..., int]) -> Callable[..., int]:
        def written(handle: int, data: Any, offset: int) -> int:
            count = real(handle, data, offset)
            self._ends[handle] = max(self._ends.get(handle, 0), offset + count)
            return count

        return written

    _on_pwritev = _on_pwrite

    def _on_fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def synced(handle: int) -> None:
            path = os.readlink(f"/proc/self/fd/{handle}")
            known = self._ends.get(handle, os.fstat(handle).st_size)
            fact: dict[str, Any] = {"path": path, "size": min(known, os.fstat(handle).st_size)}
            if os.path.isdir(path):
                fact = {"folder": path, "names": os.listdir(path)}
            real(handle)
            self._note(fact)

        return synced

    _on_fdatasync = _on_fsync

    def _on_rename(self, real: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: Any, target: Any) -> None:
            real(source, target)
            self._note({"from": str(source), "to": str(target)})

        return renamed

    def _note(self, fact: dict[str, Any]) -> None:
        notes = self._open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._write(notes, (json.dumps(fact) + "\n").encode())
        self._close(notes)


# ------------------------------------------------------------ one life
def load(driver: Driver, table: str, ids: NDArray[np.uint64], weights: NDArray[np.float32]) -> None:
    """Bulk load rows into a running shard."""
    bulk_load(
        driver.shard,
        table,
        [(ids, weights)],
        reset=RESETTABLE,
        workers=0,
        clock=lambda: driver.now_s,
        failpoint=driver.failpoint,
    )


def check_counts(driver: Driver) -> None:
    """The numbers of rows are right at once, whatever ended the life before."""
    for name, table in driver.shard._tables.items():
        stored = table.tier.stored
        found = sum(keys.shape[0] for keys, _ in table.tier.rows.scan(1000, with_values=False))
        assert stored.exact and stored.rows == found, (
            f"table {name!r}: {stored}, and {found} rows in the store"
        )


def live(connection: Connection, life: Life) -> None:
    """Open the shard and serve until the connection ends, or the failpoint."""
    connection.send(os.getpid())
    if life.synced:
        SyncWatch(life.synced)
    hits = 0

    def failpoint(name: str) -> None:
        nonlocal hits
        hits += name == life.point
        if name == life.point and hits == life.hit:
            os.kill(os.getpid(), signal.SIGKILL)

    driver = Driver(life.config(), Path(life.directory), failpoint=failpoint)
    check_counts(driver)
    connection.send(driver.shard._applied_lsn)
    while True:
        kind, payload, driver.now_s = connection.recv()
        if kind == "push":
            answer = driver.shard.push(decode_push_request(payload), payload)
            connection.send((answer.lsn, answer.duplicate))
        elif kind == "pull":
            connection.send(driver.pull(payload, POOL[::7]))
        elif kind == "evict":
            connection.send(driver.evict(payload))
        elif kind == "load":
            load(driver, *payload)
            connection.send(None)
        elif kind == "checkpoint":
            connection.send(driver.shard.checkpoint())
        elif kind == "close":
            driver.shard.close()
            connection.send(None)
            return


def main() -> None:
    """Serve lives until the parent says that there are no more."""
    warm(shard_config(Path("/nonexistent"), TABLES))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    gc.freeze()  # a collection in the child would copy the parent's pages
    with Listener(sys.argv[1], "AF_UNIX") as listener:
        print("ready", flush=True)
        while True:
            with listener.accept() as connection:
                life = connection.recv()
                if life is None:
                    return
                if os.fork() == 0:
                    listener.close()
                    try:
                        live(connection, life)
                    except BaseException:
                        connection.send(Failure(traceback.format_exc()))
                    finally:
                        os._exit(0)


if __name__ == "__main__":
    main()
