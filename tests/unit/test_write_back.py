# SPDX-License-Identifier: Apache-2.0
"""Rows written to the store while others push, pull and evict: writes that fail, rows too wide to copy."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rowhouse.error import PoisonedError, RowhouseError, StoreError
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.disk.row import get_lsn
from ps_server.kernel import index
from ps_server.table.tier import COPY_BYTES, Tier
from tests.driver import Driver, shard_config

WAIT_S = 300
IDS = np.arange(1, 11, dtype=np.uint64)
Put = Callable[[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.bool_]], None]


def make_driver(path: Path, dim: int, memory_budget: str) -> Driver:
    table: dict[str, Any] = {"name": "t", "dim": dim, "optimizer": {"kind": "sgd", "learning_rate": 1.0}}
    return Driver(shard_config(path, [table], memory_budget=memory_budget), path / "s")


def tier_of(driver: Driver) -> Tier:
    return driver.shard._tables["t"].tier


def push(driver: Driver, ids: NDArray[np.uint64]) -> None:
    dim = driver.config.tables[0].dim
    driver.push({"t": (ids, np.ones((ids.shape[0], dim), np.float32))})


class Step:
    """A thread, and what it raised."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._action = action
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._action()
        except BaseException as error:
            self.error = error

    def waits(self) -> bool:
        """Whether it is still at it after a moment."""
        self._thread.join(0.3)
        return self._thread.is_alive()

    def end(self) -> BaseException | None:
        """What it raised, when it has ended; it must."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self.error

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in it."""
        return threading.current_thread() is self._thread


def test_a_write_outside_the_lock_that_fails_while_another_thread_evicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that were not written count as written; nobody may be told what the store has of them, and
    the next start has every push that was acknowledged, once."""
    driver = make_driver(tmp_path / "real", 64, "1MiB")
    push(driver, IDS)
    driver.shard.checkpoint()
    push(driver, IDS)  # the store's rows are old now
    tier, begun, go_on = tier_of(driver), threading.Event(), threading.Event()
    put: Put = tier.rows.put
    pushed: list[NDArray[np.uint64]] = [IDS, IDS]
    steps: dict[str, Step] = {}

    def failing(keys: NDArray[np.uint64], values: NDArray[np.uint8], new: NDArray[np.bool_]) -> None:
        if steps["checkpoint"].is_current:
            assert not tier.lock.locked()
            begun.set()
            assert go_on.wait(WAIT_S)
            raise StoreError("writing row.t: the disk is full")
        put(keys, values, new)

    def evicting() -> None:
        for number in range(1, 40):
            pushed.append(np.arange(number * 10_000, number * 10_000 + 500, dtype=np.uint64))
            push(driver, pushed[-1])

    started = threading.Event()
    monkeypatch.setattr(tier.rows, "put", failing)
    steps["checkpoint"] = Step(lambda: started.wait(WAIT_S) and driver.shard.checkpoint())
    started.set()
    assert begun.wait(WAIT_S)
    steps["evicting"] = Step(evicting)
    assert steps["evicting"].waits(), "rows left memory while the store did not have them"
    applied = driver.shard._applied_lsn
    go_on.set()
    assert isinstance(steps["checkpoint"].end(), StoreError)
    assert isinstance(steps["evicting"].end(), PoisonedError)
    for refused in (lambda: driver.pull("t", IDS), lambda: push(driver, IDS), driver.shard.checkpoint):
        with pytest.raises(PoisonedError, match=r"StoreError: writing row\.t: the disk is full"):
            refused()
    assert "the disk is full" in driver.shard.get_stats(pb.GetStatsRequest()).poison
    monkeypatch.undo()
    driver.crash(tmp_path / "copy")
    found = driver.shard._applied_lsn
    assert applied <= found <= len(pushed)
    expected = make_driver(tmp_path / "expected", 64, "16MiB")
    for ids in pushed[:found]:
        push(expected, ids)
    for ids in pushed[:found]:
        np.testing.assert_array_equal(driver.pull("t", ids), expected.pull("t", ids))


@pytest.mark.parametrize("wide", [False, True])
def test_after_a_failed_write_no_row_leaves_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide: bool
) -> None:
    """Even before the shard knows of it: the rows count as clean, and the store has older ones."""
    driver = make_driver(tmp_path, 1024 if wide else 64, "32MiB" if wide else "1MiB")
    ids = np.arange(COPY_BYTES // 4096 + 100, dtype=np.uint64) if wide else IDS
    push(driver, ids)
    tier = tier_of(driver)

    def fail(keys: NDArray[np.uint64], values: NDArray[np.uint8], new: NDArray[np.bool_]) -> None:
        raise StoreError("writing row.t: the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(tier.rows, "put", fail)
        sector = int(np.argmax(tier.arena._counts))
        with pytest.raises(StoreError):
            tier.write_back_from(sector)
    with pytest.raises(PoisonedError, match="a push or a write failed half way"), tier.lock:
        tier.make_room(tier.arena.rows_max)
    with pytest.raises(PoisonedError, match="a push or a write failed half way"):
        tier.remove(ids, 9)
    with pytest.raises(PoisonedError, match="a push or a write failed half way"):
        tier.replace_stored(lambda: None, 0, 9)
    assert len(tier.arena) == ids.shape[0]
    np.testing.assert_array_equal(driver.pull("t", ids[:3]), driver.pull("t", ids[:3]))


@pytest.mark.parametrize("fails", [False, True])
def test_rows_too_wide_to_copy_are_written_whole_beside_pushes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """They are written from under the lock: a push waits, so no part of a row is of another push."""
    driver = make_driver(tmp_path, 1024, "32MiB")
    ids = np.arange(COPY_BYTES // 4096 * 2, dtype=np.uint64)
    for half in np.array_split(ids, 2):
        push(driver, half)
    before = driver.pull("t", ids)
    tier, begun, go_on = tier_of(driver), threading.Event(), threading.Event()
    put: Put = tier.rows.put
    puts: list[int] = []

    def slow(keys: NDArray[np.uint64], values: NDArray[np.uint8], new: NDArray[np.bool_]) -> None:
        assert tier.lock.locked() and values.nbytes <= COPY_BYTES
        puts.append(keys.shape[0])
        if len(puts) == 2:  # a part is in the store, others are not
            begun.set()
            assert go_on.wait(WAIT_S)
            if fails:
                raise StoreError("writing row.t: the disk is full")
        put(keys, values, new)

    monkeypatch.setattr(tier.rows, "put", slow)
    checkpoint = Step(driver.shard.checkpoint)
    assert begun.wait(WAIT_S)
    pushing = Step(lambda: push(driver, ids[:100]))
    pulling = Step(lambda: driver.pull("t", ids))
    assert pushing.waits() and pulling.waits()
    go_on.set()
    assert isinstance(checkpoint.end(), StoreError if fails else type(None))
    ends = [pushing.end(), pulling.end()]
    assert all(end is None or (fails and isinstance(end, RowhouseError)) for end in ends), ends
    monkeypatch.undo()
    expected = before.copy()
    expected[:100] -= np.float32(1)
    if not fails:
        present, values = tier.fetch(ids)
        assert present.all() and len(puts) > 2 and sum(puts) == ids.shape[0]
        stored = np.ascontiguousarray(values[:, :4096]).view(np.float32)
        assert (get_lsn(values) == 2).all()
        np.testing.assert_array_equal(stored, before)
        assert tier.write_back() == 100, "dirty again"
        np.testing.assert_array_equal(driver.pull("t", ids), expected)
    driver.crash(tmp_path / "copy")
    rows = driver.pull("t", ids, read_only=True)
    np.testing.assert_array_equal(rows, expected if driver.shard._applied_lsn == 3 else before)
    assert driver.shard._applied_lsn == 3 or fails


def test_few_rows_in_many_sectors_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large budget gives each of a thousand small tables as many sectors as it could have rows for."""
    driver = make_driver(tmp_path, 8, "1GiB")
    tier = tier_of(driver)
    push(driver, np.arange(200, dtype=np.uint64))
    assert tier.arena.sectors > 500
    puts: list[int] = []
    put = tier.rows.put

    def counted(keys: NDArray[np.uint64], values: NDArray[np.uint8], new: NDArray[np.bool_]) -> None:
        puts.append(keys.shape[0])
        put(keys, values, new)

    monkeypatch.setattr(tier.rows, "put", counted)
    assert tier.write_back() == 200 == sum(puts)
    assert len(puts) <= 1 + tier.arena.sectors * 32 // index.TAKE_ENTRIES
