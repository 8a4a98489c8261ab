# SPDX-License-Identifier: Apache-2.0
"""Measures here what a plan is made of: real shards, real pushes, real recovery, real files.

A run has three processes, each new, so that none finds another one's memory: `grow` pushes rows into an empty
shard, reads its resident set before and after, checkpoints, pushes a quarter again and dies with that in
its log; `settle` recovers, closes, compacts and counts bytes; `load` loads rows in bulk. Rows are pushed 256
at a time, so that neighbours on disk carry different LSNs, as trained rows do, and gradients are of size
1, so that optimizer state is as hard to compress as trained state.

    python -m ps_server.plan.measure grow|settle|load DTYPE DIM OPTIMIZER ROWS FOLDER

Thread safety: one run per folder.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype, message
from rowhouse.error import StoreError
from rowhouse.mix import mix64

from ps_server.bulk.column import RESETTABLE
from ps_server.bulk.load import bulk_load
from ps_server.config.cluster import ClusterConfig, load_config, shard_directory
from ps_server.disk.directory import open_store, read_descriptor
from ps_server.plan.constant import Kind, Run
from ps_server.plan.row_bytes import table_of
from ps_server.serve.embedded import open_embedded
from ps_server.shard.shard import Shard

KINDS: Final = (
    Kind(dtype="fp32", dim=16, optimizer="sgd"), Kind(dtype="fp16", dim=16, optimizer="sgd"),
    Kind(dtype="bf16", dim=16, optimizer="sgd"), Kind(dtype="bf16", dim=48, optimizer="sgd"),
    Kind(dtype="fp32", dim=64, optimizer="sgd"), Kind(dtype="fp32", dim=16, optimizer="adagrad"),
    Kind(dtype="fp16", dim=32, optimizer="adagrad"), Kind(dtype="fp16", dim=6, optimizer="adagrad"),
    Kind(dtype="fp32", dim=5, optimizer="adam"),
)  # fmt: skip
"""Each dtype, several dims, and state of one and two words per weight."""

CHECKED: Final = (
    *KINDS[:2], KINDS[5], Kind(dtype="fp16", dim=24, optimizer="sgd"),
    Kind(dtype="fp32", dim=32, optimizer="sgd"), Kind(dtype="fp32", dim=8, optimizer="adam"),
    Kind(dtype="fp32", dim=12, optimizer="rowwise_adagrad"), Kind(dtype="bf16", dim=64, optimizer="adagrad"),
)  # fmt: skip
"""What `--check` measures: the classic rows, and kinds that no constant was fitted to."""

LOADED: Final = frozenset({KINDS[0], KINDS[4]})
"""Kinds whose bulk load is timed: two lengths of a row."""

TABLE: Final = "plan"
PUSH_ROWS: Final = 256
BASE_ROWS: Final = 65_536
"""Rows before the first look at memory: kernels are compiled then, and buffers as large as a push needs."""

AGAIN: Final = 4
"""One row in so many is pushed again after the checkpoint."""

CHUNK_ROWS: Final = 65_536
LAST_LINE: Final = -1


def _config(kind: Kind, rows: int, folder: Path) -> ClusterConfig:
    table = table_of(TABLE, dim=kind.dim, dtype_name=kind.dtype, optimizer=kind.optimizer)
    budget = 2 * rows * kind.layout.cost_bytes + (1 << 30)
    return load_config(
        {
            "tables": [table.model_dump(mode="json")], "data_dir": str(folder), "memory_budget": budget,
            "checkpoint_log_bytes": "1TiB",
        }
    )  # fmt: skip


def _gradients(kind: Kind, rows: int) -> NDArray[np.float32]:
    return np.random.default_rng(rows).standard_normal((rows, kind.dim), np.float32)


def _push(shard: Shard, kind: Kind, first: int, last: int, sequence: int) -> int:
    """Push rows first..last-1, PUSH_ROWS at a time; returns the sequence number after them."""
    gradients = _gradients(kind, PUSH_ROWS)
    for start in range(first, last, PUSH_ROWS):
        ids = mix64(np.arange(start, min(start + PUSH_ROWS, last), dtype=np.uint64))
        turned = np.roll(gradients, start % 997, axis=1) * np.float32(1 + start % 7)
        part = message.TableGradients(
            table=TABLE, dtype=dtype.FLOAT32, ids=ids, gradients=turned[: ids.shape[0]], learning_rate=None,
            shows=None, clicks=None,
        )  # fmt: skip
        shard.push(
            message.PushRequest(
                map_version=shard.partition_map.version, client_id=1, sequence=sequence, tables=(part,)
            )
        )
        sequence += 1
    return sequence


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError as error:
        raise StoreError(f"resident memory cannot be read here: {error}") from None
    return pages * os.sysconf("SC_PAGE_SIZE")


def grow(kind: Kind, rows: int, folder: Path) -> dict[str, float]:
    """Rows into an empty shard; then a checkpoint, and a log that is left behind."""
    shard = open_embedded(folder, _config(kind, rows, folder).model_dump(mode="json"))
    process_bytes = _resident_bytes()
    sequence = _push(shard, kind, 0, BASE_ROWS, 1)
    before = _resident_bytes()
    sequence = _push(shard, kind, BASE_ROWS, rows, sequence)
    grown = _resident_bytes() - before
    shard.checkpoint()
    _push(shard, kind, 0, rows // AGAIN, sequence)
    return {"memory_bytes": grown / (rows - BASE_ROWS), "process_bytes": process_bytes}


def settle(kind: Kind, rows: int, folder: Path) -> dict[str, float]:
    """Recovery from that log, and the compacted files."""
    config = _config(kind, rows, folder).model_dump(mode="json")
    began_s = time.perf_counter()
    shard = open_embedded(folder, config)
    recovered_s = time.perf_counter() - began_s
    shard.close()
    began_s = time.perf_counter()
    open_embedded(folder, config).close()
    start_s = time.perf_counter() - began_s
    directory = shard_directory(_config(kind, rows, folder), 0)
    store = open_store(directory, read_descriptor(directory).families(), read_only=False)
    try:
        family = store.families[f"row.{TABLE}"]
        family.compact()
        disk_bytes = family.disk_bytes()
    finally:
        store.close()
    return {
        "disk_bytes": disk_bytes / rows, "start_s": start_s,
        "replay_row_s": max(recovered_s - start_s, 0.0) / (rows // AGAIN),
    }  # fmt: skip


def _chunks(kind: Kind, rows: int) -> Iterator[tuple[NDArray[np.uint64], NDArray[Any]]]:
    noise = _gradients(kind, CHUNK_ROWS) * np.float32(0.05)
    weights = dtype.narrow(noise, dtype.CODES[kind.dtype])
    for first in range(0, rows, CHUNK_ROWS):
        ids = mix64(np.arange(first, min(first + CHUNK_ROWS, rows), dtype=np.uint64))
        yield ids, weights[: ids.shape[0]]


def load(kind: Kind, rows: int, folder: Path) -> dict[str, float]:
    """A bulk load into a stopped shard."""
    config = _config(kind, rows, folder)
    open_embedded(folder, config.model_dump(mode="json")).close()
    began_s = time.perf_counter()
    bulk_load(shard_directory(config, 0), TABLE, _chunks(kind, rows), reset=RESETTABLE)
    return {"load_row_s": (time.perf_counter() - began_s) / rows}


def measure(kind: Kind, rows: int, folder: Path) -> Run:
    """One run, in processes of its own; what it wrote is gone afterwards.

    Parameters
    ----------
    kind
        What a row is.
    rows
        How many, BASE_ROWS + 1 or more.
    folder
        A folder for it.

    Raises
    ------
    StoreError
        A process ended before it was done.
    """
    if rows <= BASE_ROWS:
        raise StoreError(f"rows is {rows}; a measurement needs more than {BASE_ROWS}")
    place = folder / f"{kind.dtype}-{kind.dim}-{kind.optimizer}"
    try:
        found = {**_child("grow", kind, rows, place), **_child("settle", kind, rows, place)}
        if kind in LOADED:
            found |= _child("load", kind, rows, place / "load")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return Run(kind=kind, rows=rows, **found)


def _child(step: str, kind: Kind, rows: int, folder: Path) -> dict[str, float]:
    words = [step, kind.dtype, str(kind.dim), kind.optimizer, str(rows), str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "ps_server.plan.measure", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[LAST_LINE:] or ["no output"]
        raise StoreError(f"measuring {kind}: {step} ended with exit code {done.returncode}: {last[0]}")
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[LAST_LINE])
    return facts


def main(words: list[str]) -> None:
    """One step, as `_child` starts it; ends without closing anything, as a killed shard does."""
    step, dtype_name, dim, optimizer, rows, folder = words
    kind = Kind(dtype=dtype_name, dim=int(dim), optimizer=optimizer)
    facts = {"grow": grow, "settle": settle, "load": load}[step](kind, int(rows), Path(folder))
    print(json.dumps(facts), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
