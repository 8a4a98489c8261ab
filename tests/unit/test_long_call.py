# SPDX-License-Identifier: Apache-2.0
"""Long calls: begun once for a ticket, asked about until they end; no end by time while they are at work."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse.error import (
    BusyError,
    ConfigError,
    DeadlineExceededError,
    InvalidRequestError,
    StillRunningError,
    StoreError,
    UnavailableError,
)
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client import long_call as asking
from ps_client.long_call import ask_until_ended
from ps_client.retry import Retry
from ps_server.shard import long_call
from ps_server.shard.long_call import LongCalls
from tests.driver import Driver, shard_config


class Work:
    """Something that takes until `leave` is set."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.begun, self.leave, self.failure = 0, threading.Event(), failure

    def __call__(self) -> str:
        self.begun += 1
        assert self.leave.wait(600)
        if self.failure is not None:
            raise self.failure
        return f"done {self.begun}"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PAUSE_S", 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> LongCalls:
    monkeypatch.setattr(long_call, "POLL_S", 0.01)
    return LongCalls(0, iter(range(0, 10_000, 7)).__next__)


def test_a_call_that_found_no_room_is_begun_again(calls: LongCalls) -> None:
    failures = [BusyError("no files"), BusyError("no files")]

    def work() -> str:
        if failures:
            raise failures.pop()
        return "done"

    for _ in range(2):
        with pytest.raises(BusyError):
            until_ended(partial(calls.answer, "CreateCheckpoint", 5, work))
    assert until_ended(partial(calls.answer, "CreateCheckpoint", 5, work)) == "done"


def until_ended(ask: Callable[[], Any]) -> Any:
    while True:
        try:
            return ask()
        except StillRunningError:
            pass


# ---------------------------------------------------------------- the shard's side
def test_a_call_is_begun_once_and_its_end_is_told_to_whoever_asks(calls: LongCalls) -> None:
    work = Work()
    for _ in range(3):
        with pytest.raises(StillRunningError, match=r"^EvictRows is at work since \d+ s, \d+ rows were"):
            calls.answer("EvictRows", 5, work)
    work.leave.set()
    ask = partial(calls.answer, "EvictRows", 5, work)
    assert [until_ended(ask) for _ in range(3)] == ["done 1"] * 3, (
        "an answer that was lost is asked for again"
    )
    assert until_ended(partial(calls.answer, "EvictRows", 6, work)) == "done 2", (
        "another ticket, another call"
    )


def test_a_failure_keeps_its_class(calls: LongCalls) -> None:
    work = Work(StoreError("disk full"))
    work.leave.set()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"^disk full$"):
            until_ended(partial(calls.answer, "CreateCheckpoint", 5, work))
    assert work.begun == 1


def test_calls_are_bounded_and_none_that_is_at_work_is_forgotten(
    calls: LongCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_call, "CALLS_MAX", 2)
    works = [Work(), Work(), Work()]
    for ticket in (1, 2):
        with pytest.raises(StillRunningError):
            calls.answer("EvictRows", ticket, works[ticket - 1])
    with pytest.raises(BusyError, match=r"shard 0: 2 long calls are at work"):
        calls.answer("EvictRows", 3, works[2])
    works[1].leave.set()
    works[2].leave.set()
    until_ended(partial(calls.answer, "EvictRows", 2, works[1]))
    assert until_ended(partial(calls.answer, "EvictRows", 3, works[2])) == "done 1"
    works[0].leave.set()
    assert until_ended(partial(calls.answer, "EvictRows", 1, works[0])) == "done 1" and works[0].begun == 1


def test_without_a_background_a_call_has_ended_when_it_is_answered() -> None:
    calls, threads = LongCalls(0, lambda: 0, background=False), []

    def work() -> str:
        threads.append(threading.current_thread())
        return "done"

    assert [calls.answer("EvictRows", 5, work) for _ in range(2)] == ["done"] * 2
    assert threads == [threading.current_thread()]


# ---------------------------------------------------------------- a real shard
@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    config = shard_config(tmp_path, [{"name": "user", "dim": 4, "eviction": [{"kind": "ttl", "ttl_s": 1}]}])
    one = Driver(config, tmp_path / "shard-0000")
    yield one
    one.abandon()


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("CreateCheckpoint", pb.CreateCheckpointRequest()),
        ("EvictRows", pb.EvictRowsRequest(table="user")),
        ("SetTableFreeze", pb.SetTableFreezeRequest(table="user", mode=pb.FREEZE_MODE_REFUSE)),
        ("SaveTables", pb.SaveTablesRequest(name="a", token=3)),
        ("DropSavedTables", pb.DropSavedTablesRequest(name="a")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_shard_answers_that_it_is_at_work_while_upkeep_takes_long(
    method: str, request_: Any, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else holds the shard's upkeep, for as long as it likes."""
    monkeypatch.setattr(long_call, "POLL_S", 0.01)
    driver.push({"user": (np.arange(9, dtype=np.uint64), np.ones((9, 4), np.float32))})
    request_.ticket = 8
    with driver.shard.upkeep():
        for _ in range(2):
            with pytest.raises(StillRunningError, match=rf"^{method} is at work"):
                driver.shard.call(method, request_)
    answer = until_ended(lambda: driver.shard.call(method, request_))
    assert until_ended(lambda: driver.shard.call(method, request_)) == answer


def test_the_rows_that_were_written_tell_how_far_it_is(driver: Driver) -> None:
    driver.push({"user": (np.arange(9, dtype=np.uint64), np.ones((9, 4), np.float32))})
    assert driver.shard._moved() == 0
    driver.shard.checkpoint()
    assert driver.shard._moved() == 9


# ---------------------------------------------------------------- the client's side
class Clock:
    """Time that only attempts and sleeps let pass."""

    def __init__(self, *outcomes: Exception | str, each_s: float = 30.0) -> None:
        self.now_s, self.each_s = 0.0, each_s
        self.outcomes = list(outcomes)
        self.retry = Retry(timeout_s=60.0, clock=lambda: self.now_s, sleep=self.sleep, uniform=max)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def __call__(self, timeout_s: float) -> str:
        self.now_s += min(self.each_s, timeout_s)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def ask(self, timeout_s: float | None = None, **settings: bool) -> str:
        return ask_until_ended(self, self.retry, timeout_s, threading.Event(), **settings)


RUNNING = StillRunningError("at work")


def test_a_call_that_is_at_work_has_no_end_by_time() -> None:
    clock = Clock(*[RUNNING] * 1000, "done", each_s=0.5)
    assert clock.ask() == "done"
    assert clock.now_s > 500 > clock.retry.timeout_s


def test_only_silence_counts() -> None:
    away = UnavailableError("away")
    clock = Clock(*[RUNNING, *[away] * 20] * 10, "done", each_s=1.5)
    assert clock.ask() == "done" and clock.now_s > 300
    silent = Clock(RUNNING, *[away] * 1000, each_s=1.5)
    with pytest.raises(UnavailableError, match=r"away; gave up after"):
        silent.ask()
    assert 60 <= silent.now_s < 65


def test_a_timeout_that_was_asked_for_is_an_end() -> None:
    clock = Clock(*[RUNNING] * 100, each_s=0.5)
    with pytest.raises(
        DeadlineExceededError, match=r"at work; not waited for any longer than timeout_s, 3; it"
    ):
        clock.ask(timeout_s=3)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_timeout_that_is_none_is_refused_before_the_call(timeout_s: float) -> None:
    clock = Clock("done", each_s=0.5)
    with pytest.raises(InvalidRequestError, match="timeout_s is"):
        clock.ask(timeout_s=timeout_s)
    assert clock.outcomes == ["done"]


def test_a_refusal_ends_it_and_so_does_somebody_who_waits_no_more() -> None:
    with pytest.raises(ConfigError):
        Clock(RUNNING, ConfigError("no")).ask()
    with pytest.raises(UnavailableError, match=r"^away$"):
        Clock(UnavailableError("away")).ask(patient=False)
    clock, given_up = Clock(*[RUNNING] * 9), threading.Event()
    given_up.set()
    with pytest.raises(StillRunningError):
        ask_until_ended(clock, clock.retry, None, given_up)
    assert len(clock.outcomes) == 8
