# SPDX-License-Identifier: Apache-2.0
"""table.disk_per_row.* and table.cold_pull: rows on disk.

Both load a table in bulk and compact its store.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from rowhouse.mix import mix64

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.batch import BATCH_IDS, DIM, Batch, make_batch
from benchmarks.contest import contest
from benchmarks.embedded import SGD, TABLE, embedded, require_equal, table_config
from benchmarks.peer_rocksdict import StoredRows
from benchmarks.table_load import fill, shard_folder
from benchmarks.table_memory import RAW_BYTES
from ps_client.client import Client
from ps_server.config.cluster import load_config
from ps_server.disk.store import Store
from ps_server.table.budget import STORE_BYTES_MAX, STORE_SHARE

COLD_BATCHES_MIN: Final = 6
COLD_BATCHES_MAX: Final = 512
WARMUP_BATCHES: Final = 2
"""A batch that warmed up is hot afterwards, so there are few, the last ones."""

CACHE_SHARE: Final = 0.14
"""Block cache for the raw bytes of all rows: 512 MiB for 50 M rows of 72 B."""

READ_BYTES: Final = 8 << 20


@contextmanager
def opened_store(folder: Path, config: dict[str, Any]) -> Iterator[Store]:
    """The store of the closed embedded shard in `folder`."""
    resolved = load_config(config, {"data_dir": str(folder)})
    widths = {f"row.{TABLE}": resolved.tables[0].layout.value_bytes}
    directory = shard_folder(folder, config) / "store"
    store = Store(directory, widths, cache_bytes=64 << 20, memtable_bytes=16 << 20)
    try:
        yield store
    finally:
        store.close()


def fill_compacted(folder: Path, config: dict[str, Any], rows: int) -> int:
    """Make a shard with so many rows, closed, its store compacted; returns bytes of the row files."""
    fill(folder, config, rows)
    with opened_store(folder, config) as store:
        family = store.families[f"row.{TABLE}"]
        family.compact()
        return family.disk_bytes()


def measure_size(settings: Settings, name: str, dtype: str, goal: Goal) -> list[Bar]:
    """Bytes of compacted row files per row, of a table without optimizer state."""
    folder, config = settings.scratch / "table", table_config(SGD, dtype=dtype, durability="none")
    disk_bytes = fill_compacted(folder, config, settings.rows)
    everything = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    detail = {"rows": settings.rows, "folder_bytes_per_row": everything / settings.rows}
    what, peer = f"disk per row, compacted, {dtype} SGD", f"the id and the {dtype} weights alone"
    figure = [disk_bytes / settings.rows]
    return [make_bar(name, what, "B/row", goal, figure, peer, ratio_to=RAW_BYTES[dtype], detail=detail)]


def cold_batches(rows: int) -> list[Batch]:
    """Batches of distinct ids of which no two share one: each id is cold when its turn comes."""
    count = min(rows // BATCH_IDS, COLD_BATCHES_MAX)
    if count < COLD_BATCHES_MIN:
        least = COLD_BATCHES_MIN * BATCH_IDS
        raise ValueError(f"rows is {rows}; cold batches that share no id need {least} or more")
    order = np.random.default_rng(5).permutation(rows)
    gradients = np.zeros((BATCH_IDS, DIM), np.float32)
    return [make_batch(order[i * BATCH_IDS : (i + 1) * BATCH_IDS], gradients) for i in range(count)]


def small_budget(rows: int) -> tuple[int, int]:
    """memory_budget whose block cache is CACHE_SHARE of the rows, and that cache, in bytes."""
    share = min(max(int(rows * RAW_BYTES["fp32"] * CACHE_SHARE), 8 << 20), STORE_BYTES_MAX)
    return int(share / STORE_SHARE), share - 4 * min(max(share // 8, 64 << 10), 64 << 20)


def read_files(folder: Path) -> None:
    """Bring every row file of a folder (or one file) into the page cache: no side pays for the first read."""
    for path in sorted(folder.rglob("*.sst")) if folder.is_dir() else [folder]:
        with path.open("rb", buffering=0) as file:
            while file.read(READ_BYTES):
                pass


def hot_share(client: Client) -> float:
    """Share of the pulled ids that were hot."""
    table = client.stats()[0].tables[0]
    return table.hot_hits / max(table.pulled_ids, 1)


def measure_cold(settings: Settings, name: str, goal: Goal) -> list[Bar]:
    """Pull of rows that are not in memory, beside rocksdict on the same files with the same cache.

    Ours promotes what it reads, as a training pull does; the page cache is warm for both sides.
    """
    rows, folder = settings.rows, settings.scratch / "table"
    fill_compacted(folder, table_config(SGD, durability="none"), rows)
    budget, cache_bytes = small_budget(rows)
    config = table_config(SGD, durability="none", memory_budget=budget)
    store = shard_folder(folder, config) / "store"
    read_files(store)
    batches = cold_batches(rows)
    out = np.empty((BATCH_IDS, DIM), np.float32)
    with embedded(folder, config) as client:
        peer = StoredRows(store, f"row.{TABLE}", cache_bytes)

        def ours(batch: Batch) -> None:
            client.pull(TABLE, batch.requested, out)

        def theirs(batch: Batch) -> None:
            peer.get(np.sort(mix64(batch.requested)))

        for batch in batches[:2]:
            ours(batch)
            require_equal(name, out, peer.get(mix64(batch.requested)), 0.0)
        mine, other = contest([ours, theirs], batches[2:], replace(settings, warmup_batches=WARMUP_BATCHES))
        hot = hot_share(client)
        peer.close()
    detail = {
        **mine.detail("ours"), **other.detail("peer"), "rows": rows, "cache_bytes": cache_bytes,
        "share_hot": round(hot, 3),
    }  # fmt: skip
    what = f"pull of rows not in memory, {rows / 1e6:g} M on disk"
    return [make_bar(name, what, "M rows/s", goal, mine.millions, peer.name, other.millions, detail)]
