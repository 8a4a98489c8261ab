# SPDX-License-Identifier: Apache-2.0
"""table.bulk_load, and how the workloads on disk get their rows.

Both sides start from ids and weights in memory, in no order, and end with rows that are in the store's
files and readable: sorting, writing SST files and ingesting them are inside the clock.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rocksdict import IngestExternalFileOptions, Rdict

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.batch import DIM, ids_of
from benchmarks.embedded import SGD, TABLE, embedded, require_equal, table_config
from benchmarks.peer_rocksdict import FILE_ROWS, NAME, key_list, memory_options, write_sorted
from ps_server.bulk.load import bulk_load
from ps_server.config.cluster import load_config, shard_directory

CHUNK_ROWS: Final = 250_000

Chunk = tuple[NDArray[np.uint64], NDArray[np.float32]]


def noise_rows(rows: int) -> Iterator[Chunk]:
    """Ids of ranks 0..rows-1, and weights as hard to compress as trained ones, in chunks."""
    generator = np.random.default_rng(3)
    for first in range(0, rows, CHUNK_ROWS):
        ids = ids_of(first, min(first + CHUNK_ROWS, rows))
        yield ids, generator.standard_normal((ids.shape[0], DIM), np.float32) * np.float32(0.05)


def shard_folder(folder: Path, config: dict[str, Any]) -> Path:
    """Directory of the one shard of an embedded table in `folder`."""
    return shard_directory(load_config(config, {"data_dir": str(folder)}), 0)


def fill(folder: Path, config: dict[str, Any], rows: int) -> None:
    """Make a closed embedded shard with so many rows of noise, by a bulk load."""
    with embedded(folder, config):
        pass
    state = config["tables"][0]["optimizer"].get("initial_accumulator_value")
    batches = (
        (ids, weights) if state is None else (ids, weights, np.full_like(weights, state))
        for ids, weights in noise_rows(rows)
    )
    bulk_load(shard_folder(folder, config), TABLE, batches)


def measure(settings: Settings, name: str, goal: Goal) -> list[Bar]:
    """Ours into a stopped shard, beside a loop over rocksdict's SstFileWriter."""
    chunks = list(noise_rows(settings.rows))
    config = table_config(SGD, durability="none")
    ours, theirs = [], []
    for run in range(settings.runs):
        folder = settings.scratch / f"ours-{run}"
        with embedded(folder, config):
            pass
        began_s = time.perf_counter()
        bulk_load(shard_folder(folder, config), TABLE, chunks)
        ours.append(settings.rows / (time.perf_counter() - began_s) / 1e6)
        taken_s, found = _peer_load(settings.scratch / f"peer-{run}", chunks)
        theirs.append(settings.rows / taken_s / 1e6)
        with embedded(folder, config) as client:
            require_equal(name, client.pull(TABLE, chunks[-1][0][:1000], read_only=True), found, 0.0)
        shutil.rmtree(folder)
        shutil.rmtree(settings.scratch / f"peer-{run}")
    what = f"bulk load, {settings.rows / 1e6:g} M rows, unsorted in"
    peer = f"{NAME} SstFileWriter loop + ingest, argsort, no compression (ours: zstd)"
    second = Goal("figure", "at least", 1.0)
    return [
        make_bar(name, what, "M rows/s", goal, ours, peer, theirs, {"rows": settings.rows}),
        make_bar(f"{name}.rate", what, "M rows/s", second, ours),
    ]


def _peer_load(folder: Path, chunks: list[Chunk]) -> tuple[float, NDArray[np.float32]]:
    """Seconds of the peer's load, and its first 1,000 rows of the last chunk."""
    options = memory_options(64 << 20)
    database: Any = Rdict(str(folder), options)
    began_s = time.perf_counter()
    ids = np.concatenate([chunk[0] for chunk in chunks])
    rows = np.concatenate([chunk[1] for chunk in chunks])
    order = np.argsort(ids)
    files = []
    for first in range(0, ids.shape[0], FILE_ROWS):
        part = order[first : first + FILE_ROWS]
        files.append(folder / f"load-{first}.sst")
        write_sorted(files[-1], options, ids[part], rows[part])
    moving = IngestExternalFileOptions()
    moving.set_move_files(True)
    database.ingest_external_file([str(file) for file in files], moving)
    taken_s = time.perf_counter() - began_s
    values = database[key_list(chunks[-1][0][:1000])]
    database.close()
    return taken_s, np.frombuffer(b"".join(values), np.float32).reshape(-1, DIM)
