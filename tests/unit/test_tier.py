# SPDX-License-Identifier: Apache-2.0
"""The traffic between arena and store: what is written when, and what may not become hot."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ps_server.disk.row import get_lsn
from ps_server.table.push import TablePush
from ps_server.table.tier import Tier
from tests.driver import Driver, shard_config

TABLE: dict[str, Any] = {
    "name": "t", "dim": 64, "optimizer": {"kind": "sgd", "learning_rate": 1.0},
    "eviction": [{"kind": "ttl", "ttl_s": 50}],
}  # fmt: skip
IDS = np.arange(1, 11, dtype=np.uint64)


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(shard_config(tmp_path, [TABLE], memory_budget="1MiB"), tmp_path / "s")


def tier_of(driver: Driver) -> Tier:
    return driver.shard._tables["t"].tier


def push(driver: Driver, ids: NDArray[np.uint64]) -> int:
    return driver.push({"t": (ids, np.ones((ids.shape[0], 64), np.float32))}).lsn


def spill_everything(driver: Driver) -> None:
    """Push other rows until none of IDS is hot."""
    number = 0
    while (tier_of(driver).arena.find(IDS, 0)[0] >= 0).any():
        number += 1
        push(driver, np.arange(number * 10_000, number * 10_000 + 500, dtype=np.uint64))


def test_rows_carry_the_lsn_of_their_table_when_they_are_written(driver: Driver) -> None:
    push(driver, IDS)
    last = push(driver, IDS[:1])
    driver.shard.checkpoint()
    present, values = tier_of(driver).fetch(IDS)
    assert present.all() and (get_lsn(values) == last).all()
    assert tier_of(driver).write_back() == 0, "written rows are clean"


def test_a_spilled_row_is_pulled_loaded_and_pushed_on(driver: Driver) -> None:
    push(driver, IDS)
    before = driver.pull("t", IDS)
    spill_everything(driver)
    np.testing.assert_array_equal(driver.pull("t", IDS, read_only=True), before)
    assert (tier_of(driver).arena.find(IDS, 0)[0] < 0).all(), "a read-only pull promotes nothing"
    np.testing.assert_array_equal(driver.pull("t", IDS), before)
    assert (tier_of(driver).arena.find(IDS, 0)[0] >= 0).all()
    spill_everything(driver)
    push(driver, IDS)
    np.testing.assert_array_equal(driver.pull("t", IDS), before - np.float32(1))


def test_what_was_fetched_before_rows_left_memory_is_not_promoted(driver: Driver) -> None:
    """Between a pull's read and its promotion the row is loaded, pushed and spilled: the read is old."""
    push(driver, IDS)
    spill_everything(driver)
    tier = tier_of(driver)
    departures = tier.departures
    present, old = tier.fetch(IDS)
    push(driver, IDS)
    newer = driver.pull("t", IDS)
    spill_everything(driver)
    tier.promote(IDS[present], old, departures)
    assert (tier.arena.find(IDS, 0)[0] < 0).all()
    np.testing.assert_array_equal(driver.pull("t", IDS), newer)


def test_promotion_takes_duplicates_once_and_leaves_hot_rows_alone(driver: Driver) -> None:
    push(driver, IDS)
    spill_everything(driver)
    tier = tier_of(driver)
    present, values = tier.fetch(np.repeat(IDS, 2))
    push(driver, IDS[:5])
    newer, hot = driver.pull("t", IDS[:5]), len(tier.arena)
    tier.promote(np.repeat(IDS, 2)[present], values, tier.departures)
    assert len(tier.arena) == hot + 5
    np.testing.assert_array_equal(driver.pull("t", IDS[:5]), newer)


def test_a_fresh_table_is_not_looked_up_and_counts_follow_rows(driver: Driver) -> None:
    tier = tier_of(driver)
    assert not tier.stored.cold_possible
    push(driver, IDS)
    assert (tier.stored.rows, tier.stored.hot, tier.live_rows()) == (0, 0, 10)
    driver.shard.checkpoint()
    assert (tier.stored.rows, tier.stored.hot, tier.live_rows()) == (10, 10, 10)
    assert not tier.stored.cold_possible, "all stored rows are hot"
    spill_everything(driver)
    assert tier.stored.cold_possible
    driver.shard.checkpoint()
    on_disk = sum(keys.shape[0] for keys, _ in tier.rows.scan(100))
    assert tier.live_rows() == tier.stored.rows == on_disk
    assert tier.stored.hot == len(tier.arena)


def test_rows_are_written_in_small_parts_and_behind_the_barrier(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ps_server.table.tier.COPY_BYTES", 8_192)
    tier, passed, newest = tier_of(driver), [0], []
    put = tier.rows.put

    def check(keys: NDArray[np.uint64], values: NDArray[np.uint8], new: NDArray[np.bool_]) -> None:
        assert values.nbytes <= 8_192
        newest.append(int(get_lsn(values).max()))
        assert newest[-1] <= passed[-1]
        put(keys, values, new)

    monkeypatch.setattr(tier, "_barrier", passed.append)
    monkeypatch.setattr(tier.rows, "put", check)
    last = 0
    for number in range(12):
        last = push(driver, np.arange(number * 500, number * 500 + 500, dtype=np.uint64))
    driver.shard.checkpoint()
    assert len(newest) > 12 * 500 * 270 // 8_192 and newest[-1] == passed[-1] == last
    assert tier.live_rows() == 6_000


def test_removal_leaves_nothing_and_a_later_push_begins_anew(driver: Driver) -> None:
    push(driver, IDS)
    driver.shard.checkpoint()
    push(driver, IDS[:5])  # half of them dirty
    tier = tier_of(driver)
    assert tier.remove(IDS, 9) == 10
    assert tier.live_rows() == 0 and not tier.fetch(IDS)[0].any()
    np.testing.assert_array_equal(driver.pull("t", IDS), driver.shard._tables["t"].initial_rows(IDS))
    driver.shard._applied_lsn = 9
    push(driver, IDS[:3])
    driver.shard.checkpoint()
    assert tier.fetch(IDS)[0].tolist() == [True] * 3 + [False] * 7
    assert driver.shard.store.families.keys() == {"row.t"}
    driver.abandon()


@pytest.mark.parametrize("flushed", [False, True])
def test_a_row_that_was_evicted_and_pushed_again_is_recovered(
    driver: Driver, tmp_path: Path, flushed: bool
) -> None:
    """The log has the row's pushes, its eviction and its new beginning; the store may have any of them."""
    push(driver, IDS)
    driver.now_s += 100
    assert driver.evict("t") == 10
    if flushed:
        tier_of(driver).rows.flush()
    last = push(driver, IDS)
    before = driver.pull("t", IDS)
    if flushed:
        assert tier_of(driver).write_back() == 10
        tier_of(driver).rows.flush()
    driver.crash(tmp_path / "copy")
    np.testing.assert_array_equal(driver.pull("t", IDS), before)
    driver.reopen()
    present, values = tier_of(driver).fetch(IDS)
    assert present.all() and (get_lsn(values) == last).all()


def test_recovery_keeps_the_later_lsn_of_rows_that_are_written_back_meanwhile(driver: Driver) -> None:
    """A row newer than the record that is replayed must not be marked older than it is."""
    for _ in range(4):
        push(driver, IDS)
    driver.reopen()
    rows = driver.pull("t", IDS, read_only=True)
    table, tier = driver.shard._tables["t"], tier_of(driver)
    tier.begin_recovery()
    tier.applied_lsn = 0
    for lsn in (1, 2):
        table.push(TablePush(IDS, np.ones((10, 64), np.float32)), lsn, 0)
        tier.write_back()
    assert (get_lsn(tier.fetch(IDS)[1]) == 4).all()
    np.testing.assert_array_equal(driver.pull("t", IDS), rows)
    driver.abandon()


@pytest.mark.parametrize("leave", ["spill", "evict"])
def test_pulls_and_pushes_go_on_while_rows_are_written_but_nothing_leaves_memory(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    """A row that a checkpoint has copied and not written yet is clean, and not in the store: it must stay."""
    push(driver, IDS)
    first = driver.pull("t", IDS)
    tier = tier_of(driver)
    put, begun, go_on = tier.rows.put, threading.Event(), threading.Event()

    def slow_put(keys: NDArray[np.uint64], values: NDArray[np.uint8], new: NDArray[np.bool_]) -> None:
        begun.set()
        assert go_on.wait(20)
        put(keys, values, new)

    monkeypatch.setattr(tier.rows, "put", slow_put)
    checkpoint = threading.Thread(target=driver.shard.checkpoint)
    checkpoint.start()
    assert begun.wait(20)
    np.testing.assert_array_equal(driver.pull("t", IDS), first)
    last = push(driver, IDS[:5])

    def act() -> None:
        if leave == "evict":
            tier.remove(IDS, last + 1)
        else:
            spill_everything(driver)

    leaver = threading.Thread(target=act)
    leaver.start()
    leaver.join(0.3)
    assert leaver.is_alive()
    go_on.set()
    leaver.join(20)
    checkpoint.join(20)
    assert not leaver.is_alive() and not checkpoint.is_alive()
    if leave == "evict":
        assert not tier.fetch(IDS)[0].any()
        return
    expected = first.copy()
    expected[:5] -= np.float32(1)
    np.testing.assert_array_equal(driver.pull("t", IDS, read_only=True), expected)
