# SPDX-License-Identifier: Apache-2.0
"""Bulk load and export: what goes in comes out, all or nothing, counted exactly."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from rowhouse.error import InvalidRequestError, PreconditionError, StoreError, UnknownTableError
from rowhouse.mix import mix64
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.bulk.export import export_schema, export_table
from ps_server.bulk.load import bulk_load
from ps_server.config.cluster import ClusterConfig
from ps_server.disk.directory import open_store, read_descriptor
from ps_server.disk.store import RowFamily
from ps_server.disk.verify import verify_directory
from ps_server.shard.shard import Shard
from tests.conftest import ROOT
from tests.stopped import DIMS, fill, make_config, open_shard, pull, push, stopped

Ids = NDArray[np.uint64]
Floats = NDArray[np.float32]


def some_ids(rows: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).permutation(np.arange(rows, dtype=np.uint64)) * np.uint64(3)


def some_rows(ids: Ids, dim: int) -> Floats:
    """Values that halves represent exactly."""
    return ((ids[:, None] + np.arange(dim, dtype=np.uint64)) % np.uint64(512)).astype(np.float32)


def batches(ids: Ids, table: str, size: int = 700, state: bool = True) -> list[tuple[Any, ...]]:
    """`ids` in batches, with the rows of `some_rows` and, for `user`, a state."""
    found: list[tuple[Any, ...]] = []
    for first in range(0, ids.shape[0], size):
        part = ids[first : first + size]
        columns = (part, some_rows(part, DIMS[table]))
        found.append((*columns, some_rows(part, 4) + 1) if state and table == "user" else columns)
    return found


def exported(target: Shard | Path, table: str) -> pa.Table:
    return pa.Table.from_batches(export_table(target, table, batch_rows=500), export_schema(target, table))


def column(table: pa.Table, name: str) -> NDArray[Any]:
    values = table.column(name).combine_chunks()
    if pa.types.is_fixed_size_list(values.type):
        flat: NDArray[Any] = values.flatten().to_numpy().reshape(-1, values.type.list_size)
        return flat
    plain: NDArray[Any] = values.to_numpy()
    return plain


def counted(config: ClusterConfig) -> dict[str, tuple[int, bool]]:
    """Rows of each table as the next start knows them, at once."""
    shard = open_shard(config)
    facts = {t.name: (t.rows, t.rows_exact) for t in shard.get_stats(None).tables}  # type: ignore[arg-type]
    shard.close()
    return facts


# ---------------------------------------------------------------- a stopped shard
@pytest.mark.parametrize("table", ["user", "item"])
@pytest.mark.parametrize("memory_bytes", [1 << 30, 100_000])
def test_what_is_loaded_is_exported_and_pulled(tmp_path: Path, table: str, memory_bytes: int) -> None:
    """Also when the rows do not fit in memory and are sorted through files."""
    directory, config = stopped(tmp_path, 0), make_config(tmp_path)
    ids = some_ids(5000)
    report = bulk_load(directory, table, batches(ids, table), memory_bytes=memory_bytes)
    assert (report.rows, report.replaced) == (5000, 0) and not (directory / "load").exists()
    answer = exported(directory, table)
    order = np.argsort(mix64(ids))
    assert np.array_equal(column(answer, "id"), ids[order])
    assert np.array_equal(column(answer, "weights"), some_rows(ids[order], DIMS[table]))
    assert set(column(answer, "lsn").tolist()) == {4}
    if table == "user":
        assert np.array_equal(column(answer, "state"), some_rows(ids[order], 4) + 1)
    assert verify_directory(directory).damage == []
    assert counted(config) == {"user": (0, True), "item": (0, True), table: (5000, True)}
    shard = open_shard(config)
    assert np.array_equal(pull(shard, table, ids), some_rows(ids, DIMS[table]))
    shard.close()


def test_an_export_can_be_loaded_again(tmp_path: Path) -> None:
    """Bit for bit, apart from the LSN; from a shard with pushed rows into an empty one."""
    source, target = stopped(tmp_path / "a"), stopped(tmp_path / "b", 0)
    for table in ("user", "item"):
        bulk_load(target, table, export_table(source, table))
        before, after = exported(source, table), exported(target, table)
        assert before.drop_columns(["lsn"]).equals(after.drop_columns(["lsn"]))
        assert set(column(after, "lsn").tolist()) == {4}


def test_rows_are_replaced_and_counted_once(tmp_path: Path) -> None:
    directory, config = stopped(tmp_path, 6000), make_config(tmp_path)
    ids = some_ids(4000)
    report = bulk_load(directory, "item", batches(ids, "item"))
    old = int((ids < 6000).sum())
    assert (report.rows, report.replaced) == (4000, old)
    assert counted(config) == {"user": (6000, True), "item": (10_000 - old, True)}
    assert verify_directory(directory).damage == []
    shard = open_shard(config)
    assert np.array_equal(pull(shard, "item", ids), some_rows(ids, 3))
    push(shard, 5, "item", ids[:10])  # rows that were loaded are trained on
    assert (pull(shard, "item", ids[:10]) != some_rows(ids[:10], 3)).any()
    shard.close()


def test_an_empty_load_changes_nothing(tmp_path: Path) -> None:
    directory = stopped(tmp_path)
    assert bulk_load(directory, "item", []).rows == 0
    assert verify_directory(directory).damage == []


def test_an_evicted_row_comes_back_by_a_load(tmp_path: Path) -> None:
    policy = [{"kind": "l2_norm", "min_l2_norm": 1e9}]
    table = {"name": "item", "dim": 3, "optimizer": {"kind": "sgd", "learning_rate": 0.1}, "eviction": policy}
    config = make_config(tmp_path, tables=[table])
    shard = open_shard(config)
    push(shard, 1, "item", np.arange(50, dtype=np.uint64))
    assert shard.evict_rows(pb.EvictRowsRequest(table="item")).rows_evicted == 50
    shard.close()
    ids = np.arange(20, 70, dtype=np.uint64)
    assert bulk_load(shard.directory, "item", batches(ids, "item")).replaced == 0
    (facts,) = verify_directory(shard.directory).tables
    assert facts.rows == 50


# ---------------------------------------------------------------- a running shard
def test_a_load_into_a_running_shard_replaces_hot_rows(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    shard = open_shard(config)
    old = fill(shard, 3000)
    ids = some_ids(2000)
    kept = np.setdiff1d(old, ids)
    before = pull(shard, "user", kept)
    report = bulk_load(shard, "user", batches(ids, "user", state=False), reset=["state"])
    assert report.replaced == np.intersect1d(ids, old).shape[0]
    assert np.array_equal(pull(shard, "user", ids), some_rows(ids, 4))
    assert np.array_equal(pull(shard, "user", kept), before)
    rows = 3000 + 2000 - report.replaced
    stats = {t.name: t for t in shard.get_stats(None).tables}  # type: ignore[arg-type]
    assert (stats["user"].rows, stats["user"].rows_exact) == (rows, True)
    answer = exported(shard, "user")
    assert answer.num_rows == rows and column(answer, "lsn").max() == 4
    push(shard, 5, "user", ids[:100])  # Adagrad's initial state came with the rows
    trained = pull(shard, "user", ids[:100])
    shard.close()
    shard = open_shard(config)
    assert np.array_equal(pull(shard, "user", ids[:100]), trained)
    shard.close()
    assert counted(config)["user"] == (rows, True)


def test_a_push_during_a_load_refuses_it_whole(tmp_path: Path) -> None:
    shard = open_shard(make_config(tmp_path))
    ids = fill(shard, 1000)
    before = pull(shard, "item", ids)

    def interrupted() -> Any:
        yield from batches(ids[:500], "item")
        push(shard, 5, "item", ids[900:901])

    with pytest.raises(PreconditionError, match="at LSN 5 during a load that began at LSN 4; freeze it"):
        bulk_load(shard, "item", interrupted())
    assert np.array_equal(pull(shard, "item", ids[:900]), before[:900])
    push(shard, 6, "user", ids[:1])  # another table's pushes do no harm
    shard.close()
    assert verify_directory(shard.directory).damage == []


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("table", "batch", "expected"),
    [
        ("items", (np.arange(3, dtype=np.uint64),), "table 'items' is unknown"),
        ("item", (np.arange(3), np.zeros((3, 3), "f4")), "ids are int64 (3,); they must be uint64 (3,)"),
        ("item", (np.arange(3, dtype="u8"), np.zeros((3, 4), "f4")), "must be float32 (3, 3)"),
        ("item", (np.arange(3, dtype="u8"), np.full((3, 3), 1e9, "f4")), "id 0, column 0, is inf as fp16"),
        ("item", (np.zeros(2, "u8"), np.zeros((2, 3), "f4")), "id 0 is in the input more than once"),
        ("user", (np.arange(3, dtype="u8"), np.zeros((3, 4), "f4")), "keeps 4 values of state per row"),
        ("user", (np.arange(1, dtype="u8"), np.zeros((1, 4), "f4"), np.full((1, 4), np.nan, "f4")), "state"),
        ("item", pa.record_batch({"id": [1], "weight": [1]}), "no column 'weights'"),
        ("item", pa.record_batch({"id": [1.5], "weights": [[1.0] * 3]}), "column 'id' must be uint64"),
        ("item", pa.record_batch({"id": [1], "weights": [[1.0, 2.0]]}), "must hold 3 floats per row"),
        ("item", pa.record_batch({"id": [1], "weights": [["a", "b"]]}), "column 'weights' is list<"),
    ],
)
def test_a_wrong_input_changes_nothing(tmp_path: Path, table: str, batch: Any, expected: str) -> None:
    directory = stopped(tmp_path, 10)
    with pytest.raises(InvalidRequestError) as caught:
        bulk_load(directory, table, [batch])
    assert expected in str(caught.value)
    assert not (directory / "load").exists()
    report = verify_directory(directory)
    assert report.damage == [] and [t.rows for t in report.tables] == [10, 10]


def test_duplicates_are_found_over_batches_and_files(tmp_path: Path) -> None:
    directory = stopped(tmp_path, 0)
    ids = some_ids(3000)
    with pytest.raises(InvalidRequestError, match=rf"id {ids[5]} is in the input more than once"):
        bulk_load(directory, "item", batches(np.append(ids, ids[5]), "item"), memory_bytes=50_000)


def test_rows_of_another_shard_are_refused_or_left_out(tmp_path: Path) -> None:
    config = make_config(tmp_path, shards=2)
    ids, total = some_ids(1000), 0
    for index in (0, 1):
        shard = open_shard(config, index)
        shard.close()
        with pytest.raises(InvalidRequestError, match=f"belongs to shard {1 - index}; this is shard {index}"):
            bulk_load(shard.directory, "item", batches(ids, "item"))
        total += bulk_load(shard.directory, "item", batches(ids, "item"), skip_others=True).rows
        assert verify_directory(shard.directory).damage == []
    assert total == 1000


def test_rows_that_are_not_finite_are_named_and_by_flag_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = stopped(tmp_path, 0)
    ids = some_ids(1000)
    weights = np.ones((1000, 4), np.float32)
    state = np.ones((1000, 4), np.float32)
    weights[7, 2], weights[8, 0], state[9, 1] = np.nan, np.inf, -np.inf
    with pytest.raises(
        InvalidRequestError, match=rf"weights of id {ids[7]}, column 2, is nan .* 3 of 1000 rows"
    ):
        bulk_load(directory, "user", [(ids, weights, state)])
    assert verify_directory(directory).tables[0].rows == 0
    report = bulk_load(directory, "user", [(ids, weights, state)], skip_not_finite=True)
    assert (report.rows, report.not_finite) == (997, 3)
    assert str(ids[7:10].tolist()) in caplog.text
    found = np.concatenate([batch.column("id").to_numpy() for batch in export_table(directory, "user")])
    np.testing.assert_array_equal(np.sort(found), np.sort(np.delete(ids, [7, 8, 9])))


def test_a_crashed_shard_is_recovered_first(tmp_path: Path) -> None:
    import shutil

    shard = open_shard(make_config(tmp_path / "live"))
    fill(shard, 10)
    shutil.copytree(shard.directory, tmp_path / "crashed")
    shard.close()
    with pytest.raises(StoreError, match="not stopped cleanly; start and stop its shard once"):
        bulk_load(tmp_path / "crashed", "item", [])
    with pytest.raises(StoreError, match="not stopped cleanly"):
        list(export_table(tmp_path / "crashed", "item"))
    with pytest.raises(UnknownTableError, match="items"):
        export_schema(tmp_path / "crashed", "items")


# ---------------------------------------------------------------- kill
KILL = """
import os, signal, sys
from pathlib import Path
from ps_server.bulk.load import bulk_load
from tests.stopped import make_config, open_shard
from tests.unit.test_bulk import batches, some_ids
calls = 0
def failpoint(name):
    global calls
    calls += name == "mid SST ingest"
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
path = Path(sys.argv[1])
target = open_shard(make_config(path)) if sys.argv[2] == "live" else path / "shard-0000"
bulk_load(target, "item", batches(some_ids(4000), "item"), failpoint=failpoint)
"""


@pytest.mark.parametrize("mode", ["live", "stopped"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_leaves_all_of_a_load_or_nothing(tmp_path: Path, mode: str, call: int) -> None:
    """Before the ingest nothing is there, after it everything; the rows are counted at the next start,
    and the load can be done again."""
    directory, config = stopped(tmp_path, 6000), make_config(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILL, str(tmp_path), mode, str(call)]
    assert subprocess.run(command, check=False, env=environment, cwd=ROOT).returncode == -9
    ids = some_ids(4000)
    loaded, untouched = call == 2, np.setdiff1d(np.arange(6000, dtype=np.uint64), ids)
    shard = open_shard(config)
    for thread in shard._threads[:1]:  # counting
        thread.join()
    new = ids[ids >= 6000]
    rows = 6000 + (new.shape[0] if loaded else 0)
    stats = {t.name: (t.rows, t.rows_exact) for t in shard.get_stats(None).tables}  # type: ignore[arg-type]
    assert stats == {"user": (6000, True), "item": (rows, True)}
    assert np.array_equal(pull(shard, "item", ids), some_rows(ids, 3)) is loaded
    assert np.abs(pull(shard, "item", untouched)).max() < 1
    shard.close()
    assert bulk_load(directory, "item", batches(ids, "item")).rows == 4000
    assert verify_directory(directory).damage == [] and not (directory / "load").exists()
    assert counted(config)["item"] == (6000 + new.shape[0], True)


def test_a_load_writes_where_no_worker_of_a_killed_one_writes(tmp_path: Path) -> None:
    """Such a worker ends with its file, after the next load may have begun."""
    directory, ids = stopped(tmp_path, 0), some_ids(100)
    folders: list[Path] = []

    def look(_name: str) -> None:
        (folder,) = (directory / "load").iterdir()
        folders.append(folder)

    for table in ("user", "item"):
        (directory / "load" / "old").mkdir(parents=True)
        bulk_load(directory, table, batches(ids, table), failpoint=look)
    assert len(set(folders)) == 2 and not (directory / "load").exists()


# ---------------------------------------------------------------- workers
@pytest.mark.parametrize("workers", [0, 2])
def test_files_of_other_processes_are_the_same(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps_server.bulk.load.FILE_BYTES", 10_000)
    directory, ids = stopped(tmp_path, 0), some_ids(5000)
    report = bulk_load(directory, "item", batches(ids, "item"), workers=workers)
    assert report.files > 8
    assert np.array_equal(column(exported(directory, "item"), "id"), ids[np.argsort(mix64(ids))])
    assert verify_directory(directory).damage == []


def test_scratch_space_is_given_back_while_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps_server.bulk.load.FILE_BYTES", 1 << 20)
    monkeypatch.setattr("ps_server.bulk.spool.BUCKETS", 32)  # so extents are long, as those of many rows are
    directory = stopped(tmp_path)
    rows, dim = 400_000, DIMS["item"]
    ids = some_ids(rows)
    taken: list[int] = []

    def look(_rows: int) -> None:
        taken.append(
            sum(path.stat().st_blocks * 512 for path in (directory / "load").rglob("*") if path.is_file())
        )

    weights = np.random.default_rng(1).standard_normal((rows, dim)).astype(np.float32)
    bulk_load(directory, "item", [(ids, weights)], memory_bytes=4 << 20, workers=0, progress=look)
    assert len(taken) > 3, "several files"
    spooled = taken[0]
    assert max(taken) < 1.5 * spooled, taken  # 1.9 when nothing is given back


@pytest.mark.parametrize("looks_up", [True, False])
def test_replaced_rows_are_counted_by_the_cheaper_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks_up: bool
) -> None:
    """Where few rows come to many they are looked up, and the many are not read."""
    directory, config = stopped(tmp_path, 6000), make_config(tmp_path)
    ids = np.arange(5900, 5900 + (1000 if looks_up else 3000), dtype=np.uint64)
    scanned: list[int] = []
    scan = RowFamily.scan

    def noting(self: RowFamily, chunk_rows: int, *arguments: Any, **keys: Any) -> Any:
        scanned.append(chunk_rows)
        return scan(self, chunk_rows, *arguments, **keys)

    monkeypatch.setattr(RowFamily, "scan", noting)
    report = bulk_load(directory, "item", batches(ids, "item"))
    monkeypatch.undo()
    assert (report.rows, report.replaced) == (ids.shape[0], 100)
    assert (max(scanned, default=0) > 1) is not looks_up
    assert counted(config)["item"] == (6000 + ids.shape[0] - 100, True)
    assert verify_directory(directory).damage == []


def test_loads_in_parts_end_in_one_sorted_run(tmp_path: Path) -> None:
    directory, config = stopped(tmp_path, 0), make_config(tmp_path)
    runs, told = [], []
    for number in range(3):
        ids = np.arange(number * 2000, number * 2000 + 4000, dtype=np.uint64)  # half of the part before too
        bulk_load(
            directory, "item", batches(ids, "item"), more_follow=number == 1,
            compacting=lambda: told.append("compacting"),
        )  # fmt: skip
        store = open_store(directory, read_descriptor(directory).families())
        runs.append(store.families["row.item"].sorted_runs())
        store.close()
    assert runs[0] == runs[2] == 1 < runs[1]
    assert told == ["compacting"]
    assert counted(config)["item"] == (8000, True) and verify_directory(directory).damage == []
