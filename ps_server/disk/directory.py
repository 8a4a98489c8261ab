# SPDX-License-Identifier: Apache-2.0
"""The directory of a stopped shard, opened without its config.

The store's descriptor (checkpoint.py) names the shard, the partition map and each table's layout, so
maintenance needs nothing else. Thread safety: pure functions and an immutable description.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rowhouse.error import ConfigError, CorruptionError, DirectoryInUseError, StoreError
from rowhouse.placement import PartitionMap
from rowhouse.problem import counted

from ps_server.disk import checkpoint
from ps_server.disk.data_dir import is_made, missing_shards
from ps_server.disk.row import ROW_FORMATS_READ, RowLayout
from ps_server.disk.store import Store

MAINTENANCE_CACHE_BYTES: Final = 64 << 20
"""Scans read each block once; the cache is for index and filter blocks."""

MAINTENANCE_MEMTABLE_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """What a shard's store says about itself.

    Attributes
    ----------
    shard, shard_count
        Its index, and the number of shards of its cluster.
    map_version
        Version of the partition map that it was made with.
    cluster_id
        The cluster that it belongs to; empty where it was never opened since clusters have ids.
    layouts
        Layout of each table's rows, by name; tables that left the config since are still there.
    states
        Optimizer whose state a table's rows hold, "" for none; not there where the directory does not say.
    """

    shard: int
    shard_count: int
    map_version: int
    cluster_id: str
    layouts: dict[str, RowLayout]
    states: dict[str, str]

    def families(self) -> dict[str, int]:
        """Value bytes of each family of the store."""
        return {f"row.{name}": layout.value_bytes for name, layout in self.layouts.items()}

    def partition_map(self) -> PartitionMap:
        """The map that the shard was made with; ConfigError when this version does not make it."""
        partition_map = PartitionMap.even(self.shard_count)
        if partition_map.version != self.map_version:
            raise ConfigError(
                f"shard {self.shard} was made with partition map {self.map_version:#x}; this version makes "
                f"{partition_map.version:#x} for {counted(self.shard_count, 'shard')}"
            )
        return partition_map


def shard_directories(path: Path) -> list[Path]:
    """`path` itself when it is a shard's directory, or else the shards' directories in a data_dir.

    Raises StoreError when there is neither, or when a data_dir lacks one of its shards.
    """
    if is_made(path):
        return [path]
    found = sorted(child for child in path.glob("shard-*") if is_made(child))
    if not found:
        raise StoreError(
            f"{path}: no shard's directory, and no data_dir with shard-0000, shard-0001, … in it "
            "(psctl load makes a new one with --config)"
        )
    missing = missing_shards(path)
    if missing:
        raise StoreError(
            f"{path}: {missing[0]} is missing, one of {len(found) + len(missing)} shards that the data is "
            "split over; name one shard's directory to work on it alone"
        )
    return found


def _held_by_this_process(lock: Path) -> bool:
    """Whether a shard runs in this very process: a POSIX lock does not keep its own process out, and
    opening and closing the file would even give it up."""
    locks, stat = Path("/proc/locks"), lock.stat()
    if not locks.exists():
        return False
    file = f":{stat.st_ino}"
    lines = [line.split() for line in locks.read_text().splitlines()]
    return any(str(os.getpid()) == line[4] and line[5].endswith(file) for line in lines if line[1] == "POSIX")


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep servers out of a shard's directory while it is read, without writing to it.

    RocksDB takes its lock only when it opens for writing; this takes the same lock, shared. A store without
    the file was never opened for writing (a saved copy of an earlier version). Raises DirectoryInUseError
    when a shard runs there, StoreError when the file cannot be opened.
    """
    lock = directory / "store" / "LOCK"
    if not lock.exists():
        yield
        return
    try:
        if _held_by_this_process(lock):
            raise DirectoryInUseError(f"{directory}: a shard of this process runs there; stop it first")
        file = lock.open("rb")
    except OSError as error:
        raise StoreError(f"{lock}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            text = f"{directory}: a shard runs there ({error.strerror}); stop it first"
            raise DirectoryInUseError(text) from error
        yield


def open_store(
    directory: Path, widths: dict[str, int], *, read_only: bool = True, paranoid: bool = True
) -> Store:
    """The store of a shard's directory with small buffers; see Store for what it takes and raises."""
    return Store(
        directory / "store", widths, cache_bytes=MAINTENANCE_CACHE_BYTES,
        memtable_bytes=MAINTENANCE_MEMTABLE_BYTES, read_only=read_only, paranoid=paranoid,
    )  # fmt: skip


def read_descriptor(directory: Path, *, paranoid: bool = True) -> Descriptor:
    """Description of a stopped shard.

    Raises StoreError when there is none, CorruptionError when it is damaged or of another version (with
    `paranoid` also when any file of the store is missing or cut short).
    """
    store = open_store(directory, {}, paranoid=paranoid)
    try:
        facts = checkpoint.read_shard(store)
    finally:
        store.close()
    if facts is None:
        raise StoreError(f"{directory}: the store has no shard in it")
    layouts, states = {}, {}
    for name, layout in facts["tables"].items():
        version = layout.pop("row_format_version")
        if (state_of := layout.pop("state_of", None)) is not None:
            states[name] = state_of
        if version not in ROW_FORMATS_READ:
            raise CorruptionError(
                f"table {name!r} has row format {version}; this version reads {ROW_FORMATS_READ[0]} to "
                f"{ROW_FORMATS_READ[-1]}"
            )
        layouts[name] = RowLayout(**layout)
    return Descriptor(
        shard=facts["shard"], shard_count=facts["shard_count"], map_version=facts["map_version"],
        cluster_id=facts.get("cluster_id", ""), layouts=layouts, states=states,
    )  # fmt: skip
