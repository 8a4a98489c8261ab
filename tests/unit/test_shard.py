# SPDX-License-Identifier: Apache-2.0
"""A shard refuses what is wrong before anything changes, and keeps its promises over every kind of end."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rowhouse import dtype, message
from rowhouse.error import (
    ConfigError,
    InvalidRequestError,
    LimitExceededError,
    PoisonedError,
    SequenceGapError,
    StalePartitionMapError,
    StoreError,
    TableFrozenError,
    UnknownTableError,
)
from rowhouse.v1 import rowhouse_pb2 as pb

from tests.driver import Driver, assert_equal_dumps, dump, shard_config, snapshot

TABLES: list[dict[str, Any]] = [
    {"name": "user", "dim": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.5}},
    {"name": "item", "dim": 2, "optimizer": {"kind": "ftrl", "learning_rate": 0.5}},
]
IDS = np.array([1, 2, 3], np.uint64)
Action = Callable[[], object]


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(shard_config(tmp_path, TABLES), tmp_path / "s")


def ones(rows: int, dim: int = 4) -> NDArray[np.float32]:
    return np.ones((rows, dim), np.float32)


def part(table: str, ids: NDArray[np.uint64], gradients: NDArray[Any], rate: float | None = None) -> Any:
    return message.TableGradients(table, dtype.FLOAT32, ids, gradients, rate)


def refused(driver: Driver, error: type[Exception], match: str, *parts: Any, **changes: int) -> None:
    """The push gets `error`, and neither rows nor sequence nor LSN have moved; the shard goes on."""
    before = driver.pull("user", IDS), driver.shard._applied_lsn
    version = changes.get("version", driver.shard.partition_map.version)
    with pytest.raises(error, match=match):
        driver.shard.push(message.PushRequest(version, 5, changes.get("sequence", 1), parts))
    assert driver.shard._applied_lsn == before[1] and driver.shard.poison is None
    np.testing.assert_array_equal(driver.pull("user", IDS), before[0])
    with pytest.raises(SequenceGapError):  # the client's number is not taken
        driver.shard.push(message.PushRequest(driver.shard.partition_map.version, 5, 2, (good(),)))


def good() -> Any:
    return part("user", IDS, ones(3))


# ------------------------------------------------------------ refused
def test_a_push_is_checked_whole_before_anything_changes(driver: Driver) -> None:
    late = ones(3)
    late[2, 1] = np.nan
    refused(driver, UnknownTableError, "table 'usr' is unknown.*'user'", good(), part("usr", IDS, ones(3)))
    refused(
        driver,
        InvalidRequestError,
        "table 'item': dim is 4; it must be 2",
        good(),
        part("item", IDS, ones(3)),
    )
    refused(driver, InvalidRequestError, "table 'user' is in the push twice", good(), good())
    refused(
        driver, InvalidRequestError, r"gradient of id 3 \(row 2, column 1\) is nan", part("user", IDS, late)
    )
    refused(driver, InvalidRequestError, "is inf; it must be finite", part("user", IDS, ones(3) * np.inf))
    refused(driver, InvalidRequestError, "sequence is 0", good(), sequence=0)
    refused(driver, SequenceGapError, "client 5: push 3 came", good(), sequence=3)
    refused(driver, StalePartitionMapError, "partition map 7; shard 0 has", good(), version=7)
    many = np.arange(2**18, dtype=np.uint64)
    refused(driver, LimitExceededError, "push of 262144 distinct ids", part("user", many, ones(2**18)))


def test_a_gradient_whose_square_would_spoil_the_state_is_refused(driver: Driver) -> None:
    huge = ones(3, 2)
    huge[2, 1] = -(2.0**51)
    text = r"table 'item': the gradient of id 3 \(row 2, column 1\) is -2.25\d*e\+15; ftrl sums .*clip_value"
    refused(driver, InvalidRequestError, text, good(), part("item", IDS, huge))
    twice, half = np.array([4, 7, 4], np.uint64), ones(3, 2) * np.float32(2.0**50)
    refused(driver, InvalidRequestError, r"id 4 \(row 0, column 0\)", part("item", twice, half))
    driver.push({"item": (IDS, half), "user": (IDS, ones(3) * np.float32(3e38))})


@pytest.mark.parametrize(
    ("table", "rate"),
    [("user", float("nan")), ("user", -1.0), ("user", 3.3e38), ("item", 0.0), ("item", 1e-38)],
)
def test_a_rate_that_the_optimizer_refuses_never_reaches_the_log(
    driver: Driver, table: str, rate: float
) -> None:
    dim = {"user": 4, "item": 2}[table]
    refused(
        driver,
        InvalidRequestError,
        f"table '{table}': learning rate is",
        part(table, IDS, ones(3, dim), rate),
    )
    driver.reopen()


def test_a_rate_of_zero_is_a_warm_up_where_the_optimizer_allows_it(driver: Driver) -> None:
    before = driver.pull("user", IDS)
    driver.push({"user": (IDS, ones(3))}, rate=0.0)
    np.testing.assert_array_equal(driver.pull("user", IDS), before)
    assert driver.stats("user").rows == 3


# ------------------------------------------------------------ exactly once
def test_a_repeat_is_answered_and_not_applied(driver: Driver, tmp_path: Path) -> None:
    first, second = driver.push({"user": (IDS, ones(3))}), driver.push({"user": (IDS, ones(3))})
    rows = driver.pull("user", IDS)
    starts: list[Action] = [lambda: None, driver.reopen, lambda: driver.crash(tmp_path / "copy")]
    for start in starts:
        start()
        for sequence in (1, 2):
            answer = driver.send(driver.request({"user": (IDS, ones(3))}, sequence=sequence))
            assert answer == message.PushResponse(second.lsn, True)
        np.testing.assert_array_equal(driver.pull("user", IDS), rows)
    assert (first.lsn, second.lsn, first.duplicate) == (1, 2, False)
    assert driver.push({"user": (IDS, ones(3))}).lsn == 3
    # a map that changed before the retry: what was applied by the old one is still a repeat
    other = replace(driver.request({"user": (IDS, ones(3))}, sequence=3), map_version=1)
    assert driver.send(other) == message.PushResponse(3, True)
    with pytest.raises(StalePartitionMapError):
        driver.send(replace(other, sequence=4))


def test_a_retry_of_what_was_applied_is_answered_although_the_table_is_frozen_now(driver: Driver) -> None:
    request = driver.request({"user": (IDS, ones(3))})
    driver.send(request)
    driver.freeze("user", pb.FREEZE_MODE_REFUSE)
    assert driver.send(request).duplicate
    with pytest.raises(TableFrozenError):
        driver.push({"user": (IDS, ones(3))})


def test_no_push_is_applied_after_a_freeze_was_answered(driver: Driver) -> None:
    """The push is checked before the freeze and comes to the push lock after it."""
    lock = driver.shard._push_lock

    class Late:
        def __enter__(self) -> None:
            driver.shard._push_lock = lock
            driver.freeze("user", pb.FREEZE_MODE_REFUSE)
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    driver.shard._push_lock = Late()  # type: ignore[assignment]
    with pytest.raises(TableFrozenError, match="'user' is frozen"):
        driver.push({"user": (IDS, ones(3))})
    assert driver.stats("user").rows == 0


# ------------------------------------------------------------ frozen tables
def test_ignored_pushes_are_acknowledged_logged_as_applied_and_numbered(
    driver: Driver, tmp_path: Path
) -> None:
    driver.push({"user": (IDS, ones(3)), "item": (IDS, ones(3, 2))})
    user, item = driver.pull("user", IDS), driver.pull("item", IDS)
    driver.freeze("user", pb.FREEZE_MODE_IGNORE)
    assert driver.push({"user": (IDS, ones(3)), "item": (IDS, ones(3, 2))}).lsn == 2
    assert driver.push({"user": (IDS, ones(3))}).lsn == 3
    driver.crash(tmp_path / "copy")
    np.testing.assert_array_equal(driver.pull("user", IDS), user)
    assert (driver.pull("item", IDS) != item).any()
    assert driver.stats("user").frozen and not driver.stats("item").frozen
    driver.freeze("user", pb.FREEZE_MODE_OFF)
    driver.push({"user": (IDS, ones(3))})
    np.testing.assert_array_equal(driver.pull("user", IDS), user - np.float32(0.5))


def test_a_freeze_is_kept_over_a_kill_and_a_stop(driver: Driver, tmp_path: Path) -> None:
    driver.freeze("user", pb.FREEZE_MODE_REFUSE)
    starts: list[Action] = [lambda: driver.crash(tmp_path / "copy"), driver.reopen, driver.reopen]
    for start in starts:
        start()
        with pytest.raises(TableFrozenError, match="table 'user' is frozen"):
            driver.push({"item": (IDS, ones(3, 2)), "user": (IDS, ones(3))})
    with pytest.raises(InvalidRequestError, match="freeze mode is 0; it must be one of"):
        driver.freeze("user", pb.FREEZE_MODE_UNSPECIFIED)
    with pytest.raises(UnknownTableError):
        driver.freeze("nobody", pb.FREEZE_MODE_OFF)


def test_a_freeze_in_the_config_counts_at_the_next_start(driver: Driver, tmp_path: Path) -> None:
    driver.reopen()
    driver.config = shard_config(tmp_path, [{**TABLES[0], "freeze": "refuse"}, TABLES[1]])
    driver.reopen()
    with pytest.raises(TableFrozenError):
        driver.push({"user": (IDS, ones(3))})
    driver.freeze("user", pb.FREEZE_MODE_OFF)
    driver.reopen()
    assert driver.push({"user": (IDS, ones(3))}).lsn == 1


# ------------------------------------------------------------ read-only
def test_read_only_serves_pulls_and_nothing_else(driver: Driver, tmp_path: Path) -> None:
    driver.push({"user": (IDS, ones(3))})
    rows, at = driver.pull("user", IDS), driver.directory
    snapshot(at, tmp_path / "killed")
    driver.reopen(read_only=True)
    before = {p: p.stat().st_mtime_ns for p in at.rglob("*.sst")}
    np.testing.assert_array_equal(driver.pull("user", IDS), rows)
    assert driver.stats("user").hot_rows == 0 and driver.stats("user").rows == 3
    refusals: list[Action] = [
        lambda: driver.push({"user": (IDS, ones(3))}), driver.shard.checkpoint, lambda: driver.evict("user"),
        lambda: driver.shard.prefetch("user", IDS), lambda: driver.freeze("user", pb.FREEZE_MODE_OFF),
    ]  # fmt: skip
    for refusal in refusals:
        with pytest.raises(TableFrozenError, match="open read-only"):
            refusal()
    driver.shard.close()
    assert {p: p.stat().st_mtime_ns for p in at.rglob("*.sst")} == before
    with pytest.raises(StoreError, match="was not stopped cleanly"):
        Driver(driver.config, tmp_path / "killed", read_only=True)
    with pytest.raises(StoreError, match="fresh"):
        Driver(driver.config, tmp_path / "fresh", read_only=True)
    wider = shard_config(tmp_path, [*TABLES, {"name": "new", "dim": 1}])
    with pytest.raises(ConfigError, match="table 'new' is not in this data directory"):
        Driver(wider, at, read_only=True)


# ------------------------------------------------------------ ends
def test_nothing_is_done_on_a_closed_shard(driver: Driver) -> None:
    driver.shard.close()
    driver.shard.close()
    push, prefetch = driver.request({"user": (IDS, ones(3))}), driver.shard.prefetch
    actions: list[Action] = [
        lambda: driver.pull("user", IDS), lambda: driver.send(push), lambda: prefetch("user", IDS),
        driver.shard.checkpoint,
    ]  # fmt: skip
    for action in actions:
        with pytest.raises(PoisonedError, match="shard 0 is closed"):
            action()
    assert driver.shard.get_stats(pb.GetStatsRequest()).poison == ""


def test_a_checkpoint_that_waited_while_the_shard_closed_does_nothing(driver: Driver) -> None:
    lock = driver.shard._checkpoint_lock

    class Late:
        def __enter__(self) -> None:
            driver.shard._checkpoint_lock = lock
            driver.shard.close()
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    driver.shard._checkpoint_lock = Late()  # type: ignore[assignment]
    with pytest.raises(PoisonedError, match="is closed"):
        driver.shard.checkpoint()


def test_row_counts_are_exact_after_a_stop_and_after_a_kill(driver: Driver, tmp_path: Path) -> None:
    many = np.arange(5_000, dtype=np.uint64)
    driver.push({"user": (many, ones(5_000))})
    driver.reopen()
    assert (driver.stats("user").rows, driver.stats("user").rows_exact, driver.stats("user").hot_rows) == (
        5_000,
        True,
        0,
    )
    driver.push({"user": (many[:100] + np.uint64(4_950), ones(100))})
    driver.crash(tmp_path / "copy")
    assert (driver.stats("user").rows, driver.stats("user").rows_exact) == (5_050, True)
    driver.reopen()
    assert driver.stats("user").rows == 5_050


def test_stats_of_the_shard(driver: Driver) -> None:
    driver.push({"user": (IDS, ones(3))})
    driver.pull("user", np.array([1, 2, 900], np.uint64))
    driver.shard.checkpoint()
    driver.push({"item": (IDS[:1], ones(1, 2))})
    found = driver.shard.get_stats(pb.GetStatsRequest())
    assert (found.shard, found.applied_lsn, found.durable_lsn, found.checkpoint_lsn) == (0, 2, 2, 1)
    assert found.log_records == 1 and found.log_bytes > 0 and found.poison == ""
    assert found.memory_budget_bytes == 16 << 20 and 0 < found.memory_used_bytes <= 16 << 20
    user, item = driver.stats("user"), driver.stats("item")
    assert (user.rows, user.hot_rows, user.dirty_rows, user.pushed_ids) == (3, 3, 0, 3)
    assert (user.pulled_ids, user.hot_hits) == (3, 2)
    assert (item.rows, item.dirty_rows) == (1, 1)
    assert user.record_bytes == 3 * 24 and user.index_bytes > 0 and user.disk_bytes > 0


def test_prefetch_makes_stored_rows_hot_and_creates_none(driver: Driver) -> None:
    driver.push({"user": (IDS, ones(3))})
    driver.reopen()
    assert driver.shard.prefetch("user", np.array([1, 2, 77, 2], np.uint64)) == 3
    assert driver.stats("user").hot_rows == 2
    assert driver.shard.prefetch("user", np.array([1, 2], np.uint64)) == 0
    assert driver.stats("user").rows == 3
    with pytest.raises(UnknownTableError):
        driver.shard.prefetch("usr", IDS)


def test_pulls_never_write(driver: Driver) -> None:
    driver.push({"user": (IDS, ones(3))})
    driver.shard.checkpoint()
    twin = Driver(driver.config, driver.directory.parent / "twin")
    twin.push({"user": (IDS, ones(3))})
    strangers = np.random.default_rng(0).integers(0, 2**64, 10_000, np.uint64)
    driver.pull("user", strangers)
    driver.pull("user", strangers, read_only=True)
    driver.shard.prefetch("user", strangers)
    assert driver.stats("user").rows == driver.stats("user").hot_rows == 3
    driver.shard.close()
    twin.shard.close()
    assert_equal_dumps(dump(driver.config, driver.directory), dump(twin.config, twin.directory))
