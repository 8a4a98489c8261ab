# SPDX-License-Identifier: Apache-2.0
"""A warm process that forks a child for each power cut: `python -m tests.hostile.power_cut`, orders on stdin.

The data is on a file system of its own, on a loop device. A child runs a scenario; before one of its steps
it has the kernel shut the file system down without writing anything more (FS_IOC_SHUTDOWN), and dies. What
was never synced is gone then. After the file system was mounted anew, another child opens what is left and
compares every row with that of a shard that nobody disturbed.

A step is a call that changes or syncs a file: those of `os`, the store's, and the failpoints.
"""

import fcntl
import json
import os
import shutil
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.config.cluster import ClusterConfig
from ps_server.disk import checkpoint
from ps_server.disk.store import RowFamily, Store
from ps_server.disk.verify import verify_directory
from ps_server.life.saved import RESTORING, restore_tables
from tests.crash.host import load, warm
from tests.driver import Driver, shard_config, snapshot
from tests.workload import BUDGET, DIMS, POOL, TABLES, make_gradients

FS_IOC_SHUTDOWN: Final = 0x8004587D
NO_LOG_FLUSH: Final = 2
STEPS_OF_OS: Final = (
    "fsync", "fdatasync", "rename", "replace", "link", "unlink", "mkdir", "rmdir", "ftruncate", "truncate",
    "pwritev", "pwrite",
)  # fmt: skip

Rows = dict[str, NDArray[np.float32]]
Tell = Callable[[str, int], None]


def config_of(data_dir: Path, durability: str) -> ClusterConfig:
    """The cluster's."""
    return shard_config(data_dir, TABLES, memory_budget=BUDGET, durability=durability)


class Shards:
    """How a scenario and its check come to a shard in `data_dir`."""

    def __init__(self, data_dir: Path, durability: str, failpoint: Callable[[str], None]) -> None:
        self.config, self.directory = config_of(data_dir, durability), data_dir / "shard-0000"
        self._failpoint = failpoint

    def open(self) -> Driver:
        driver = Driver(self.config, self.directory, failpoint=self._failpoint)
        driver.sequences[99] = driver.shard.last_sequence(99)
        return driver


def push(driver: Driver, tell: Tell) -> None:
    """The push that comes next; which one follows from the LSN."""
    gradients = make_gradients(sorted(DIMS), np.random.default_rng(driver.shard._applied_lsn), 300)
    tell("lsn", driver.push(gradients).lsn)


def rows_of(driver: Driver) -> Rows:
    return {name: driver.pull(name, POOL, read_only=True) for name in DIMS}


def loaded_weights() -> NDArray[np.float32]:
    return np.random.default_rng(77).standard_normal((50, DIMS["policy"])).astype(np.float32)


# ------------------------------------------------------------ the scenarios
def first_start(shards: Shards, tell: Tell) -> None:
    """Nothing is there; two pushes and a clean stop."""
    driver = shards.open()
    push(driver, tell)
    push(driver, tell)
    driver.shard.close()


def checkpoints(shards: Shards, tell: Tell) -> None:
    """Two checkpoints between pushes, a clean stop and a start after it."""
    driver = shards.open()
    for _ in range(2):
        push(driver, tell)
        driver.shard.checkpoint()
        push(driver, tell)
    driver.reopen()
    push(driver, tell)


def save(shards: Shards, tell: Tell) -> None:
    """Saved under a name, and pushed to again."""
    driver = shards.open()
    push(driver, tell)
    saved = driver.shard.saved.save(pb.SaveTablesRequest(name="new", token=7))
    tell("saved", saved.lsn)
    push(driver, tell)


def drop(shards: Shards, tell: Tell) -> None:
    """The copy of the base is dropped."""
    driver = shards.open()
    driver.shard.saved.drop(pb.DropSavedTablesRequest(name="base"))
    tell("dropped", 1)
    push(driver, tell)


def restore(shards: Shards, tell: Tell) -> None:
    """The base's copy is put back over later pushes, and pushed to."""
    (lsn,) = restore_tables([shards.directory], "base")
    tell("restored", lsn)
    push(shards.open(), tell)


def bulk(shards: Shards, tell: Tell) -> None:
    """Rows are loaded into a running shard."""
    driver = shards.open()
    load(driver, "policy", POOL[:50], loaded_weights())
    tell("loaded", 1)


def recover(shards: Shards, tell: Tell) -> None:
    """A killed shard of `os` is started under `fsync`."""
    push(shards.open(), tell)


SCENARIOS: Final[dict[str, Callable[[Shards, Tell], None]]] = {
    f.__name__: f for f in (first_start, checkpoints, save, drop, restore, bulk, recover)
}


def make_base(data_dir: Path, scenario: str) -> None:
    """What a scenario begins with: two pushes, a saved copy named base, two more; closed, or killed."""
    if scenario == "first_start":
        data_dir.mkdir()
        return
    shards = Shards(data_dir, "os", lambda _name: None)
    driver = shards.open()
    for number in range(4):
        push(driver, lambda _what, _value: None)
        if number == 1:
            driver.shard.saved.save(pb.SaveTablesRequest(name="base", token=5))
    if scenario == "recover":
        snapshot(data_dir, data_dir.with_name("killed"))
        driver.abandon()
        shutil.rmtree(data_dir)
        data_dir.with_name("killed").rename(data_dir)
        return
    driver.shard.close()


# ------------------------------------------------------------ the cut
class PowerCut:
    """Counts the steps of this process, and cuts the power before one of them (0: never)."""

    def __init__(self, mount: Path, stop: int) -> None:
        self.steps, self._stop = 0, stop
        self._file_system = os.open(mount, os.O_RDONLY)
        for name in STEPS_OF_OS:
            self._wrap(os, name)
        self._wrap(shutil, "copyfile")
        for owner, names in (
            (Store, ("__init__", "put_meta", "link_to", "close")), (RowFamily, ("flush", "ingest", "put")),
        ):  # fmt: skip
            for name in names:
                self._wrap(owner, name)

    def step(self, _name: str = "") -> None:
        self.steps += 1
        if self.steps == self._stop:
            fcntl.ioctl(self._file_system, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
            os.kill(os.getpid(), signal.SIGKILL)

    def _wrap(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def stepped(*arguments: Any, **keys: Any) -> Any:
            self.step()
            return real(*arguments, **keys)

        setattr(owner, name, stepped)


# ------------------------------------------------------------ what must be there afterwards
def reference(folder: Path) -> tuple[list[Rows], Rows]:
    """Rows after each number of pushes, and those of `policy` that a load after the fourth leaves."""
    shards = Shards(folder, "none", lambda _name: None)
    driver = shards.open()
    after = [rows_of(driver)]
    loaded: Rows = {}
    for number in range(1, 12):
        push(driver, lambda _what, _value: None)
        after.append(rows_of(driver))
        if number == 4:
            copy = Shards(folder / "loaded", "none", lambda _name: None)
            other = copy.open()
            for _ in range(4):
                push(other, lambda _what, _value: None)
            load(other, "policy", POOL[:50], loaded_weights())
            loaded = rows_of(other)
            other.abandon()
    driver.abandon()
    return after, loaded


def is_equal(one: Rows, other: Rows) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in DIMS)


def check(shards: Shards, told: dict[str, int], after: list[Rows], loaded: Rows, exact: bool) -> None:
    """Open what is left, twice; every row must be one that the pushes up to its LSN make."""
    again = (shards.directory / RESTORING).exists()
    if again:
        restore_tables([shards.directory], "base")
    driver = shards.open()
    lsn = driver.shard._applied_lsn
    if exact:
        _check_rows(driver, lsn, told, after, loaded, again)
    saved = shards.directory / "saved"
    assert not list(saved.glob(".*")), f"left over: {list(saved.glob('.*'))}"
    assert not (shards.directory / "load").exists()
    assert not [p for p in shards.directory.parent.rglob("*.new") if "store" not in p.parts]
    push(driver, lambda _what, _value: None)
    driver.reopen()
    push(driver, lambda _what, _value: None)
    driver.shard.close()
    damage = verify_directory(shards.directory).damage
    assert damage == [], damage
    if "saved" in told:
        assert (saved / "new").is_dir()
    if exact:
        for name, numbers in (("base", [2]), ("new", [told.get("saved", 5)])):
            if (saved / name).is_dir():
                assert restore_tables([shards.directory], name) == numbers
                driver = shards.open()
                assert is_equal(rows_of(driver), after[numbers[0]]), (
                    f"the copy {name!r} is not what was saved"
                )
                driver.shard.close()


def _check_rows(
    driver: Driver, lsn: int, told: dict[str, int], after: list[Rows], loaded: Rows, again: bool
) -> None:
    acknowledged = max(told.get("lsn", 0), told.get("base", 0))
    if "restored" in told or again:
        acknowledged = max(told["lsn"], 2) if "restored" in told and told.get("lsn", 0) == 3 else 2
    unacknowledged = acknowledged + 1
    assert lsn in (acknowledged, unacknowledged), f"LSN {lsn}, acknowledged {acknowledged}"
    found = rows_of(driver)
    if "loaded" in told:
        assert is_equal(found, loaded), "the load is lost"
    elif loaded and is_equal(found, loaded):
        return  # ended, and not told yet
    else:
        assert is_equal(found, after[lsn]), f"rows are not those of LSN {lsn}"


# ------------------------------------------------------------ the process
class Host:
    """Answers one order after the other; each in a child of its own."""

    def __init__(self) -> None:
        self._after: list[Rows] = []
        self._loaded: Rows = {}

    def prepare(self, folder: Path) -> None:
        """Have the reference rows; made by a child, because RocksDB's threads do not survive a fork."""
        path = folder / "reference.npz"
        if os.fork() == 0:
            self._leave(lambda: self._write_reference(folder, path))
        assert os.wait()[1] == 0, "no reference"
        with np.load(path) as found:
            count = 1 + max(int(key.split(".")[0]) for key in found if not key.startswith("loaded"))
            self._after = [{name: found[f"{number}.{name}"] for name in DIMS} for number in range(count)]
            self._loaded = {name: found[f"loaded.{name}"] for name in DIMS}

    @staticmethod
    def _leave(work: Callable[[], None]) -> None:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    @staticmethod
    def _write_reference(folder: Path, path: Path) -> None:
        after, loaded = reference(folder / "reference")
        arrays: dict[str, Any] = {
            f"{number}.{name}": rows for number, of in enumerate(after) for name, rows in of.items()
        }
        np.savez(path, **arrays | {f"loaded.{name}": rows for name, rows in loaded.items()})

    def order(self, order: dict[str, Any]) -> dict[str, Any]:
        """Run `order["do"]`: base, scenario or check; the answer has the child's status and what it told."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            self._leave(lambda: self._run(order, writer))
        os.close(writer)
        with os.fdopen(reader) as file:
            told = dict(json.loads(line) for line in file)
        return {"status": os.waitpid(pid, 0)[1], "told": told}

    def _run(self, order: dict[str, Any], writer: int) -> None:
        data_dir, write = Path(order["data_dir"]), os.write

        def tell(what: str, value: int) -> None:
            write(writer, (json.dumps([what, value]) + "\n").encode())

        if order["do"] == "base":
            make_base(data_dir, order["scenario"])
        elif order["do"] == "scenario":
            cut = PowerCut(Path(order["mount"]), order["stop"])
            SCENARIOS[order["scenario"]](Shards(data_dir, order["durability"], cut.step), tell)
            tell("steps", cut.steps)
        else:
            if order["durability"] == "os":  # the machine went down, as far as the shard can know
                checkpoint.boot_id = lambda: "another"
            told = order["told"] | ({} if order["scenario"] == "first_start" else {"base": 4})
            loaded = self._loaded if order["scenario"] == "bulk" else {}
            shards = Shards(data_dir, order["durability"], lambda _name: None)
            check(shards, told, self._after, loaded, order["durability"] == "fsync")


def main() -> None:
    """Serve orders, a line of JSON each, until stdin ends."""
    folder = Path(sys.argv[1])
    warm(config_of(Path("/nonexistent"), "none"))
    host = Host()
    host.prepare(folder)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(host.order(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
