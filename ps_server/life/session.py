# SPDX-License-Identifier: Apache-2.0
"""Exactly once: the last push of each client.

A client numbers its pushes 1, 2, 3, … per shard and sends the next one only when the last was answered,
so one number per client is all there is to remember.

Invariants: 1. a push is applied when its sequence is one above the client's last, answered as a repeat
when it is at or below, and refused when it skips one; 2. at most CLIENTS_MAX clients are remembered, the
one idle longest is forgotten first, in the order of the log, so a replay forgets the same ones.
Thread safety: the shard's push lock covers every call.
"""

from collections import OrderedDict

from rowhouse.error import SequenceGapError
from rowhouse.limit import CLIENTS_MAX


class Sessions:
    """Last (sequence, LSN) by client id, least recent first."""

    def __init__(self, last: dict[str, tuple[int, int]] | None = None) -> None:
        self._last = OrderedDict((int(client), tuple(pair)) for client, pair in (last or {}).items())

    def repeat_of(self, client_id: int, sequence: int) -> int | None:
        """LSN to answer a repeat with, or None when the push is the client's next one.

        The LSN is that of the client's last push: at least as new as the repeated one.
        Raises SequenceGapError when an earlier push of the client is missing here.
        """
        last, lsn = self._last.get(client_id, (0, 0))
        if sequence <= last:
            return lsn
        if sequence != last + 1:
            raise SequenceGapError(
                f"client {client_id}: push {sequence} came, but the last one here is {last}: pushes "
                f"{last + 1} to {sequence - 1} were never sent, or were lost by a crash (durability none)"
            )
        return None

    def last_of(self, client_id: int) -> int:
        """Sequence of the client's last applied push; 0 when it is not remembered. Needs no lock."""
        return self._last.get(client_id, (0, 0))[0]

    def record(self, client_id: int, sequence: int, lsn: int) -> None:
        """Remember an applied push."""
        self._last[client_id] = (sequence, lsn)
        self._last.move_to_end(client_id)
        if len(self._last) > CLIENTS_MAX:
            self._last.popitem(last=False)

    def snapshot(self) -> dict[str, tuple[int, int]]:
        """A copy for a checkpoint; keys as decimal text (JSON)."""
        return {str(client): (int(pair[0]), int(pair[1])) for client, pair in self._last.items()}
