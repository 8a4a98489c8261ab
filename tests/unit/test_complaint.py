# SPDX-License-Identifier: Apache-2.0
import logging
from collections.abc import Iterator

import pytest

from ps_server.serve import complaint
from ps_server.serve.complaint import Complaints

_log = logging.getLogger(__name__)


class Rig:
    """Complaints with a clock in hand."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now_s = 1000.0
        self.complaints = Complaints(_log, lambda: self.now_s)
        self.caplog = caplog

    def lines(self) -> list[str]:
        """What was logged since the last call."""
        found = [record.getMessage() for record in self.caplog.records]
        self.caplog.clear()
        return found


@pytest.fixture
def rig(caplog: pytest.LogCaptureFixture) -> Iterator[Rig]:
    with caplog.at_level(logging.WARNING):
        yield Rig(caplog)


def test_the_first_of_each_peer_is_told_and_the_others_are_counted(rig: Rig) -> None:
    for n in range(50):
        rig.complaints.warn("a", f"a {n}")
    assert rig.lines() == ["a 0"]
    rig.complaints.warn("b", "b 0")
    assert rig.lines() == ["b 0 (49 more like it in the 0 s before were left out)"]
    rig.now_s += 9.9
    rig.complaints.warn("b", "b 1")
    rig.complaints.tell_left_out()
    assert rig.lines() == []
    rig.now_s += 0.2
    rig.complaints.warn("a", "a 50")
    assert rig.lines() == ["a 50 (1 more like it in the 10 s before were left out)"]


def test_what_was_left_out_is_told_without_another_one(rig: Rig) -> None:
    for n in range(5):
        rig.complaints.warn("a", f"a {n}")
    rig.complaints.tell_left_out()
    assert rig.lines() == ["a 0"]
    rig.now_s += 10
    rig.complaints.tell_left_out()
    rig.complaints.tell_left_out()
    assert rig.lines() == ["a 4 (3 more like it in the 10 s before were left out)"]


def test_each_one_is_told_or_counted_exactly_once(rig: Rig) -> None:
    told = counted = 0
    for n in range(5_000):
        rig.now_s += 0.07
        rig.complaints.warn(f"peer {n % 7}", "x")
        if n % 11 == 0:
            rig.complaints.tell_left_out()
    rig.now_s += 60
    rig.complaints.tell_left_out()
    for line in rig.lines():
        told += 1
        counted += int(line.partition("(")[2].partition(" ")[0] or 0)
    assert told + counted == 5_000
    assert 30 <= told <= 350 / 10 + 7 + 1


def test_many_addresses_do_not_fill_the_log(rig: Rig) -> None:
    for n in range(10_000):
        rig.complaints.warn(str(n), "x")
    assert len(rig.lines()) == complaint.PEERS_MAX
    assert len(rig.complaints._peers) == complaint.PEERS_MAX


def test_after_a_long_peace_a_peer_is_new_again(rig: Rig) -> None:
    rig.complaints.warn("a", "a 0")
    rig.complaints.warn("b", "b 0")
    rig.now_s += complaint.FORGET_S + 1
    rig.complaints.warn("a", "a 1")
    rig.complaints.warn("b", "b 1")
    assert rig.lines() == ["a 0", "b 0", "a 1", "b 1"]
