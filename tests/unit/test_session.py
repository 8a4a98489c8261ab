# SPDX-License-Identifier: Apache-2.0
"""Exactly once: repeats, gaps, and which client is forgotten."""

import json

import pytest
from rowhouse.error import BusyError, SequenceGapError
from rowhouse.limit import CLIENTS_MAX, RESEND_S, SESSION_KEPT_S

from ps_server.life.session import Sessions

KEPT_MS = SESSION_KEPT_S * 1000


def test_a_push_is_next_a_repeat_or_a_gap() -> None:
    sessions = Sessions()
    assert sessions.repeat_of(7, 1, 0) is None
    sessions.record(7, 1, 40, 0)
    sessions.record(7, 2, 44, 0)
    assert sessions.repeat_of(7, 1, 0) == 44, "the answer's LSN is at least as new as the repeated push"
    assert sessions.repeat_of(7, 2, 0) == 44
    assert sessions.repeat_of(7, 3, 0) is None
    with pytest.raises(
        SequenceGapError, match=r"client 7: push 5 came, .* last one here is 2: pushes 3 to 4"
    ):
        sessions.repeat_of(7, 5, 0)
    with pytest.raises(SequenceGapError, match=r"push 2 came, but the shard does not know this client"):
        sessions.repeat_of(8, 2, 0)


def test_a_snapshot_survives_json_and_keeps_order_and_times() -> None:
    sessions = Sessions()
    for client in (2**64 - 1, 3, 0):
        sessions.record(client, 1, client % 100, client % 50)
    sessions.record(3, 2, 50, 51)
    again = Sessions(json.loads(json.dumps(sessions.snapshot())))
    assert again.snapshot() == sessions.snapshot()
    assert list(again.snapshot()) == [str(2**64 - 1), "0", "3"]
    assert again.repeat_of(3, 2, 0) == 50 and again.repeat_of(2**64 - 1, 2, 0) is None


def test_sessions_of_an_earlier_version_are_old() -> None:
    sessions = Sessions({str(client): (1, client) for client in range(CLIENTS_MAX)})
    assert sessions.repeat_of(CLIENTS_MAX, 1, KEPT_MS) is None
    assert sessions.repeat_of(4, 1, 0) == 4


def test_only_a_client_that_was_idle_for_the_whole_time_is_dropped() -> None:
    sessions = Sessions()
    for client in range(CLIENTS_MAX):
        sessions.record(client, 1, client, 10)
    sessions.record(0, 2, CLIENTS_MAX, 20)
    new = CLIENTS_MAX
    with pytest.raises(BusyError, match="65536 clients pushed to this shard in the last 3600 s"):
        sessions.repeat_of(new, 1, KEPT_MS + 9)
    assert sessions.repeat_of(1, 2, KEPT_MS + 9) is None, "who is known pushes on"
    assert sessions.repeat_of(new, 1, KEPT_MS + 10) is None
    sessions.record(new, 1, new + 1, KEPT_MS + 10)
    assert len(sessions.snapshot()) == CLIENTS_MAX
    with pytest.raises(SequenceGapError, match="it is refused: connect again"):
        sessions.repeat_of(1, 2, KEPT_MS + 10)
    assert sessions.repeat_of(0, 2, 0) == CLIENTS_MAX and sessions.repeat_of(2, 1, 0) == 2


def test_a_client_gives_up_long_before_its_session_may_be_dropped() -> None:
    assert 2 * RESEND_S <= SESSION_KEPT_S
