# SPDX-License-Identifier: Apache-2.0
"""Pulls ahead for a trainer that keeps pace: most rows travel early, what changed since travels again.

    prefetch ── pull in the background, and the LSN of each shard ──▶ kept
    pull of the same ids ── "what changed above these LSNs?" ──▶ kept rows, the changed ones replaced

The second pull asks every shard. So a row is what a pull at that moment gives, whoever pushed meanwhile, and
a run has the bits of one without prefetch.

Invariants: 1. a row that is handed out is as new as one pulled at that moment; 2. at most PREFETCH_MAX steps
wait. Thread safety: every method may be called from any thread.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from rowhouse.error import LimitExceededError, RowhouseError

from ps_client.interrupt import result_of
from ps_client.pace.pipeline import PREFETCH_MAX, same_ids
from ps_client.step import Asked, UniqueRows

Early = tuple[list[UniqueRows], dict[int, int]]
"""Rows, and by shard the LSN above which they may lack something."""


class EarlyPuller(Protocol):
    """What a client does for it."""

    def _fetch_early(self, asked: Asked, read_only: bool) -> Early:
        """Rows, and the LSN of each shard before they were read."""

    def _refresh(self, asked: Asked, early: Early, read_only: bool) -> list[UniqueRows]:
        """The rows, as they are now."""


@dataclass(eq=False, slots=True)
class _Step:
    asked: Asked
    read_only: bool
    answer: Future[Early]


class Ahead:
    """Steps whose rows were pulled early.

    Parameters
    ----------
    client
        Who pulls.
    """

    def __init__(self, client: EarlyPuller) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._steps: list[_Step] = []
        self._pool: ThreadPoolExecutor | None = None

    def start(self, asked: Asked, read_only: bool) -> None:
        """Pull in the background; LimitExceededError when PREFETCH_MAX steps wait already.

        Parameters
        ----------
        asked
            Tables with ids of their own, which nobody changes.
        read_only
            As the pull will have it.
        """
        with self._lock:
            if len(self._steps) >= PREFETCH_MAX:
                raise LimitExceededError(
                    f"{len(self._steps)} prefetched steps wait to be pulled; at most {PREFETCH_MAX}: "
                    "pull them with the same ids"
                )
            if self._pool is None:
                self._pool = ThreadPoolExecutor(2, thread_name_prefix="rowhouse-prefetch")
            answer = self._pool.submit(self._client._fetch_early, asked, read_only)
            self._steps.append(_Step(asked, read_only, answer))

    def take(
        self, asked: Asked, read_only: bool, otherwise: Callable[[], list[UniqueRows]]
    ) -> list[UniqueRows]:
        """The rows of a step, as new as `otherwise` would give them, which is called where none is kept."""
        with self._lock:
            step = next(
                (s for s in self._steps if s.read_only == read_only and same_ids(s.asked, asked)), None
            )
            if step is not None:
                self._steps.remove(step)
        if step is None:
            return otherwise()
        try:
            early = result_of(step.answer)
        except RowhouseError:
            return otherwise()  # what was wrong then may be right now
        return self._client._refresh(asked, early, read_only)

    def close(self) -> None:
        """Forget every step; a second call does nothing."""
        with self._lock:
            steps, self._steps = self._steps, []
            pool, self._pool = self._pool, None
        for step in steps:
            step.answer.cancel()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
