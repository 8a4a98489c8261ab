# SPDX-License-Identifier: Apache-2.0
"""The way of a load's rows to sorted files: buckets, extents, jobs, other processes."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rowhouse.error import StoreError
from rowhouse.limit import PARTITIONS

from ps_server.bulk.spool import BUCKETS, STAGE_BYTES, Spool, default_memory_bytes
from ps_server.bulk.sst_file import FileMaker, Job, Made, Part, read_at
from ps_server.bulk.sst_worker import FileWriters
from ps_server.kernel.scatter import scatter

Keys = NDArray[np.uint64]
Bytes = NDArray[np.uint8]
TEMPLATE = np.array([9] * 8 + [0] * 3 + [77, 0, 0] + [78], np.uint8)
"""Key, three bytes of weights, one that nobody writes, two of state, one more."""


def make_spool(path: Path, memory_bytes: int, owned: Any = None) -> Spool:
    owned = np.ones(PARTITIONS, np.bool_) if owned is None else owned
    return Spool(
        path / "rows", TEMPLATE, weights_at=8, state_at=12, owned=owned, memory_bytes=memory_bytes
    )  # fmt: skip


def columns(rows: int, seed: int = 3) -> tuple[Keys, Bytes, Bytes]:
    generator = np.random.default_rng(seed)
    keys = generator.choice(2**62, rows, replace=False).astype(np.uint64) << np.uint64(2)
    return (
        keys,
        generator.integers(0, 256, (rows, 3), np.uint8),
        generator.integers(0, 256, (rows, 2), np.uint8),
    )


def naive_records(keys: Keys, weights: Bytes, state: Bytes) -> Bytes:
    """One row after another, in the order of the keys."""
    rows = []
    for i in np.argsort(keys):
        key = [int(b) for b in int(keys[i]).to_bytes(8, "big")]
        rows.append([*key, *weights[i], 77, *state[i if state.shape[0] > 1 else 0], 78])
    return np.array(rows, np.uint8)


def records_of(spool: Spool, part: Part) -> Bytes:
    """The records of a part, ascending."""
    job = Job(
        stem="",
        record_bytes=spool.record_bytes,
        file_rows=1,
        disk=str(spool.path),
        wants_keys=False,
        parts=[],
    )
    records = FileMaker(spool.memory_fd)._read(part, job)
    return records[np.argsort(records[:, :8].copy().view(">u8").reshape(-1).astype(np.uint64))].copy()


@pytest.mark.parametrize("memory_bytes", [1, 20_000, 1 << 20])
@pytest.mark.parametrize("rows_max", [1 << 30, 20])
def test_parts_hold_every_row_once_by_ascending_key(tmp_path: Path, memory_bytes: int, rows_max: int) -> None:
    """Invariant 1, from memory and from the disk, also where a bucket is too large for one part."""
    keys, weights, state = columns(3000)
    keys[:900] = np.arange(900)  # all in the first bucket
    spool = make_spool(tmp_path, memory_bytes)
    for first in range(0, 3000, 370):
        part = slice(first, first + 370)
        spool.add(keys[part], weights[part], state[part])
    spool.finish()
    parts = spool.parts(rows_max)
    found = [records_of(spool, part) for part in parts]
    assert np.array_equal(np.concatenate(found), naive_records(keys, weights, state))
    assert (spool.disk_bytes > 0) is (memory_bytes < 1 << 20) and spool.rows == 3000
    assert spool.path.exists() is (spool.disk_bytes > 0)
    assert all(a.end <= b.first for a, b in pairwise(parts))
    assert {part.whole for part in parts} == ({True} if rows_max > 20 else {True, False})
    spool.close()


def test_one_state_is_every_rows(tmp_path: Path) -> None:
    """And does not stay where the next rows bring their own."""
    keys, weights, state = columns(600)
    spool = make_spool(tmp_path, 30_000)
    expected = np.concatenate([np.tile(state[:1], (300, 1)), state[300:]])
    spool.add(keys[300:], weights[300:], state[300:])
    spool.add(keys[:300], weights[:300], state[:1])
    spool.finish()
    found = [records_of(spool, part) for part in spool.parts(1 << 30)]
    assert np.array_equal(np.concatenate(found), naive_records(keys, weights, expected))
    spool.close()


@pytest.mark.parametrize("partitions", [1, 3, 1000, PARTITIONS])
def test_the_partitions_of_a_shard_are_spread_over_all_buckets(tmp_path: Path, partitions: int) -> None:
    """As evenly as 16 buckets per partition allow, wherever they are."""
    owned = np.zeros(PARTITIONS, np.bool_)
    chosen = np.random.default_rng(5).choice(PARTITIONS, partitions, replace=False)
    owned[chosen] = True
    spool = make_spool(tmp_path, 1 << 22, owned)
    keys = chosen.astype(np.uint64).repeat(16) << np.uint64(52)
    keys += np.tile(np.arange(16, dtype=np.uint64), partitions) << np.uint64(48)
    zeros = np.zeros((keys.shape[0], 3), np.uint8)
    spool.add(keys, zeros, zeros[:1, :2])
    spool.finish()
    counts = [part.rows for part in spool.parts(1 << 30)]
    assert len(counts) == min(16 * partitions, BUCKETS)
    assert max(counts) - min(counts) <= 1 and sum(counts) == 16 * partitions
    spool.close()


def test_extents_on_the_disk_are_long(tmp_path: Path) -> None:
    """They are as long as the memory allows from when the disk is needed."""
    spool = make_spool(tmp_path, 20 * STAGE_BYTES)
    before = spool._stage.shape[1]
    spool._memory_end = spool._extent_bytes_max  # memory is used up
    keys, weights, state = columns(before * BUCKETS * 2)
    spool.add(keys, weights, state)
    assert spool._stage.shape[1] == spool._stage_bytes_max // (BUCKETS * TEMPLATE.shape[0]) > 2 * before
    spool.finish()
    found = np.concatenate([records_of(spool, part) for part in spool.parts(1 << 30)])
    order = np.argsort(keys)
    assert np.array_equal(found[:, 8:11], weights[order]) and np.array_equal(found[:, 12:14], state[order])
    assert (found[:, [11, 14]] == TEMPLATE[[11, 14]]).all()
    spool.close()


def test_a_scratch_file_that_was_cut_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"12345")
    with path.open("rb") as file, pytest.raises(OSError, match="ends at byte 5; 3 more were expected"):
        read_at(file.fileno(), memoryview(bytearray(6)), 2)


def test_the_kernel_stops_at_a_full_bucket() -> None:
    stage, filled = np.zeros((2, 2, 10), np.uint8), np.zeros(2, np.int64)
    bucket_of = (np.arange(65536) >= 32768).astype(np.uint16)
    keys = np.array([1, 2**63, 2, 3], np.uint64)
    weights = np.arange(8, dtype=np.uint8).reshape(4, 2)
    state = np.zeros((1, 0), np.uint8)
    assert scatter(keys, weights, 8, state, 10, 0, bucket_of, stage, filled) == (3, 0)
    assert filled.tolist() == [2, 1] and stage[:, :, 7:].tolist() == [
        [[1, 0, 1], [2, 4, 5]], [[0, 2, 3], [0, 0, 0]],
    ]  # fmt: skip
    filled[0] = 0
    assert scatter(keys, weights, 8, state, 10, 3, bucket_of, stage, filled) == (4, -1)
    assert filled.tolist() == [1, 1] and stage[0, 0, 7:].tolist() == [3, 6, 7]


# ---------------------------------------------------------------- workers
def make_jobs(path: Path, spool: Spool, count: int) -> list[Job]:
    parts = spool.parts(1 << 30)
    return [
        Job(
            stem=str(path / f"{i}"), record_bytes=spool.record_bytes, file_rows=40, disk=str(spool.path),
            wants_keys=True, parts=parts[i::count],
        )
        for i in range(count)
    ]  # fmt: skip


def test_a_job_survives_json() -> None:
    part = Part(extents=[(1, 2, 3)], rows=3, first=0, end=1 << 64, whole=True)
    job = Job(stem="a", record_bytes=9, file_rows=1, disk="b", wants_keys=True, parts=[part])
    assert Job.from_document(job.to_document()) == job


@pytest.mark.parametrize("memory_bytes", [1, 1 << 20])
def test_a_process_does_as_this_one(tmp_path: Path, memory_bytes: int) -> None:
    """Same files, same keys; from memory and from the disk."""
    keys, weights, state = columns(500)
    answers: list[list[Made]] = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        spool = make_spool(tmp_path / name, memory_bytes)
        spool.add(keys, weights, state)
        spool.finish()
        jobs = make_jobs(tmp_path / name, spool, 3)
        writers = FileWriters(1, spool.memory_fd)
        try:
            if name == "there":
                writers.start()
                writers.start()
                assert writers.processes == 2
                worker = writers._workers[0]
                worker.wait_until_ready()
                answers.append([worker.make(job) for job in jobs])
            else:
                answers.append(list(writers.run(jobs)))
        finally:
            writers.close()
            spool.close()
    for here, there in zip(*answers, strict=True):
        assert (here.rows, here.twice, len(here.files)) == (there.rows, there.twice, len(there.files))
        assert here.rows == here.keys.shape[0] > 40 and len(here.files) == -(-here.rows // 40)
        assert np.array_equal(here.keys, there.keys) and (np.diff(here.keys) > 0).all()
        for one, other in zip(here.files, there.files, strict=True):
            assert one.stat().st_size == other.stat().st_size
    assert sum(made.rows for made in answers[0]) == 500


def test_a_key_that_is_there_twice_ends_a_job(tmp_path: Path) -> None:
    keys, weights, state = columns(50)
    keys[7] = keys[33]
    spool = make_spool(tmp_path, 1 << 20)
    spool.add(keys, weights, state)
    spool.finish()
    (job,) = make_jobs(tmp_path, spool, 1)
    assert FileMaker(spool.memory_fd).make(job).twice == keys[7]
    spool.close()


@pytest.mark.parametrize("end", ["failure", "kill", "no start"])
def test_a_worker_that_fails_or_dies_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    keys, weights, state = columns(50)
    spool = make_spool(tmp_path, 1 << 20)
    spool.add(keys, weights, state)
    spool.finish()
    writers = FileWriters(1, spool.memory_fd)
    try:
        if end == "no start":
            monkeypatch.setattr("ps_server.bulk.sst_worker.sys.executable", "/bin/false")
        writers.start()
        (worker,), (job,) = writers._workers, make_jobs(tmp_path / "nowhere", spool, 1)
        if end == "no start":
            with pytest.raises(StoreError, match="sst_worker: the process that wrote it ended with code 1"):
                worker.wait_until_ready()
            return
        worker.wait_until_ready()
        if end == "kill":
            worker.kill()
        with pytest.raises(StoreError, match="nowhere"):
            worker.make(job)
        # by whoever is first to find out: this process, which takes the job, or the worker's thread
        with pytest.raises(StoreError, match=r"nowhere|sst_worker: .* ended with code -9"):
            list(writers.run([job]))
    finally:
        writers.close()
        spool.close()


def test_a_worker_that_starts_late_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Jobs are done here while it begins, and nothing is left for it."""
    keys, weights, state = columns(50)
    spool = make_spool(tmp_path, 1 << 20)
    spool.add(keys, weights, state)
    spool.finish()
    writers = FileWriters(1, spool.memory_fd)
    try:
        writers.start()
        import os
        import signal

        os.kill(writers._workers[0]._process.pid, signal.SIGSTOP)
        assert sum(made.rows for made in writers.run(make_jobs(tmp_path, spool, 2))) == 50
    finally:
        writers.close()
        spool.close()


def test_a_load_takes_a_quarter_of_the_memory_that_is_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr("ps_server.table.budget.MEMINFO", meminfo)
    for kib, expected in ((4 << 20, 1 << 30), (1 << 10, 256 << 20), (1 << 30, 8 << 30)):
        meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable: {kib} kB\n")
        assert default_memory_bytes() == expected
    meminfo.unlink()
    assert default_memory_bytes() == 256 << 20
