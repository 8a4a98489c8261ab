# SPDX-License-Identifier: Apache-2.0
"""The order of one client's pushes to one shard, and what makes a retry safe.

Each push to a shard is named by (client id, sequence), 1, 2, 3, …; the shard applies each number once
and in order. A lane holds the next number and the one push whose fate is not known:

    idle ── begin ──▶ pending ── acknowledge ──▶ idle, next number
                        │  └──── refuse ───────▶ idle, same number (the shard changed nothing)
                        └─ no answer: stays pending, and goes first when the lane is used again

Invariants: 1. no number is sent with two contents, unless the shard refused the first; 2. a push
whose answer is missing is sent again, under its own number, before any newer one; 3. a pending push
that outlives its call holds copies, so the caller may reuse its arrays; 4. push 1 is not sent again once the
shard may have forgotten the client (limit.RESEND_S): it would be taken for a new client's. Any other number
of a forgotten client is refused by the shard; 5. a number whose refused push may still be on its way, from an
earlier attempt, is used up by an empty push before the next one.
Thread safety: everything but `lock` itself is used by the holder of `lock`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from rowhouse.error import ConfigError, InvalidRequestError, PreconditionError, RowhouseError
from rowhouse.limit import RESEND_S
from rowhouse.message import PushRequest, PushResponse, TableChange

REFUSALS: tuple[type[RowhouseError], ...] = (InvalidRequestError, PreconditionError, ConfigError)
"""Errors by which a shard says that it changed nothing. After any other one, it may have."""


class Lane:
    """Pushes of one client to one shard.

    Attributes
    ----------
    lock
        Held from `begin` to `acknowledge` or `refuse`, around the call itself.
    pending
        The push that was begun and whose fate is not known, or None.
    sequence
        Number of the pending push, or of the next one.
    attempted, uncertain
        Whether the pending push was sent before, and whether it may have been applied then.
    number_may_be_taken
        Whether a late copy of a refused push may yet be applied under `sequence` (invariant 5).
    """

    def __init__(self, client_id: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.Lock()
        self.pending: PushRequest | None = None
        self.sequence = 1
        self.attempted = self.uncertain = self.number_may_be_taken = False
        self._client_id, self._clock = client_id, clock
        self._begun_s = 0.0

    def begin(self, map_version: int, changes: Sequence[TableChange]) -> PushRequest:
        """Give a push the next number, make it the pending one, and return it."""
        assert self.pending is None, "an earlier push must be settled first"
        self.pending = PushRequest.of(map_version, self._client_id, self.sequence, changes)
        self.attempted = self.uncertain = False
        self._begun_s = self._clock()
        return self.pending

    def try_begin(self, map_version: int, changes: Sequence[TableChange]) -> PushRequest | None:
        """Take the lock and `begin`, if it is free and nothing must be settled; else None, all as it was."""
        if not self.lock.acquire(blocking=False):
            return None
        try:
            if self.pending is None and not self.number_may_be_taken:
                return self.begin(map_version, changes)
        except BaseException:
            self.abandon()
            raise
        self.lock.release()
        return None

    def abandon(self) -> None:
        """Let go of the lock; whether the pending push was applied is not known."""
        self.note_failure(maybe_applied=True)
        self.keep()
        self.lock.release()

    def note_failure(self, maybe_applied: bool) -> None:
        """Note that an attempt of the pending push ended without an answer to it."""
        self.attempted = True
        self.uncertain |= maybe_applied

    def is_too_old(self) -> bool:
        """Whether the pending push may have been applied, and forgotten since (invariant 4)."""
        return self.uncertain and self.sequence == 1 and self._clock() - self._begun_s > RESEND_S

    def acknowledge(self, response: PushResponse) -> bool:
        """Note the shard's answer.

        Returns
        -------
        bool
            False when the push must be sent again under its new number: the shard says that it had
            this number before, although this push was sent for the first time. So an earlier push of
            that number, reported as refused, had been applied.
        """
        assert self.pending is not None
        self.sequence += 1
        self.number_may_be_taken = False
        if response.duplicate and not self.attempted and self.pending.changes:
            self.pending = replace(self.pending, sequence=self.sequence)
            return False
        self.pending = None
        return True

    def refuse(self) -> Sequence[TableChange]:
        """Drop the pending push, which changed nothing, and return what it carried."""
        assert self.pending is not None
        changes, self.pending = self.pending.changes, None
        self.number_may_be_taken |= self.uncertain
        return changes

    def keep(self) -> None:
        """Copy the pending push's arrays: it outlives the call that brought them."""
        if self.pending is not None:
            copies = [change.chosen(np.arange(change.ids.shape[0])) for change in self.pending.changes]
            self.pending = PushRequest.of(self.pending.map_version, self._client_id, self.sequence, copies)
