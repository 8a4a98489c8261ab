# SPDX-License-Identifier: Apache-2.0
"""Which rows the policies take, hot and cold alike, and which they spare."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rocksdict
from numpy.typing import NDArray
from rowhouse.error import InvalidRequestError, UnavailableError
from rowhouse.mix import mix64

from ps_server.disk.store import Store
from ps_server.disk.verify import verify_directory
from ps_server.shard.eviction import Moment, spared
from tests.driver import Driver, shard_config
from tests.process import wait_until

SGD = {"kind": "sgd", "learning_rate": 1.0}
Make = Callable[..., Driver]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A driver over one table `t` of dim 64 with the given policies; 1 MiB holds some 2,500 rows."""

    def build(*policies: dict[str, Any]) -> Driver:
        table = {
            "name": "t",
            "dim": 64,
            "optimizer": SGD,
            "initializer": {"kind": "zeros"},
            "eviction": policies,
        }
        return Driver(shard_config(tmp_path, [table], memory_budget="1MiB"), tmp_path / "s")

    return build


def push(driver: Driver, ids: NDArray[np.uint64], value: float = 1.0) -> None:
    for part in np.array_split(ids, -(-ids.shape[0] // 500)):
        driver.push({"t": (part, np.full((part.shape[0], 64), value, np.float32))})


def span(first: int, last: int) -> NDArray[np.uint64]:
    return np.arange(first, last, dtype=np.uint64)


def alive(driver: Driver, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which ids have a row (all pushed rows differ from the initial zeros)."""
    found: NDArray[np.bool_] = (driver.pull("t", ids, read_only=True) != 0).max(axis=1)
    return found


def test_ttl_takes_hot_and_cold_rows_whose_last_push_is_old(make: Make) -> None:
    driver = make({"kind": "ttl", "ttl_s": 100})
    push(driver, span(0, 4_000))  # more than fit
    driver.now_s += 60
    push(driver, span(1_000, 1_200))
    driver.now_s += 40
    assert driver.evict("t") == 0, "a row of 100 seconds is not older than 100 seconds"
    driver.now_s += 1
    assert driver.evict("t") == 3_800
    np.testing.assert_array_equal(np.flatnonzero(alive(driver, span(0, 4_000))), np.arange(1_000, 1_200))
    assert (driver.stats("t").rows, driver.stats("t").evicted_rows) == (200, 3_800)
    driver.now_s += 1
    assert driver.evict("t") == 0, "what is gone does not go again"


def test_evicted_rows_give_their_disk_back(make: Make) -> None:
    """Nothing is kept of them, and a file that is half deletions is compacted without being asked."""
    driver = make({"kind": "ttl", "ttl_s": 100})
    push(driver, span(0, 4_000))
    driver.shard.checkpoint()
    full = driver.shard.store.families["row.t"].disk_bytes()
    driver.now_s += 101
    push(driver, span(0, 100))
    assert driver.evict("t") == 3_900
    driver.shard.checkpoint()
    wait_until(lambda: driver.shard.store.families["row.t"].disk_bytes() < full // 10)
    assert np.array_equal(np.flatnonzero(alive(driver, span(0, 4_000))), np.arange(100))
    driver.shard.close()


def test_tombstones_of_an_earlier_version_go(make: Make) -> None:
    driver = make({"kind": "ttl", "ttl_s": 100})
    push(driver, span(0, 10))
    driver.shard.close()
    widths = {"row.t": 270, "tombstone.t": 6}
    store = Store(driver.directory / "store", widths, cache_bytes=1 << 20, memtable_bytes=1 << 20)
    store.families["tombstone.t"].put(span(100, 200), np.ones((100, 6), np.uint8), new=True)
    store.close()
    assert verify_directory(driver.directory).damage == []
    assert _families(driver) >= {"row.t", "tombstone.t"}
    driver.shard = driver._open()
    driver.shard.close()
    assert _families(driver) == {"default", "meta", "row.t"}


def _families(driver: Driver) -> set[str]:
    path = str(driver.directory / "store")
    return {*rocksdict.Rdict.list_cf(path, rocksdict.Options(raw_mode=True))}


def test_least_frequent_keeps_exactly_max_rows_and_the_frequent_ones(make: Make) -> None:
    driver = make({"kind": "least_frequent", "max_rows": 1_000})
    push(driver, span(0, 900))
    assert driver.evict("t") == 0, "within the cap nothing goes"
    push(driver, span(900, 3_500))
    for _ in range(2):
        push(driver, span(3_000, 3_400))
    assert driver.evict("t") == 2_500
    kept = np.flatnonzero(alive(driver, span(0, 3_500)))
    assert kept.shape[0] == 1_000 and np.isin(np.arange(3_000, 3_400), kept).all()
    tied = span(0, 3_500)[~np.isin(span(0, 3_500), span(3_000, 3_400))]
    last = tied[np.argsort(mix64(tied))][2_500:]
    assert set(kept.tolist()) == set(last.tolist()) | set(range(3_000, 3_400)), "ties go by key"


def test_norm_takes_rows_below_it(make: Make) -> None:
    driver = make({"kind": "l2_norm", "min_l2_norm": 4.0})  # 64 weights of 0.5 have norm 4
    push(driver, span(0, 2_000), 0.5)
    push(driver, span(2_000, 4_000), 0.499)
    assert driver.evict("t") == 2_000
    assert alive(driver, span(0, 4_000)).tolist() == [True] * 2_000 + [False] * 2_000


def test_the_log_is_on_the_disk_before_a_row_is_deleted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion has no LSN. If a power cut took its record and left it, a replay would make the row anew."""
    driver = make({"kind": "l2_norm", "min_l2_norm": 100.0})
    push(driver, span(0, 40))
    tier, log = driver.shard._tables["t"].tier, driver.shard._log
    assert log is not None
    order: list[tuple[str, int]] = []
    remove, sync = tier.remove, log.sync

    def noting_sync(lsn: int) -> None:
        assert log.synced_lsn >= lsn - 1, "the whole log is synced before the first chunk"
        sync(lsn)
        assert log.synced_lsn == log.written_lsn
        order.append(("sync", log.written_lsn))

    def noting_remove(ids: NDArray[np.uint64], lsn: int) -> int:
        order.append(("remove", lsn))
        return remove(ids, lsn)

    monkeypatch.setattr(log, "sync", noting_sync)
    monkeypatch.setattr(tier, "remove", noting_remove)
    assert driver.evict("t") == 40
    removed = [place for place, (what, _) in enumerate(order) if what == "remove"]
    assert removed
    for place in removed:
        assert order[place - 1] == ("sync", order[place][1])


def test_a_replay_evicts_the_same_rows_at_another_time(make: Make, tmp_path: Path) -> None:
    driver = make({"kind": "ttl", "ttl_s": 100})
    push(driver, span(0, 500))
    driver.now_s += 101
    push(driver, span(0, 10))
    assert driver.evict("t") == 490
    push(driver, span(20, 30))
    before = driver.pull("t", span(0, 500), read_only=True)
    driver.now_s += 10_000
    driver.crash(tmp_path / "copy")
    assert driver.shard.replayed_records == 4
    np.testing.assert_array_equal(driver.pull("t", span(0, 500), read_only=True), before)
    assert driver.stats("t").rows == 20


def test_a_row_that_is_pushed_while_the_scan_runs_is_spared(make: Make) -> None:
    """Also when it has left memory again by then: its new LSN tells."""
    driver = make({"kind": "ttl", "ttl_s": 100})
    tier = driver.shard._tables["t"].tier
    push(driver, span(0, 10))
    driver.shard.checkpoint()
    began = Moment(tier.applied_lsn, tier.departures)
    assert not spared(driver.shard._tables["t"], span(0, 10), began).any()
    push(driver, span(0, 3))
    assert spared(driver.shard._tables["t"], span(0, 10), began).tolist() == [True] * 3 + [False] * 7
    number = 1
    while (tier.arena.find(span(0, 10), 0)[0] >= 0).any():
        push(driver, span(number * 500, number * 500 + 500))
        number += 1
    assert spared(driver.shard._tables["t"], span(0, 10), began).tolist() == [True] * 3 + [False] * 7


def test_a_table_without_policies_is_refused(make: Make) -> None:
    with pytest.raises(InvalidRequestError, match="table 't' has no eviction policy"):
        make().evict("t")


def test_an_eviction_ends_when_the_shard_is_to_stop(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of a billion rows is read for minutes; a stop does not wait for that."""
    driver = make({"kind": "ttl", "ttl_s": 100})
    push(driver, span(0, 400))
    driver.now_s += 200
    rows = driver.shard._tables["t"].tier.rows
    scan, read = rows.scan, []

    def slowly(chunk_rows: int, *arguments: Any) -> Any:
        for chunk in scan(100, *arguments):
            read.append(chunk)
            if len(read) == 2:
                driver.shard._closing.set()
            yield chunk

    monkeypatch.setattr(rows, "scan", slowly)
    with pytest.raises(UnavailableError, match=r"is stopping.*broken off after 100 rows"):
        driver.evict("t")
    monkeypatch.undo()
    driver.reopen()
    assert driver.stats("t").rows == 300
    assert driver.evict("t") == 300
