# SPDX-License-Identifier: Apache-2.0
"""Calls in line for room to be received: places, turns and patience, without gRPC."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from rowhouse.error import BusyError, RowhouseError

from ps_server.serve import reading
from ps_server.serve.call import Call, share_of
from ps_server.serve.reading import Line


class Silent:
    """A call as far as a line knows it; when it is cut, it leaves."""

    def __init__(self, line: Line) -> None:
        self.line, self.why = line, list[RowhouseError]()

    def cut(self, error: RowhouseError) -> None:
        self.why.append(error)
        self.line.leave(self.call)

    @property
    def call(self) -> Call:
        return cast("Call", self)


def run(scenario: Callable[[Line], Coroutine[Any, Any, None]], places: int = 1) -> None:
    async def with_line() -> None:
        await scenario(Line(places))

    asyncio.run(with_line())


async def in_line(line: Line, *peers: str) -> list["asyncio.Task[None]"]:
    """Calls of these peers, in this order, as far in as they come."""
    tasks = []
    for peer in peers:
        tasks.append(asyncio.create_task(line.enter(peer)))
        await asyncio.sleep(0)
    return tasks


def done(tasks: list["asyncio.Task[None]"]) -> list[bool]:
    return [task.done() for task in tasks]


def test_addresses_take_turns() -> None:
    """Invariant 4: a flood of calls from one address puts one in front of another's, not all."""

    async def scenario(line: Line) -> None:
        holder = Silent(line)
        tasks = await in_line(line, "a", "a", "a", "a", "b")
        assert done(tasks) == [True, False, False, False, False]
        for expected in ([1, 1, 0, 0, 0], [1, 1, 0, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1]):
            line.leave(holder.call)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert [int(one) for one in done(tasks)] == expected

    run(scenario)


def test_a_place_held_too_long_goes_to_whoever_comes() -> None:
    async def scenario(line: Line) -> None:
        silent = Silent(line)
        await line.enter("a")
        line.patience_ends(silent.call)
        assert not silent.why, "nobody waits"
        (other,) = await in_line(line, "b")
        await other
        assert [type(error) for error in silent.why] == [BusyError]

    run(scenario)


def test_a_place_held_too_long_goes_to_whoever_waits() -> None:
    async def scenario(line: Line) -> None:
        silent = Silent(line)
        await line.enter("a")
        (other,) = await in_line(line, "b")
        line.patience_ends(silent.call)
        await other
        assert len(silent.why) == 1

    run(scenario)


def test_who_leaves_the_line_takes_no_place_along() -> None:
    """Also when the place comes at the same moment."""

    async def scenario(line: Line) -> None:
        holder = Silent(line)
        tasks = await in_line(line, "a", "b", "b", "c")
        tasks[1].cancel()  # and does not know it yet
        line.leave(holder.call)
        tasks[2].cancel()  # with its place
        await asyncio.wait_for(tasks[3], 10)
        assert not line._waiting
        line.leave(holder.call)
        await asyncio.wait_for(line.enter("d"), 10)

    run(scenario)


def test_a_wait_in_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 3."""
    monkeypatch.setattr(reading, "STALL_S", 0.01)

    async def scenario(line: Line) -> None:
        await line.enter("a")
        (waiting,) = await in_line(line, "b")
        with pytest.raises(BusyError, match="no room"):
            await waiting

    run(scenario)


@pytest.mark.parametrize(
    ("peer", "share"),
    [
        ("ipv4:10.0.0.7:4711", "10.0.0.7"),
        ("ipv6:%5B2001:db8::1%5D:5", "2001:db8::1"),
        ("ipv6:[2001:db8::1]:5", "2001:db8::1"),
        ("ipv4:127.0.0.1:4711", "ipv4:127.0.0.1:4711"),
        ("ipv6:%5B::1%5D:5", "ipv6:%5B::1%5D:5"),
        ("unix:", "unix:"),
    ],
)
def test_whose_share_a_call_takes_from(peer: str, share: str) -> None:
    assert share_of(peer) == share
