# SPDX-License-Identifier: Apache-2.0
"""Exactly once: the last push of each client.

A client numbers its pushes 1, 2, 3, … per shard and sends the next one only when the last was answered,
so one number per client is all there is to remember.

The memory is bounded by a count and by a time. A client sends one push again for RESEND_S at most, and its
session is kept for longer. So a push that comes again either finds the session, or was never applied (number
1 of an unknown client), or cannot be judged (another number of an unknown client) and is refused.

Invariants: 1. a push is applied when its sequence is one above the client's last, answered as a repeat
when it is at or below, and refused when it skips one; 2. at most CLIENTS_MAX clients are remembered, and the
one idle longest is dropped first; 3. a session is dropped only when a new client comes and SESSION_KEPT_S
have passed since its last push, else the new client is refused; 4. what is dropped follows from the log
alone: a replay drops the same ones. Thread safety: the shard's push lock covers every call.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from rowhouse.error import BusyError, SequenceGapError
from rowhouse.limit import CLIENTS_MAX, SESSION_KEPT_S


class Sessions:
    """Last (sequence, LSN, time in ms) by client id, least recent first.

    Parameters
    ----------
    last
        What `snapshot` gave. A session without a time (of an earlier version) is an old one.
    """

    def __init__(self, last: Mapping[str, Sequence[int]] | None = None) -> None:
        self._last: OrderedDict[int, tuple[int, int, int]] = OrderedDict()
        for client, numbers in (last or {}).items():
            sequence, lsn, time_ms = (*numbers, 0)[:3]
            self._last[int(client)] = (sequence, lsn, time_ms)

    def repeat_of(self, client_id: int, sequence: int, time_ms: int) -> int | None:
        """LSN to answer a repeat with, or None when the push is the client's next one.

        The LSN is that of the client's last push: at least as new as the repeated one. `time_ms` is what the
        push's record in the log will say.
        Raises SequenceGapError when an earlier push of the client is missing here, BusyError when the client
        is new and nobody's session may be dropped yet.
        """
        if client_id not in self._last:
            if sequence != 1:
                raise SequenceGapError(
                    f"client {client_id}: push {sequence} came, but the shard does not know this client. "
                    f"Its pushes up to {sequence - 1} were never sent, or were lost by a crash (durability "
                    f"none), or {CLIENTS_MAX} other clients pushed since its last push and "
                    f"{SESSION_KEPT_S / 3600:g} hours have passed. So whether this push was applied before "
                    "is not known, and it is refused: connect again"
                )
            self._check_room(time_ms)
            return None
        last, lsn, _ = self._last[client_id]
        if sequence <= last:
            return lsn
        if sequence != last + 1:
            raise SequenceGapError(
                f"client {client_id}: push {sequence} came, but the last one here is {last}: pushes "
                f"{last + 1} to {sequence - 1} were never sent, or were lost by a crash (durability none)"
            )
        return None

    def _check_room(self, time_ms: int) -> None:
        """BusyError when a new client would take the place of one that may still send its push again."""
        if len(self._last) < CLIENTS_MAX:
            return
        idle_s = (time_ms - next(iter(self._last.values()))[2]) / 1000
        if idle_s < SESSION_KEPT_S:
            raise BusyError(
                f"{CLIENTS_MAX} clients pushed to this shard in the last {idle_s:.0f} s, and each is "
                f"remembered for {SESSION_KEPT_S} s: a new client is refused until one of them is older"
            )

    def last_of(self, client_id: int) -> int:
        """Sequence of the client's last applied push; 0 when it is not remembered. Needs no lock."""
        return self._last.get(client_id, (0, 0, 0))[0]

    def record(self, client_id: int, sequence: int, lsn: int, time_ms: int) -> None:
        """Remember an applied push; `time_ms` is that of its record in the log."""
        self._last[client_id] = (sequence, lsn, time_ms)
        self._last.move_to_end(client_id)
        if len(self._last) > CLIENTS_MAX:
            self._last.popitem(last=False)

    def snapshot(self) -> dict[str, tuple[int, ...]]:
        """A copy for a checkpoint; keys as decimal text (JSON)."""
        return {str(client): numbers for client, numbers in self._last.items()}
