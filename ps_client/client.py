# SPDX-License-Identifier: Apache-2.0
"""The client of a cluster: pull rows, push gradients, by NumPy arrays.

    ids ─▶ validation ─▶ dedup (plan, kernel) ─▶ split by shard ─▶ calls (exchange, lane, retry) ─▶ gather

This module is the public face: it checks and hands over. ps_client.torch builds on it.

Invariants: 1. nothing is sent before the whole step is checked; 2. a push is applied once on each
shard, however often it had to be sent; 3. answers come in the caller's order.
Thread safety: a Client may be used by any number of threads; pushes of one client to one shard are
made one after the other. It must not be used after a fork: the child gets PreconditionError.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rowhouse import dtype
from rowhouse.error import InvalidRequestError, PreconditionError
from rowhouse.message import TableGradients
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.cluster import Cluster
from ps_client.exchange import Exchange
from ps_client.kernel import as_read_only, gather, sum_duplicates
from ps_client.plan import distinct
from ps_client.retry import Retry
from ps_client.table import Table, find_table
from ps_client.validation import as_events, as_gradients, as_ids, check_learning_rate, check_out, wire_code

FREEZE_MODES: Final = {
    "off": pb.FREEZE_MODE_OFF, "refuse": pb.FREEZE_MODE_REFUSE, "ignore": pb.FREEZE_MODE_IGNORE,
}  # fmt: skip
"""What a frozen table does with a push: apply it, raise TableFrozenError, or drop its gradients."""


@dataclass(frozen=True, slots=True)
class UniqueRows:
    """Rows of the distinct ids of one pull.

    Attributes
    ----------
    ids
        (u,) uint64 in the order of first appearance.
    inverse
        (n,) int64: `rows[inverse]` is what `pull` gives.
    rows
        (u, dim) float32; may be a read-only view of the shard's answer.
    """

    ids: NDArray[np.uint64]
    inverse: NDArray[np.int64]
    rows: NDArray[np.float32]


class Client:
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

    @property
    def tables(self) -> Mapping[str, Table]:
        """Every table of the cluster by name (read-only): dim, dtype, config."""
        return self._cluster.tables

    @property
    def shard_count(self) -> int:
        """Number of shards."""
        return len(self._cluster.transports)

    def pull(
        self, table: str, ids: ArrayLike, out: NDArray[np.float32] | None = None, *, read_only: bool = False
    ) -> NDArray[np.float32]:
        """Rows of `ids`, in their order. An id without a row gets the row that a push would start from.

        Parameters
        ----------
        table
            Name of the table.
        ids
            (n,) integers; duplicates allowed. Signed ids must not be negative.
        out
            Where to write: C-contiguous (n, dim) float32. None: a new array.
        read_only
            For evaluation and export: rows do not move into the hot set.

        Returns
        -------
        ndarray
            (n, dim) float32: `out`, or a new array.

        Raises
        ------
        InvalidRequestError
            Wrong ids or a wrong `out` (nothing was sent); UnknownTableError for an unknown table.
        UnavailableError
            No answer within the client's timeout.
        """
        self._check_usable()
        declared = find_table(self.tables, table)
        checked = as_ids(declared, ids)
        if out is not None:
            check_out(declared, checked.shape[0], out)
        plan = distinct(declared, checked)
        rows = self._exchange.pull([plan], self._wire_dtype, read_only)[0]
        answer = np.empty((checked.shape[0], declared.dim), np.float32) if out is None else out
        gather(as_read_only(rows), plan.inverse, answer)
        return answer

    def pull_many(
        self, ids: Mapping[str, ArrayLike], *, read_only: bool = False
    ) -> dict[str, NDArray[np.float32]]:
        """Rows of several tables in one step: one call per shard, whatever the number of tables.

        Parameters
        ----------
        ids
            (n,) integers by table name, as for `pull`.
        read_only
            As for `pull`.

        Returns
        -------
        dict
            (n, dim) float32 by table name.
        """
        answers = {}
        for table, unique in self.pull_unique(ids, read_only=read_only).items():
            answer = np.empty((unique.inverse.shape[0], unique.rows.shape[1]), np.float32)
            gather(as_read_only(unique.rows), unique.inverse, answer)
            answers[table] = answer
        return answers

    def pull_unique(self, ids: Mapping[str, ArrayLike], *, read_only: bool = False) -> dict[str, UniqueRows]:
        """As `pull_many`, but each distinct id's row once, with the inverse; the base of ps_client.torch.

        Parameters
        ----------
        ids
            (n,) integers by table name, as for `pull`.
        read_only
            As for `pull`.

        Returns
        -------
        dict
            UniqueRows by table name.
        """
        self._check_usable()
        declared = [(find_table(self.tables, table), values) for table, values in ids.items()]
        plans = [distinct(table, checked) for table, checked in [(t, as_ids(t, v)) for t, v in declared]]
        rows = self._exchange.pull(plans, self._wire_dtype, read_only)
        return {
            p.table.name: UniqueRows(p.ids, p.inverse, values) for p, values in zip(plans, rows, strict=True)
        }

    def push(
        self,
        table: str,
        ids: ArrayLike,
        gradients: ArrayLike,
        learning_rate: float | None = None,
        *,
        shows: ArrayLike | None = None,
        clicks: ArrayLike | None = None,
    ) -> None:
        """Apply gradients to one table; see `push_many` for what it raises.

        Parameters
        ----------
        table
            Name of the table.
        ids
            (n,) integers; gradients of duplicates are summed in fp32, in their order.
        gradients
            (n, dim) floating-point, finite.
        learning_rate
            Overrides the optimizer's learning rate for this push.
        shows, clicks
            (n,) not negative: how often each id was shown and clicked, for a table with a show/click
            policy (other tables ignore them). None: a show for each time an id stands here, no click.
        """
        self._check_usable()
        part = self._part(table, ids, gradients, check_learning_rate(learning_rate), shows, clicks)
        if part.ids.shape[0]:
            self._exchange.push([part])

    def push_many(
        self, gradients: Mapping[str, tuple[ArrayLike, ArrayLike]], learning_rate: float | None = None
    ) -> None:
        """Apply one step's gradients to several tables, once on each shard; returns when they are applied.

        Each shard applies its part as a whole. When a part fails, those of other shards may be applied
        all the same. A part whose fate is not known (no answer in time) is kept and sent again under
        its own number before the next push to its shard, so it must not be pushed anew; `flush` waits
        for it. A part that a shard refused changed nothing.

        Parameters
        ----------
        gradients
            (ids, gradients) by table name, as for `push`.
        learning_rate
            As for `push`, for every table of this step.

        Raises
        ------
        InvalidRequestError
            Wrong ids, shapes or values (nothing was sent); UnknownTableError for an unknown table.
        TableFrozenError
            A table refuses pushes.
        UnavailableError
            No answer within the client's timeout.
        """
        self._check_usable()
        rate = check_learning_rate(learning_rate)
        parts = [self._part(name, ids, values, rate) for name, (ids, values) in gradients.items()]
        if parts := [part for part in parts if part.ids.shape[0]]:
            self._exchange.push(parts)

    def _part(
        self,
        name: str,
        ids: ArrayLike,
        gradients: ArrayLike,
        rate: float | None,
        shows: ArrayLike | None = None,
        clicks: ArrayLike | None = None,
    ) -> TableGradients:
        """One table's part of a push, checked whole and its duplicates summed; nothing is sent yet."""
        table = find_table(self.tables, name)
        checked = as_ids(table, ids)
        events = [as_events(table, kind, e, checked) for kind, e in (("shows", shows), ("clicks", clicks))]
        values = as_gradients(table, checked, gradients, self._wire_dtype)
        return self._summed(table, checked, values, rate, *events)

    def _summed(
        self,
        table: Table,
        ids: NDArray[np.uint64],
        gradients: NDArray[np.float32],
        rate: float | None,
        shows: NDArray[np.float32] | None = None,
        clicks: NDArray[np.float32] | None = None,
    ) -> TableGradients:
        plan = distinct(table, ids)
        count = plan.ids.shape[0]
        sums = (
            gradients
            if count == ids.shape[0]
            else sum_duplicates(as_read_only(gradients), plan.inverse, count)
        )
        if sums is not gradients:  # a sum of finite gradients may still overflow
            sums = as_gradients(table, plan.ids, sums, self._wire_dtype)
        narrow = dtype.narrow(sums, self._wire_dtype)
        if not table.scored:
            shows = clicks = None
        elif shows is None and count < ids.shape[0]:
            shows = np.ones(ids.shape[0], np.float32)  # each duplicate is a show of its own
        events = [
            e if e is None else sum_duplicates(as_read_only(e[:, np.newaxis]), plan.inverse, count)[:, 0]
            for e in (shows, clicks)
        ]
        return TableGradients(table.name, self._wire_dtype, plan.ids, narrow, rate, *events)

    def flush(self) -> None:
        """Send again each push whose answer is missing, and return when all of them are applied.

        Raises
        ------
        UnavailableError
            A shard still does not answer; its push stays kept.
        """
        self._check_usable()
        self._exchange.settle()

    def checkpoint(self, timeout_s: float | None = None) -> Sequence[pb.CreateCheckpointResponse]:
        """Have every shard write its dirty rows to its store; the answers by shard (lsn, rows_written).

        Parameters
        ----------
        timeout_s
            Time it may take, in seconds; None: the client's.
        """
        self._check_usable()
        request = pb.CreateCheckpointRequest()
        return self._exchange.every_shard(lambda t, left_s: t.create_checkpoint(request, left_s), timeout_s)

    def stats(self) -> Sequence[pb.GetStatsResponse]:
        """Live counters by shard; the fields are described in rowhouse.proto."""
        self._check_usable()
        request = pb.GetStatsRequest()
        return self._exchange.every_shard(lambda t, left_s: t.get_stats(request, left_s), None)

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
        self._exchange.every_shard(lambda t, left_s: t.set_table_freeze(request, left_s), None)

    def evict(self, table: str, timeout_s: float | None = None) -> int:
        """Run one table's eviction policies now, on every shard.

        Parameters
        ----------
        table
            Name of the table.
        timeout_s
            Time it may take, in seconds; None: the client's.

        Returns
        -------
        int
            Rows evicted, all shards together.
        """
        self._check_usable()
        request = pb.EvictRowsRequest(table=find_table(self.tables, table).name)
        answers = self._exchange.every_shard(lambda t, left_s: t.evict_rows(request, left_s), timeout_s)
        return sum(answer.rows_evicted for answer in answers)

    def close(self) -> None:
        """Let go of every shard; an embedded one writes what is dirty. A second call does nothing.

        A push that is still kept (see `push_many`) is given up; call `flush` before to know.
        """
        if self._closed or self._process != os.getpid():
            return  # what a forked child inherited is its parent's to close
        self._closed = True
        self._exchange.close()
        self._cluster.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # A copy of a model (an average of its weights, say) goes on with the same connections.
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client cannot be pickled: call connect() in the process that needs one")

    def _check_usable(self) -> None:
        if self._process != os.getpid():
            raise PreconditionError(
                f"this client was connected by process {self._process} and process {os.getpid()} is its "
                "fork; connections, threads and push numbers do not survive one: call connect() in the child"
            )
        if self._closed:
            raise PreconditionError("this client is closed; call connect() for another one")
