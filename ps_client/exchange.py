# SPDX-License-Identifier: Apache-2.0
"""Blocking calls of one step to every shard concerned, with retries, at the same time.

split.py says what goes where, lane.py what a push may be named, retry.py when to try again; here they
meet threads and transports. Where shards have data ports, the caller's thread sends to all of them before
it waits for any; what cannot be begun so, and what must be tried again, goes to a pool of threads.

    parts ─▶ `_at_once` ─▶ begin each ─▶ as they are answered: finish here
                              └─ not possible, or failed ─▶ finish in the pool, with retries

Invariants: 1. a pull or push that a shard refused for its partition map is split again by the map that
this shard has, and nothing else of the step is sent twice; 2. a pool thread never waits for another
task of the pool, so a full pool is slow and never stuck; 3. a thread that holds a lane waits for another
lane only in the pool, where it holds no other.
Thread safety: any number of threads.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.error import (
    BusyError,
    DeadlineExceededError,
    RowhouseError,
    SequenceGapError,
    StalePartitionMapError,
)
from rowhouse.kernel import as_read_only
from rowhouse.limit import RESEND_S
from rowhouse.message import PullRequest, PullResponse, PushResponse, TableChange
from rowhouse.placement import PartitionMap

from ps_client.cluster import Cluster
from ps_client.interrupt import acquired, result_of
from ps_client.kernel import scatter
from ps_client.lane import REFUSALS, Lane
from ps_client.long_call import ask_until_ended, give_ticket
from ps_client.retry import Backoff, Retry
from ps_client.split import Distinct, Piece, check_answer, pull_request, split_pull, split_push
from ps_client.transport.transport import Begun, Transport, as_ended

THREADS_PER_SHARD: Final = 4
"""Calls under way to one shard at once, for callers that pull and push from several threads."""

P = TypeVar("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Refused:
    """Pushes that a shard refused because of its partition map, oldest first; nothing was changed."""

    stale: StalePartitionMapError
    batches: list[Sequence[TableChange]]


@dataclass(frozen=True, slots=True)
class _Push:
    """What the parts of one push have in common; each has its own attempts, `within` the time of all."""

    partition_map: PartitionMap
    within: Backoff


@dataclass(frozen=True, slots=True)
class _Pull:
    """What the parts of one pull have in common; `rows` of each table are written as they come. With `since`,
    LSNs by shard, it asks for rows that changed above them (above 0 where a shard has none). `lsns` gets the
    LSN of each shard."""

    partition_map: PartitionMap
    wire_dtype: int
    read_only: bool
    rows: list[NDArray[np.float32]]
    within: Backoff
    since: Mapping[int, int] | None
    lsns: dict[int, int]

    def request(self, shard: int, pieces: Sequence[Piece]) -> PullRequest:
        """The message for one shard."""
        since = None if self.since is None else self.since.get(shard, 0)
        return pull_request(pieces, self.partition_map, self.wire_dtype, self.read_only, since)


class Exchange:
    """The calls of one client."""

    def __init__(self, cluster: Cluster, retry: Retry) -> None:
        self._cluster = cluster
        self._retry = retry
        threads = THREADS_PER_SHARD * len(cluster.transports)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rowhouse")

    def pull(self, tables: Sequence[Distinct], wire_dtype: int, read_only: bool) -> list[NDArray[np.float32]]:
        """Rows of each table's distinct ids: (u, dim) float32, possibly a read-only view of an answer."""
        rows = [np.empty((0, d.table.dim), np.float32) for d in tables]
        self._pull(tables, wire_dtype, read_only, rows, None)
        return rows

    def pull_changes(
        self,
        tables: Sequence[Distinct],
        wire_dtype: int,
        read_only: bool,
        rows: list[NDArray[np.float32]],
        since: Mapping[int, int],
    ) -> dict[int, int]:
        """Write into `rows`, which may be written to, what changed above an LSN of each shard.

        Parameters
        ----------
        tables, wire_dtype, read_only
            As of `pull`.
        rows
            (u, dim) float32 of each table; without any `since` whatever they hold is replaced.
        since
            By shard; 0 where it has none.

        Returns
        -------
        dict
            By shard the LSN above which the rows may lack something now.
        """
        return self._pull(tables, wire_dtype, read_only, rows, since)

    def _pull(
        self,
        tables: Sequence[Distinct],
        wire_dtype: int,
        read_only: bool,
        rows: list[NDArray[np.float32]],
        since: Mapping[int, int] | None,
    ) -> dict[int, int]:
        backoff = self._retry.start()
        lsns: dict[int, int] = {}
        pieces = [Piece(i, d.table, d.ids, None) for i, d in enumerate(tables) if d.ids.shape[0]]
        while pieces:
            partition_map = self._cluster.partition_map
            parts, pieces = split_pull(pieces, partition_map, wire_dtype, self._cluster.message_bytes_max)
            for piece in (p for part in parts.values() for p in part):
                if piece.positions is not None and not rows[piece.index].shape[0]:
                    count = tables[piece.index].ids.shape[0]
                    rows[piece.index] = np.empty((count, piece.table.dim), np.float32)
            step = _Pull(partition_map, wire_dtype, read_only, rows, backoff, since, lsns)
            outcomes = self._at_once(parts, partial(self._begin_pull, step), partial(self._pull_part, step))
            for (shard, part), outcome in zip(parts.items(), outcomes, strict=True):
                if isinstance(outcome, StalePartitionMapError):
                    pieces += part
                    self._reload(shard, partition_map, outcome, backoff)
                elif outcome is not None:
                    raise outcome
        return lsns

    def _begin_pull(self, step: _Pull, shard: int, pieces: Sequence[Piece]) -> Begun[PullResponse] | None:
        return self._cluster.transports[shard].begin(step.request(shard, pieces), step.within.remaining_s())

    def _pull_part(
        self, step: _Pull, shard: int, pieces: Sequence[Piece], begun: Begun[PullResponse] | None
    ) -> None:
        """The rows of one shard; `begun` is the first attempt."""
        transport = self._cluster.transports[shard]
        request = step.request(shard, pieces)
        response = self._persist(
            partial(transport.pull, request), self._retry.start(step.within.remaining_s()), begun
        )
        check_answer(transport.endpoint, request, response)
        step.lsns[shard] = min(step.lsns.get(shard, response.lsn), response.lsn)
        for piece, answer in zip(pieces, response.tables, strict=True):
            values = dtype.widen(answer.rows, step.wire_dtype)
            positions = piece.positions
            if answer.changed is not None and values.shape[0] < piece.ids.shape[0]:
                changed = np.unpackbits(answer.changed, count=piece.ids.shape[0], bitorder="little")
                places = np.flatnonzero(changed)
                positions = places if positions is None else positions[places]
            if positions is None:
                step.rows[piece.index] = values
            else:
                scatter(as_read_only(values), positions, step.rows[piece.index])

    def push(self, tables: Sequence[TableChange]) -> None:
        """Push distinct ids with their summed gradients, or rows by hand; Client.push_many says what an
        error leaves."""
        backoff = self._retry.start()
        batches: deque[Sequence[TableChange]] = deque([tables])
        failures: list[RowhouseError] = []
        while batches:
            partition_map = self._cluster.partition_map
            parts = split_push(batches.popleft(), partition_map, self._cluster.message_bytes_max)
            step = _Push(partition_map, backoff)
            outcomes = self._at_once(
                parts,
                partial(self._begin_push, step),
                partial(self._push_part, step),
                lambda shard: self._cluster.lanes[shard].abandon(),
            )
            for shard, outcome in zip(parts, outcomes, strict=True):
                if isinstance(outcome, RowhouseError):
                    failures.append(outcome)
                elif outcome is not None:
                    batches.extend(outcome.batches)
                    try:
                        self._reload(shard, partition_map, outcome.stale, backoff)
                    except RowhouseError as failure:
                        failures.append(failure)
                        batches.clear()  # refused, so not applied; the error says that the push failed
        _raise_first(failures)

    def settle(self) -> None:
        """Send again, on every shard, the push whose answer is missing, if there is one."""
        failures: list[RowhouseError] = []
        step = _Push(self._cluster.partition_map, self._retry.start())
        waiting = [shard for shard, lane in enumerate(self._cluster.lanes) if lane.pending is not None]
        for outcome in self._parallel([partial(self._push_part, step, shard, (), None) for shard in waiting]):
            if isinstance(outcome, RowhouseError):
                failures.append(outcome)
            elif outcome is not None:
                for batch in outcome.batches:
                    self.push(batch)
        _raise_first(failures)

    def _begin_push(
        self, step: _Push, shard: int, tables: Sequence[TableChange]
    ) -> Begun[PushResponse] | None:
        """Take the shard's lane and send, if that can be done without waiting; else leave all as it is."""
        lane = self._cluster.lanes[shard]
        request = lane.try_begin(step.partition_map.stamp, tables)
        if request is None:
            return None
        try:
            begun = self._cluster.transports[shard].begin(request, step.within.remaining_s())
        except BaseException:
            lane.abandon()
            raise
        if begun is None:  # nothing was sent
            lane.refuse()
            lane.lock.release()
        return begun

    def _push_part(
        self,
        step: _Push,
        shard: int,
        tables: Sequence[TableChange],
        begun: Begun[PushResponse] | None,
    ) -> _Refused | None:
        """Settle the shard's lane, then push `tables` (none: settle only).

        With `begun` the lane is held already, and this is the first attempt of its push.
        """
        left_s = step.within.remaining_s()
        backoff = self._retry.start(left_s)
        lane, transport = self._cluster.lanes[shard], self._cluster.transports[shard]
        if begun is None and not acquired(lane.lock, backoff.remaining_s()):
            raise DeadlineExceededError(
                f"shard at {transport.endpoint}: another thread's push took the whole {left_s:.1f} s; "
                "this push was not sent"
            )
        refused: list[_Refused] = []
        try:
            if begun is None and lane.pending is not None:
                refused += self._send(lane, transport, backoff)
            if tables and begun is None and lane.number_may_be_taken:
                lane.begin(step.partition_map.stamp, ())
                for stale in self._send(lane, transport, backoff):
                    refused.append(_Refused(stale.stale, [tuple(tables)]))
                    tables = ()
            if tables:
                if begun is None:
                    lane.begin(step.partition_map.stamp, tables)
                refused += self._send(lane, transport, backoff, begun)
        except BaseException:
            lane.keep()
            raise
        finally:
            lane.lock.release()
        return _Refused(refused[-1].stale, [b for r in refused for b in r.batches]) if refused else None

    def _send(
        self, lane: Lane, transport: Transport, backoff: Backoff, begun: Begun[PushResponse] | None = None
    ) -> list[_Refused]:
        """Send the pending push until its fate is known; the lane is idle afterwards unless it raises."""
        while True:
            assert lane.pending is not None
            if lane.is_too_old():
                lane.refuse()
                raise SequenceGapError(
                    f"shard at {transport.endpoint}: push {lane.sequence} got no answer for more than "
                    f"{RESEND_S} s, and the shard may have forgotten this client: whether the push was "
                    "applied cannot be found out any more. It is dropped, and the next push goes on"
                )
            try:
                response = begun.result() if begun else transport.push(lane.pending, backoff.remaining_s())
            except StalePartitionMapError as stale:
                return [_Refused(stale, [lane.refuse()])]
            except REFUSALS:
                lane.refuse()
                raise
            except RowhouseError as failure:
                lane.note_failure(maybe_applied=not isinstance(failure, BusyError))
                self._wait(lane, failure, backoff)
            except BaseException:
                lane.note_failure(maybe_applied=True)
                raise
            else:
                if lane.acknowledge(response):
                    return []
            begun = None

    def _wait(self, lane: Lane, failure: RowhouseError, backoff: Backoff) -> None:
        """Wait for the next attempt of a push; when there is none, say what became of the push."""
        try:
            backoff.wait(failure)
        except RowhouseError as final:
            if not lane.uncertain:
                lane.refuse()
                raise
            raise type(final)(
                f"{final}; whether push {lane.sequence} was applied is not known: it is kept and sent again, "
                "under its number, before the next push to this shard; do not push it again yourself"
            ) from failure

    def every_shard(self, method: str, request: Any, timeout_s: float | None = None) -> list[Any]:
        """Make a control call to each shard, in parallel, with retries; the answers by shard.

        PreconditionError, before the call, where a shard is of another cluster now (not of GetStats).
        """

        def ask(transport: Transport) -> Any:
            backoff = self._retry.start(timeout_s)
            if method != "GetStats":
                self._persist(partial(self._cluster.check, transport), backoff, small=True)
            return self._persist(partial(transport.call, method, request), backoff, small=True)

        return self.together([partial(ask, transport) for transport in self._cluster.transports])

    def every_shard_long(self, method: str, request: Any, timeout_s: float | None = None) -> list[Any]:
        """As `every_shard`, for a call that has no end by time while a shard is at work (long_call.py)."""
        give_ticket(request)
        given_up = threading.Event()

        def ask(transport: Transport) -> Any:
            self.persist(partial(self._cluster.check, transport), small=True)
            call = partial(transport.call, method, request)
            return ask_until_ended(call, self._retry, timeout_s, given_up)

        try:
            return self.together([partial(ask, transport) for transport in self._cluster.transports])
        except BaseException:  # an interrupt: the pool's threads must not wait on
            given_up.set()
            raise

    def persist(self, call: Callable[[float], T], *, small: bool = False) -> T:
        """The answer of a call that may be made any number of times, within the client's timeout; one that is
        `small` is soon asked again (Backoff.attempt_s)."""
        return self._persist(call, self._retry.start(), small=small)

    def together(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Make the calls in parallel; their answers, or the first failure when all have ended."""
        answers = self._parallel(calls)
        _raise_first([a for a in answers if isinstance(a, RowhouseError)])
        return [a for a in answers if not isinstance(a, RowhouseError)]

    def _persist(
        self,
        call: Callable[[float], T],
        backoff: Backoff,
        begun: Begun[T] | None = None,
        *,
        small: bool = False,
    ) -> T:
        """The answer of a call that may be made any number of times; a stale map is the caller's to mend."""
        while True:
            try:
                if begun:
                    return begun.result()
                return call(backoff.attempt_s() if small else backoff.remaining_s())
            except StalePartitionMapError:
                raise
            except RowhouseError as failure:
                backoff.wait(failure)
                begun = None

    def reload_map(self, stale_map: PartitionMap) -> None:
        """Ask a shard for its partition map, after `stale_map` was refused."""
        refused = StalePartitionMapError(f"partition map {stale_map.version:#x} was refused")
        self._reload(0, stale_map, refused, self._retry.start())

    def _reload(
        self, shard: int, stale_map: PartitionMap, stale: StalePartitionMapError, backoff: Backoff
    ) -> None:
        if not self._cluster.reload(shard, stale_map, backoff):
            backoff.wait(stale)

    def _at_once(
        self,
        parts: Mapping[int, P],
        begin: Callable[[int, P], Begun[R] | None],
        finish: Callable[[int, P, Begun[R] | None], T],
        abandon: Callable[[int], None] = lambda _: None,
    ) -> list[T | RowhouseError]:
        """Outcome of each shard's part: all are sent before any is waited for, where they can be begun.

        `finish` gets what `begin` gave, or None; `abandon` is for what was begun and will not be finished.
        """
        if len(parts) == 1:
            return [_outcome(partial(finish, shard, part, None)) for shard, part in parts.items()]
        begun: dict[int, Begun[R]] = {}
        waited: dict[int, Future[T | RowhouseError]] = {}
        outcomes: dict[int, T | RowhouseError] = {}
        try:
            for shard, part in parts.items():
                if (first := begin(shard, part)) is not None:
                    begun[shard] = first
            later = [shard for shard in parts if shard not in begun]
            here = None if begun else later.pop(0)
            for shard in later:
                waited[shard] = self._pool.submit(_outcome, partial(finish, shard, parts[shard], None))
            if here is not None:
                outcomes[here] = _outcome(partial(finish, here, parts[here], None))
            for shard in as_ended({shard: first.call for shard, first in begun.items()}):
                first = begun.pop(shard)
                finishing = partial(_outcome, partial(finish, shard, parts[shard], first))
                if first.call.succeeded:
                    outcomes[shard] = finishing()
                else:  # it may have to wait before it tries again
                    waited[shard] = self._pool.submit(finishing)
        except BaseException:
            for shard, first in begun.items():
                first.call.cancel()
                abandon(shard)
            raise
        outcomes |= {shard: result_of(future) for shard, future in waited.items()}
        return [outcomes[shard] for shard in parts]

    def _parallel(self, calls: Sequence[Callable[[], T]]) -> list[T | RowhouseError]:
        """Outcomes of the calls, each an answer or the error it raised; the first runs on this thread."""
        futures = [self._pool.submit(_outcome, call) for call in calls[1:]]
        mine = [_outcome(call) for call in calls[:1]]
        return mine + [result_of(future) for future in futures]

    def close(self) -> None:
        """Stop the pool's threads; calls under way end by themselves."""
        self._pool.shutdown(wait=False)


def _outcome(call: Callable[[], T]) -> T | RowhouseError:
    try:
        return call()
    except RowhouseError as failure:
        return failure


def _raise_first(failures: Sequence[Any]) -> None:
    """Raise the first failure, with a note for each further one."""
    if failures:
        for further in failures[1:]:
            failures[0].add_note(f"and on another shard: {type(further).__name__}: {further}")
        raise failures[0]
