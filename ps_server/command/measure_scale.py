# SPDX-License-Identifier: Apache-2.0
"""One shard with many rows, measured here as `python -m benchmarks run scale` does: `psctl plan --check`.

A bulk load, a start, a kill with pushes in the log, a start after it. The server is a process of its own, and
what it says over its port is its first answer; that is why this is among the commands.

Thread safety: one measurement per folder.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.document import dump
from rowhouse.error import StoreError
from rowhouse.mix import mix64

from ps_client import connect
from ps_client.client import Client
from ps_server.bulk.column import RESETTABLE
from ps_server.bulk.load import bulk_load
from ps_server.config.cluster import ClusterConfig, load_config, shard_directory
from ps_server.plan.network import BATCH_IDS, zipf_ranks
from ps_server.plan.scale import ScaleRun
from ps_server.table.budget import least_budget

TABLE: Final = "plan"
DIM: Final = 16
CHUNK_ROWS: Final = 250_000
HOT_SHARE: Final = 1 / 16
HOT_ROWS_MIN: Final = 6 * BATCH_IDS
PUSHES: Final = 50
"""In the log when the server is killed, by turns Zipf and uniform."""

ANSWER_S: Final = 600.0
POLL_S: Final = 0.02


def _config(folder: Path, rows: int) -> ClusterConfig:
    table = {
        "name": TABLE, "dim": DIM, "dtype": "fp16", "optimizer": {"kind": "sgd"},
        "eviction": [{"kind": "ttl", "ttl_s": 30 * 86_400.0}],
    }  # fmt: skip
    cluster: dict[str, Any] = {
        "tables": [table], "data_dir": str(folder / "data"), "shards": ["127.0.0.1:0"],
        "checkpoint_log_bytes": "2GiB",
    }  # fmt: skip
    cost_bytes = load_config(cluster).tables[0].layout.cost_bytes
    hot_rows = max(int(rows * HOT_SHARE), HOT_ROWS_MIN)
    return load_config({**cluster, "memory_budget": least_budget(hot_rows * cost_bytes)})


def _rows(rows: int) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float32]]]:
    noise = np.random.default_rng(3).standard_normal((CHUNK_ROWS, DIM), np.float32) * np.float32(0.05)
    for first in range(0, rows, CHUNK_ROWS):
        ids = mix64(np.arange(first, min(first + CHUNK_ROWS, rows), dtype=np.uint64))
        yield ids, np.roll(noise, first // CHUNK_ROWS, axis=1)[: ids.shape[0]]


def _batch(generator: np.random.Generator, rows: int, number: int) -> NDArray[np.uint64]:
    """Distinct ids of a step."""
    uniform = bool(number % 2)
    ranks = generator.integers(0, rows, BATCH_IDS) if uniform else zipf_ranks(generator, rows, BATCH_IDS)
    return np.unique(mix64(ranks.astype(np.uint64)))


@contextmanager
def _served(config_path: Path, output: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Client, float]]:
    """A server, a client that has had an answer, and the seconds until it came. Stopped in order at the end,
    unless it is dead already."""
    words = ["-m", "ps_server.cli", "serve", "--config", str(config_path), "--shard", "0", "--quiet"]
    began_s = time.perf_counter()
    with output.open("wb") as sink:
        server = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        while " serves at " not in (text := output.read_text(encoding="utf-8")):
            if server.poll() is not None or time.perf_counter() > began_s + ANSWER_S:
                raise StoreError(f"the server did not start: {text.strip()[-500:]}")
            time.sleep(POLL_S)
        with connect(text.split(" serves at ")[1].split()[0], timeout_s=ANSWER_S) as client:
            client.pull(TABLE, mix64(np.arange(64, dtype=np.uint64)), read_only=True)
            yield server, client, time.perf_counter() - began_s
    finally:
        server.terminate()
        server.wait()


def measure_scale(rows: int, folder: Path, say: Callable[[str], None]) -> ScaleRun:
    """One run of so many rows.

    Parameters
    ----------
    rows
        How many.
    folder
        For the data, some 60 bytes a row; what is written stays there.
    say
        Told what comes next.
    """
    config = _config(folder, rows)
    config_path = folder / "cluster.yaml"
    config_path.write_text(dump(config.model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
    directory = shard_directory(config, 0)
    with _served(config_path, folder / "server.txt"):
        say(f"a load of {rows:,} rows")
    began_s = time.perf_counter()
    bulk_load(directory, TABLE, _rows(rows), reset=RESETTABLE)
    load_s = time.perf_counter() - began_s
    disk_bytes = sum(path.stat().st_size for path in directory.rglob("*.sst"))
    say(f"loaded in {load_s:.0f} s; a start")
    with _served(config_path, folder / "server.txt") as (server, _client, reopen_clean_s):
        memory_bytes = _resident_bytes(server.pid)
        open_files = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
    say(f"started in {reopen_clean_s:.2f} s; {PUSHES} pushes, and a kill")
    replayed, generator = 0, np.random.default_rng(23)
    gradients = np.full((BATCH_IDS, DIM), 0.01, np.float32)
    with _served(config_path, folder / "server.txt") as (server, client, _):
        for number in range(PUSHES):
            ids = _batch(generator, rows, number)
            client.push(TABLE, ids, gradients[: ids.shape[0]])
            replayed += ids.shape[0]
        server.kill()
        server.wait()
    with _served(config_path, folder / "server.txt") as (_, _client, reopen_crash_s):
        say(f"started after the kill in {reopen_crash_s:.1f} s")
    return ScaleRun(
        rows=rows, load_s=load_s, disk_bytes_per_row=disk_bytes / rows,
        memory_bytes=memory_bytes, open_files=open_files, reopen_clean_s=reopen_clean_s,
        reopen_crash_s=reopen_crash_s, replayed_rows=replayed,
    )  # fmt: skip


def _resident_bytes(process: int) -> int:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except OSError as error:
        raise StoreError(f"memory of the server cannot be read here: {error}") from None
    return pages * os.sysconf("SC_PAGE_SIZE")
