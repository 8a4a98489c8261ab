# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint remembers, and what must not change between two openings."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse.error import ConfigError, CorruptionError

from ps_server.disk import checkpoint
from ps_server.disk.checkpoint import CheckpointState, Life
from ps_server.disk.segment import SEGMENT_HEADER, list_segments
from ps_server.disk.store import Store
from ps_server.disk.verify import verify_directory
from tests.driver import Driver, shard_config, snapshot

SGD = {"kind": "sgd", "learning_rate": 1.0}
TABLE: dict[str, Any] = {"name": "t", "dim": 4, "optimizer": SGD}
IDS = np.arange(5, dtype=np.uint64)


def make_store(directory: Path) -> Store:
    return Store(directory, {"row.t": 8}, cache_bytes=1 << 20, memtable_bytes=1 << 20)


def test_state_and_sketches_come_back(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert checkpoint.read(store) == CheckpointState() and checkpoint.read_sketch(store, "t") is None
    state = CheckpointState(
        lsn=7, clients={str(2**64 - 1): (3, 7)}, rows={"t": None, "ü": 5}, frozen={"t": "refuse"}
    )
    checkpoint.write(store, state, {"t": b"\0\1\2", "ü": b""})
    assert checkpoint.read(store) == state
    assert (checkpoint.read_sketch(store, "t"), checkpoint.read_sketch(store, "ü")) == (b"\0\1\2", b"")
    store.close()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (checkpoint.STATE_KEY, "the checkpoint record"), (checkpoint.LIFE_KEY, "the shard's life record"),
        (checkpoint.SHARD_KEY, "the shard's descriptor"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_named(tmp_path: Path, key: str, name: str) -> None:
    driver = Driver(shard_config(tmp_path, [TABLE]), tmp_path / "s")
    store = driver.shard.store
    data = store.get_meta(key) or b""
    if key == checkpoint.STATE_KEY:
        driver.shard.checkpoint()
        data = store.get_meta(key) or b""
    store.put_meta({key: data[:-1] + b"?"})
    driver.abandon()
    with pytest.raises(CorruptionError, match=f"{name} fails its checksum"):
        Driver(driver.config, driver.directory)


@pytest.mark.parametrize(
    ("life", "lost"),
    [
        (Life(clean=True, durability="none", boot_id="a"), False),
        (Life(clean=False, durability="none", boot_id="b"), True),
        (Life(clean=False, durability="os", boot_id="b"), False),
        (Life(clean=False, durability="os", boot_id="a"), True),
        (Life(clean=False, durability="fsync", boot_id="a"), False),
    ],
)
def test_when_the_log_may_have_lost_records_that_rows_hold(life: Life, lost: bool) -> None:
    assert life.may_have_lost_log("b") is lost


def test_a_machine_that_went_down_under_os_never_reuses_a_number(tmp_path: Path) -> None:
    """The power took the log's end, but not the rows that had reached the store by then."""
    driver = Driver(shard_config(tmp_path, [TABLE]), tmp_path / "s")
    for _ in range(3):
        driver.push({"t": (IDS, np.ones((5, 4), np.float32))})
    tier = driver.shard._tables["t"].tier
    tier.write_back()
    tier.rows.flush()
    rows = driver.pull("t", IDS)
    checkpoint.write_life(driver.shard.store, replace(driver.shard._opened.life, boot_id="another"))
    driver.crash(tmp_path / "copy")
    driver.abandon()
    path = list_segments(driver.directory / "log")[0]
    path.write_bytes(path.read_bytes()[:-10])
    list_segments(driver.directory / "log")[-1].unlink()
    store = make_store_of(driver)
    checkpoint.write_life(store, replace(checkpoint.read_life(store), boot_id="another"))
    store.close()
    driver = Driver(driver.config, driver.directory)
    assert driver.shard.replayed_records == 2
    np.testing.assert_array_equal(driver.pull("t", IDS), rows)
    driver.sequences[99] = 2
    assert driver.push({"t": (IDS, np.ones((5, 4), np.float32))}).lsn > checkpoint.LSN_RESERVE
    driver.crash(tmp_path / "again")
    np.testing.assert_array_equal(driver.pull("t", IDS), rows - np.float32(1))
    driver.shard.close()


@pytest.mark.parametrize("went_down", [False, True])
def test_a_hole_in_the_log_is_damage_unless_the_machine_went_down_under_os(
    tmp_path: Path, went_down: bool, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Driver(shard_config(tmp_path, [TABLE]), tmp_path / "s")
    rows = driver.pull("t", IDS)
    for _ in range(3):
        driver.push({"t": (IDS, np.ones((5, 4), np.float32))})
    if went_down:
        checkpoint.write_life(driver.shard.store, replace(driver.shard._opened.life, boot_id="another"))
    snapshot(driver.directory, tmp_path / "copy")
    path = list_segments(tmp_path / "copy" / "log")[0]
    driver.abandon()
    data = path.read_bytes().rstrip(b"\0")
    head = SEGMENT_HEADER.size
    third = (len(data) - head) // 3
    path.write_bytes(data[: head + third] + bytes(third) + data[head + 2 * third :])
    if not went_down:
        with pytest.raises(CorruptionError, match="header fails its checksum"):
            Driver(driver.config, tmp_path / "copy")
        return
    driver = Driver(driver.config, tmp_path / "copy")
    assert driver.shard.replayed_records == 1
    assert "goes up to LSN 1 " in caplog.text
    np.testing.assert_array_equal(driver.pull("t", IDS), rows - np.float32(1))
    driver.shard.close()


def make_store_of(driver: Driver) -> Store:
    width = driver.shard._tables["t"].layout.value_bytes
    return Store(
        driver.directory / "store",
        {"row.t": width},
        cache_bytes=1 << 20,
        memtable_bytes=1 << 20,
    )


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"dim": 5}, "table 't': dim is 5; this data directory was made with 4"),
        (
            {"dtype": "fp16"},
            "table 't': dtype is fp16; this data directory was made with fp32; .* export the table",
        ),
        (
            {"optimizer": {"kind": "adagrad"}},
            "optimizer.kind is adagrad; .* made with one that keeps no state",
        ),
        (
            {"eviction": [{"kind": "ttl", "ttl_s": 1}]},
            "eviction has ttl or show_click, which needs times of the",
        ),
        (
            {"eviction": [{"kind": "least_frequent", "max_rows": 9}]},
            "has least_frequent, which needs numbers of",
        ),
    ],
)
def test_a_layout_that_changed_is_refused_and_nothing_is_harmed(
    tmp_path: Path, table: dict[str, Any], match: str
) -> None:
    driver = Driver(shard_config(tmp_path, [TABLE]), tmp_path / "s")
    driver.push({"t": (IDS, np.ones((5, 4), np.float32))})
    rows = driver.pull("t", IDS)
    driver.shard.close()
    with pytest.raises(ConfigError, match=match):
        Driver(shard_config(tmp_path, [{**TABLE, **table}]), driver.directory)
    again = Driver(shard_config(tmp_path, [TABLE, {"name": "more", "dim": 1}]), driver.directory)
    np.testing.assert_array_equal(again.pull("t", IDS), rows)
    again.shard.close()


def test_state_is_never_read_as_another_optimizers(tmp_path: Path) -> None:
    def table(kind: str) -> dict[str, Any]:
        return {**TABLE, "optimizer": {"kind": kind}}

    driver = Driver(shard_config(tmp_path, [table("adam")]), tmp_path / "s")
    driver.push({"t": (IDS, np.ones((5, 4), np.float32))})
    driver.shard.close()
    Driver(shard_config(tmp_path, [table("adamw")]), driver.directory).shard.close()
    adagrad = Driver(shard_config(tmp_path, [table("adagrad")]), tmp_path / "a")
    adagrad.shard.close()
    with pytest.raises(ConfigError, match=r"table 't': optimizer.kind is momentum; .* made with adagrad"):
        Driver(shard_config(tmp_path, [table("momentum")]), adagrad.directory)
    assert verify_directory(adagrad.directory).damage == []


def test_a_table_that_left_the_config_is_left_out_of_a_replay_and_comes_back(tmp_path: Path) -> None:
    both = shard_config(tmp_path, [TABLE, {**TABLE, "name": "u"}])
    driver = Driver(both, tmp_path / "s")
    parts = {name: (IDS, np.ones((5, 4), np.float32)) for name in "tu"}
    driver.push(parts)
    driver.shard.checkpoint()
    rows = driver.pull("u", IDS)
    driver.config = shard_config(tmp_path, [TABLE])
    driver.push({"t": parts["t"]})
    driver.crash(tmp_path / "copy")
    assert driver.shard.replayed_records == 1
    driver.config = both
    driver.reopen()
    np.testing.assert_array_equal(driver.pull("u", IDS), rows)
    assert driver.stats("u").rows == 5


def test_a_checkpoint_drops_the_log_and_a_big_log_starts_one(tmp_path: Path) -> None:
    driver = Driver(shard_config(tmp_path, [TABLE], checkpoint_log_bytes="1MiB"), tmp_path / "s")
    driver.push({"t": (IDS, np.ones((5, 4), np.float32))})
    assert driver.shard.checkpoint() == (1, 5) and driver.shard.checkpoint() == (1, 0)
    log = driver.shard._log
    assert log is not None and log.records == 0 and len(list_segments(driver.directory / "log")) == 1
    big = np.arange(20_000, dtype=np.uint64)
    for _ in range(4):
        driver.push({"t": (big, np.ones((20_000, 4), np.float32))})
    deadline_s = time.monotonic() + 60
    while driver.shard._opened.state.lsn < 3:
        assert time.monotonic() < deadline_s, "1 MiB of log did not start a checkpoint"
        time.sleep(0.01)
    driver.reopen()
    assert driver.shard.replayed_records == 0
    assert driver.shard._opened.state.lsn == 5
