# SPDX-License-Identifier: Apache-2.0
"""retry.py: who waits is told so once, and a first attempt leaves time for that."""

import logging
import re

import pytest
from rowhouse.error import InvalidRequestError, UnavailableError

from ps_client.notice import NOTICE_S
from ps_client.retry import Backoff, Retry


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def start(self, timeout_s: float = 60.0) -> Backoff:
        retry = Retry(clock=lambda: self.now_s, sleep=self.sleep, uniform=lambda low, high: high)
        return retry.start(timeout_s)


def test_a_call_that_waits_says_so_once_after_two_seconds(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    backoff = clock.start()
    while clock.now_s < 140:
        before, told = clock.now_s, len(caplog.records)
        backoff.wait(UnavailableError("shard at a:1: nobody listens there"))
        assert len(caplog.records) == (1 if before >= 100 + NOTICE_S else 0) >= told
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    text = (
        r"waiting for shard at a:1: nobody listens there; until \d\d:\d\d:\d\d at the latest \(5\d s more\)"
    )
    assert re.fullmatch(text, record.getMessage())


def test_nothing_is_said_of_a_short_wait_or_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    backoff = Clock().start()
    backoff.wait(UnavailableError("away"))
    with pytest.raises(InvalidRequestError):
        backoff.wait(InvalidRequestError("wrong"))
    assert not caplog.records


def test_the_first_attempt_ends_in_time_for_the_notice_and_later_ones_have_all_that_is_left() -> None:
    clock = Clock()
    backoff = clock.start()
    assert backoff.attempt_s() == NOTICE_S
    clock.now_s += 0.5
    assert backoff.attempt_s() == NOTICE_S - 0.5, "an attempt that was refused at once was no wait"
    clock.now_s += 1.5
    assert backoff.attempt_s() == 58.0
    assert clock.start(1.0).attempt_s() == 1.0


def test_one_attempt_is_one_attempt() -> None:
    with pytest.raises(UnavailableError, match=r"^away; gave up after 1 attempt in 0\.0 s$"):
        Clock().start(0.01).wait(UnavailableError("away"))
