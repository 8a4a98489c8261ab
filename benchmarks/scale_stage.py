# SPDX-License-Identifier: Apache-2.0
"""The stages of the workload `scale` (scale.py): each does one kind of work on a Run, and says what it found.

Times are in seconds, sizes in bytes, rates in requested ids per second; `*_ms` has p50, p99, p99.9 and the
longest. Thread safety: a process's main thread.
"""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import psutil
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rowhouse.mix import mix64

from benchmarks.batch import BATCH_IDS, DIM, Batch, ids_of, make_batch
from benchmarks.embedded import TABLE
from benchmarks.peer_rocksdict import StoredRows
from benchmarks.scale_table import TTL_S, draw, ids_in_slice, record_batches, zipf_share
from benchmarks.table_disk import opened_store, read_files
from benchmarks.table_step import training_step
from ps_client import connect
from ps_client.client import Client
from ps_server.bulk.export import export_table
from ps_server.bulk.load import bulk_load

if TYPE_CHECKING:
    from benchmarks.scale import Run

TENTHS: Final = 10
WARM_BYTES: Final = 6 << 30
"""Of files that are read into the page cache for the warm pulls; smaller tables are read whole."""

WARM_PULLS: Final = 4
RUNS: Final = 8
DISK_PULLS: Final = 4
PEER_CACHE_BYTES: Final = 64 << 20
FILL_IDS: Final = 100_000
COMPUTE_S: Final = 0.005
"""What a step's model takes on a trainer's own processor; this process sleeps for it."""

HITS: Final = 0.95
PREFETCH_STEPS: Final = 60
AHEAD: Final = 4
"""Steps that the pipeline pulls ahead; a row may lack so many pushes."""

INSERT_IDS: Final = 50_000
NEW_SHARE: Final = 0.01
KILL_STEPS: Final = 200


# ---------------------------------------------------------------- load
def load(run: "Run") -> dict[str, Any]:
    """A bulk load of all rows into a stopped shard, timed by tenths of what is read and what is written."""
    with run.embedded():
        pass
    began_s = time.perf_counter()
    marks: dict[str, list[tuple[float, int]]] = {"read": [(0.0, 0)], "written": [(0.0, 0)]}

    def note(kind: str, rows: int) -> None:
        before_s, before = marks[kind][-1]
        if rows * TENTHS // run.rows > before * TENTHS // run.rows:
            now_s = time.perf_counter() - began_s
            marks[kind].append((round(now_s, 2), rows))
            rate = (rows - before) / (now_s - before_s) / 1e6
            run.say(f"load: {rows:,} rows {kind}, since the last line at {rate:.2f} M rows/s")

    with _least_free(run.folder) as free:
        report = bulk_load(
            run.shard, TABLE, record_batches(run.rows, lambda rows: note("read", rows)),
            progress=lambda rows: note("written", rows),
        )  # fmt: skip
    took_s = time.perf_counter() - began_s
    assert report.rows == run.rows, "every row is new"
    disk_bytes = _files_bytes(run.shard)
    return {
        "load_s": took_s, "read_marks": marks["read"], "written_marks": marks["written"],
        "files": report.files, "disk_bytes": disk_bytes, "disk_bytes_per_row": disk_bytes / run.rows,
        "scratch_bytes_per_row": (free[0] - free[1]) / run.rows,
    }  # fmt: skip


@contextmanager
def _least_free(folder: Path) -> Iterator[list[int]]:
    """[free bytes of the disk at the beginning, least of them during the block]."""

    def free() -> int:
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize

    found, ended = [free(), free()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            found[1] = min(found[1], free())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def _files_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.sst"))


# ---------------------------------------------------------------- open, pull
def reopen(run: "Run") -> dict[str, Any]:
    """Start of a server that was stopped in order, to its first answer; what it has open and in memory."""
    began_s = time.perf_counter()
    with run.served() as (server, client):
        client.pull(TABLE, ids_of(0, 64), read_only=True)
        reopen_s = time.perf_counter() - began_s
        process = psutil.Process(server.process.pid)
        table = client.stats()[0].tables[0]
        facts: dict[str, Any] = {
            "reopen_s": reopen_s,
            "memory_bytes": process.memory_info().rss,
            "rows": table.rows,
            "rows_exact": table.rows_exact,
            "memory_budget": int(run.config["memory_budget"]),
        }
    peer = StoredRows(run.shard / "store", f"row.{TABLE}", PEER_CACHE_BYTES)
    facts |= {"levels": peer.levels(), "index_filter_bytes": peer.index_filter_bytes()}
    peer.close()
    return facts


def pull(run: "Run") -> dict[str, Any]:
    """Uniform pulls of rows that are cold, beside the peer in turns: files in the page cache, and not in it.

    Where the files are larger than WARM_BYTES the warm pulls ask for the first part of all keys only. The
    pulls are read-only, so that no row becomes hot.
    """
    generator = np.random.default_rng(21)
    store = run.shard / "store"
    share = min(1.0, WARM_BYTES / _files_bytes(run.shard))
    facts: dict[str, Any] = {"slice": share}
    with run.served() as (_, client):
        peer = StoredRows(store, f"row.{TABLE}", PEER_CACHE_BYTES)
        for path in peer.files(share):
            read_files(path)

        def ours(ids: NDArray[np.uint64]) -> None:
            client.pull(TABLE, ids, read_only=True)

        def theirs(ids: NDArray[np.uint64]) -> None:
            assert None not in peer.values(np.sort(mix64(ids))), "every row is there"

        for _ in range(WARM_PULLS):
            for side in (ours, theirs):
                side(ids_in_slice(generator, run.rows, share, BATCH_IDS))
        mine, other = _in_turns(
            [ours, theirs], lambda: ids_in_slice(generator, run.rows, share, BATCH_IDS), RUNS, 4
        )
        facts |= {"cached_runs": mine, "cached_peer_runs": other, "cached_rows_per_s": float(np.median(mine))}
        peer.close()
        direct = StoredRows(store, f"row.{TABLE}", PEER_CACHE_BYTES, direct=True)

        def directly(ids: NDArray[np.uint64]) -> None:
            assert None not in direct.values(np.sort(mix64(ids))), "every row is there"

        def dropped() -> NDArray[np.uint64]:
            drop_cache(run.shard)
            return ids_in_slice(generator, run.rows, 1.0, BATCH_IDS)

        ours(dropped())
        mine, other = _in_turns([ours, directly], dropped, DISK_PULLS, 1)
        facts |= {"disk_runs": mine, "disk_peer_runs": other, "disk_rows_per_s": float(np.median(mine))}
        direct.close()
        took = _timed(lambda: ours(draw("uniform", generator, run.rows).requested), run.seconds)
        facts |= {"uniform_pull_ms": quantiles(took), "uniform_rows_per_s": BATCH_IDS / float(np.mean(took))}
    return facts


def _in_turns(
    sides: list[Callable[[Any], None]], make: Callable[[], Any], runs: int, batches: int
) -> list[list[float]]:
    """Ids per second of each side in each run; the sides take turns."""
    rates: list[list[float]] = [[] for _ in sides]
    for _ in range(runs):
        for side, mine in zip(sides, rates, strict=True):
            took_s = 0.0
            for _ in range(batches):
                asked = make()
                began_s = time.perf_counter()
                side(asked)
                took_s += time.perf_counter() - began_s
            mine.append(BATCH_IDS * batches / took_s)
    return rates


def drop_cache(folder: Path) -> None:
    """Have the operating system forget the pages of every row file."""
    for path in folder.rglob("*.sst"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def quantiles(took_s: list[float]) -> dict[str, float]:
    """p50, p99, p99.9 and the longest, in ms."""
    values = np.percentile(np.array(took_s) * 1e3, [50, 99, 99.9, 100])
    return dict(zip(("p50", "p99", "p999", "longest"), np.round(values, 2).tolist(), strict=True))


def _timed(work: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call, for so long in all."""
    took: list[float] = []
    while sum(took) < seconds or len(took) < 3:
        began_s = time.perf_counter()
        work()
        took.append(time.perf_counter() - began_s)
    return took


# ---------------------------------------------------------------- train
def train(run: "Run") -> dict[str, Any]:
    """Fill the hot set; steps with and without prefetch; steps under Zipf and uniform; new rows; a checkpoint
    under load."""
    generator = np.random.default_rng(22)
    with run.served() as (_, client):
        facts = _fill(run, client)
        facts |= _prefetched(run, client, generator)
        step = training_step(client)
        longest = []
        for kind in ("zipf", "uniform"):
            before = client.stats()[0].tables[0]
            batches = [draw(kind, generator, run.rows) for _ in range(3)]
            facts[f"{kind}_pull_rows_per_s"] = _rate(client, batches)
            took = _timed(partial(_step, step, kind, generator, run.rows), run.seconds)
            after = client.stats()[0].tables[0]
            hits = (after.hot_hits - before.hot_hits) / (after.pulled_ids - before.pulled_ids)
            facts |= {f"{kind}_step_ms": quantiles(took), f"{kind}_hit_rate": round(hits, 4)}
            longest.append(max(took))
            run.say(f"train: {kind}: {facts[f'{kind}_step_ms']}, hit rate {hits:.3f}")
        facts |= _insert(run, client, generator)
        facts |= _checkpoint(run, client, step, generator)
        longest += [facts["insert_ms"]["longest"] / 1e3, facts["checkpoint_step_ms"]["longest"] / 1e3]
        share = zipf_share(run.rows, run.hot_rows)
        return {**facts, "longest_step_s": max(longest), "zipf_share_of_hot": share}


def _step(step: Callable[[Batch], Any], kind: str, generator: np.random.Generator, rows: int) -> None:
    step(draw(kind, generator, rows))


def _fill(run: "Run", client: Client) -> dict[str, Any]:
    """Make the most frequent rows hot, in the order of their keys: neighbours share blocks."""
    began_s = time.perf_counter()
    count = int(run.hot_rows * 0.95)
    ids = ids_of(0, count)
    ids = ids[np.argsort(mix64(ids))]
    for number, first in enumerate(range(0, count, FILL_IDS)):
        client.pull(TABLE, ids[first : first + FILL_IDS])
        if number % max(1, count // FILL_IDS // 4) == 0:
            run.say(f"train: {first:,} of {count:,} rows are hot")
    hot = client.stats()[0].tables[0].hot_rows
    return {"hot_rows": hot, "fill_rows_per_s": count / (time.perf_counter() - began_s)}


def _rate(client: Client, batches: list[Batch]) -> float:
    """Requested ids per second of training pulls."""
    began_s = time.perf_counter()
    for batch in batches:
        client.pull(TABLE, batch.requested)
    return BATCH_IDS * len(batches) / (time.perf_counter() - began_s)


def _prefetched(run: "Run", client: Client, generator: np.random.Generator) -> dict[str, Any]:
    """Steps per second at HITS of the ids hot, without and with a pipeline that pulls ahead."""

    def batch() -> Batch:
        cold = int(BATCH_IDS * (1 - HITS))
        hot = generator.integers(0, int(run.hot_rows * 0.5), BATCH_IDS - cold)
        ranks = np.concatenate([hot, generator.integers(run.hot_rows, run.rows, cold)])
        return make_batch(ranks, np.full((BATCH_IDS, DIM), 0.01, np.float32))

    def plain() -> float:
        batches = [batch() for _ in range(PREFETCH_STEPS)]
        began_s = time.perf_counter()
        for b in batches:
            client.pull(TABLE, b.distinct)
            time.sleep(COMPUTE_S)
            client.push(TABLE, b.distinct, b.gradients)
        return PREFETCH_STEPS / (time.perf_counter() - began_s)

    def ahead() -> float:
        batches = [batch() for _ in range(PREFETCH_STEPS)]
        with client.pipeline(staleness=AHEAD) as pipeline:
            began_s = time.perf_counter()
            for b in pipeline.ahead(batches, lambda b: pipeline.prefetch({TABLE: b.distinct})):
                pipeline.pull(TABLE, b.distinct)
                time.sleep(COMPUTE_S)
                pipeline.push(TABLE, b.distinct, b.gradients)
            pipeline.flush()
            return PREFETCH_STEPS / (time.perf_counter() - began_s)

    plain()
    runs = [(plain(), ahead()) for _ in range(3)]
    without, with_ = (float(np.median([pair[i] for pair in runs])) for i in (0, 1))
    run.say(f"train: at {HITS:.0%} hits {without:.1f} steps/s, with prefetch {with_:.1f}")
    return {"plain_steps_per_s": without, "prefetch_steps_per_s": with_, "prefetch_runs": runs}


def _insert(run: "Run", client: Client, generator: np.random.Generator) -> dict[str, Any]:
    """Pushes of which half of the ids are new, until NEW_SHARE of the rows are; the others are Zipf's."""
    new, took = int(run.rows * NEW_SHARE), []
    gradients = np.full((INSERT_IDS, DIM), 0.01, np.float32)
    for first in range(run.rows, run.rows + new, INSERT_IDS // 2):
        known = np.unique(draw("zipf", generator, run.rows).requested)[: INSERT_IDS // 2]
        ids = np.concatenate([ids_of(first, min(first + INSERT_IDS // 2, run.rows + new)), known])
        began_s = time.perf_counter()
        client.push(TABLE, ids, gradients[: ids.shape[0]])
        took.append(time.perf_counter() - began_s)
    run.say(f"train: {new:,} new rows: {quantiles(took)}")
    return {"insert_ms": quantiles(took), "new_rows": new, "new_rows_per_s": new / sum(took)}


def _checkpoint(
    run: "Run", client: Client, step: Callable[[Batch], Any], generator: np.random.Generator
) -> dict[str, Any]:
    """A checkpoint while another thread trains."""
    done: list[float] = []

    def checkpoint() -> None:
        began_s = time.perf_counter()
        client.checkpoint()
        done.append(time.perf_counter() - began_s)

    dirty = client.stats()[0].tables[0].dirty_rows
    thread = threading.Thread(target=checkpoint)
    thread.start()
    took: list[float] = []
    while thread.is_alive() or len(took) < 3:
        began_s = time.perf_counter()
        step(draw("zipf", generator, run.rows))
        took.append(time.perf_counter() - began_s)
    thread.join()
    run.say(f"train: checkpoint of {dirty:,} rows in {done[0]:.1f} s; steps {quantiles(took)}")
    return {"checkpoint_s": done[0], "checkpoint_rows": dirty, "checkpoint_step_ms": quantiles(took)}


# ---------------------------------------------------------------- what comes after
def kill(run: "Run") -> dict[str, Any]:
    """SIGKILL with KILL_STEPS pushes in the log; seconds to the first answer, and to an exact count."""
    generator, pushed = np.random.default_rng(23), 0
    server = run.start()
    try:
        with connect(server.endpoint(), timeout_s=600.0) as client:
            for number in range(KILL_STEPS):
                batch = draw(("zipf", "uniform")[number % 2], generator, run.rows)
                client.push(TABLE, batch.distinct, batch.gradients)
                pushed += batch.distinct.shape[0]
            sample = batch.distinct[:1000]
            before = client.pull(TABLE, sample)
            rows = client.stats()[0].tables[0].rows
    finally:
        server.kill()
    began_s = time.perf_counter()
    with run.served() as (_, client):
        after = client.pull(TABLE, sample)
        first_s = time.perf_counter() - began_s
        assert np.array_equal(before, after), "an acknowledged push is there after a kill"
        while not client.stats()[0].tables[0].rows_exact:
            time.sleep(0.2)
        exact_s = time.perf_counter() - began_s
        found = client.stats()[0].tables[0].rows
    return {
        "first_answer_s": first_s, "rows_exact_s": exact_s, "rows": found, "rows_before": rows,
        "pushed_rows": pushed,
    }  # fmt: skip


def evict(run: "Run") -> dict[str, Any]:
    """Eviction by TTL of the rows that are too old."""
    with run.served() as (_, client):
        began_s = time.perf_counter()
        gone = client.evict(TABLE)
        took_s = time.perf_counter() - began_s
        rows = client.stats()[0].tables[0].rows  # fewer yet where an earlier eviction was broken off
    return {"evict_s": took_s, "evicted_rows": gone, "rows": rows, "ttl_s": TTL_S}


def compact(run: "Run") -> dict[str, Any]:
    """One compaction of everything, in a stopped shard."""
    before = _files_bytes(run.shard)
    began_s = time.perf_counter()
    with opened_store(run.data, run.config) as store:
        family = store.families[f"row.{TABLE}"]
        family.compact()
        took_s = time.perf_counter() - began_s
        disk_bytes = family.disk_bytes()
    rows = run.found["evict"]["rows"]
    return {
        "compact_s": took_s, "disk_bytes_before": before, "disk_bytes": disk_bytes, "rows": rows,
        "disk_bytes_per_row": disk_bytes / rows,
    }  # fmt: skip


def verify(run: "Run") -> dict[str, Any]:
    """`psctl verify`, and that it finds as many rows as the server counted."""
    began_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "ps_server.psctl", "verify", str(run.shard), "--json"],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    report = json.loads(done.stdout)[0]
    rows = report["tables"][0]["rows"]
    assert rows == run.found["compact"]["rows"], "the count is that of the rows"
    return {"verify_s": time.perf_counter() - began_s, "rows": rows, "damage": report["damage"]}


def export(run: "Run") -> dict[str, Any]:
    """Export of the first hundredth of the rows to Parquet."""
    began_s, rows, wanted = time.perf_counter(), 0, run.rows // 100
    path = run.folder / "export.parquet"
    batches = export_table(run.shard, TABLE)
    first = next(batches)
    with pq.ParquetWriter(path, first.schema) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_batch(batch)
            rows += batch.num_rows
            if rows >= wanted:
                break
    took_s = time.perf_counter() - began_s
    bytes_ = path.stat().st_size
    path.unlink()
    return {"export_s": took_s, "rows": rows, "bytes": bytes_}
