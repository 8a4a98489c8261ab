# SPDX-License-Identifier: Apache-2.0
"""A small shard with known rows, and ways to damage its directory, for the tests of offline work."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype, message

from ps_server.config.cluster import ClusterConfig, load_config
from ps_server.disk.directory import open_store, read_descriptor
from ps_server.shard.shard import Shard

TABLES: list[dict[str, Any]] = [
    {"name": "user", "dim": 4, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}},
    {"name": "item", "dim": 3, "dtype": "fp16", "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
]
DIMS = {"user": 4, "item": 3}


def make_config(path: Path, **keys: Any) -> ClusterConfig:
    return load_config({"data_dir": str(path), "tables": TABLES, "memory_budget": "16MiB", **keys})


def open_shard(config: ClusterConfig, index: int = 0, **keys: Any) -> Shard:
    return Shard.open(config, index, config.data_dir / f"shard-{index:04d}", **keys)


def push(shard: Shard, sequence: int, table: str, ids: NDArray[np.uint64]) -> None:
    """Push gradients that depend on the sequence only."""
    gradients = np.random.default_rng(sequence).standard_normal((ids.shape[0], DIMS[table]), np.float32)
    part = message.TableGradients(table, dtype.FLOAT32, ids, gradients)
    shard.push(message.PushRequest(shard.partition_map.version, 99, sequence, (part,)))


def pull(shard: Shard, table: str, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
    part = message.TableIds(table, DIMS[table], ids)
    request = message.PullRequest(shard.partition_map.version, dtype.FLOAT32, False, (part,))
    rows: NDArray[np.float32] = shard.pull(request).tables[0].rows
    return rows


def fill(shard: Shard, rows: int = 6000) -> NDArray[np.uint64]:
    """The same ids in both tables, in two pushes each; returns them."""
    ids = np.arange(rows, dtype=np.uint64)
    own: NDArray[np.bool_] = shard.partition_map.shards_of(ids) == shard.index
    ids = ids[own]
    for i, half in enumerate((ids[::2], ids[1::2])):
        push(shard, 2 * i + 1, "user", half)
        push(shard, 2 * i + 2, "item", half)
    return ids


def stopped(path: Path, rows: int = 6000) -> Path:
    """The directory of a filled shard that was stopped cleanly."""
    shard = open_shard(make_config(path))
    fill(shard, rows)
    shard.close()
    return shard.directory


def largest_file(directory: Path) -> Path:
    """The SST file with the rows of `user`, the larger table."""
    return max((directory / "store").glob("*.sst"), key=lambda path: path.stat().st_size)


def flip(path: Path, offset: int) -> None:
    """Flip one bit of a file; a negative offset counts from its end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def write_values(
    directory: Path, family: str, keys: NDArray[np.uint64], values: NDArray[np.uint8], *, counted: bool = True
) -> None:
    """Put raw values into a family of a stopped shard, whatever their length; `counted` as they must be."""
    widths = {**read_descriptor(directory).families(), family: values.shape[1]}
    store = open_store(directory, widths, read_only=False)
    rows = store.families[family]
    here = np.concatenate([keys[:0], *(found for found, _ in rows.scan(10_000, with_values=False))])
    rows.put(keys, values, ~np.isin(keys, here) if counted else False)
    store.families[family].flush()
    store.close()
