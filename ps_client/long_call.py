# SPDX-License-Identifier: Apache-2.0
"""Control calls that may take long (checkpoint, save, drop, evict, freeze): begun once, then asked about.

The request carries a ticket. A shard that is still at work says so every half a second and how far it is
(ps_server/shard/long_call.py), so there is no end by time while it is; only a shard that gives no answer is
given up, after the client's timeout. A shard that was restarted meanwhile begins the call anew.

Thread safety: functions; a request belongs to one call.
"""

import logging
import secrets
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from rowhouse.error import DeadlineExceededError, InvalidRequestError, RowhouseError, StillRunningError

from ps_client.retry import Retry

TELL_S: Final = 10.0
"""How often a call that goes on is told in the log."""

PAUSE_S: Final = 0.05
"""Between two questions: the shard waits itself, unless it is busy."""

LEAST_S: Final = 2.0
"""The least time for an attempt: the shard waits half a second before it says that it is at work."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


def give_ticket(request: Any) -> None:
    """Name the call that `request` begins."""
    request.ticket = secrets.randbits(64) or 1


def ask_until_ended(
    call: Callable[[float], T],
    retry: Retry,
    timeout_s: float | None,
    given_up: threading.Event,
    *,
    patient: bool = True,
) -> T:
    """The answer of a long call.

    Parameters
    ----------
    call
        Sends the request with its ticket; gets the time that this attempt may take, in seconds.
    retry
        How attempts are spaced, and how long a shard may give no answer.
    timeout_s
        The most seconds for the whole call; None: as long as the shard is at work.
    given_up
        Set where nobody waits any more.
    patient
        Whether a shard that is away is waited for, as other calls of a client wait; one that is only silent
        always is.

    Raises
    ------
    InvalidRequestError
        `timeout_s` is not above 0.
    DeadlineExceededError
        `timeout_s` have gone by; the shard goes on with the call.
    """
    if timeout_s is not None and not timeout_s > 0:
        raise InvalidRequestError(f"timeout_s is {timeout_s!r}; it must be above 0, or None")
    backoff, began_s = retry.start(timeout_s), retry.clock()
    told_s = began_s
    while True:
        try:
            return call(max(backoff.attempt_s(), LEAST_S))
        except StillRunningError as running:
            now_s = retry.clock()
            if timeout_s is None:
                backoff = retry.start()  # it is there: only silence counts
            elif now_s - began_s >= timeout_s:
                raise DeadlineExceededError(
                    f"{running}; not waited for any longer than timeout_s, {timeout_s:g}; it goes on there"
                ) from None
            if given_up.wait(PAUSE_S):
                raise
            if now_s - told_s >= TELL_S:
                told_s = now_s
                _log.info("%s", running)
        except RowhouseError as failure:
            if given_up.is_set() or not (patient or isinstance(failure, DeadlineExceededError)):
                raise
            backoff.wait(failure)
