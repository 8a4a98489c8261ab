# SPDX-License-Identifier: Apache-2.0
"""Blocking calls of one step to every shard concerned, with retries, in parallel.

plan.py says what goes where, lane.py what a push may be named, retry.py when to try again; here they
meet threads and transports. One part stays on the caller's thread, so a single shard costs no switch.

Invariants: 1. a pull or push that a shard refused for its partition map is split again by the map that
this shard has, and nothing else of the step is sent twice; 2. a pool thread never waits for another
task of the pool, so a full pool is slow and never stuck.
Thread safety: any number of threads.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.error import BusyError, DeadlineExceededError, RowhouseError, StalePartitionMapError
from rowhouse.message import TableGradients
from rowhouse.placement import PartitionMap

from ps_client.cluster import Cluster
from ps_client.kernel import as_read_only, scatter
from ps_client.lane import REFUSALS, Lane
from ps_client.plan import Distinct, Piece, check_answer, pull_request, split_pull, split_push
from ps_client.retry import Backoff, Retry
from ps_client.transport import Transport

THREADS_PER_SHARD: Final = 4
"""Calls under way to one shard at once, for callers that pull and push from several threads."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Refused:
    """Pushes that a shard refused because of its partition map, oldest first; nothing was changed."""

    stale: StalePartitionMapError
    batches: list[Sequence[TableGradients]]


class Exchange:
    """The calls of one client."""

    def __init__(self, cluster: Cluster, retry: Retry) -> None:
        self._cluster = cluster
        self._retry = retry
        threads = THREADS_PER_SHARD * len(cluster.transports)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rowhouse")

    def pull(self, tables: Sequence[Distinct], wire_dtype: int, read_only: bool) -> list[NDArray[np.float32]]:
        """Rows of each table's distinct ids: (u, dim) float32, possibly a read-only view of an answer."""
        backoff = self._retry.start()
        rows = [np.empty((0, d.table.dim), np.float32) for d in tables]
        pieces = [Piece(i, d.table, d.ids, None) for i, d in enumerate(tables) if d.ids.shape[0]]
        while pieces:
            partition_map = self._cluster.partition_map
            parts = split_pull(pieces, partition_map, wire_dtype)
            for piece in (p for part in parts.values() for p in part):
                if piece.positions is not None and not rows[piece.index].shape[0]:
                    count = tables[piece.index].ids.shape[0]
                    rows[piece.index] = np.empty((count, piece.table.dim), np.float32)
            ask = partial(self._pull_part, partition_map, wire_dtype, read_only, rows, backoff.remaining_s())
            outcomes = self._parallel([partial(ask, shard, part) for shard, part in parts.items()])
            pieces = []
            for (shard, part), outcome in zip(parts.items(), outcomes, strict=True):
                if isinstance(outcome, StalePartitionMapError):
                    pieces += part
                    self._reload(shard, partition_map, outcome, backoff)
                elif outcome is not None:
                    raise outcome
        return rows

    def _pull_part(
        self,
        partition_map: PartitionMap,
        wire_dtype: int,
        read_only: bool,
        rows: list[NDArray[np.float32]],
        timeout_s: float,
        shard: int,
        pieces: Sequence[Piece],
    ) -> None:
        transport = self._cluster.transports[shard]
        request = pull_request(pieces, partition_map, wire_dtype, read_only)
        response = self._persist(partial(transport.pull, request), self._retry.start(timeout_s))
        check_answer(transport.endpoint, request, response)
        for piece, answer in zip(pieces, response.tables, strict=True):
            values = dtype.widen(answer.rows, wire_dtype)
            if piece.positions is None:
                rows[piece.index] = values
            else:
                scatter(as_read_only(values), piece.positions, rows[piece.index])

    def push(self, tables: Sequence[TableGradients]) -> None:
        """Push distinct ids with their summed gradients; see Client.push_many for what an error leaves."""
        backoff = self._retry.start()
        batches: deque[Sequence[TableGradients]] = deque([tables])
        failures: list[RowhouseError] = []
        while batches:
            partition_map = self._cluster.partition_map
            parts = split_push(batches.popleft(), partition_map)
            timeout_s = backoff.remaining_s()
            outcomes = self._parallel(
                [partial(self._push_part, s, partition_map, timeout_s, part) for s, part in parts.items()]
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
        partition_map = self._cluster.partition_map
        waiting = [shard for shard, lane in enumerate(self._cluster.lanes) if lane.pending is not None]
        send = partial(
            self._push_part, partition_map=partition_map, timeout_s=self._retry.timeout_s, tables=()
        )
        for outcome in self._parallel([partial(send, shard) for shard in waiting]):
            if isinstance(outcome, RowhouseError):
                failures.append(outcome)
            elif outcome is not None:
                for batch in outcome.batches:
                    self.push(batch)
        _raise_first(failures)

    def _push_part(
        self, shard: int, partition_map: PartitionMap, timeout_s: float, tables: Sequence[TableGradients]
    ) -> _Refused | None:
        """Settle the shard's lane, then push `tables` (none: settle only)."""
        backoff = self._retry.start(timeout_s)
        lane, transport = self._cluster.lanes[shard], self._cluster.transports[shard]
        if not lane.lock.acquire(timeout=backoff.remaining_s()):
            raise DeadlineExceededError(
                f"shard at {transport.endpoint}: another thread's push took the whole {timeout_s:.1f} s; "
                "this push was not sent"
            )
        refused: list[_Refused] = []
        try:
            if lane.pending is not None:
                refused += self._send(lane, transport, backoff)
            if tables:
                lane.begin(partition_map.version, tables)
                refused += self._send(lane, transport, backoff)
        except BaseException:
            lane.keep()
            raise
        finally:
            lane.lock.release()
        return _Refused(refused[-1].stale, [b for r in refused for b in r.batches]) if refused else None

    def _send(self, lane: Lane, transport: Transport, backoff: Backoff) -> list[_Refused]:
        """Send the pending push until its fate is known; the lane is idle afterwards unless it raises."""
        while True:
            assert lane.pending is not None
            try:
                response = transport.push(lane.pending, backoff.remaining_s())
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
                "under its number, before the next push to this shard (do not push it anew)"
            ) from failure

    def every_shard(self, call: Callable[[Transport, float], T], timeout_s: float | None) -> list[T]:
        """Call each shard, in parallel, with retries; the answers by shard."""
        wait_s = self._retry.timeout_s if timeout_s is None else timeout_s

        def ask(transport: Transport) -> T:
            return self._persist(partial(call, transport), self._retry.start(wait_s))

        return self.together([partial(ask, transport) for transport in self._cluster.transports])

    def persist(self, call: Callable[[float], T]) -> T:
        """The answer of a call that may be made any number of times, within the client's timeout."""
        return self._persist(call, self._retry.start())

    def together(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Make the calls in parallel; their answers, or the first failure when all have ended."""
        answers = self._parallel(calls)
        _raise_first([a for a in answers if isinstance(a, RowhouseError)])
        return [a for a in answers if not isinstance(a, RowhouseError)]

    def _persist(self, call: Callable[[float], T], backoff: Backoff) -> T:
        """The answer of a call that may be made any number of times; a stale map is the caller's to mend."""
        while True:
            try:
                return call(backoff.remaining_s())
            except StalePartitionMapError:
                raise
            except RowhouseError as failure:
                backoff.wait(failure)

    def reload_map(self, stale_map: PartitionMap) -> None:
        """Ask a shard for its partition map, after `stale_map` was refused."""
        refused = StalePartitionMapError(f"partition map {stale_map.version:#x} was refused")
        self._reload(0, stale_map, refused, self._retry.start())

    def _reload(
        self, shard: int, stale_map: PartitionMap, stale: StalePartitionMapError, backoff: Backoff
    ) -> None:
        if not self._cluster.reload(shard, stale_map, backoff):
            backoff.wait(stale)

    def _parallel(self, calls: Sequence[Callable[[], T]]) -> list[T | RowhouseError]:
        """Outcomes of the calls, each an answer or the error it raised; the first runs on this thread."""
        futures = [self._pool.submit(_outcome, call) for call in calls[1:]]
        mine = [_outcome(call) for call in calls[:1]]
        return mine + [future.result() for future in futures]

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
