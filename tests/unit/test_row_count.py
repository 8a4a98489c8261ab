# SPDX-License-Identifier: Apache-2.0
"""The number of rows that a family keeps with its rows: right after any kill, and in old directories."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ps_server.bulk.load import bulk_load
from ps_server.disk import checkpoint
from ps_server.disk.checkpoint import SHARD_KEY
from ps_server.disk.directory import open_store, read_descriptor
from ps_server.disk.store import COUNT_KEY, RowFamily
from ps_server.disk.verify import verify_directory
from tests.conftest import ROOT
from tests.stopped import fill, make_config, open_shard, stopped
from tests.unit.test_bulk import batches, some_ids
from tests.unit.test_store import make, rows

LIVES = 24

KILLS = f"""
import os, random, signal, sys
import numpy as np
from pathlib import Path
from tests.unit.test_store import make

KEYS = np.unique(np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64))

def open_family():
    global store
    store = make(Path(sys.argv[1]), memtable_bytes=64 << 10)
    return store.families["row.a"]

def live(chance):
    family, writes = open_family(), chance.randrange(1, 120)
    write = family._write
    def counted(*arguments):
        nonlocal writes
        write(*arguments)
        writes -= 1
        if not writes:
            os.kill(os.getpid(), signal.SIGKILL)
    family._write = counted
    while True:
        keys = KEYS[np.random.default_rng(chance.getrandbits(32)).permutation(20_000)]
        keys = keys[: chance.randrange(3000)]
        here = family.get(keys)[0]
        kind = chance.randrange(10)
        if kind < 6:
            family.put(keys, np.full((keys.shape[0], 8), 7, np.uint8), ~here)
        elif kind < 9:
            family.delete(keys[here])
        else:
            family.flush()

def check():
    family = open_family()
    found = sum(keys.shape[0] for keys, _ in family.scan(5_000))
    print(family.count, found, flush=True)

for life in range({LIVES}):
    for act in (lambda: live(random.Random(life)), check):
        if not (child := os.fork()):
            act()
            os._exit(0)
        os.waitpid(child, 0)
"""


def test_the_count_of_a_family_is_right_after_each_of_many_kills(tmp_path: Path) -> None:
    """Its memtables are small, so RocksDB flushes between batches, and a kill takes some of them."""
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / "s")], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=1_200,
    )  # fmt: skip
    answers = [line.split() for line in done.stdout.splitlines()]
    assert len(answers) == LIVES, done.stderr
    assert all(counted == found for counted, found in answers), answers
    assert len({counted for counted, _ in answers}) > LIVES // 2, "kills come at different states"


def test_the_count_is_no_row(tmp_path: Path) -> None:
    store = make(tmp_path)
    family = store.families["row.a"]
    last = np.array([2**64 - 1], np.uint64)
    family.put(last, np.ones((1, 8), np.uint8), new=True)
    for chunk_rows in (1, 2):
        assert [keys.tolist() for keys, _ in family.scan(chunk_rows)] == [last.tolist()]
        assert [keys.tolist() for keys, _ in family.scan(chunk_rows, with_values=False)] == [last.tolist()]
    assert family.count == 1
    family.delete(last)
    assert family.count == 0 and family.is_empty() and list(family.scan(3)) == []
    store.close()


def test_a_count_that_is_not_known_is_not_left_behind(tmp_path: Path) -> None:
    store = make(tmp_path)
    family = store.families["row.a"]
    family.put(*rows(100), new=True)
    assert family.recorded_count() == 100
    family.count = None
    family.put(*rows(100, seed=1), new=True)
    assert family.recorded_count() is None and family.count is None
    family.count = 200
    family.flush()
    assert family.recorded_count() == 200
    store.close()


# ---------------------------------------------------------------- directories of an earlier version
def make_old(directory: Path, counts: dict[str, int | None], *, clean: bool = True) -> None:
    """Make a stopped shard's directory what an earlier version would have left."""
    store = open_store(directory, read_descriptor(directory).families(), read_only=False)
    for family in store.families.values():
        del family._family[COUNT_KEY]
        family._family.flush(True)
    known = checkpoint.read_shard(store)
    assert known is not None
    for table in known["tables"].values():
        table["row_format_version"] = 1
    store.put_meta({SHARD_KEY: checkpoint._sealed(known)})
    checkpoint.write(store, replace(checkpoint.read(store), rows=counts), {})
    checkpoint.write_life(store, replace(checkpoint.read_life(store), clean=clean))
    store.close()


def row_formats(directory: Path) -> set[Any]:
    store = open_store(directory, {})
    known = checkpoint.read_shard(store)
    store.close()
    assert known is not None
    return {table["row_format_version"] for table in known["tables"].values()}


def counted(shard: Any) -> dict[str, tuple[int, bool]]:
    return {t.name: (t.rows, t.rows_exact) for t in shard.get_stats(None).tables}


@pytest.mark.parametrize("clean", [True, False])
def test_an_old_directory_gets_its_counts(
    tmp_path: Path, clean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, config = stopped(tmp_path, 3000), make_config(tmp_path)
    make_old(directory, {"user": 3000, "item": 3000}, clean=clean)
    assert verify_directory(directory).damage == []
    shard = open_shard(config)
    if not clean:
        shard._threads[0].join()  # it counts
    assert counted(shard) == {"user": (3000, True), "item": (3000, True)}
    shard.close()
    assert row_formats(directory) == {2}, "an earlier version would not keep the counts: it must refuse"
    monkeypatch.setattr(RowFamily, "scan", None)  # nothing counts from now on
    shard = open_shard(config)
    assert counted(shard) == {"user": (3000, True), "item": (3000, True)}
    shard.close()


def test_a_load_into_an_old_directory(tmp_path: Path) -> None:
    directory, config = stopped(tmp_path, 3000), make_config(tmp_path)
    make_old(directory, {"user": 3000, "item": None})
    ids = some_ids(4000)
    new = int((ids >= 3000).sum())
    for table in ("user", "item"):
        report = bulk_load(directory, table, batches(ids, table))
        assert (report.rows, report.replaced) == (4000, 4000 - new)
    assert verify_directory(directory).damage == [] and row_formats(directory) == {2}
    shard = open_shard(config)
    assert counted(shard)["user"] == (3000 + new, True)
    shard._threads[0].join()
    assert counted(shard) == {"user": (3000 + new, True), "item": (3000 + new, True)}
    fill(shard, 10)
    shard.close()
