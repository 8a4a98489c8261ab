# SPDX-License-Identifier: Apache-2.0
"""Exactly once: repeats, gaps, and which client is forgotten."""

import json

import pytest
from rowhouse.error import SequenceGapError
from rowhouse.limit import CLIENTS_MAX

from ps_server.life.session import Sessions


def test_a_push_is_next_a_repeat_or_a_gap() -> None:
    sessions = Sessions()
    assert sessions.repeat_of(7, 1) is None
    sessions.record(7, 1, 40)
    sessions.record(7, 2, 44)
    assert sessions.repeat_of(7, 1) == 44, "the answer's LSN is at least as new as the repeated push"
    assert sessions.repeat_of(7, 2) == 44
    assert sessions.repeat_of(7, 3) is None
    with pytest.raises(
        SequenceGapError, match=r"client 7: push 5 came, .* last one here is 2: pushes 3 to 4"
    ):
        sessions.repeat_of(7, 5)
    with pytest.raises(SequenceGapError, match="last one here is 0"):
        sessions.repeat_of(8, 2)


def test_a_snapshot_survives_json_and_keeps_the_order() -> None:
    sessions = Sessions()
    for client in (2**64 - 1, 3, 0):
        sessions.record(client, 1, client % 100)
    sessions.record(3, 2, 50)
    again = Sessions({k: tuple(v) for k, v in json.loads(json.dumps(sessions.snapshot())).items()})
    assert list(again.snapshot()) == [str(2**64 - 1), "0", "3"]
    assert again.repeat_of(3, 2) == 50 and again.repeat_of(2**64 - 1, 2) is None


def test_the_client_idle_longest_is_forgotten_first() -> None:
    sessions = Sessions()
    for client in range(CLIENTS_MAX):
        sessions.record(client, 1, client)
    sessions.record(0, 2, CLIENTS_MAX)
    sessions.record(CLIENTS_MAX, 1, CLIENTS_MAX + 1)
    assert len(sessions.snapshot()) == CLIENTS_MAX
    assert sessions.repeat_of(1, 1) is None, "client 1 was idle longest: forgotten"
    assert sessions.repeat_of(0, 2) == CLIENTS_MAX and sessions.repeat_of(2, 1) == 2
