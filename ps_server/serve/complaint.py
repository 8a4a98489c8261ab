# SPDX-License-Identifier: Apache-2.0
"""Warnings that others can cause at will, told so that they cannot fill a log.

Of each peer the first is a line of its own, whoever complains most; of all further ones there is a line
every INTERVAL_S at most, with the number of those left out before it.

Thread safety: every method may be called from any thread.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

INTERVAL_S: Final = 10.0
"""Rare enough for a log that is kept for months, often enough to see when it began and when it ended."""

FORGET_S: Final = 600.0
"""After so long without any, a peer's next one is its first again."""

PEERS_MAX: Final = 64
"""Peers whose first one is a line of its own: enough for a rack, too few to fill a log."""


class Complaints:
    """The warnings of one kind.

    Parameters
    ----------
    log
        Where the lines go.
    clock
        Seconds, never going back.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._lock = threading.Lock()
        self._peers: set[str] = set()
        self._came_s = self._told_s = float("-inf")
        self._left_out = 0
        self._latest = ""

    def warn(self, peer: str, text: str) -> None:
        """Log `text`, or count it.

        Parameters
        ----------
        peer
            Who caused it, an address.
        text
            The line; it names the peer where that matters.
        """
        with self._lock:
            now_s = self._clock()
            if now_s - self._came_s > FORGET_S:
                self._peers.clear()
            self._came_s = now_s
            new = peer not in self._peers and len(self._peers) < PEERS_MAX
            if new:
                self._peers.add(peer)
            if new or now_s - self._told_s >= INTERVAL_S:
                self._tell(text, now_s)
            else:
                self._left_out += 1
                self._latest = text

    def tell_left_out(self) -> None:
        """Log how many were left out, where that is due and none came meanwhile; call it now and then."""
        with self._lock:
            now_s = self._clock()
            if self._left_out and now_s - self._told_s >= INTERVAL_S:
                self._left_out -= 1
                self._tell(self._latest, now_s)

    def _tell(self, text: str, now_s: float) -> None:
        count, since_s = self._left_out, now_s - self._told_s
        more = f" ({count} more like it in the {since_s:.0f} s before were left out)" if count else ""
        self._left_out, self._told_s = 0, now_s
        self._log.warning("%s%s", text, more)
