# SPDX-License-Identifier: Apache-2.0
"""The table of the workload `scale`: its config, its rows, and the batches that are drawn from them.

Row number r has the id mix64(r) and noise for weights, so a row of any number is known without a list of ids.
Row 0 is the most frequent one under Zipf. Every hundredth row is as old as the table's ttl allows no more.

Thread safety: pure functions; a generator is its caller's.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rowhouse.mix import mix64

from benchmarks.batch import ALPHA, BATCH_IDS, DIM, Batch, ids_of, make_batch
from benchmarks.embedded import SGD, table_config
from ps_server.plan.network import zipf_ranks

CHUNK_ROWS: Final = 250_000
TTL_S: Final = 30 * 86_400.0
OLD_EVERY: Final = 100
RECORD_BYTES: Final = 50
"""Key, weights, LSN and time of the last push, as a load has them in its scratch space."""


def config(memory_budget: int) -> dict[str, Any]:
    """Config of the cluster: fp16, dim 16, SGD, rows that are not pushed for 30 days may be evicted."""
    cluster = table_config(
        SGD, dtype="fp16", durability="os", memory_budget=memory_budget, checkpoint_log_bytes="2GiB"
    )
    cluster["tables"][0]["eviction"] = [{"kind": "ttl", "ttl_s": TTL_S}]
    return cluster


def record_batches(rows: int, progress: Callable[[int], None]) -> Iterator[pa.RecordBatch]:
    """Rows 0..rows-1 as a load takes them, in chunks; `progress` hears how many were given."""
    pool = np.random.default_rng(3).standard_normal((CHUNK_ROWS, DIM), np.float32)
    weights = (pool * np.float32(0.05)).astype(np.float16)
    now_s = int(time.time())
    for number, first in enumerate(range(0, rows, CHUNK_ROWS)):
        ids = ids_of(first, min(first + CHUNK_ROWS, rows))
        count = ids.shape[0]
        pushed = np.full(count, now_s, np.uint32)
        pushed[::OLD_EVERY] = now_s - int(2 * TTL_S)
        moved = np.roll(weights, number, axis=1) if number % DIM else np.roll(weights, number, axis=0)
        values = pa.array(np.ascontiguousarray(moved[:count]).reshape(-1), pa.float16())
        columns = [pa.array(ids), pa.FixedSizeListArray.from_arrays(values, DIM), pa.array(pushed)]
        yield pa.RecordBatch.from_arrays(columns, ["id", "weights", "push_time"])
        progress(first + count)


def zipf_share(rows: int, hottest: int) -> float:
    """Share of the draws that fall on the `hottest` rows."""
    power = 1 - ALPHA
    return float((1 - (hottest + 1.0) ** power) / (1 - (rows + 1.0) ** power))


def draw(distribution: str, generator: np.random.Generator, rows: int) -> Batch:
    """A batch of BATCH_IDS requested ids."""
    if distribution == "uniform":
        ranks = generator.integers(0, rows, BATCH_IDS, dtype=np.int64)
    else:
        ranks = zipf_ranks(generator, rows, BATCH_IDS)
    return make_batch(ranks, np.full((BATCH_IDS, DIM), 0.01, np.float32))


def ids_in_slice(generator: np.random.Generator, rows: int, share: float, count: int) -> NDArray[np.uint64]:
    """(count,) ids of rows, uniform among those whose key is in the first `share` of all keys."""
    end = np.uint64(min(int(share * (1 << 64)), (1 << 64) - 1))
    found: list[NDArray[np.uint64]] = []
    have = 0
    while have < count:
        ids = mix64(generator.integers(0, rows, 1 << 20, dtype=np.uint64))
        found.append(ids[mix64(ids) <= end])
        have += found[-1].shape[0]
    return np.concatenate(found)[:count]
