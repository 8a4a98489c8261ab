# SPDX-License-Identifier: Apache-2.0
"""Bytes in flight (numbers: its module's invariants)."""

import threading

import pytest
from rowhouse.error import BusyError

from ps_server.serve.in_flight import InFlight, Work, peer_of


def test_in_flight_lets_one_large_request_in_and_gives_back_on_errors() -> None:
    """Invariant 1."""
    in_flight = InFlight(10)
    with (
        in_flight.hold(50),
        pytest.raises(BusyError, match="50 bytes are in flight; at most 10"),
        in_flight.hold(1),
    ):
        pass
    with pytest.raises(KeyError), in_flight.hold(10):
        raise KeyError
    with in_flight.hold(4), in_flight.hold(6):
        pass


def test_a_peer_gets_no_more_than_it_leaves_to_others() -> None:
    """Invariant 2."""
    in_flight = InFlight(100)
    for _ in range(5):
        in_flight.take(10, peer="greedy")
    with pytest.raises(BusyError, match="50 bytes are in flight, 50 of them of greedy"):
        in_flight.take(10, peer="greedy")
    for _ in range(3):
        in_flight.take(10, peer="second")
    with pytest.raises(BusyError, match="of second"):
        in_flight.take(10, peer="second")
    in_flight.take(10, peer="modest")
    in_flight.take(10)  # nobody's: only the bound counts
    with pytest.raises(BusyError, match="request of 11 bytes"):
        in_flight.take(11, peer="late")
    in_flight.give(50, peer="greedy")
    in_flight.take(20, peer="second")


def test_a_call_goes_on_beside_its_own_bytes() -> None:
    in_flight = InFlight(100)
    in_flight.take(80, peer="alone")
    in_flight.take(80, peer="alone", own_bytes=80)
    in_flight.give(160, peer="alone")
    in_flight.take(40, peer="a")
    in_flight.take(20, peer="b")
    in_flight.take(30, peer="a", own_bytes=40)  # its one call may use what is free
    with pytest.raises(BusyError, match="the answer of 20 bytes"):
        in_flight.take(20, peer="b", own_bytes=20)


def test_a_share_is_an_addresss_or_a_connections_of_this_machine() -> None:
    assert peer_of("10.1.2.3", "connection 9") == "10.1.2.3"
    assert peer_of("fe80::1%eth0", "connection 9") == "fe80::1%eth0"
    for here in ("127.0.0.1", "127.9.9.9", "::1", "a process of this machine"):
        assert peer_of(here, "connection 9") == "connection 9"


def test_a_refusal_has_those_ended_that_do_not_get_further_now_and_then() -> None:
    in_flight, pressed = InFlight(10), list[int]()
    in_flight.when_refused(lambda: pressed.append(in_flight._held_bytes))
    in_flight.take(10)
    for _ in range(5):
        with pytest.raises(BusyError):
            in_flight.take(1)
    assert pressed and pressed == [10] * len(pressed)
    in_flight._told_s -= 1.0
    before = len(pressed)
    with pytest.raises(BusyError):
        in_flight.take(1)
    assert len(pressed) == before + 1


def test_memory_is_to_go_back_when_much_was_used() -> None:
    in_flight = InFlight(100 << 20)
    with in_flight.hold(10 << 20):
        assert not in_flight.was_used()
    assert not in_flight.was_used(), "a few trainers use it again at once"
    with in_flight.hold(10 << 20):
        for times in range(3):
            assert not in_flight.was_used(), f"a call is under way, and {times} others gave little"
            with in_flight.hold(40 << 20):
                pass
        assert in_flight.was_used() and not in_flight.was_used()
        with in_flight.hold(10 << 20):
            pass
    assert in_flight.was_used() and not in_flight.was_used()


def test_work_waits_for_room_in_its_turn_and_what_is_larger_works_alone() -> None:
    work, order = Work(10), list[str]()
    entered, leave = threading.Event(), threading.Event()

    def one(name: str, size: int) -> None:
        with work.room(size):
            order.append(name)
            if name == "first":
                entered.set()
                assert leave.wait(20)

    threads = [threading.Thread(target=one, args=("first", 6))]
    threads[0].start()
    assert entered.wait(20)
    with work.room(4):
        pass  # beside the first one
    threads.append(threading.Thread(target=one, args=("large", 50)))
    threads[1].start()
    while not work._door.locked():
        threads[1].join(0.01)
    threads.append(threading.Thread(target=one, args=("small", 1)))
    threads[2].start()
    assert order == ["first"]
    leave.set()
    for thread in threads:
        thread.join(20)
    assert order == ["first", "large", "small"] and work._held_bytes == 0
