# SPDX-License-Identifier: Apache-2.0
"""Pulls ahead of the model, pushes behind it, and a bound on how old a row may be.

    step t      pull ── model ── push          pull ── model ── push
    pipelined   prefetch t+1 ║ model t ║ push t-1, all at once

A *round* is one training pull and the pushes that follow it, until the next training pull. The rows that
round t reads hold every push up to round t - 1 - staleness. A prefetch may have read too early; then the
rows that those pushes touched, and no others, are pulled again before they are handed out. So with
staleness 0 a run has the bits of one without a pipeline, and still most rows travel while the model works.

Invariants: 1. a pull never returns a row older than the bound; 2. pushes reach the client in the order of
their calls, one at a time; 3. at most `prefetch_max` steps wait to be pulled and `push_max` pushes to be
answered; 4. a failure in the background is raised by a later call, once, and never lost.
Thread safety: every method may be called from any thread; rounds make sense for one training loop.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rowhouse.error import ConfigError, LimitExceededError, PreconditionError
from rowhouse.kernel import as_read_only, places_among
from rowhouse.message import TableGradients

from ps_client.interrupt import result_of, wait_for, whole
from ps_client.kernel import scatter
from ps_client.step import Asked, StepClient, UniqueRows
from ps_client.table import Table

PREFETCH_MAX: Final = 8
"""Steps that may wait to be pulled: more than any model needs, and a leak is noticed early."""

PUSH_MAX: Final = 4
"""Pushes that may wait for an answer. One hides a push behind a step; more only smooth out slow ones."""

Batch = TypeVar("Batch")


@dataclass(eq=False, slots=True)
class _Ahead:
    """A prefetched step. `floor` is how many pushes its rows hold at least."""

    asked: Asked
    read_only: bool
    floor: int
    answer: Future[list[UniqueRows]]
    taken: bool = False


@dataclass(frozen=True, slots=True)
class _Behind:
    """A push that was queued: its round, and its distinct ids by table."""

    round: int
    ids: Mapping[str, NDArray[np.uint64]]


class Pipeline(StepClient):
    """A client's pulls and pushes in the background. Made by `Client.pipeline`.

    `prefetch` starts the pull of a later step; a pull of the same ids then takes its answer. A pull that was
    not prefetched is made at once, under the same bound; a read-only one sees every push made before it.

    Parameters
    ----------
    client
        The client to pull and push by; it stays open when the pipeline is closed.
    staleness
        How many rounds' pushes the rows of a training pull may lack, 0 or more; with 0 the results have the
        bits of a run without a pipeline.
    prefetch_max
        Most prefetched steps that wait to be pulled; one more is LimitExceededError.
    push_max
        Most pushes that wait for their answer; `push` waits when there are so many.

    Raises
    ------
    ConfigError
        `staleness` is below 0, or a bound below 1.
    """

    _keeps_parts: ClassVar[bool] = True

    def __init__(
        self,
        client: StepClient,
        *,
        staleness: int = 0,
        prefetch_max: int = PREFETCH_MAX,
        push_max: int = PUSH_MAX,
    ) -> None:
        for name, value, least in (
            ("staleness", staleness, 0), ("prefetch_max", prefetch_max, 1), ("push_max", push_max, 1),
        ):  # fmt: skip
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be an integer from {least} up")
        self._client, self._wire_dtype = client, client._wire_dtype
        self.staleness, self._prefetch_max, self._push_max = staleness, prefetch_max, push_max
        self._process = os.getpid()
        self._changed = threading.Condition()  # guards everything below
        self._ahead: list[_Ahead] = []
        self._behind: deque[_Behind] = deque()  # pushes number _dropped to _queued - 1
        self._dropped = self._queued = self._finished = 0
        self._round, self._pushed = 0, False
        self._failures: list[Exception] = []
        self._closed = False
        self._puller = ThreadPoolExecutor(min(prefetch_max, 4), thread_name_prefix="rowhouse-prefetch")
        self._pusher = ThreadPoolExecutor(1, thread_name_prefix="rowhouse-push")  # one: invariant 2

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"<Pipeline of staleness {self.staleness}{closed} over {self._client!r}>"

    @property
    def tables(self) -> Mapping[str, Table]:
        """Every table of the cluster by name (read-only): dim, dtype, config."""
        return self._client.tables

    # ------------------------------------------------------------ ahead
    @whole
    def prefetch(self, ids: Mapping[str, ArrayLike], *, read_only: bool = False) -> None:
        """Start the pull of a later step; returns at once.

        Parameters
        ----------
        ids
            (n,) integers by table name, as the pull will have them; copied.
        read_only
            As the pull will have it.

        Raises
        ------
        InvalidRequestError
            Wrong ids; LimitExceededError when `prefetch_max` steps wait already.
        RowhouseError
            What failed in the background since the last call.
        """
        self._check_usable()
        asked = [(table, checked.copy()) for table, checked in self._asked(ids)]
        with self._changed:
            self._raise_failures()
            if len(self._ahead) >= self._prefetch_max:
                raise LimitExceededError(
                    f"{len(self._ahead)} prefetched steps wait to be pulled; at most {self._prefetch_max} "
                    "(prefetch_max): pull them with the same ids, or call discard()"
                )
            # Waiting for pushes that the pull will need anyway spares a second pull of their rows.
            floor = self._pushes_until(self._round + len(self._ahead) - self.staleness)
            step = _Ahead(asked, read_only, floor, Future())
            step.answer = self._puller.submit(self._read_ahead, step)  # starts when the lock is free
            self._ahead.append(step)

    def _read_ahead(self, step: _Ahead) -> list[UniqueRows]:
        with self._changed:
            wait_for(self._changed, lambda: self._finished >= step.floor)
            step.floor = self._finished
        return self._client._fetch(step.asked, step.read_only)

    def ahead(
        self,
        batches: Iterable[Batch],
        prefetch: Callable[[Batch], None] | None = None,
        depth: int | None = None,
    ) -> Iterator[Batch]:
        """The batches in their order, each prefetched while earlier ones are worked on.

        Parameters
        ----------
        batches
            Where they come from; read `depth` batches ahead.
        prefetch
            Prefetches a batch, for instance a torch module's `prefetch`; None: `self.prefetch`, for
            batches that are mappings of ids by table.
        depth
            How far ahead; None: `staleness`, but at least 1.
        """
        start: Callable[[Any], None] = self.prefetch if prefetch is None else prefetch
        distance = max(self.staleness, 1) if depth is None else depth
        if distance < 1:
            raise ConfigError(f"depth is {distance}; it must be 1 or more")
        waiting: deque[Batch] = deque()
        for batch in batches:
            start(batch)
            waiting.append(batch)
            if len(waiting) > distance:
                yield waiting.popleft()
        yield from waiting

    @whole
    def discard(self) -> None:
        """Forget every prefetched step that was not pulled."""
        with self._changed:
            waiting = [step for step in self._ahead if not step.taken]
            self._ahead = [step for step in self._ahead if step.taken]
            self._forget_pushes()
        for step in waiting:
            step.answer.cancel()

    def _fetch(self, asked: Asked, read_only: bool) -> list[UniqueRows]:
        with self._changed:
            self._raise_failures()
            if self._pushed and not read_only:
                self._round, self._pushed = self._round + 1, False
            bound = self._queued if read_only else self._pushes_until(self._round - 1 - self.staleness)
            step = next((s for s in self._ahead if _same(s, asked, read_only)), None)
            if step is not None:
                step.taken = True
        try:
            found = None if step is None else result_of(step.answer)
        except BaseException:
            self._remove(step)
            raise
        if step is None or found is None:
            self._wait_for_pushes(bound)
            return self._client._fetch(asked, read_only)
        try:
            touched = self._touched(step, found, bound)  # while the pushes are on their way
            self._wait_for_pushes(bound)
        except BaseException:
            step.taken = False  # a pull that is made again finds it again
            raise
        try:
            return self._refreshed(step, found, touched) if touched else found
        finally:
            self._remove(step)

    def _touched(self, step: _Ahead, found: list[UniqueRows], bound: int) -> dict[int, NDArray[np.int64]]:
        """Positions of the rows that pushes from `step.floor` to `bound` touch, by table number."""
        with self._changed:
            assert self._dropped <= step.floor, "a push that a waiting prefetch may lack was forgotten"
            late = [self._behind[i - self._dropped] for i in range(step.floor, bound)]
        touched: dict[int, NDArray[np.int64]] = {}
        for index, ((table, _), unique) in enumerate(zip(step.asked, found, strict=True)):
            pushed = [push.ids[table.name] for push in late if table.name in push.ids]
            positions = places_among(unique.ids, pushed)
            if positions.shape[0]:
                touched[index] = positions
        return touched

    def _refreshed(
        self, step: _Ahead, found: list[UniqueRows], touched: dict[int, NDArray[np.int64]]
    ) -> list[UniqueRows]:
        """`found` with the rows at `touched` pulled again."""
        again = [(step.asked[index][0], found[index].ids[places]) for index, places in touched.items()]
        fresh = self._client._fetch_distinct(again, step.read_only)
        answers = list(found)
        for (index, positions), newer in zip(touched.items(), fresh, strict=True):
            old = found[index]
            rows = old.own_rows()
            scatter(as_read_only(newer), positions, rows)
            answers[index] = UniqueRows(old.ids, old.inverse, rows)
        return answers

    def _remove(self, step: _Ahead | None) -> None:
        with self._changed:
            self._ahead = [other for other in self._ahead if other is not step]
            self._forget_pushes()

    # ------------------------------------------------------------ behind
    def _send(self, parts: Sequence[TableGradients]) -> None:
        with self._changed:
            wait_for(self._changed, lambda: self._queued - self._finished < self._push_max)
            self._raise_failures()
            self._check_usable()
            self._behind.append(_Behind(self._round, {part.table: part.ids for part in parts}))
            self._queued, self._pushed = self._queued + 1, True
            self._pusher.submit(self._push, parts)

    def _push(self, parts: Sequence[TableGradients]) -> None:
        failure = None
        try:
            self._client._send(parts)
        except Exception as error:
            failure = error
        with self._changed:
            if failure is not None:
                self._failures.append(failure)
            self._finished += 1
            self._forget_pushes()
            self._changed.notify_all()

    def _pushes_until(self, last_round: int) -> int:
        """How many pushes were queued up to round `last_round`; the caller holds the lock."""
        return self._dropped + sum(push.round <= last_round for push in self._behind)

    def _forget_pushes(self) -> None:
        """Drop what no waiting prefetch can lack; the caller holds the lock."""
        keep = min([self._finished, *(step.floor for step in self._ahead)])
        while self._dropped < keep:
            self._behind.popleft()
            self._dropped += 1

    def _wait_for_pushes(self, bound: int) -> None:
        with self._changed:
            wait_for(self._changed, lambda: self._finished >= bound)
            self._raise_failures()

    def _raise_failures(self) -> None:
        """Raise the first failure of the background, with a note for each further one; holds the lock."""
        if not self._failures:
            return
        failures, self._failures = self._failures, []
        failures[0].add_note("it happened to a push in the background, queued by an earlier call")
        for further in failures[1:]:
            failures[0].add_note(f"and to a later push: {type(further).__name__}: {further}")
        raise failures[0]

    # ------------------------------------------------------------ the end
    @whole
    def flush(self) -> None:
        """Return when every push made so far is applied.

        Raises
        ------
        RowhouseError
            What failed in the background since the last call.
        """
        self._check_usable()
        self._wait_for_pushes(self._queued)
        self._client.flush()

    def close(self) -> None:
        """Wait for the queued pushes, forget what was prefetched, and end the threads.

        The client stays open. A second call does nothing. Raises what failed in the background.
        """
        if self._process != os.getpid():
            return  # what a forked child inherited is its parent's to close
        with self._changed:
            if self._closed:
                return
            self._closed = True
        self.discard()
        self._pusher.shutdown(wait=True)
        self._puller.shutdown(wait=True, cancel_futures=True)
        with self._changed:
            self._raise_failures()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as failure:
            if value is None:
                raise
            value.add_note(f"and a push in the background failed: {type(failure).__name__}: {failure}")

    def _check_usable(self) -> None:
        self._client._check_usable()
        if self._closed:
            raise PreconditionError("this pipeline is closed; call Client.pipeline() for another one")


def _same(step: _Ahead, asked: Asked, read_only: bool) -> bool:
    """Whether a pull asks for what was prefetched."""
    return not step.taken and step.read_only == read_only and same_ids(step.asked, asked)


def same_ids(prefetched: Asked, asked: Asked) -> bool:
    """Whether two steps ask for the same tables and ids."""
    return [table.name for table, _ in prefetched] == [table.name for table, _ in asked] and all(
        np.array_equal(a, b) for (_, a), (_, b) in zip(prefetched, asked, strict=True)
    )
