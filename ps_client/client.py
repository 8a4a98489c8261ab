# SPDX-License-Identifier: Apache-2.0
"""The client of a cluster: pull rows, push gradients, by NumPy arrays.

    ids ─▶ validation ─▶ dedup and split (split, kernel) ─▶ calls (exchange, lane, retry) ─▶ gather

This module is the public face: step.py has what a training step uses, here is what it is made of, and the
calls of an operator. ps_client.torch builds on it.

Invariants: 1. nothing is sent before the whole step is checked; 2. a push is applied once on each
shard, however often it had to be sent; 3. answers come in the caller's order.
Thread safety: a Client may be used by any number of threads; pushes of one client to one shard are
made one after the other. It must not be used after a fork: the child gets PreconditionError.
"""

import logging
import os
import secrets
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rowhouse.control import FREEZE_MODES
from rowhouse.error import InvalidRequestError, PreconditionError, RowhouseError
from rowhouse.message import TableGradients
from rowhouse.problem import counted
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.cluster import Cluster
from ps_client.exchange import Exchange
from ps_client.interrupt import whole
from ps_client.pace.pipeline import PREFETCH_MAX, PUSH_MAX, Pipeline
from ps_client.pace.trainer import Trainer
from ps_client.report import (
    Checkpoint,
    SavedTables,
    ShardStats,
    check_saved,
    checkpoint_of,
    one_save,
    shard_stats,
)
from ps_client.retry import Retry
from ps_client.row import Rows, assign, delete, list_rows, read_rows
from ps_client.split import Distinct, check_rows, distinct
from ps_client.step import Asked, StepClient, UniqueRows
from ps_client.table import Table, find_table, names_of
from ps_client.validation import wire_code

_log = logging.getLogger(__name__)


class Client(StepClient):
    """Pulls rows and pushes gradients. Made by `connect` (connection.py).

    Parameters
    ----------
    cluster
        The joined cluster.
    retry
        Timeout and spacing of attempts.
    wire_dtype
        Element type of rows and gradients on the wire.
    """

    def __init__(self, cluster: Cluster, retry: Retry, wire_dtype: str = "fp32") -> None:
        self._wire_dtype = wire_code(wire_dtype)
        self._cluster = cluster
        self._exchange = Exchange(cluster, retry)
        self._process = os.getpid()
        self._closed = False
        # A client that nobody holds any more lets go of its shards, also at the end of the process.
        self._release = weakref.finalize(self, _let_go, self._exchange, cluster, self._process)
        self._trainers: dict[tuple[str, int], Trainer] = {}  # by group and rank: a later one takes the place

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"<Client of {counted(self.shard_count, 'shard')}{closed}: {names_of(self.tables)}>"

    @property
    def tables(self) -> Mapping[str, Table]:
        """Every table of the cluster by name (read-only): dim, dtype, config."""
        return self._cluster.tables

    @property
    def shard_count(self) -> int:
        """Number of shards."""
        return len(self._cluster.transports)

    def _fetch(self, asked: Asked, read_only: bool) -> list[UniqueRows]:
        tables = [distinct(table, ids) for table, ids in asked]
        rows = self._exchange.pull(tables, self._wire_dtype, read_only)
        return [UniqueRows(t.ids, t.inverse, found) for t, found in zip(tables, rows, strict=True)]

    def _fetch_distinct(self, asked: Asked, read_only: bool) -> list[NDArray[np.float32]]:
        tables = [Distinct(table, ids, np.empty(0, np.int64)) for table, ids in asked]
        return self._exchange.pull(tables, self._wire_dtype, read_only)

    def _fetch_early(self, asked: Asked, read_only: bool) -> tuple[list[UniqueRows], dict[int, int]]:
        tables = [distinct(table, ids) for table, ids in asked]
        rows = [np.empty((0, t.table.dim), np.float32) for t in tables]
        lsns = self._exchange.pull_changes(tables, self._wire_dtype, read_only, rows, {})
        return [UniqueRows(t.ids, t.inverse, found) for t, found in zip(tables, rows, strict=True)], lsns

    def _refresh(
        self, asked: Asked, early: tuple[list[UniqueRows], dict[int, int]], read_only: bool
    ) -> list[UniqueRows]:
        found, lsns = early
        tables = [Distinct(table, u.ids, u.inverse) for (table, _), u in zip(asked, found, strict=True)]
        rows = [unique.own_rows() for unique in found]
        self._exchange.pull_changes(tables, self._wire_dtype, read_only, rows, lsns)
        return [UniqueRows(u.ids, u.inverse, new) for u, new in zip(found, rows, strict=True)]

    def _send(self, parts: Sequence[TableGradients]) -> None:
        for part in parts:
            rows_max = self.tables[part.table].push_rows_max
            # else one shard might refuse its part when others have applied theirs
            if part.ids.shape[0] > rows_max:
                check_rows(part, self._cluster.partition_map, rows_max)
        self._exchange.push(parts)

    def pipeline(
        self, *, staleness: int = 0, prefetch_max: int = PREFETCH_MAX, push_max: int = PUSH_MAX
    ) -> Pipeline:
        """Pulls ahead of the model and pushes behind it, over this client; see Pipeline."""
        self._check_usable()
        return Pipeline(self, staleness=staleness, prefetch_max=prefetch_max, push_max=push_max)

    def trainer(
        self,
        *,
        group: str,
        rank: int,
        world_size: int,
        pace: Literal["bsp", "ssp", "async"] = "bsp",
        staleness: int = 0,
        deadline_s: float = 60.0,
        on_lost: Literal["stop", "go_on"] = "stop",
        on_uneven: Literal["stop", "go_on"] = "stop",
        journal: str | Path | None = None,
    ) -> Trainer:
        """Take part in a group of trainers that keep pace; see Trainer."""
        self._check_usable()
        made = Trainer(
            self, self._cluster, self._exchange, group=group, rank=rank, world_size=world_size, pace=pace,
            staleness=staleness, deadline_s=deadline_s, on_lost=on_lost, on_uneven=on_uneven, journal=journal,
        )  # fmt: skip
        self._trainers[group, rank] = made
        return made

    @whole
    def flush(self) -> None:
        """Send again each push whose answer is missing, and return when all of them are applied.

        Raises
        ------
        UnavailableError
            A shard still does not answer; its push stays kept.
        """
        self._check_usable()
        self._exchange.settle()

    @whole
    def checkpoint(self, timeout_s: float | None = None) -> Sequence[Checkpoint]:
        """Have every shard write its dirty rows to its store; what each of them did.

        Parameters
        ----------
        timeout_s
            The most seconds that it may take; None: as long as the shards say that they are at work.
        """
        self._check_usable()
        answers = self._exchange.every_shard_long("CreateCheckpoint", pb.CreateCheckpointRequest(), timeout_s)
        return [checkpoint_of(answer) for answer in answers]

    @whole
    def save_tables(self, name: str, timeout_s: float | None = None) -> SavedTables:
        """Have every shard keep a copy of its tables as they are now; nobody may push meanwhile.

        A copy shares its files with the tables, so it costs what changes afterwards. It stays until
        `drop_tables`. `ps-server restore` puts it back.

        Parameters
        ----------
        name
            1 to 64 letters, digits, dots, dashes and underscores; not that of an earlier copy.
        timeout_s
            The most seconds that it may take; None: as long as the shards say that they are at work.

        Returns
        -------
        SavedTables
            What `check_tables` compares with.

        Raises
        ------
        PreconditionError
            Somebody pushes, or the name is taken; no copy is left.
        """
        self.flush()
        token = secrets.randbits(64)
        request = pb.SaveTablesRequest(name=name, token=token)
        try:
            answers = self._exchange.every_shard_long("SaveTables", request, timeout_s)
        except RowhouseError:
            self._drop(name, token)
            raise
        return one_save(self._cluster.partition_map.version, self._dims(), answers)

    def _dims(self) -> dict[str, int]:
        return {name: table.dim for name, table in self.tables.items()}

    @whole
    def check_tables(self, saved: SavedTables) -> None:
        """PreconditionError unless every shard holds just what was saved; it names shard and difference.

        Parameters
        ----------
        saved
            What `save_tables` gave.
        """
        self._check_usable()
        request = pb.GetSavedTablesRequest(token=saved.token)
        answers = self._exchange.every_shard("GetSavedTables", request)
        check_saved(saved, self._cluster.partition_map.version, self._dims(), answers)

    @whole
    def drop_tables(self, name: str) -> bool:
        """Forget a saved copy on every shard.

        Parameters
        ----------
        name
            What it was saved as.

        Returns
        -------
        bool
            Whether there was one.
        """
        self._check_usable()
        return self._drop(name, 0)

    def _drop(self, name: str, token: int) -> bool:
        request = pb.DropSavedTablesRequest(name=name, token=token)
        answers = self._exchange.every_shard_long("DropSavedTables", request)
        return any(answer.dropped for answer in answers)

    @whole
    def stats(self) -> Sequence[ShardStats]:
        """Live counters by shard."""
        self._check_usable()
        answers = self._exchange.every_shard("GetStats", pb.GetStatsRequest())
        return [shard_stats(answer) for answer in answers]

    @whole
    def freeze(self, table: str, mode: Literal["off", "refuse", "ignore"]) -> None:
        """Set what every shard does with pushes to one table.

        Parameters
        ----------
        table
            Name of the table.
        mode
            "refuse" (a push is TableFrozenError), "ignore" (acknowledged, its gradients dropped), or
            "off" (pushes are applied again).
        """
        self._check_usable()
        if mode not in FREEZE_MODES:
            raise InvalidRequestError(f"mode is {mode!r}; it must be one of {list(FREEZE_MODES)}")
        request = pb.SetTableFreezeRequest(table=find_table(self.tables, table).name, mode=FREEZE_MODES[mode])
        self._exchange.every_shard_long("SetTableFreeze", request)

    @whole
    def evict(self, table: str, timeout_s: float | None = None) -> int:
        """Run one table's eviction policies now, on every shard.

        Parameters
        ----------
        table
            Name of the table.
        timeout_s
            The most seconds that it may take; None: as long as the shards say that they are at work.

        Returns
        -------
        int
            Rows evicted, all shards together.
        """
        self._check_usable()
        request = pb.EvictRowsRequest(table=find_table(self.tables, table).name)
        answers = self._exchange.every_shard_long("EvictRows", request, timeout_s)
        return sum(answer.rows_evicted for answer in answers)

    def read_rows(self, table: str, ids: ArrayLike) -> Rows:
        """Rows with everything that is kept of them: weights, optimizer state and what policies read.

        Nothing moves into memory, and no row is made. Each row is as its shard has it at one moment.

        Parameters
        ----------
        table
            Name of the table.
        ids
            (n,) integers.

        Returns
        -------
        Rows
            Those that there are, in the order of `ids`; `np.isin(ids, rows.ids)` says which.

        Raises
        ------
        CorruptionError
            A row is damaged on disk.
        """
        self._check_usable()
        return read_rows(self._cluster, self._exchange, find_table(self.tables, table), ids)

    def list_rows(self, table: str) -> Iterator[Rows]:
        """Every row of a table, a page of about a megabyte at a time, shard by shard.

        Pushes go on meanwhile: each row is as it was at some moment of the listing. A row that is made or
        evicted meanwhile may be there or not.

        Parameters
        ----------
        table
            Name of the table.

        Raises
        ------
        PreconditionError
            A shard was restarted meanwhile: begin again.
        """
        self._check_usable()
        return list_rows(self._cluster, self._exchange, find_table(self.tables, table))

    @whole
    def assign(
        self,
        table: str,
        ids: ArrayLike,
        weights: ArrayLike,
        *,
        state: ArrayLike | None = None,
        shows: ArrayLike | None = None,
        clicks: ArrayLike | None = None,
    ) -> None:
        """Give rows these weights; rows that are not there are made, whatever the table's admission says.

        It is logged, and applied once, as a push is. What is not given a row keeps; a new one begins with the
        optimizer's initial state, no shows, no clicks and no counted push. The time of the last push becomes
        now. More than 16,384 rows are assigned in parts, each whole or not at all.

        Parameters
        ----------
        table
            Name of the table.
        ids
            (n,) integers, each once.
        weights
            (n, dim), finite; rounded to the nearest of the table's dtype.
        state
            (n, state_size), finite: the optimizer's, as `read_rows` gives it.
        shows, clicks
            (n,), finite and not negative; of tables with a show/click policy.

        Raises
        ------
        InvalidRequestError, TableFrozenError
            Nothing of the part was changed.
        UnavailableError, DeadlineExceededError
            As of `push_many`: the part is kept and sent again, under its number, before the next push.
        """
        self._check_usable()
        assign(self._exchange, find_table(self.tables, table), ids, weights, state, shows, clicks)

    @whole
    def delete(self, table: str, ids: ArrayLike) -> None:
        """Remove rows from memory and disk. An id that has no row is passed over.

        It is logged, and applied once, as a push is; a deletion that was acknowledged survives what an
        acknowledged push survives. A later push makes the row anew. A deletion waits for a checkpoint that is
        under way.

        Parameters
        ----------
        table
            Name of the table.
        ids
            (n,) integers. More than 16,384 are deleted in parts, each whole or not at all.

        Raises
        ------
        TableFrozenError
            Nothing of the part was changed.
        UnavailableError, DeadlineExceededError
            As of `push_many`: the part is kept and sent again, under its number, before the next push.
        """
        self._check_usable()
        delete(self._exchange, find_table(self.tables, table), ids)

    @whole
    def close(self) -> None:
        """Let go of every shard; an embedded one writes what is dirty. A second call does nothing.

        A client that nothing refers to any more is closed by itself; so is one at the end of the process.

        A push that is still kept (see `push_many`) is given up; call `flush` before to know.

        Raises
        ------
        PreconditionError
            A trainer of this client was not closed and has pushes that no `step` ended; see Trainer.close.
        """
        if self._closed or self._process != os.getpid():
            return  # what a forked child inherited is its parent's to close
        self._closed = True
        self._release.detach()
        with ExitStack() as ends:  # every one of them, whatever one raises; the last one first
            ends.callback(self._cluster.close)
            ends.callback(self._exchange.close)
            for trainer in self._trainers.values():
                ends.callback(trainer.close)

    def _fail(self) -> None:
        for trainer in self._trainers.values():
            trainer._fail()

    def _check_usable(self) -> None:
        if self._process != os.getpid():
            raise PreconditionError(
                f"this client was connected by process {self._process} and process {os.getpid()} is its "
                "fork; connections, threads and push numbers do not survive one: call connect() in the child"
            )
        if self._closed:
            raise PreconditionError("this client is closed; call connect() for another one")


def _let_go(exchange: Exchange, cluster: Cluster, process: int) -> None:
    """Close what a client held that was not closed. Nothing here may refer to the client."""
    if process != os.getpid():
        return  # a forked child's copy

    def close() -> None:
        exchange.close()
        try:
            cluster.close()
        except Exception as failure:
            _log.warning("a client that nobody held any more was not closed well: %s", failure)

    if threading.current_thread().daemon:  # perhaps the shard's own thread, for which its close would wait
        threading.Thread(target=close, name="rowhouse-close").start()
    else:
        close()
