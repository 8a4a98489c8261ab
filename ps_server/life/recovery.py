# SPDX-License-Identifier: Apache-2.0
"""Opening a shard's directory, and replaying its push log.

Replay applies every record above the checkpoint in the order of the log; a row skips the records at or
below its own LSN, so rows that reached the store after the checkpoint are not updated twice.

Invariants: 1. nothing is written before the store's descriptor was compared with the config; 2. replay
uses the same code as a live push; 3. after it every table is bit for bit what it was.
Thread safety: runs before anyone else has the shard.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from rowhouse.codec import decode_push_request
from rowhouse.error import ConfigError, CorruptionError, RowhouseError, StoreError
from rowhouse.file import remove_left_over
from rowhouse.placement import PartitionMap

from ps_server.config.cluster import ClusterConfig, shard_directory
from ps_server.disk import checkpoint
from ps_server.disk.checkpoint import CheckpointState, Life
from ps_server.disk.data_dir import check_shard_is_here, claim_data_dir, note_made
from ps_server.disk.log import PushLog
from ps_server.disk.segment import (
    KIND_EVICT,
    KIND_PUSH,
    Owner,
    Record,
    check_segments,
    cut_lost_end,
    cut_torn_end,
    decode_eviction,
    read_records,
)
from ps_server.disk.store import Store
from ps_server.life.read_ahead import read_ahead
from ps_server.life.saved import FOLDER, MARK, RESTORING
from ps_server.life.session import Sessions
from ps_server.table.budget import Budget, split
from ps_server.table.config import TableConfig
from ps_server.table.edit import checked_edit
from ps_server.table.push import TablePush
from ps_server.table.table import Table
from ps_server.table.tier import TierParts

LOAD_FOLDER: Final = "load"
"""Where a bulk load keeps its files until they are in the store."""

_logger = getLogger(__name__)


@dataclass(kw_only=True)
class Opened:
    """What an open shard is made of."""

    cluster_id: str
    store: Store
    tables: dict[str, Table]
    budget: Budget
    sessions: Sessions
    state: CheckpointState
    life: Life
    log: PushLog | None  # None: read-only, or durability none
    lsn: int
    replayed: int


class LogGate:
    """Tells the tables when the log is as durable as promised, before they write rows back.

    The log exists only after recovery, tables before it; until then everything is on disk already.
    """

    def __init__(self, durability: str) -> None:
        self.log: PushLog | None = None
        self._sync = durability == "fsync"

    def __call__(self, lsn: int) -> None:
        """Return when the log up to `lsn` may be relied on; a record is always written before its push
        is applied, so only `fsync` has to wait."""
        if self._sync and self.log is not None:
            self.log.sync(min(lsn, self.log.written_lsn))


def _open_store(
    config: ClusterConfig, directory: Path, read_only: bool, make_store: Callable[..., Store]
) -> tuple[Store, int]:
    """The store and the bytes of budget left for hot rows."""
    sketches = sum(table.admission.sketch_bytes for table in config.tables if table.admission)
    share, rows = split(config.memory_budget)
    if sketches >= rows:
        raise ConfigError(
            f"memory_budget is {config.memory_budget}; the admission sketches take {sketches} and the store "
            f"{share}, which leaves nothing for rows: raise it, or lower width_bits"
        )
    widths: dict[str, int] = {}
    for table in config.tables:
        widths[f"row.{table.name}"] = table.layout.value_bytes
    memtable = min(max(share // 8, 64 << 10), 64 << 20)
    cache = max(share - 4 * memtable, share // 4)
    if not read_only:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"data directory {directory}: {error.strerror or error}") from error
    store = make_store(
        directory / "store", widths, cache_bytes=cache, memtable_bytes=memtable, read_only=read_only
    )
    return store, rows - sketches


def state_of(table: TableConfig) -> str:
    """Optimizer whose state the rows hold, "" for one that keeps none: another one would misread it. AdamW's
    is Adam's."""
    kind = table.optimizer.kind if table.layout.state_size else ""
    return "adam" if kind == "adamw" else kind


def _identity(
    config: ClusterConfig, index: int, partition_map: PartitionMap, cluster_id: str
) -> dict[str, Any]:
    return {
        "cluster_id": cluster_id,
        "shard": index,
        "shard_count": config.shard_count,
        "map_version": partition_map.version,
        "tables": {t.name: {**t.layout.describe(), "state_of": state_of(t)} for t in config.tables},
    }


def _make_tables(
    config: ClusterConfig, store: Store, budget: Budget, gate: LogGate, failpoint: Callable[[str], None]
) -> dict[str, Table]:
    tables = {}
    for table in config.tables:
        parts = TierParts(
            name=table.name, layout=table.layout, rows=store.families[f"row.{table.name}"],
            budget=budget, barrier=gate,
            failpoint=failpoint,
        )  # fmt: skip
        tables[table.name] = Table(table, parts)
    return tables


def _restore(tables: dict[str, Table], store: Store, state: CheckpointState, clean: bool) -> None:
    """Give each table what the checkpoint remembers of it."""
    for name, table in tables.items():
        tier = table.tier
        tier.applied_lsn = state.lsn
        if tier.rows.count is None and clean:
            tier.rows.count = state.rows.get(name)
        tier.stored.exact = tier.rows.count is not None
        tier.stored.rows = tier.rows.count or 0
        if state.configured.get(name, table.config.freeze) == table.config.freeze:
            table.frozen = state.frozen.get(name, table.frozen)  # else the config's change is the newer will
        if table.admission is not None:
            counters = checkpoint.read_sketch(store, name)
            if counters is not None:
                table.admission.load_state(counters)


def freezes(tables: dict[str, Table]) -> tuple[dict[str, str], dict[str, str]]:
    """What a checkpoint keeps of freeze commands: those that the config does not say itself, and what it
    says instead; by table."""
    commanded = [t for t in tables.values() if t.frozen != t.config.freeze]
    return {t.name: t.frozen for t in commanded}, {t.name: t.config.freeze for t in commanded}


def _note_freezes(opened: Opened) -> None:
    """Have the directory know at once which commands still hold: one that the config overruled must not come
    back when the shard is killed now and the config is what it was then."""
    frozen, configured = freezes(opened.tables)
    if (frozen, configured) != (opened.state.frozen, opened.state.configured):
        opened.state = replace(opened.state, frozen=frozen, configured=configured)
        checkpoint.write(opened.store, opened.state, {})


def _declared(name: str, tables: dict[str, Table], lsn: int) -> Table:
    """The table of a record. A checkpoint would drop the record; so a table that left the config and comes
    back later would lack it, and nobody would be told."""
    if name not in tables:
        raise ConfigError(
            f"table {name!r} is not in the config, but the push log has changes of it (LSN {lsn}) that are "
            "not written to its rows yet, because the shard was killed: start and stop the shard once with "
            "the table in the config; then take it out"
        )
    return tables[name]


def apply_record(record: Record, tables: dict[str, Table], sessions: Sessions) -> None:
    """Apply one record of the log; ConfigError when it is of a table that left the config since."""
    if record.kind == KIND_EVICT:
        name, ids = decode_eviction(record.payload)
        _declared(name, tables, record.lsn).tier.remove(ids, record.lsn)
        return
    if record.kind != KIND_PUSH:
        raise CorruptionError(f"push log: LSN {record.lsn} has kind {record.kind}, unknown to this version")
    request = decode_push_request(record.payload)
    for part in request.tables:
        table = _declared(part.table, tables, record.lsn)
        table.push(TablePush.of(part, table.layout), record.lsn, record.time_ms // 1000)
    for edit in request.edits:
        table = _declared(edit.table, tables, record.lsn)
        table.edit(checked_edit(edit, table.config), record.lsn, record.time_ms // 1000)
    sessions.record(request.client_id, request.sequence, record.lsn, record.time_ms)


def open_directory(
    config: ClusterConfig,
    index: int,
    directory: Path,
    *,
    read_only: bool,
    partition_map: PartitionMap,
    failpoint: Callable[[str], None],
    progress: Callable[[int], None],
    make_store: Callable[..., Store] = Store,
) -> Opened:
    """Open, check and recover a shard's directory; see Shard.open for what it raises."""
    noted = not read_only and directory == shard_directory(config, index)  # else it has no cluster.json
    cluster_id = config.cluster_id or ""
    if noted:
        cluster_id = claim_data_dir(config.data_dir, config.shard_count, config.cluster_id)
        check_shard_is_here(config.data_dir, index)
    store, row_bytes = _open_store(config, directory, read_only, make_store)
    try:
        identity = _identity(config, index, partition_map, cluster_id)
        owner = checkpoint.check_shard(store, identity, read_only=read_only)
        if noted:
            note_made(config.data_dir, index)
        if not read_only:
            _remove_left_over(directory)
        state, life = checkpoint.read(store), checkpoint.read_life(store)
        if read_only and not life.clean:
            raise StoreError(f"{directory}: was not stopped cleanly; open it for writing once to recover it")
        budget = Budget(row_bytes, [t.name for t in config.tables])
        gate = LogGate(config.durability)
        tables = _make_tables(config, store, budget, gate, failpoint)
        _restore(tables, store, state, life.clean)
        sessions = Sessions(state.clients)
        lsn, replayed = state.lsn, 0
        if not read_only:
            lost_end = life.lost_unsynced_log(checkpoint.boot_id())
            check_segments(directory / "log", owner, 0 if life.clean or lost_end else life.open_lsn)
            if lost_end:
                cut_lost_end(directory / "log", state.lsn)
            lsn, replayed = _replay(
                directory / "log", directory / "store", state.lsn, tables, sessions, progress
            )
        opened = Opened(
            cluster_id=owner.cluster_id, store=store, tables=tables, budget=budget, sessions=sessions,
            state=state, life=life, log=None, lsn=lsn, replayed=replayed,
        )  # fmt: skip
        if not read_only:
            _note_freezes(opened)
            _begin_life(opened, config, directory, owner, failpoint)
            gate.log = opened.log
        return opened
    except BaseException:
        with suppress(RowhouseError):  # what made the opening fail says more
            store.close()
        raise


def _remove_left_over(directory: Path) -> None:
    """What a kill left of a save, a drop, a bulk load or a small file; the store's lock is held."""
    for folder in (*(directory / FOLDER).glob(".*"), directory / LOAD_FOLDER):
        shutil.rmtree(folder, ignore_errors=True)  # a load's worker may be at its last file still
    for name in (MARK, RESTORING):
        remove_left_over(directory / name)


def _replay(
    directory: Path,
    store_directory: Path,
    after_lsn: int,
    tables: dict[str, Table],
    sessions: Sessions,
    progress: Callable[[int], None],
) -> tuple[int, int]:
    """Replay the log; returns the last LSN and the number of records."""
    cut_torn_end(directory)
    lsn, replayed = after_lsn, 0
    following = read_ahead(directory, store_directory, after_lsn, tables)
    read_up_to = after_lsn
    for record in read_records(directory, after_lsn):
        if not replayed:
            for table in tables.values():
                table.tier.begin_recovery()
        if record.lsn > read_up_to:
            read_up_to = next(following)
        apply_record(record, tables, sessions)
        lsn, replayed = record.lsn, replayed + 1
        progress(replayed)
    if replayed:
        for table in tables.values():
            table.tier.end_recovery()
        _logger.info("replayed %d records, up to LSN %d", replayed, lsn)
    return lsn, replayed


def _begin_life(
    opened: Opened,
    config: ClusterConfig,
    directory: Path,
    owner: Owner,
    failpoint: Callable[[str], None],
) -> None:
    """Open the log's end, and mark the directory as in use.

    The log first: a kill in between leaves the last life's record, and a segment more that has no record.
    """
    before, boot = opened.life, checkpoint.boot_id()
    next_lsn = opened.lsn + 1
    if before.may_have_lost_log(boot):
        next_lsn = max(next_lsn, before.lsn_reserved + 1)
    if config.durability != "none":
        durable = config.durability == "fsync"
        opened.log = PushLog(
            directory / "log", opened.lsn, next_lsn, owner=owner, durable=durable, failpoint=failpoint
        )
        failpoint("mid start")
    # under `none` the log of an earlier run stays, until a checkpoint has written what it holds
    kept = 0 if before.clean else before.open_lsn
    opened.life = Life(
        clean=False, durability=config.durability, boot_id=boot,
        lsn_reserved=max(before.lsn_reserved, next_lsn + checkpoint.LSN_RESERVE),
        open_lsn=opened.log.open_lsn if opened.log else kept,
    )  # fmt: skip
    checkpoint.write_life(opened.store, opened.life)
    opened.lsn = next_lsn - 1
