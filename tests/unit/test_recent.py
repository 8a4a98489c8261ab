# SPDX-License-Identifier: Apache-2.0
"""Pulls of what changed since an LSN: the ids that a shard remembers, and what it answers."""

from pathlib import Path

import numpy as np
import pytest
from rowhouse import dtype, message

from ps_server.shard import recent
from ps_server.shard.recent import RecentIds
from tests.driver import Driver, shard_config

IDS = np.arange(20, dtype=np.uint64)
TABLES = [
    {"name": "t", "dim": 2, "optimizer": {"kind": "sgd", "learning_rate": 1.0},
     "initializer": {"kind": "zeros"}, "eviction": [{"kind": "l2_norm", "min_l2_norm": 5.0}]},
    {"name": "other", "dim": 2},
]  # fmt: skip


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(shard_config(tmp_path, TABLES, memory_budget="1MiB"), tmp_path / "s")


def pull(driver: Driver, since: int | None) -> tuple[int, message.TableRows]:
    asked = (message.TableIds("t", 2, IDS),)
    stamp = driver.shard.partition_map.stamp
    answer = driver.shard.pull(message.PullRequest(stamp, dtype.FLOAT32, False, asked, since))
    return answer.lsn, answer.tables[0]


def changed(rows: message.TableRows) -> list[int]:
    assert rows.changed is not None
    return np.flatnonzero(np.unpackbits(rows.changed, count=20, bitorder="little")).tolist()


def push(driver: Driver, *ids: int, table: str = "t", value: float = -9.0) -> None:
    driver.push({table: (np.array(ids, np.uint64), np.full((len(ids), 2), value, np.float32))})


def test_only_what_changed_is_answered(driver: Driver) -> None:
    push(driver, *range(20))
    lsn, rows = pull(driver, 0)
    assert changed(rows) == list(range(20)) and rows.rows.shape == (20, 2)
    push(driver, 3, 5)
    push(driver, 7, table="other")
    push(driver, 5, 9)
    later, rows = pull(driver, lsn)
    assert changed(rows) == [3, 5, 9] and later == lsn + 3
    np.testing.assert_array_equal(rows.rows[:, 0], [18, 27, 18])
    assert changed(pull(driver, later)[1]) == []
    assert pull(driver, None)[1].changed is None


def test_rows_by_hand_and_evictions_count_as_changes(driver: Driver) -> None:
    push(driver, *range(20))
    lsn, _ = pull(driver, 0)
    driver.edit(message.TableEdit("t", 0, IDS[2:3]))
    driver.edit(message.TableEdit("t", dtype.FLOAT32, IDS[4:6], np.full((2, 2), 1.0, np.float32)))
    assert changed(pull(driver, lsn)[1]) == [2, 4, 5]
    lsn, _ = pull(driver, lsn)
    assert driver.evict("t") == 2
    assert changed(pull(driver, lsn)[1]) == [4, 5]


def test_what_nobody_remembers_counts_as_changed(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "IDS_MAX", 10)
    push(driver, *range(20))
    lsn, _ = pull(driver, 0)
    assert changed(pull(driver, lsn - 1)[1]) == list(range(20)), "before the first such pull nothing was kept"
    push(driver, *range(6))
    assert changed(pull(driver, lsn)[1]) == list(range(6))
    push(driver, *range(6, 12))
    assert changed(pull(driver, lsn)[1]) == list(range(20)), "the first push is forgotten"
    assert changed(pull(driver, lsn + 1)[1]) == list(range(6, 12))


def test_nothing_is_kept_before_it_is_asked_for() -> None:
    ids = RecentIds()
    ids.note(1, {"t": IDS})
    assert ids._count == 0
    ids.begin(1)
    given = IDS.copy()
    ids.note(2, {"t": given})
    given[:] = 99  # a copy is kept, not a view of a request
    assert ids.changed("t", IDS, 1).all() and not ids.changed("t", IDS, 2).any()
