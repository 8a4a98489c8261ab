# SPDX-License-Identifier: Apache-2.0
"""Many clients on one shard: a push that comes again is recognised, or refused, and never applied twice."""

from pathlib import Path

import numpy as np
import pytest
from rowhouse.error import BusyError, SequenceGapError, UnavailableError
from rowhouse.limit import RESEND_S, SESSION_KEPT_S
from rowhouse.message import PushRequest

from ps_client.retry import Retry
from ps_server.life import session
from tests.driver import Driver, shard_config
from tests.unit.fake_shard import local_client, make_shards, raising

TABLES = [{"name": "user", "dim": 4, "optimizer": {"kind": "sgd", "learning_rate": 1.0}}]
IDS = np.array([1, 2, 3], np.uint64)
ONES = np.ones((3, 4), np.float32)
FEW = 8


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(session, "CLIENTS_MAX", FEW)
    return Driver(shard_config(tmp_path, TABLES), tmp_path / "shard")


def first_push(driver: Driver, client: int) -> PushRequest:
    request = driver.request({"user": (IDS, ONES)}, client=client)
    driver.send(request)
    return request


@pytest.mark.parametrize("life", ["live", "killed", "checkpoint", "stopped"])
def test_a_push_that_comes_again_is_never_applied_twice(driver: Driver, tmp_path: Path, life: str) -> None:
    """The client waits for its answer; as many others as the shard remembers push meanwhile."""
    mine = first_push(driver, 1)
    driver.now_s += RESEND_S
    for other in range(2, FEW + 1):
        first_push(driver, other)
    if life in ("checkpoint", "stopped"):
        driver.shard.checkpoint()
    if life == "stopped":
        driver.reopen()
    if life == "killed":
        driver.crash(tmp_path / "copy")
    with pytest.raises(BusyError, match="a new client is refused until one of them is older"):
        first_push(driver, FEW + 1)
    if life == "checkpoint":
        driver.crash(tmp_path / "copy")
    rows = driver.pull("user", IDS)
    assert driver.send(mine).duplicate
    driver.now_s += SESSION_KEPT_S - RESEND_S
    first_push(driver, FEW + 1)  # now the first one may go
    second = driver.request({"user": (IDS, ONES)}, client=1)
    assert second.sequence == 2
    with pytest.raises(SequenceGapError, match="does not know this client"):
        driver.send(second)
    np.testing.assert_array_equal(driver.pull("user", IDS), rows - 1, err_msg="one push, by the new client")


def test_a_replay_drops_the_clients_that_were_dropped(driver: Driver, tmp_path: Path) -> None:
    for client in range(3 * FEW):
        first_push(driver, client)
        driver.now_s += SESSION_KEPT_S if client >= FEW - 1 else 0
    before = driver.shard._sessions.snapshot()
    driver.now_s += 10 * SESSION_KEPT_S  # the clock at the replay must not matter
    driver.crash(tmp_path / "copy")
    assert driver.shard._sessions.snapshot() == before
    assert driver.shard.replayed_records == 3 * FEW


def test_a_client_does_not_send_its_first_push_again_once_it_may_be_forgotten() -> None:
    shards = make_shards(1)
    now_s = [0.0]
    client = local_client(shards, retry=Retry(timeout_s=1.0))
    lane = client._cluster.lanes[0]
    lane._clock = lambda: now_s[0]
    shards[0].after["push"] = [raising(UnavailableError)]
    shards[0].before["push"] = [None, *[raising(UnavailableError)] * 10_000]
    with pytest.raises(UnavailableError, match="is not known: it is kept and sent again"):
        client.push("user", IDS, ONES)
    assert shards[0].applied == 1
    shards[0].before["push"].clear()
    shards[0].sequences.clear()  # dropped: other clients took its place
    now_s[0] = RESEND_S + 1.0
    with pytest.raises(SequenceGapError, match=f"no answer for more than {RESEND_S} s"):
        client.push("user", IDS, ONES)
    assert shards[0].applied == 1
    client.push("user", IDS, ONES)
    assert shards[0].applied == 3
    sent = [(request.sequence, len(request.tables)) for request in shards[0].pushes[-2:]]
    assert sent == [(1, 0), (2, 1)], "an empty push uses the number up that a late copy might take"
