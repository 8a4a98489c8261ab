# SPDX-License-Identifier: Apache-2.0
"""One shard: its tables, the order of its pushes, and what it promises about them.

A push is validated, logged, applied and acknowledged, in this order; the log's order is the order of
application, so a replay gives the same bits. A checkpoint (checkpoint.py) shortens the log, recovery
(recovery.py) replays it. The gRPC side is service.py.

Invariants: 1. nothing changes before a request was checked whole; 2. LSNs are consecutive, one per
logged record; 3. a write that fails poisons the shard: it acknowledges and serves nothing more, and says
why; what it acknowledged before is recovered at the next start. Thread safety: every method may be
called from any thread; pushes are applied one at a time.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any, Final

import numpy as np
from rowhouse import message
from rowhouse.codec import Part, encode_push_request
from rowhouse.control import method_of
from rowhouse.error import (
    BusyError,
    CorruptionError,
    PoisonedError,
    PreconditionError,
    SequenceGapError,
    StoreError,
    TableFrozenError,
    UnavailableError,
)
from rowhouse.kernel import as_read_only
from rowhouse.limit import message_bytes_max
from rowhouse.placement import PartitionMap
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.config.cluster import ClusterConfig
from ps_server.disk import checkpoint
from ps_server.disk.checkpoint import CheckpointState
from ps_server.disk.open_file import check_files, require_files
from ps_server.disk.row import row_time_s
from ps_server.disk.segment import KIND_EVICT, KIND_PUSH, Record, encode_eviction, list_segments
from ps_server.disk.store import Store
from ps_server.life.recovery import Opened, freezes, open_directory
from ps_server.life.saved import SavedTables
from ps_server.shard.eviction import Moment, evict_by_policy, spared
from ps_server.shard.group import Groups
from ps_server.shard.listing import list_rows, read_rows
from ps_server.shard.long_call import LongCalls
from ps_server.shard.recent import RecentIds
from ps_server.shard.request import (
    check_map,
    check_owned,
    checked_parts,
    evictable_table_of,
    freeze_mode_of,
    ids_of,
    table_of,
    without_frozen,
)
from ps_server.shard.status import cluster_message, stats_message
from ps_server.table.arena import Ids
from ps_server.table.edit import RowEdit
from ps_server.table.push import TablePush, check_dim
from ps_server.table.table import Table

CHECKPOINT_RETRY_S: Final = 5.0
"""After so long a checkpoint that had no files to open is tried again."""

COUNT_CHUNK_ROWS: Final = 65_536
"""Keys read at a time while rows are counted after a crash."""

_logger = getLogger(__name__)


class Shard:
    """One shard of a cluster; made by `Shard.open`.

    Attributes
    ----------
    poison
        Why the shard refuses everything; None while it is healthy.
    saved
        Named copies of its tables.
    groups
        The trainers that keep pace over it.
    store
        What its rows are on.
    """

    def __init__(
        self,
        config: ClusterConfig,
        index: int,
        directory: Path,
        opened: Opened,
        *,
        read_only: bool,
        clock: Callable[[], float],
        failpoint: Callable[[str], None],
        background: bool = True,
    ) -> None:
        self.config, self.index, self.directory = config, index, directory
        self.partition_map = PartitionMap.even(config.shard_count, opened.cluster_id)
        self.poison: str | None = None
        self.replayed_records = opened.replayed
        self._opened, self._read_only = opened, read_only
        self._clock, self._failpoint = clock, failpoint
        self._tables, self._log, self.store = opened.tables, opened.log, opened.store
        self._sessions = opened.sessions
        self._applied_lsn = opened.lsn
        self._push_lock = threading.Lock()
        self._checkpoint_lock = threading.Lock()
        self._recent = RecentIds()
        self._listed: set[str] = set()  # tables of which a listing was begun
        self._closing = threading.Event()
        self._closed = False
        self._checkpoint_wanted = threading.Event()
        self.saved = SavedTables(self)
        self.groups = Groups(
            self,
            waits_max=max(config.worker_threads // 2, 1),
            message_bytes_max=message_bytes_max(config.memory_budget),
        )
        self._long_calls = LongCalls(index, self._moved, background=background)
        self._calls: dict[str, Callable[[Any], Any]] = {
            "GetCluster": self.get_cluster,
            "CreateCheckpoint": self.create_checkpoint,
            "GetStats": self.get_stats,
            "SetTableFreeze": self.set_table_freeze,
            "EvictRows": self.evict_rows,
            "ListRows": self.list_rows,
            "ReadRows": self.read_rows,
            "SaveTables": self.saved.save,
            "GetSavedTables": self.saved.get,
            "DropSavedTables": self.saved.drop,
            "JoinGroup": self.groups.join,
            "AwaitStep": self.groups.await_step,
            "LeaveGroup": self.groups.leave,
        }
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("count-rows", self.count_rows), ("checkpoint", self._checkpoint_when_wanted))
            if background and not read_only
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def open(
        config: ClusterConfig,
        index: int,
        directory: Path,
        *,
        read_only: bool = False,
        clock: Callable[[], float] = time.time,
        failpoint: Callable[[str], None] = lambda _name: None,
        progress: Callable[[int], None] = lambda _records: None,
        make_store: Callable[..., Store] = Store,
        background: bool = True,
    ) -> "Shard":
        """Open a shard's directory, made when it is new, and recover it.

        Parameters
        ----------
        config
            The cluster's.
        index
            Which shard of it.
        directory
            Where this shard keeps everything.
        read_only
            Serve pulls only; the directory must have been stopped cleanly.
        clock
            Seconds since the epoch (TTL, log records).
        failpoint
            Called with the name of each point where a test may kill the process.
        progress
            Called with the number of records replayed so far.
        make_store
            Called as Store is; a simulation gives its own.
        background
            False: no thread is started; `count_rows` and `checkpoint_if_wanted` are the caller's to call.

        Raises
        ------
        ConfigError
            More tables than the limit of open files allows; or the directory was made with another layout,
            index or number of shards.
        DirectoryInUseError
            Another process holds it.
        CorruptionError
            Something on disk is damaged; the message names it.
        """
        require_files(len(config.tables))
        partition_map = PartitionMap.even(config.shard_count)
        opened = open_directory(
            config, index, directory, read_only=read_only, partition_map=partition_map,
            failpoint=failpoint, progress=progress, make_store=make_store,
        )  # fmt: skip
        return Shard(
            config, index, directory, opened, read_only=read_only, clock=clock, failpoint=failpoint,
            background=background,
        )  # fmt: skip

    # ------------------------------------------------------------ checks
    def _check_alive(self, *, writing: bool = False) -> None:
        if self.poison is not None:
            raise PoisonedError(f"shard {self.index} refuses requests: {self.poison}")
        if self._closed or (writing and self._closing.is_set()):
            raise PoisonedError(f"shard {self.index} is closed")
        if writing and self._read_only:
            raise TableFrozenError(f"shard {self.index} is open read-only")

    def _now_s(self) -> float:
        return row_time_s(self._clock())

    @contextmanager
    def _poisoning(self) -> Iterator[None]:
        """An error of store or files inside leaves memory and store apart: the shard must not go on. It is
        raised as PoisonedError, because another attempt helps once the shard was started again; damage as it
        is."""
        try:
            yield
        except BaseException as error:
            self._poison(f"{type(error).__name__}: {error}")
            if isinstance(error, StoreError | BusyError | OSError) and not isinstance(error, CorruptionError):
                raise PoisonedError(f"shard {self.index} refuses requests: {self.poison}") from error
            raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A store that cannot be read poisons; a damaged row is not served, the others are."""
        try:
            yield
        except CorruptionError:
            raise
        except StoreError as error:
            self._poison(str(error))
            raise

    def _poison(self, why: str) -> None:
        if self.poison is None:
            self.poison = why
            _logger.error("shard %d is poisoned: %s", self.index, why)

    @contextmanager
    def upkeep(self, *, writing: bool = False) -> Iterator[None]:
        """One checkpoint or eviction at a time, none on a shard that was closed meanwhile."""
        with self._checkpoint_lock:
            self._check_alive(writing=writing)
            with self._poisoning():
                yield

    # ------------------------------------------------------------ pull
    def pull(self, request: message.PullRequest) -> message.PullResponse:
        """Rows of each table, in the order of its ids; never creates a row. With `changed_since` those
        only that records above it may have changed.

        Raises StalePartitionMapError, UnknownTableError, InvalidRequestError, PoisonedError, and
        CorruptionError when a row asked for is damaged on disk.
        """
        self._check_alive()
        check_map(request.map_version, self.partition_map, self.index)
        tables = [table_of(part.table, self._tables) for part in request.tables]
        for table, part in zip(tables, request.tables, strict=True):
            check_dim(table.config, part.dim)
        check_owned(request.tables, self.partition_map, self.index)
        since = request.changed_since
        if since is not None and not self._recent.kept:
            with self._push_lock:
                self._recent.begin(self._applied_lsn)
        lsn = self._applied_lsn
        answers = []
        for table, part in zip(tables, request.tables, strict=True):
            ids, changed = part.ids, None
            if since is not None:
                chosen = self._recent.changed(part.table, ids, since)
                ids, changed = ids[chosen], np.packbits(chosen, bitorder="little")
            with self._reading():
                promote = not (request.read_only or self._read_only)
                rows = table.pull(as_read_only(ids), promote=promote, code=request.dtype)
            answers.append(message.TableRows(part.table, request.dtype, rows, changed))
        return message.PullResponse(lsn, tuple(answers))

    def prefetch(self, table: str, ids: Ids) -> int:
        """Bring stored rows of `ids` ((n,) uint64) into memory ahead of a pull; returns how many."""
        self._check_alive(writing=True)
        found = table_of(table, self._tables)
        check_owned([message.TableIds(table, found.config.dim, ids)], self.partition_map, self.index)
        return found.prefetch(as_read_only(ids))

    # ------------------------------------------------------------ push
    def push(self, request: message.PushRequest, encoded: Part | None = None) -> message.PushResponse:
        """Apply a push once.

        Parameters
        ----------
        request
            Decoded.
        encoded
            Its bytes, if the caller has them: they go to the log as they are.

        Raises
        ------
        RowhouseError
            InvalidRequestError and its kin, PreconditionError and its kin: nothing was changed.
            PoisonedError, StoreError: not acknowledged; a retry after a restart finds out.
        """
        self._check_alive(writing=True)
        parts = checked_parts(request, self._tables)
        if self.partition_map.accepts(request.map_version):  # else it is a repeat, or refused below
            check_owned(request.changes, self.partition_map, self.index)
        with self._before_removal(request), self._push_lock:
            self._check_alive(writing=True)
            time_ms = int(self._now_s() * 1000)
            try:
                repeat = self._sessions.repeat_of(request.client_id, request.sequence, time_ms)
            except SequenceGapError:
                check_map(request.map_version, self.partition_map, self.index)  # of another cluster: say that
                raise
            lsn = self._applied_lsn + 1 if repeat is None else repeat
            if repeat is None:  # only now: a repeat was applied, whatever map it was routed by
                check_map(request.map_version, self.partition_map, self.index)
                request, encoded, parts = without_frozen(request, encoded, parts)
                with self._poisoning():
                    self._log_and_apply(request, encoded, parts, lsn, time_ms)
        if self.config.durability == "fsync" and self._log is not None:
            with self._poisoning():
                self._log.sync(lsn)
        return message.PushResponse(lsn, repeat is not None)

    @contextmanager
    def _before_removal(self, request: message.PushRequest) -> Iterator[None]:
        """Where rows are to be removed: most of what the log's sync waits for is done while pushes go on;
        no checkpoint cuts the log in between."""
        if self._log is None or not _removes(request):
            yield
            return
        with self._checkpoint_lock:
            self._check_alive(writing=True)
            with self._poisoning():
                self._log.sync_whole()
            yield

    def _log_and_apply(
        self,
        request: message.PushRequest,
        encoded: Part | None,
        parts: list[tuple[Table, TablePush | RowEdit]],
        lsn: int,
        time_ms: int,
    ) -> None:
        """Write the record, then apply it; the caller holds the push lock."""
        self._failpoint("before log")
        if self._log is not None:
            payload = encoded if encoded is not None else encode_push_request(request)
            self._log.append(Record(lsn, KIND_PUSH, time_ms, payload))
            if _removes(request):
                self._log.sync(lsn)  # as an eviction's (_evict_chunk)
        self._failpoint("after log")
        self._recent.note(lsn, {table.name: part.ids for table, part in parts})
        for table, part in parts:
            table.change(part, lsn, time_ms // 1000)
        self._sessions.record(request.client_id, request.sequence, lsn, time_ms)
        self._advance(lsn)

    def _advance(self, lsn: int) -> None:
        """Everything up to `lsn` is applied; the caller holds the push lock."""
        self._applied_lsn = lsn
        life = self._opened.life
        if lsn + 1 >= life.lsn_reserved:
            self._opened.life = replace(life, lsn_reserved=lsn + checkpoint.LSN_RESERVE)
            checkpoint.write_life(self.store, self._opened.life)
        if self._log is not None and self._log.bytes > self.config.checkpoint_log_bytes:
            self._checkpoint_wanted.set()

    def contribute(self, request: message.Contribution) -> pb.ContributeResponse:
        """Hold one trainer's part of a step that several trainers make together (group.py)."""
        return self.groups.contribute(request)

    def last_sequence(self, client_id: int) -> int:
        """Number of the client's last push that is applied here; 0 when there is none."""
        return self._sessions.last_of(client_id)

    def settled_lsn(self) -> int:
        """The LSN up to which everything is applied, once no push is under way."""
        with self._push_lock:
            return self._applied_lsn

    def table_at_lsn(self, name: str, *, writing: bool = False) -> tuple[Table, int]:
        """A table, and the LSN up to which everything is applied to it, for bulk work (bulk.py)."""
        self._check_alive(writing=writing)
        return table_of(name, self._tables), self._applied_lsn

    # ------------------------------------------------------------ checkpoint
    def checkpoint(self) -> tuple[int, int]:
        """Write every dirty row to the store and drop the log below; returns (LSN, rows written).

        Pushes and pulls go on meanwhile, but for a few milliseconds at a time. Raises StoreError, and the
        shard is poisoned then. Raises BusyError, before anything has changed, when the process could not open
        the files that it needs.
        """
        if self._read_only:
            raise TableFrozenError(f"shard {self.index} is open read-only")
        check_files(len(self._tables))
        with self.upkeep():
            with self._push_lock:
                lsn = self._applied_lsn
                clients, (frozen, configured) = self._sessions.snapshot(), freezes(self._tables)
                state = CheckpointState(lsn=lsn, clients=clients, frozen=frozen, configured=configured)
                sketches = {n: t.admission.state_bytes() for n, t in self._tables.items() if t.admission}
                if self._log is not None:
                    self._log.rotate()
                    self._failpoint("after rotate")
                    self._note_open_segment(self._log.open_lsn)
            written = sum(table.tier.write_back() for table in self._tables.values())
            for table in self._tables.values():
                table.tier.rows.flush()
                self._failpoint("mid checkpoint")
            checkpoint.write(self.store, state, sketches)
            self._opened.state = state
            if self._log is not None:
                self._log.drop_before(lsn)
            else:  # durability none: a log of an earlier run is not needed any more
                self._note_open_segment(0)
                for path in list_segments(self.directory / "log"):
                    path.unlink()
        return lsn, written

    def _note_open_segment(self, open_lsn: int) -> None:
        """Have the next start know which segment must be there, before it has a record.

        Synced only where records are: under `os` it outlives what they outlive, and costs no sync while
        pushes wait.
        """
        if open_lsn != self._opened.life.open_lsn:
            self._opened.life = replace(self._opened.life, open_lsn=open_lsn)
            synced = self.config.durability == "fsync"
            checkpoint.write_life(self.store, self._opened.life, synced=synced)

    def _checkpoint_when_wanted(self) -> None:
        while True:
            self._checkpoint_wanted.wait()
            if self._closing.is_set():
                return
            try:
                self.checkpoint_if_wanted()
            except BusyError as error:
                _logger.warning("shard %d: the checkpoint waits: %s", self.index, error)
                self._closing.wait(CHECKPOINT_RETRY_S)
                self._checkpoint_wanted.set()
            except Exception:
                _logger.exception("shard %d: the checkpoint failed", self.index)
                return

    def checkpoint_if_wanted(self) -> None:
        """`checkpoint` once the push log is past the config's bound (the background's work)."""
        if self._checkpoint_wanted.is_set():
            self._checkpoint_wanted.clear()
            self.checkpoint()

    def count_rows(self) -> None:
        """Count the rows of tables whose number is not known (the background's work)."""
        try:
            for table in self._tables.values():
                if not table.tier.stored.exact:
                    table.tier.count_stored(COUNT_CHUNK_ROWS, self._closing.is_set)
        except Exception:
            _logger.exception("shard %d: counting rows failed", self.index)

    # ------------------------------------------------------------ control calls
    def call(self, method: str, request: Any) -> Any:
        """Answer a control call (rowhouse/control.py) with the response that belongs to it."""
        handler = self._calls[method_of(method).name]
        if ticket := getattr(request, "ticket", 0):
            return self._long_calls.answer(method, ticket, partial(handler, request))
        return handler(request)

    def _moved(self) -> int:
        """Rows that checkpoints wrote and policies evicted: how far long calls are."""
        tables = self._tables.values()
        return sum(table.tier.written_back_rows + table.counters.evicted_rows for table in tables)

    def get_cluster(self, _request: pb.GetClusterRequest) -> pb.GetClusterResponse:
        """Tables, endpoints and the partition map."""
        self._check_alive()
        return cluster_message(self.config, self.index, self.partition_map, self._tables)

    def create_checkpoint(self, _request: pb.CreateCheckpointRequest) -> pb.CreateCheckpointResponse:
        """`checkpoint` as an RPC."""
        lsn, rows = self.checkpoint()
        return pb.CreateCheckpointResponse(lsn=lsn, rows_written=rows)

    def get_stats(self, _request: pb.GetStatsRequest) -> pb.GetStatsResponse:
        """Live counters; answered by a poisoned shard too."""
        return stats_message(
            self.config, self.index, self._opened, self._applied_lsn, self.poison, closed=self._closed
        )

    def set_table_freeze(self, request: pb.SetTableFreezeRequest) -> pb.SetTableFreezeResponse:
        """Refuse, ignore or allow pushes to a table, over restarts too, until another call or config."""
        self._check_alive(writing=True)
        table = table_of(request.table, self._tables)
        mode = freeze_mode_of(request)
        with self._push_lock:
            table.frozen = mode
        self.checkpoint()
        return pb.SetTableFreezeResponse()

    def evict_rows(self, request: pb.EvictRowsRequest) -> pb.EvictRowsResponse:
        """Run a table's eviction policies now; InvalidRequestError when it has none, UnavailableError when
        the shard is to stop meanwhile."""
        self._check_alive(writing=True)
        table = evictable_table_of(request.table, self._tables)
        with self.upkeep(writing=True):
            if self._log is not None:
                self._log.sync_whole()  # most of what each chunk waits for, while pushes go on
            evicted = evict_by_policy(table, int(self._now_s()), self._evict_chunk, self._closing.is_set)
        if self._closing.is_set():
            raise UnavailableError(
                f"shard {self.index} is stopping: the eviction of table {table.name!r} was broken off after "
                f"{evicted} rows, which stay gone; run it again"
            )
        return pb.EvictRowsResponse(rows_evicted=evicted)

    def list_rows(self, request: pb.ListRowsRequest) -> pb.ListRowsResponse:
        """A page of a table's rows (listing.py); UnknownTableError, CorruptionError for damaged rows.
        PreconditionError for a page of a listing that this start of the shard did not begin: a row that was
        written then may be in memory only, where a page does not look for it."""
        self._check_alive()
        table, before = table_of(request.table, self._tables), self._applied_lsn
        if not request.first_key and not self._read_only:
            with self.upkeep():
                table.tier.write_back()
            self._listed.add(table.name)
        elif not self._read_only and table.name not in self._listed:
            raise PreconditionError(
                f"shard {self.index} was restarted since this listing of table {table.name!r} began: "
                "begin it again"
            )
        with self._reading():
            rows, following = list_rows(table, request.first_key, request.rows_max)
        after = self._applied_lsn
        return pb.ListRowsResponse(rows=rows, next_key=following, lsn_before=before, lsn_after=after)

    def read_rows(self, request: pb.ReadRowsRequest) -> pb.ReadRowsResponse:
        """Rows of the ids asked for, those that there are (listing.py); a read moves nothing into memory.
        StalePartitionMapError, UnknownTableError, InvalidRequestError, LimitExceededError for more rows than
        a page has, CorruptionError for damaged ones."""
        self._check_alive()
        check_map(request.map_version, self.partition_map, self.index)
        table, ids = table_of(request.table, self._tables), ids_of(request)
        check_owned([message.TableIds(table.name, table.config.dim, ids)], self.partition_map, self.index)
        lsn = self._applied_lsn
        with self._reading():
            rows = read_rows(table, ids)
        return pb.ReadRowsResponse(rows=rows, lsn=lsn)

    def _evict_chunk(self, table: Table, ids: Ids, since: Moment) -> int:
        with self._push_lock:
            ids = ids[~spared(table, ids, since)]
            if not ids.shape[0]:
                return 0
            lsn = self._applied_lsn + 1
            if self._log is not None:
                payload = encode_eviction(table.name, ids)
                self._log.append(Record(lsn, KIND_EVICT, int(self._now_s() * 1000), payload))
                self._log.sync(lsn)  # a deletion has no LSN: the store must not have it before the log
            self._recent.note(lsn, {table.name: ids})
            evicted = table.tier.remove(ids, lsn)
            table.counters.evicted_rows += evicted
            self._advance(lsn)
            return evicted

    # ------------------------------------------------------------ the end
    def close(self) -> None:
        """Checkpoint and close; a poisoned shard, or one that has no files for a checkpoint, is closed as it
        is, for the next start to recover."""
        if self._closed:
            return
        self._closing.set()
        self._checkpoint_wanted.set()
        for thread in self._threads:
            thread.join()
        if not self._read_only and self.poison is None:
            try:
                self.checkpoint()
                self._opened.life = replace(self._opened.life, clean=True)
                checkpoint.write_life(self.store, self._opened.life)
            except BusyError as error:
                _logger.warning("shard %d ends without a checkpoint; its log has all: %s", self.index, error)
        with self._checkpoint_lock, self._push_lock:
            self._closed = True
            if self._log is not None:
                self._log.close()
            self.store.close()


def _removes(request: message.PushRequest) -> bool:
    return any(edit.weights is None for edit in request.edits)
