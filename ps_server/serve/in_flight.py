# SPDX-License-Identifier: Apache-2.0
"""The bytes of requests and answers that a shard holds at once, counted and shared out among peers.

A call takes bytes as they come and before its answer is made, and gives them back when its peer has read the
answer or is gone. So what is held is bounded whatever peers do, and no peer can have all of it. What a thread
needs while it works for a call (`Work`) is counted apart: a call waits for it and is not refused, because
work ends by itself, and what peers hold does not.

Invariants: 1. what is held stays at or below the bound, but for one call that nobody else is beside;
2. a peer that holds as much as is left free gets no more: it cannot have more than half, and always leaves
something for the next one.
Thread safety: every method may be called from any thread.
"""

import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rowhouse.error import BusyError

MUCH_BYTES: Final = 16 << 20
"""A few trainers' calls hold less at once: their memory is kept for their next ones."""

PRESS_S: Final = 0.25
"""What ends calls that do not get further looks at all connections: not at each refusal."""


class Counting(Protocol):
    """Who counts bytes in flight: InFlight, a service over it, and fakes in tests."""

    def take(self, size_bytes: int, *, peer: str = "", own_bytes: int = 0) -> None:
        """Count bytes of a peer, beside the `own_bytes` of the same call; BusyError past the bound."""

    def give(self, size_bytes: int, *, peer: str = "") -> None:
        """Count them no more."""


class InFlight:
    """Counts the bytes of requests and answers that are held at once.

    Parameters
    ----------
    bound_bytes
        Most bytes at once; a single call is always let in when nothing else is held.
    """

    def __init__(self, bound_bytes: int) -> None:
        self._bound_bytes = bound_bytes
        self._held_bytes = self._most_bytes = self._given_bytes = 0
        self._peers: dict[str, int] = {}
        self._when_refused: list[Callable[[], None]] = []
        self._told_s = float("-inf")
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, size_bytes: int, peer: str = "") -> Iterator[Callable[[int], None]]:
        """Hold `size_bytes` while the block runs, and what is given to the function that it gets; BusyError
        when that would pass the bound."""
        held_bytes = 0

        def more(more_bytes: int) -> None:
            nonlocal held_bytes
            self.take(more_bytes, peer=peer, own_bytes=held_bytes)
            held_bytes += more_bytes

        try:
            more(size_bytes)
            yield more
        finally:
            self.give(held_bytes, peer=peer)

    def when_refused(self, press: Callable[[], None]) -> None:
        """Have `press` called when calls are refused, now and then: it ends calls that hold bytes and do not
        get further."""
        self._when_refused.append(press)

    def take(self, size_bytes: int, *, peer: str = "", own_bytes: int = 0) -> None:
        """Hold `size_bytes` until `give`.

        Parameters
        ----------
        size_bytes
            What comes to what is held.
        peer
            Whose they are; "" for nobody's, which have no share to pass.
        own_bytes
            What the same call holds already.

        Raises
        ------
        BusyError
            The bound would be passed, or the peer holds as much as is left for all others.
        """
        with self._lock:
            held_bytes = self._held_bytes
            free_bytes = self._bound_bytes - held_bytes
            of_peer = self._peers.get(peer, 0)
            if held_bytes <= own_bytes or (
                size_bytes <= free_bytes and (not peer or of_peer <= own_bytes or of_peer < free_bytes)
            ):
                self._held_bytes += size_bytes
                self._most_bytes = max(self._most_bytes, self._held_bytes)
                if peer:
                    self._peers[peer] = of_peer + size_bytes
                return
            now_s = time.monotonic()
            is_time = now_s - self._told_s > PRESS_S
            self._told_s = now_s if is_time else self._told_s
        for press in self._when_refused if is_time else ():
            press()
        what = "the answer" if own_bytes else "request"
        held = f"{held_bytes} bytes are in flight" + (f", {of_peer} of them of {peer}" if of_peer else "")
        raise BusyError(
            f"{what} of {size_bytes} bytes: {held}; at most {self._bound_bytes} at once, and no peer more "
            "than is left for the others: back off and retry"
        )

    def give(self, size_bytes: int, *, peer: str = "") -> None:
        """Hold `size_bytes` of `peer` no longer."""
        with self._lock:
            self._held_bytes -= size_bytes
            self._given_bytes += size_bytes
            if peer and size_bytes:
                left = self._peers[peer] - size_bytes
                if left:
                    self._peers[peer] = left
                else:
                    del self._peers[peer]

    def was_used(self) -> bool:
        """Whether memory should go back to the system now, which ends that.

        Much was held at once since the last time, and now nothing is; or so much was given that the bound
        may have been used again and again.
        """
        with self._lock:
            ended = not self._held_bytes or self._given_bytes > self._bound_bytes
            used = ended and self._most_bytes > MUCH_BYTES
            if used:
                self._most_bytes, self._given_bytes = self._held_bytes, 0
            return used


class Work:
    """Room for what calls need, beside their requests and answers, while threads work for them.

    Parameters
    ----------
    bound_bytes
        Most bytes at once; a call that needs more works alone.
    """

    def __init__(self, bound_bytes: int) -> None:
        self._bound_bytes = bound_bytes
        self._held_bytes = 0
        self._door = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def room(self, size_bytes: int) -> Iterator[None]:
        """Wait for room, in the order of coming, and have it while the block runs."""
        with self._door, self._changed:
            self._changed.wait_for(
                lambda: not self._held_bytes or self._held_bytes + size_bytes <= self._bound_bytes
            )
            self._held_bytes += size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held_bytes -= size_bytes
                self._changed.notify_all()


def peer_of(address: str, connection: str) -> str:
    """Whose share a call takes from: an address, or a connection where processes of this machine share one.

    Parameters
    ----------
    address
        An IP address, or any other text for a process of this machine.
    connection
        A name that no other connection has now.
    """
    try:
        here = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        here = True
    return connection if here else address
