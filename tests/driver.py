# SPDX-License-Identifier: Apache-2.0
"""A Shard driven by hand, for the unit, property and crash tiers: no client, no service.

`Driver` numbers the pushes and holds the clock; `snapshot` copies a live shard's directory as a kill would
leave it; `dump` reads every stored byte of a shard that was closed, for comparisons bit for bit.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype, message
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.config.cluster import ClusterConfig, load_config
from ps_server.disk.row import LSN_BYTES
from ps_server.disk.store import Store
from ps_server.shard.shard import Shard

Gradients = Mapping[str, tuple[NDArray[np.uint64], NDArray[np.float32]]]
Dump = dict[str, tuple[NDArray[np.uint64], NDArray[np.uint8]]]

CLIENT = 99


class Driver:
    """One shard of a cluster of one, its clock, and the numbers of its clients' pushes."""

    def __init__(
        self,
        config: ClusterConfig,
        directory: Path,
        *,
        read_only: bool = False,
        failpoint: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self.config, self.directory, self.failpoint = config, directory, failpoint
        self.now_s = 1_000.0
        self.sequences: dict[int, int] = {}
        self.shard = self._open(read_only=read_only)

    def _open(self, *, read_only: bool = False) -> Shard:
        return Shard.open(
            self.config, 0, self.directory, read_only=read_only, clock=lambda: self.now_s,
            failpoint=self._hit,
        )  # fmt: skip

    def _hit(self, name: str) -> None:
        self.failpoint(name)

    # ------------------------------------------------------------ requests
    def pull(self, table: str, ids: NDArray[np.uint64], *, read_only: bool = False) -> NDArray[Any]:
        """(n, dim) float32 rows."""
        declared = self.config.table(table)
        asked = message.TableIds(table, declared.dim if declared else 1, ids)
        request = message.PullRequest(self.shard.partition_map.version, dtype.FLOAT32, read_only, (asked,))
        return self.shard.pull(request).tables[0].rows

    def request(
        self,
        gradients: Gradients,
        *,
        client: int = CLIENT,
        sequence: int | None = None,
        rate: float | None = None,
    ) -> message.PushRequest:
        """The push that comes next for `client`, or one of another sequence number."""
        number = self.sequences.get(client, 0) + 1 if sequence is None else sequence
        parts = tuple(
            message.TableGradients(name, dtype.FLOAT32, ids, rows, rate)
            for name, (ids, rows) in gradients.items()
        )
        return message.PushRequest(self.shard.partition_map.version, client, number, parts)

    def edit(self, *edits: message.TableEdit, client: int = CLIENT) -> message.PushResponse:
        """Assign or remove rows, as the client's next push."""
        return self.send(self.edit_request(edits, client=client))

    def edit_request(
        self, edits: Sequence[message.TableEdit], *, client: int = CLIENT, sequence: int | None = None
    ) -> message.PushRequest:
        """As `request`, with rows by hand."""
        number = self.sequences.get(client, 0) + 1 if sequence is None else sequence
        return message.PushRequest(self.shard.partition_map.version, client, number, (), tuple(edits))

    def push(
        self, gradients: Gradients, *, client: int = CLIENT, rate: float | None = None
    ) -> message.PushResponse:
        """Push once, under the client's next number."""
        return self.send(self.request(gradients, client=client, rate=rate))

    def send(self, request: message.PushRequest) -> message.PushResponse:
        """Send a push as it is; when it is acknowledged its number is taken."""
        answer = self.shard.push(request)
        known = self.sequences.get(request.client_id, 0)
        self.sequences[request.client_id] = max(known, request.sequence)
        return answer

    def evict(self, table: str) -> int:
        """Run the table's eviction policies; returns how many rows went."""
        return self.shard.evict_rows(pb.EvictRowsRequest(table=table)).rows_evicted

    def freeze(self, table: str, mode: pb.FreezeMode) -> None:
        """Set the freeze mode of a table."""
        self.shard.set_table_freeze(pb.SetTableFreezeRequest(table=table, mode=mode))

    def stats(self, table: str) -> pb.TableStats:
        """Live counters of one table."""
        return next(t for t in self.shard.get_stats(pb.GetStatsRequest()).tables if t.name == table)

    # ------------------------------------------------------------ lives
    def reopen(self, *, read_only: bool = False) -> None:
        """Stop cleanly, and start again."""
        self.shard.close()
        self.shard = self._open(read_only=read_only)

    def abandon(self) -> None:
        """Let go of the shard without a checkpoint; what its directory holds then is nobody's business."""
        self.shard.poison = self.shard.poison or "abandoned by a test"
        self.shard.close()

    def move_to(self, copy: Path) -> None:
        """Go on with a copy that `snapshot` made, as after a kill at that moment."""
        self.abandon()
        shutil.rmtree(self.directory)
        self.directory = copy
        self.shard = self._open()

    def crash(self, copy: Path) -> None:
        """A kill now, and a start on what it left."""
        snapshot(self.directory, copy)
        self.move_to(copy)


def _listing(directory: Path) -> dict[str, int]:
    """Sizes of all files; a file that goes meanwhile counts as gone."""
    sizes = {}
    for path in directory.rglob("*"):
        try:
            if path.is_file():
                sizes[str(path.relative_to(directory))] = path.stat().st_size
        except FileNotFoundError:
            continue
    return sizes


def snapshot(directory: Path, copy: Path) -> None:
    """Copy a live shard's directory as it is at one instant.

    RocksDB works in the background, so the copy is made again until nothing changed meanwhile. SST files
    are linked: nobody ever writes into one again.
    """
    for _ in range(1_000):
        before = _listing(directory)
        try:
            for name in before:
                target = copy / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if name.endswith(".sst"):
                    os.link(directory / name, target)
                else:
                    shutil.copyfile(directory / name, target)
            if _listing(directory) == before == _listing(copy):
                return
        except FileNotFoundError:
            pass
        shutil.rmtree(copy)
    raise AssertionError(f"{directory} does not come to rest")


def open_store(config: ClusterConfig, directory: Path) -> Store:
    """The store of a closed shard, read-only."""
    widths = {f"row.{t.name}": t.layout.value_bytes for t in config.tables}
    return Store(directory / "store", widths, cache_bytes=1 << 20, memtable_bytes=1 << 20, read_only=True)


def dump(config: ClusterConfig, directory: Path) -> Dump:
    """Every row of a closed shard: mixed keys, and values without their LSN.

    The LSN of a row is that of its table when it was written back, so it depends on when that was.
    """
    store = open_store(config, directory)
    found: Dump = {}
    for name, family in store.families.items():
        chunks = list(family.scan(4_096))
        keys = np.concatenate([k for k, _ in chunks]) if chunks else np.empty(0, np.uint64)
        width = family.value_bytes - LSN_BYTES
        values = [v[:, :width] for _, v in chunks]
        found[name] = keys, np.concatenate(values) if values else np.empty((0, width), np.uint8)
    store.close()
    return found


def assert_equal_dumps(one: Dump, other: Dump) -> None:
    """Bit for bit, with the family in the message."""
    assert one.keys() == other.keys()
    for name, (keys, values) in one.items():
        np.testing.assert_array_equal(keys, other[name][0], err_msg=f"keys of {name}")
        np.testing.assert_array_equal(values, other[name][1], err_msg=f"values of {name}")


def shard_config(directory: Path, tables: list[dict[str, Any]], **keys: Any) -> ClusterConfig:
    """A cluster of one shard."""
    base = {"data_dir": str(directory), "memory_budget": "16MiB", "tables": tables}
    return load_config({**base, **keys})
