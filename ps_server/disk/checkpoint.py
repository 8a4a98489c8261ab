# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what a shard must find again, and how the push log gets shorter.

A checkpoint is fuzzy: pushes and pulls go on while it runs. It rotates the log at LSN C, writes back
every row that was dirty at C (rows dirtied later are written with their later LSN, which does no harm),
flushes the store, and only then records C; the log below C is dropped after that. A kill at any point
leaves either the old checkpoint with all its log, or the new one.

The state is one JSON document with an xxh3, plus the sketches of admission as they were at C.
Thread safety: pure functions; shard.py calls `write` from one thread at a time.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import xxhash
from rowhouse import dtype
from rowhouse.error import ConfigError, CorruptionError

from ps_server.disk.row import ROW_FORMAT_VERSION, ROW_FORMATS_READ
from ps_server.disk.segment import Owner
from ps_server.disk.store import Store

STATE_VERSION: Final = 1
STATE_KEY: Final = "checkpoint"
SHARD_KEY: Final = "shard"
LIFE_KEY: Final = "life"
SKETCH_KEY: Final = "admission."

LSN_RESERVE: Final = 1 << 24
"""LSNs reserved at a time: a synced write per 16 million pushes, and a crash skips that many at most."""


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """What a checkpoint remembers beside the rows.

    Attributes
    ----------
    lsn
        Every record at or below it is in the store.
    clients
        Last (sequence, LSN, time in ms) of each client id, least recent first; ids as decimal text.
        Directories of earlier versions have no time.
    rows
        Directories of earlier versions: rows in the store per table at a clean stop, or None where they were
        not counted. Now the store itself tells (RowFamily.count).
    frozen
        Freeze mode of each table that a command gave another one than the config's: off, refuse or ignore.
    configured
        What the config of then said for those; nothing in directories of earlier versions.
    """

    lsn: int = 0
    clients: dict[str, tuple[int, ...]] = field(default_factory=dict)
    rows: dict[str, int | None] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    configured: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Life:
    """How the shard runs now, or ended; written at open and at a clean stop.

    Attributes
    ----------
    clean
        Stopped cleanly: the store is all there is.
    durability
        Of that run.
    boot_id
        Of the machine's boot then: another one means that writes not synced may be lost.
    lsn_reserved
        No row in the store carries a higher LSN.
    open_lsn
        First LSN of the push log's open segment, which must be there when the end was not clean; 0: none,
        or not known, as in directories of earlier versions.
    """

    clean: bool = True
    durability: str = "os"
    boot_id: str = ""
    lsn_reserved: int = 0
    open_lsn: int = 0

    def may_have_lost_log(self, boot_id: str) -> bool:
        """Whether rows in the store may carry LSNs of log records that are gone."""
        if self.clean or self.durability == "fsync":
            return False
        return self.durability == "none" or self.boot_id != boot_id

    def lost_unsynced_log(self, boot_id: str) -> bool:
        """Whether the machine went down while the log was not synced: then it may have holes, and no one
        promised else. Under `none` it may be an earlier run's; after a clean stop it is not needed, and its
        last segment may lack even its header."""
        return self.durability != "fsync" and self.boot_id not in ("", boot_id)


def boot_id() -> str:
    """Random id of this machine's boot (Linux); empty elsewhere, which counts as unchanged."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def read_life(store: Store) -> Life:
    """How the last run ended; a fresh store counts as clean. CorruptionError when damaged."""
    data = store.get_meta(LIFE_KEY)
    return Life(**_unsealed(data, "the shard's life record")) if data else Life()


def write_life(store: Store, life: Life, *, synced: bool = True) -> None:
    """Record it; not synced it outlives the process, and a power cut may take it."""
    store.put_meta({LIFE_KEY: _sealed(asdict(life))}, synced=synced)


def _sealed(document: dict[str, Any]) -> bytes:
    body = json.dumps({"version": STATE_VERSION, **document}, sort_keys=True).encode()
    return xxhash.xxh3_64_digest(body) + body


def _unsealed(data: bytes, what: str) -> dict[str, Any]:
    if xxhash.xxh3_64_digest(data[8:]) != data[:8]:
        raise CorruptionError(f"{what} fails its checksum")
    document: dict[str, Any] = json.loads(data[8:])
    version = document.pop("version")
    if version != STATE_VERSION:
        raise CorruptionError(f"{what} has version {version}; this version reads {STATE_VERSION}")
    return document


def read(store: Store) -> CheckpointState:
    """The last checkpoint's state; a fresh store has an empty one. CorruptionError when damaged."""
    data = store.get_meta(STATE_KEY)
    if data is None:
        return CheckpointState()
    document = _unsealed(data, "the checkpoint record")
    document["clients"] = {k: tuple(map(int, v)) for k, v in document["clients"].items()}
    return CheckpointState(**document)


def read_sketch(store: Store, table: str) -> bytes | None:
    """Admission counters of a table as of the last checkpoint; CorruptionError when damaged."""
    data = store.get_meta(SKETCH_KEY + table)
    if data is None:
        return None
    if xxhash.xxh3_64_digest(data[8:]) != data[:8]:
        raise CorruptionError(f"the admission counters of table {table!r} fail their checksum")
    return data[8:]


def write(store: Store, state: CheckpointState, sketches: dict[str, bytes]) -> None:
    """Record a checkpoint, in one synced write; every row must have been flushed before."""
    document = asdict(state)
    if not state.configured:
        del document["configured"]  # so that an earlier version opens the directory, where it can
    entries = {STATE_KEY: _sealed(document)}
    for table, data in sketches.items():
        entries[SKETCH_KEY + table] = xxhash.xxh3_64_digest(data) + data
    store.put_meta(entries)


def read_shard(store: Store) -> dict[str, Any] | None:
    """What the store says about the shard that made it (see `check_shard`), or None when it is fresh;
    CorruptionError when damaged."""
    data = store.get_meta(SHARD_KEY)
    return _unsealed(data, "the shard's descriptor") if data else None


def note_row_format(store: Store, table: str) -> None:
    """Have the directory say that a table's rows are of this version, before its family is written to; so an
    earlier version, which would not keep the number of rows, refuses the directory."""
    known = read_shard(store) or {}
    if known["tables"][table]["row_format_version"] != ROW_FORMAT_VERSION:
        known["tables"][table]["row_format_version"] = ROW_FORMAT_VERSION
        store.put_meta({SHARD_KEY: _sealed(known)})


_KEPT_FOR = {
    "show_click": ("sums of shows and clicks", "show_click"),
    "push_count": ("numbers of pushes", "least_frequent"),
    "push_time": ("times of the last push", "ttl or show_click"),
}
"""What each piece of row metadata is, and the eviction policies that need it."""


def _in_words(changed: set[str], now: dict[str, Any], before: dict[str, Any]) -> str:
    """A layout that differs, as the config has it."""
    for key, (kept, policies) in _KEPT_FOR.items():
        if key in changed and changed <= _KEPT_FOR.keys():
            if now[key]:
                return (
                    f"eviction has {policies}, which needs {kept}; this data directory was made without them"
                )
            return f"eviction has no {policies}; this data directory was made with {kept}"
    key = next((key for key in ("dim", "dtype", "state_of", "state_size") if key in changed), min(changed))
    word, one, other = {
        "dtype": ("dtype", dtype.NAMES[now["dtype"]], dtype.NAMES[before["dtype"]]),
        "state_of": (
            "optimizer.kind",
            *(d.get("state_of") or "one that keeps no state" for d in (now, before)),
        ),
        "state_size": (
            "the number of values that the optimizer keeps per row",
            now["state_size"],
            before["state_size"],
        ),
    }.get(key, (key, now[key], before[key]))
    return f"{word} is {one}; this data directory was made with {other}"


def _way(changed: set[str]) -> str:
    """How to have it changed all the same: rows of another dim are other rows."""
    return "" if "dim" in changed else "; to change it, export the table and load it into a new directory"


def check_shard(store: Store, identity: dict[str, Any], *, read_only: bool) -> Owner:
    """Compare what must not change between two openings with what the store says; record it when new.

    `identity` has the shard's index and count, the cluster's id (empty: not known), the partition map's
    version and each table's layout. Returns whose data it is.
    Tables may be added, and their policies changed; ConfigError names anything else that differs.
    """
    known = read_shard(store) or {}
    for key in ("shard", "shard_count", "map_version"):
        if known and known[key] != identity[key]:
            word = {"shard": "the shard's number", "shard_count": "the number of shards"}.get(key, key)
            raise ConfigError(f"{word} is {identity[key]}; this data directory was made with {known[key]}")
    of_cluster = known.get("cluster_id") or identity["cluster_id"]
    if identity["cluster_id"] and of_cluster != identity["cluster_id"]:
        raise ConfigError(
            f"this shard's data belongs to cluster {of_cluster}; cluster.json beside it, or the config, says "
            f"{identity['cluster_id']}: put the shard's own folder, or its cluster.json, back"
        )
    tables: dict[str, Any] = dict(known.get("tables", {}))
    for name, layout in identity["tables"].items():
        if read_only and name not in tables:
            raise ConfigError(f"table {name!r} is not in this data directory; open it for writing once")
        before = {**layout, **tables.get(name, {})}  # an older directory does not know every key
        if before["row_format_version"] in ROW_FORMATS_READ:
            before["row_format_version"] = layout["row_format_version"]
        if changed := {key for key, value in layout.items() if before[key] != value}:
            raise ConfigError(f"table {name!r}: {_in_words(changed, layout, before)}{_way(changed)}")
        tables[name] = layout
    updated = {**identity, "cluster_id": of_cluster, "tables": tables}
    if updated != known and not read_only:
        store.put_meta({SHARD_KEY: _sealed(updated)})
    return Owner(of_cluster, identity["shard"])
