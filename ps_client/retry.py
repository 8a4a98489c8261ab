# SPDX-License-Identifier: Apache-2.0
"""When a failed call is tried again: exponential back-off with full jitter, within one deadline.

Full jitter (a delay drawn evenly from 0 to the bound) is the form of M. Brooker, "Exponential backoff
and jitter", AWS Architecture Blog 2015: many trainers that lost the same shard come back spread out.
This module decides and never waits, so that a blocking and an asyncio caller share it.

A call that has waited for NOTICE_S says so once (notice.py).

Thread safety: a Retry is immutable; a Backoff belongs to one call.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from rowhouse.error import RowhouseError
from rowhouse.problem import counted

from ps_client.interrupt import interruptible
from ps_client.notice import NOTICE_S, tell_waiting

_SYSTEM_RANDOM = random.SystemRandom()


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long a call may take in all, and how its attempts are spaced.

    Attributes
    ----------
    timeout_s
        Time for one call with all its attempts, in seconds.
    first_delay_s, delay_max_s
        Bound of the delay after the first failure, doubled by each further one up to the most.
    clock, sleep, uniform
        Where time and chance come from; tests give their own.
    """

    timeout_s: float = 60.0
    first_delay_s: float = 0.02
    delay_max_s: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = _SYSTEM_RANDOM.uniform

    def start(self, timeout_s: float | None = None) -> "Backoff":
        """The back-off of one call that begins now."""
        return Backoff(self, self.timeout_s if timeout_s is None else timeout_s)


class Backoff:
    """The attempts of one call."""

    def __init__(self, retry: Retry, timeout_s: float) -> None:
        self._retry = retry
        self._started_s = retry.clock()
        self._deadline_s = self._started_s + timeout_s
        self._failures = 0
        self._told = False

    def remaining_s(self) -> float:
        """Time left for the next attempt, in seconds; never below a millisecond."""
        return max(self._deadline_s - self._retry.clock(), 0.001)

    def attempt_s(self) -> float:
        """Time for the next attempt of a call that may be made any number of times: a first one that gets no
        answer ends after NOTICE_S, so that this can be told; later ones have what is left."""
        left_s, spent_s = self.remaining_s(), self._retry.clock() - self._started_s
        return left_s if spent_s > NOTICE_S / 2 else min(left_s, NOTICE_S - spent_s)

    def delay_s(self, failure: RowhouseError) -> float:
        """How long to wait before the next attempt.

        Raises
        ------
        RowhouseError
            `failure`, when a retry cannot help; an error of its class that also says how often and how
            long was tried, when the time is up.
        """
        if not failure.retryable:
            raise failure
        self._failures += 1
        # The exponent is bounded so that a long outage cannot overflow a float.
        bound_s = min(self._retry.delay_max_s, self._retry.first_delay_s * 2 ** min(self._failures - 1, 32))
        delay_s = self._retry.uniform(0.0, bound_s)
        now_s = self._retry.clock()
        if now_s + delay_s >= self._deadline_s:
            spent = f"{counted(self._failures, 'attempt')} in {now_s - self._started_s:.1f} s"
            raise type(failure)(f"{failure}; gave up after {spent}") from failure
        if not self._told and now_s - self._started_s >= NOTICE_S:
            self._told = True
            tell_waiting(str(failure), self._deadline_s - now_s)
        return delay_s

    def wait(self, failure: RowhouseError) -> None:
        """Sleep until the next attempt is due; raises as `delay_s` does."""
        delay_s = self.delay_s(failure)
        with interruptible():
            self._retry.sleep(delay_s)
