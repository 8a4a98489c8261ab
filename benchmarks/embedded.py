# SPDX-License-Identifier: Apache-2.0
"""A table of ours for a workload, opened as a user opens one: ps_client.connect("embedded:DIR").

Rows are made by pushing zero gradients, which leaves every weight at its initial value and creates the
row; so a peer is given the same rows by pulling them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.bar import Settings
from benchmarks.batch import DIM, Batch, ids_of
from ps_client import connect
from ps_client.client import Client

TABLE: Final = "bench"
CHUNK_IDS: Final = 50_000
ADAGRAD: Final[dict[str, Any]] = {
    "kind": "adagrad", "learning_rate": 0.01, "initial_accumulator_value": 0.1
}  # fmt: skip
SGD: Final[dict[str, Any]] = {"kind": "sgd", "learning_rate": 0.01}


LOG_BYTES_PER_S: Final = 1 << 29
"""More than a step logs here. Log pages that were written before are dirty, or at least in memory, and cost
what they cost in a long run; new ones cost what the kernel makes of the whole machine's dirty pages."""

LOG_S_MIN: Final = 2.0
"""Seconds of writing that a segment has room for at least: the runs of a quick run, and its warm-up."""


def table_config(optimizer: dict[str, Any], **cluster: Any) -> dict[str, Any]:
    """Config of a cluster with the one table of the workloads; `cluster` overrides its keys.

    The push log may grow to 8 GiB: no checkpoint falls into a timed run (checkpoints have a workload of
    their own).
    """
    dtype = cluster.pop("dtype", "fp32")
    table = {"name": TABLE, "dim": DIM, "dtype": dtype, "optimizer": optimizer}
    return {"tables": [table], "memory_budget": "3GiB", "checkpoint_log_bytes": "8GiB", **cluster}


@contextmanager
def embedded(folder: Path, config: dict[str, Any]) -> Iterator[Client]:
    """A client of a fresh embedded shard in `folder`, closed at the end."""
    with connect(f"embedded:{folder}", config=config) as client:
        yield client


@contextmanager
def embedded_scratch(settings: Settings, name: str, config: dict[str, Any]) -> Iterator[Client]:
    """As `embedded`, in a folder of `settings.scratch`; nobody reads it afterwards.

    A shard that closes writes every row that changed, seconds for two million. Under `settings.discard` it is
    left as it is, and ends with the process.
    """
    client = connect(f"embedded:{settings.scratch / name}", config=config)
    try:
        yield client
    except BaseException:
        client.close()
        raise
    if not settings.discard:
        client.close()


def create_rows(client: Client, ids: int, start: int = 0) -> None:
    """Make the rows of ranks start..ids-1 exist at their initial values."""
    zeros = np.zeros((CHUNK_IDS, DIM), np.float32)
    for first in range(start, ids, CHUNK_IDS):
        chunk = ids_of(first, min(first + CHUNK_IDS, ids))
        client.push(TABLE, chunk, zeros[: chunk.shape[0]])


def all_rows(client: Client, ids: int) -> NDArray[np.float32]:
    """Rows by rank, (ids, DIM) float32: what a peer starts from."""
    rows = np.empty((ids, DIM), np.float32)
    for first in range(0, ids, CHUNK_IDS):
        last = min(first + CHUNK_IDS, ids)
        client.pull(TABLE, ids_of(first, last), rows[first:last])
    return rows


def require_equal(what: str, ours: NDArray[np.float32], theirs: NDArray[np.float32], bound: float) -> float:
    """Largest difference of two arrays; ValueError past `bound`: a wrong answer is not worth timing."""
    if ours.shape != theirs.shape:
        raise ValueError(f"{what}: shapes {ours.shape} and {theirs.shape} differ")
    difference = float(np.abs(ours - theirs).max()) if ours.size else 0.0
    if not difference <= bound:
        raise ValueError(f"{what}: answers differ by {difference:g}; at most {bound:g} is rounding")
    return difference


def write_log(client: Client, batches: list[Batch], seconds: float) -> Callable[[], None]:
    """Make the log's segments as long as a run of so many seconds needs, and drop them for it to use.

    Returns
    -------
    Callable
        What to do before such a run: a checkpoint where the segment in use has no room left for it. It writes
        every row that changed, which takes seconds for two million, so a short run comes without one.
    """
    shards = len(client.stats())
    room, needed = LOG_BYTES_PER_S * max(seconds, LOG_S_MIN) / shards, LOG_BYTES_PER_S * seconds / shards
    same = batches[0]  # whichever rows fill the log: the checkpoint after these writes few
    for _ in range(2):  # the one in use, and the one before it
        while _log_bytes(client) < room:
            for _ in range(16):
                client.push(TABLE, same.distinct, same.gradients)
        client.checkpoint()

    def before_run() -> None:
        if _log_bytes(client) + needed > room:
            client.checkpoint()

    return before_run


def _log_bytes(client: Client) -> int:
    """Of the shard that has the most."""
    return max(shard.log_bytes for shard in client.stats())
