# SPDX-License-Identifier: Apache-2.0
"""What a shard does when a write fails or is lost: poison, numbers that never come twice, log before rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rowhouse.error import (
    PoisonedError,
    StoreError,
)
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.disk.segment import list_segments
from ps_server.shard.request import checked_parts
from tests.driver import Driver, shard_config

TABLES: list[dict[str, Any]] = [
    {"name": "user", "dim": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.5}},
    {"name": "item", "dim": 2, "optimizer": {"kind": "ftrl", "learning_rate": 0.5}},
]
IDS = np.array([1, 2, 3], np.uint64)


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(shard_config(tmp_path, TABLES), tmp_path / "s")


def ones(rows: int, dim: int = 4) -> NDArray[np.float32]:
    return np.ones((rows, dim), np.float32)


def write_back(driver: Driver) -> None:
    """Dirty rows go to the store, as in the middle of a checkpoint."""
    tier = driver.shard._tables["user"].tier
    tier.write_back()


def test_half_a_push_never_reaches_the_store(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in embedded mode: rows have changed, their table's LSN has not, and a checkpoint is running."""
    driver.push({"user": (IDS, ones(3))})
    user = driver.shard._tables["user"]
    step = user._step

    def interrupted(*arguments: Any) -> None:
        step(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(user, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        driver.push({"user": (IDS, ones(3))})
    with pytest.raises(PoisonedError, match="a push or a write failed half way"):
        write_back(driver)
    with pytest.raises(PoisonedError, match="KeyboardInterrupt"):
        driver.pull("user", IDS)
    monkeypatch.undo()
    driver.reopen()
    assert driver.send(driver.request({"user": (IDS, ones(3))})).duplicate, "it was logged, so it is applied"
    expected = Driver(driver.config, tmp_path / "expected")
    for _ in range(2):
        expected.push({"user": (IDS, ones(3))})
    np.testing.assert_array_equal(driver.pull("user", IDS), expected.pull("user", IDS))


def test_a_log_that_cannot_be_written_poisons(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.push({"user": (IDS, ones(3))})
    rows = driver.pull("user", IDS)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ps_server.disk.log.os.pwritev", full)
    with pytest.raises(StoreError, match=r"push log .*No space left"):
        driver.push({"user": (IDS, ones(3))})
    monkeypatch.undo()
    for action in (lambda: driver.push({"user": (IDS, ones(3))}), lambda: driver.pull("user", IDS)):
        with pytest.raises(PoisonedError, match=r"refuses requests: StoreError: push log .*No space left"):
            action()
    assert "No space left" in driver.shard.get_stats(pb.GetStatsRequest()).poison
    driver.reopen()
    np.testing.assert_array_equal(driver.pull("user", IDS), rows)
    assert driver.push({"user": (IDS, ones(3))}).lsn == 2


@pytest.mark.parametrize("call", ["fsync", "unlink", "open"])
def test_a_checkpoint_that_the_file_system_refuses_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    driver = Driver(shard_config(tmp_path, TABLES, durability="fsync"), tmp_path / "s")
    driver.push({"user": (IDS, ones(3))})

    def refused(*_: Any, **_keys: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(f"os.{call}", refused)
    with pytest.raises(StoreError, match="Input/output error"):
        driver.shard.checkpoint()
    monkeypatch.undo()
    assert driver.shard.poison is not None
    driver.abandon()


# ------------------------------------------------------------ counts and durability
def test_durability_none_forgets_pushes_at_a_kill_but_never_reuses_their_numbers(tmp_path: Path) -> None:
    """Rows that had reached the store carry LSNs that no log has: new pushes must come after them."""
    config = shard_config(tmp_path, TABLES, durability="none")
    driver = Driver(config, tmp_path / "s")
    driver.push({"user": (IDS, ones(3))})
    driver.shard.checkpoint()
    assert driver.push({"user": (IDS, ones(3))}).lsn == 2
    write_back(driver)
    driver.shard._tables["user"].tier.rows.flush()
    rows = driver.pull("user", IDS)
    driver.crash(tmp_path / "copy")
    assert not list_segments(driver.directory / "log")
    np.testing.assert_array_equal(driver.pull("user", IDS), rows)
    driver.config = shard_config(tmp_path, TABLES, durability="os")
    driver.crash(tmp_path / "again")
    driver.sequences[99] = 1  # the second push was forgotten
    assert driver.push({"user": (IDS, ones(3))}).lsn > 2
    driver.crash(tmp_path / "at last")
    np.testing.assert_array_equal(driver.pull("user", IDS), rows - np.float32(0.5))


def test_the_log_is_synced_before_rows_that_hold_its_records_are_written(tmp_path: Path) -> None:
    config = shard_config(tmp_path, TABLES, durability="fsync", memory_budget="1MiB")
    driver, written = Driver(config, tmp_path / "s"), 0
    log = driver.shard._log
    assert log is not None

    def check(name: str) -> None:
        nonlocal written
        if name == "mid write-back":
            written += 1
            assert log.synced_lsn >= driver.shard._tables["user"].tier.applied_lsn

    driver.failpoint = check
    for number in range(40):
        ids = np.arange(number * 1_000, number * 1_000 + 1_000, dtype=np.uint64)
        request = driver.request({"user": (ids, ones(1_000))}, sequence=number + 1)
        parts = checked_parts(request, driver.shard._tables)
        with driver.shard._push_lock:  # as in a push that has not waited for its own sync yet
            driver.shard._log_and_apply(request, None, parts, number + 1, 0)
    assert written > 10
    assert log.synced_lsn < 40, "nothing else syncs here"
    driver.abandon()
