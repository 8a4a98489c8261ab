# SPDX-License-Identifier: Apache-2.0
"""A step of several shards over data ports: one thread, all of them at the same time (exchange._at_once)."""

import threading
from functools import partial

import numpy as np
import pytest
from rowhouse.error import BusyError, DeadlineExceededError, UnavailableError

from ps_client.retry import Retry

from . import fake_shard
from .fake_shard import make_shards, raising
from .linked_shard import LinkedTransport
from .test_client_exactly_once import AFTER_ONE, IDS, ONES, held, interrupted


def test_an_interrupt_keeps_what_was_begun_on_every_shard() -> None:
    interrupted(make_shards(3), partial(fake_shard.local_client, transport=LinkedTransport))


def test_requests_to_all_shards_are_on_their_way_before_one_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards = make_shards(4)
    together = threading.Barrier(4)
    for shard in shards:
        for call in ("pull", "push"):
            shard.before[call] = [lambda: together.wait(20)]
    with fake_shard.local_client(shards, transport=LinkedTransport) as client:
        monkeypatch.setattr(client._exchange._pool, "submit", None)  # this thread does it all
        client.push("user", IDS, ONES)
        np.testing.assert_array_equal(client.pull("user", IDS), AFTER_ONE)


def test_a_shard_that_must_be_asked_again_does_not_hold_up_the_others() -> None:
    shards = make_shards(3)
    others = threading.Semaphore(0)
    shards[0].before["push"] = [raising(BusyError), lambda: others.acquire(timeout=20)]
    for shard in shards[1:]:
        shard.after["push"] = [others.release]
    shards[1].before["pull"] = [raising(UnavailableError)] * 3
    with fake_shard.local_client(shards, transport=LinkedTransport) as client:
        client.push("user", IDS, ONES)
        np.testing.assert_array_equal(client.pull("user", IDS), AFTER_ONE)
    assert [[r.sequence for r in shard.pushes] for shard in shards] == [[1, 1], [1], [1]]
    assert [len(shard.pulls) for shard in shards] == [1, 4, 1]


def test_a_frozen_shard_costs_no_other_its_part() -> None:
    shards = make_shards(3)
    leave = threading.Event()
    shards[0].before["push"] = [lambda: leave.wait(20)]
    with fake_shard.local_client(shards, retry=Retry(timeout_s=0.5), transport=LinkedTransport) as client:
        with pytest.raises(DeadlineExceededError, match="kept and sent again"):
            client.push("user", IDS, ONES)
        assert [shard.applied for shard in shards] == [0, 1, 1]
        leave.set()
        client.flush()
    np.testing.assert_array_equal(held(shards), AFTER_ONE)
