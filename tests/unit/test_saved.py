# SPDX-License-Identifier: Apache-2.0
"""saved.py: copies of one LSN, their way back bit for bit, interruptions, refusals."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse.error import CorruptionError, InvalidRequestError, PreconditionError, StoreError
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.disk.verify import verify_directory
from ps_server.life.saved import RESTORING, check_no_restore, restore_tables
from tests.driver import CLIENT, Driver, assert_equal_dumps, dump, shard_config, snapshot

IDS = np.arange(500, dtype=np.uint64) * np.uint64(7919)
TABLES: list[dict[str, Any]] = [
    {"name": "user", "dim": 4, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}},
    {"name": "item", "dim": 2, "dtype": "fp16"},
]


@pytest.fixture
def driver(tmp_path: Path) -> Any:
    one = Driver(shard_config(tmp_path, TABLES), tmp_path / "shard-0000")
    yield one
    one.abandon()


def push(driver: Driver, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.choice(IDS, 100, replace=False)
    driver.push({
        "user": (chosen, rng.normal(size=(100, 4)).astype(np.float32)),
        "item": (chosen[:30], rng.normal(size=(30, 2)).astype(np.float32)),
    })  # fmt: skip


def save(driver: Driver, name: str = "a", token: int = 5) -> pb.SavedTables:
    return driver.shard.saved.save(pb.SaveTablesRequest(name=name, token=token))


def now(driver: Driver, token: int = 0) -> pb.SavedTables:
    return driver.shard.saved.get(pb.GetSavedTablesRequest(token=token))


def rows(driver: Driver) -> Any:
    return [driver.pull(name, IDS).copy() for name in ("user", "item")]


def restore(driver: Driver, name: str = "a") -> list[int]:
    """Stop, restore, start."""
    driver.shard.close()
    lsns = restore_tables([driver.directory], name)
    assert verify_directory(driver.directory).damage == [], "also before the first start"
    driver.shard = driver._open()
    return lsns


def test_tables_come_back_bit_for_bit_and_go_on_from_there(driver: Driver) -> None:
    """Invariants 1 and 2."""
    for seed in range(5):
        push(driver, seed)
    saved = save(driver)
    assert (saved.name, saved.token, saved.lsn, saved.applied_lsn) == ("a", 5, 5, 5)
    expected, numbers = rows(driver), dict(driver.sequences)
    for seed in range(5, 9):
        push(driver, seed)
    after = rows(driver)
    assert now(driver).lsn == 5 and now(driver).applied_lsn == 9
    assert restore(driver) == [5]
    assert (now(driver).token, now(driver).lsn, now(driver).applied_lsn) == (5, 5, 5)
    for one, other in zip(rows(driver), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    driver.sequences = numbers  # the clients' numbers are those of then
    for seed in range(5, 9):
        push(driver, seed)
    for one, other in zip(rows(driver), after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert restore(driver) == [5], "the copy is still there"


def test_a_copy_shares_its_files_and_the_tables_do_not_miss_them(driver: Driver) -> None:
    push(driver, 1)
    save(driver)
    tables = list((driver.directory / "saved" / "a" / "store").glob("*.sst"))
    shared = [path.stat().st_nlink == 2 for path in tables]
    assert sum(shared) >= 2 and shared.count(False) <= 1, "only the record of its own end is new"
    push(driver, 2)
    before = rows(driver)
    dropped = driver.shard.saved.drop(pb.DropSavedTablesRequest(name="a", token=5))
    assert dropped.dropped and not (driver.directory / "saved" / "a").exists()
    driver.reopen()
    for one, other in zip(rows(driver), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_mark_outlives_restarts_and_kills(driver: Driver, tmp_path: Path) -> None:
    push(driver, 1)
    save(driver)
    driver.reopen()
    assert now(driver).applied_lsn == now(driver).lsn == 1
    push(driver, 2)
    driver.crash(tmp_path / "copy")
    assert (now(driver).lsn, now(driver).applied_lsn) == (1, 2)


def test_a_later_save_keeps_the_earlier_marks_and_a_restore_forgets_those_after(driver: Driver) -> None:
    push(driver, 1)
    save(driver, "a", 5)
    save(driver, "b", 6)
    assert [(now(driver, t).name, now(driver, t).lsn) for t in (5, 6, 0)] == [("a", 1), ("b", 1), ("b", 1)]
    push(driver, 2)
    save(driver, "c", 7)
    restore(driver)
    driver.sequences[CLIENT] = 1
    push(driver, 3)  # LSN 2 again, and other rows than those of c
    assert now(driver, 7).name == "a", "c is of another history"
    for number in range(20):
        save(driver, f"n{number}", 100 + number)
    assert now(driver, 5).name == "n19" and now(driver, 104).name == "n4"


def test_pushes_that_come_meanwhile_refuse_the_save(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    link, seeds = driver.shard.store.link_to, iter(range(100))

    def link_and_push(folder: Path) -> None:
        link(folder)
        push(driver, next(seeds))

    monkeypatch.setattr(driver.shard.store, "link_to", link_and_push)
    with pytest.raises(PreconditionError, match=r"pushes came while its tables were saved \(LSN 2, now 3\)"):
        save(driver)
    assert not list((driver.directory / "saved").iterdir()) and now(driver).name == ""
    monkeypatch.undo()
    assert save(driver).lsn == 3


def test_a_push_in_between_costs_a_second_copy_only(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    link, calls = driver.shard.store.link_to, []

    def link_and_push_once(folder: Path) -> None:
        link(folder)
        calls.append(folder)
        if len(calls) == 1:
            push(driver, 1)

    monkeypatch.setattr(driver.shard.store, "link_to", link_and_push_once)
    assert save(driver).lsn == 1 and len(calls) == 2


def test_a_repeated_save_is_answered_and_a_taken_name_refused(driver: Driver) -> None:
    push(driver, 1)
    assert save(driver) == save(driver)
    with pytest.raises(PreconditionError, match="shard 0: 'a' is saved already"):
        save(driver, token=6)
    push(driver, 2)
    with pytest.raises(PreconditionError, match="saved already"):
        save(driver)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".a", "a b", "ä", "a" * 65])
def test_wrong_names_are_refused(driver: Driver, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="name of saved tables is"):
        save(driver, name)
    with pytest.raises(InvalidRequestError, match="name of saved tables is"):
        driver.shard.saved.drop(pb.DropSavedTablesRequest(name=name))
    with pytest.raises(InvalidRequestError, match="name of saved tables is"):
        restore_tables([driver.directory], name)


def test_dropping_needs_the_name_and_the_token(driver: Driver) -> None:
    save(driver)
    for request in (pb.DropSavedTablesRequest(name="b"), pb.DropSavedTablesRequest(name="a", token=6)):
        assert not driver.shard.saved.drop(request).dropped
    assert (driver.directory / "saved" / "a").exists()
    assert driver.shard.saved.drop(pb.DropSavedTablesRequest(name="a")).dropped


def test_what_cannot_be_restored_is_named_and_changes_nothing(driver: Driver, tmp_path: Path) -> None:
    push(driver, 1)
    save(driver)
    with pytest.raises(StoreError, match=r"runs there"):
        restore_tables([driver.directory], "a")
    driver.shard.close()
    before = dump(driver.config, driver.directory)
    with pytest.raises(StoreError, match=r"no tables are saved as 'b'; there are \['a'\]"):
        restore_tables([driver.directory], "b")
    other = Driver(shard_config(tmp_path / "other", TABLES), tmp_path / "other" / "shard-0000")
    save(other, token=6)
    other.shard.close()
    with pytest.raises(StoreError, match="the copies of the shards come from different saves"):
        restore_tables([driver.directory, other.directory], "a")
    mark = driver.directory / "saved" / "a" / "mark.json"
    text = mark.read_text()
    for damaged, failure in ((text.replace('"lsn": 1', '"lsn": 2'), "fails its checksum"), ("", "fails its")):
        mark.write_text(damaged)
        with pytest.raises(CorruptionError, match=f"mark.json: {failure}"):
            restore_tables([driver.directory], "a")
    mark.unlink()
    with pytest.raises(StoreError, match=r"mark\.json: .*No such file"):
        restore_tables([driver.directory], "a")
    assert_equal_dumps(before, dump(driver.config, driver.directory))
    driver.shard = driver._open()


def test_a_restore_that_is_interrupted_anywhere_is_run_again(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 3: a kill after each change of the file system."""
    push(driver, 1)
    save(driver)
    expected = rows(driver)
    push(driver, 2)
    driver.shard.close()
    changed = dump(driver.config, driver.directory)
    for stop in range(1, 100):
        copy = tmp_path / f"copy{stop}"
        snapshot(driver.directory, copy)
        calls = 0

        def counted(real: Any, stop: int = stop) -> Any:
            def call(*arguments: Any, **keys: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == stop:
                    raise KeyboardInterrupt
                return real(*arguments, **keys)

            return call

        with monkeypatch.context() as patch:
            for owner, name in ((os, "rename"), (os, "replace"), (os, "link"), (shutil, "rmtree")):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            try:
                restore_tables([copy], "a")
            except KeyboardInterrupt:
                interrupted = True
            else:
                interrupted = False
        if not interrupted:
            break
        if (copy / RESTORING).exists():
            with pytest.raises(StoreError, match="the restore of 'a' was interrupted; run ps-server restore"):
                check_no_restore(copy)
            assert restore_tables([copy], "a") == [1]
            check_no_restore(copy)
        else:
            assert_equal_dumps(changed, dump(driver.config, copy))
    else:
        raise AssertionError("the restore never ended")
    assert stop > 6
    driver.directory = copy
    driver.shard = driver._open()
    for one, other in zip(rows(driver), expected, strict=True):
        np.testing.assert_array_equal(one, other)
