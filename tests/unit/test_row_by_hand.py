# SPDX-License-Identifier: Apache-2.0
"""Rows by hand: read, listed, assigned and deleted, against a dictionary; logged, replayed, applied once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rowhouse import dtype, message
from rowhouse.error import (
    InvalidRequestError,
    LimitExceededError,
    StalePartitionMapError,
    TableFrozenError,
    UnknownTableError,
)
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client import Client, Rows, connect
from ps_server.shard.listing import page_rows
from tests.driver import Driver, shard_config

SHOWN = {"kind": "show_click", "min_score": 0.0}
TABLES = [
    {"name": "plain", "dim": 3, "optimizer": {"kind": "sgd", "learning_rate": 1.0}, "seed": 4},
    {"name": "adam", "dim": 5, "dtype": "fp16", "optimizer": {"kind": "adam"}, "eviction": [SHOWN]},
    {"name": "strict", "dim": 2, "admission": {"kind": "min_count", "min_count": 3, "width_bits": 10}},
]
IDS = np.array([7, 0, 2**64 - 1, 2**63, 12], np.uint64)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return connect(f"embedded:{tmp_path / 'model'}", config={"tables": TABLES, "memory_budget": "16MiB"})


def weights(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def same(found: Rows, ids: np.ndarray, values: np.ndarray) -> None:
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.weights, values)


def test_what_was_assigned_is_read_and_pulled(client: Client) -> None:
    values = weights(5, 3)
    assert len(client.read_rows("plain", IDS)) == 0
    client.assign("plain", IDS, values)
    asked = np.array([12, 99, 7, 2**63], np.uint64)
    same(client.read_rows("plain", asked), asked[[0, 2, 3]], values[[4, 0, 3]])
    np.testing.assert_array_equal(client.pull("plain", IDS), values)
    assert client.read_rows("plain", IDS).state.shape == (5, 0)
    client.checkpoint()
    same(client.read_rows("plain", IDS), IDS, values)
    listed = list(client.list_rows("plain"))
    order = np.concatenate([page.ids for page in listed])
    assert sorted(order.tolist()) == sorted(IDS.tolist())


def test_a_push_goes_on_from_what_was_assigned(client: Client) -> None:
    client.assign("plain", IDS, np.ones((5, 3)))
    client.push("plain", IDS[:2], np.full((2, 3), 0.25, np.float32))
    np.testing.assert_array_equal(client.read_rows("plain", IDS).weights[:3, 0], [0.75, 0.75, 1.0])


def test_state_and_metadata_travel(client: Client) -> None:
    client.push("adam", IDS, weights(5, 5), shows=np.full(5, 4.0), clicks=np.full(5, 2.0))
    before = client.read_rows("adam", IDS)
    assert before.state.shape == (5, 11) and before.push_count is None and before.push_time is not None
    np.testing.assert_array_equal(before.shows, np.full(5, 4.0))
    np.testing.assert_array_equal(before.weights, client.pull("adam", IDS))
    client.assign("adam", IDS[:2], before.weights[2:4], state=before.state[2:4], shows=[9.0, 8.0])
    after = client.read_rows("adam", IDS)
    np.testing.assert_array_equal(after.weights[:2], before.weights[2:4])
    np.testing.assert_array_equal(after.state[:2], before.state[2:4])
    np.testing.assert_array_equal(after.shows, [9.0, 8.0, 4.0, 4.0, 4.0])
    np.testing.assert_array_equal(after.clicks, np.full(5, 2.0))
    np.testing.assert_array_equal(after.state[2:], before.state[2:])
    # equal rows step equally, from weights and state alike, but for the stochastic rounding
    client.push("adam", IDS[:4], np.ones((4, 5), np.float32))
    stepped = client.read_rows("adam", IDS)
    np.testing.assert_allclose(stepped.weights[:2], stepped.weights[2:4], rtol=1e-3)
    np.testing.assert_array_equal(stepped.state[:2], stepped.state[2:4])


def test_a_new_row_begins_with_the_initial_state(client: Client) -> None:
    client.assign("adam", [1], weights(1, 5))
    client.push("adam", [2], np.zeros((1, 5), np.float32))
    rows = client.read_rows("adam", [1, 2])
    np.testing.assert_array_equal(rows.state[0], np.zeros(11))
    np.testing.assert_array_equal(rows.shows, [0.0, 1.0])


def test_assigned_rows_need_no_admission(client: Client) -> None:
    client.assign("strict", IDS, weights(5, 2))
    same(client.read_rows("strict", IDS), IDS, weights(5, 2))


def test_deleted_rows_are_gone_and_come_anew(client: Client) -> None:
    first = client.pull("plain", IDS)
    client.assign("plain", IDS, weights(5, 3))
    client.checkpoint()  # in the store
    client.delete("plain", [7, 7, 12, 404])
    same(client.read_rows("plain", IDS), IDS[1:4], weights(5, 3)[1:4])
    np.testing.assert_array_equal(client.pull("plain", IDS)[[0, 4]], first[[0, 4]])
    assert client.stats()[0].tables[0].rows == 3
    client.push("plain", [7], np.zeros((1, 3), np.float32))
    np.testing.assert_array_equal(client.read_rows("plain", [7]).weights, first[:1])


def test_more_rows_than_a_page_and_than_a_part(client: Client) -> None:
    ids = np.random.default_rng(1).permutation(np.arange(40_000, dtype=np.uint64))
    client.assign("plain", ids, weights(40_000, 3))
    same(client.read_rows("plain", ids[::-1]), ids[::-1], weights(40_000, 3)[::-1])
    assert sum(len(page) for page in client.list_rows("plain")) == 40_000
    client.delete("plain", ids[:30_000])
    same(client.read_rows("plain", ids), ids[30_000:], weights(40_000, 3)[30_000:])


@pytest.mark.parametrize(
    ("arguments", "named", "complaint"),
    [
        (("plain", [1, 1], np.zeros((2, 3))), {}, "id 1 is there twice"),
        (("plain", [1], np.zeros((1, 4))), {}, "weights: float64 of shape"),
        (("plain", [1], [[np.nan] * 3]), {}, r"weights\[0, 0\] is nan"),
        (("plain", [-1], np.zeros((1, 3))), {}, "ids"),
        (("plain", [1], np.zeros((1, 3))), {"state": np.zeros((1, 2))}, "state has 2 numbers"),
        (("plain", [1], np.zeros((1, 3))), {"shows": [1.0]}, "keeps no shows"),
        (("adam", [1], np.full((1, 5), 1e6)), {}, "weights"),
        (("adam", [1], np.zeros((1, 5))), {"clicks": [-1.0]}, "not negative"),
        (("adam", [1], np.zeros((1, 5))), {"state": [[np.inf] * 11]}, "state"),
    ],
)
def test_bad_rows_change_nothing(
    client: Client, arguments: tuple[object, ...], named: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        client.assign(*arguments, **named)  # type: ignore[arg-type]
    assert client.stats()[0].applied_lsn == 0


def test_unknown_tables_and_frozen_ones_refuse(client: Client) -> None:
    with pytest.raises(UnknownTableError):
        client.delete("plan", [1])
    for mode in ("refuse", "ignore"):
        client.freeze("plain", mode)
        with pytest.raises(TableFrozenError, match="rows by hand are refused"):
            client.delete("plain", [1])
        with pytest.raises(TableFrozenError):
            client.assign("plain", [1], np.zeros((1, 3)))
    client.freeze("plain", "off")
    client.delete("plain", [1])


# ------------------------------------------------------------ the shard
@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(shard_config(tmp_path, TABLES, memory_budget="1MiB"), tmp_path / "s")


def assigned(values: np.ndarray, ids: np.ndarray = IDS) -> message.TableEdit:
    return message.TableEdit("plain", dtype.FLOAT32, ids, values)


def read(driver: Driver, ids: np.ndarray, *, version: int | None = None) -> pb.Rows:
    stamp = driver.shard.partition_map.stamp if version is None else version
    request = pb.ReadRowsRequest(map_version=stamp, table="plain", ids=ids.tobytes())
    return driver.shard.read_rows(request).rows


def test_a_repeat_is_answered_and_not_applied(driver: Driver) -> None:
    first = driver.edit_request([assigned(np.ones((5, 3), np.float32))])
    driver.send(first)
    driver.push({"plain": (IDS, np.ones((5, 3), np.float32))})
    assert driver.send(first).duplicate
    np.testing.assert_array_equal(driver.pull("plain", IDS), np.zeros((5, 3)))
    removal = driver.edit_request([message.TableEdit("plain", 0, IDS)])
    driver.send(removal)
    driver.edit(assigned(np.ones((5, 3), np.float32)))
    assert driver.send(removal).duplicate
    assert len(read(driver, IDS).ids) == 8 * 5


def test_a_replay_gives_the_same_rows(driver: Driver, tmp_path: Path) -> None:
    """From a checkpoint that holds none, some or all of it: rows keep what came last."""
    driver.push({"plain": (IDS, np.ones((5, 3), np.float32))})
    driver.edit(assigned(weights(5, 3)))
    driver.edit(message.TableEdit("plain", 0, IDS[:3]))
    driver.push({"plain": (IDS[1:], np.ones((4, 3), np.float32))})
    driver.edit(assigned(weights(2, 3, 9), IDS[3:]))
    expected = read(driver, IDS)
    assert expected.ids == IDS[1:].tobytes()
    driver.shard._tables["plain"].tier.write_back()  # the store is ahead of the checkpoint
    driver.crash(tmp_path / "copy")
    assert driver.shard.replayed_records == 5
    again = read(driver, IDS)
    assert (again.ids, again.weights) == (expected.ids, expected.weights)
    assert driver.stats("plain").rows == 4


def test_rows_that_left_memory_are_read_assigned_and_deleted(driver: Driver) -> None:
    many = np.arange(20_000, dtype=np.uint64)  # more than fit
    for part in np.array_split(many, 20):
        driver.push({"plain": (part, np.zeros((part.shape[0], 3), np.float32))})
    assert driver.stats("plain").hot_rows < 20_000
    cold = many[:50]
    before = driver.pull("plain", cold, read_only=True)
    hot = driver.stats("plain").hot_rows
    rows = read(driver, cold)
    assert driver.stats("plain").hot_rows == hot
    np.testing.assert_array_equal(np.frombuffer(rows.weights, "<f4").reshape(-1, 3), before)
    driver.edit(assigned(weights(50, 3), cold))
    np.testing.assert_array_equal(driver.pull("plain", cold), weights(50, 3))
    driver.edit(message.TableEdit("plain", 0, many[:10_000]))
    assert driver.stats("plain").rows == 10_000
    assert not read(driver, cold).ids


def test_requests_that_do_not_fit_are_refused(driver: Driver) -> None:
    with pytest.raises(InvalidRequestError, match="each id has 8"):
        driver.shard.read_rows(
            pb.ReadRowsRequest(map_version=driver.shard.partition_map.stamp, table="plain", ids=b"123")
        )
    with pytest.raises(StalePartitionMapError):
        read(driver, IDS, version=1)
    many = page_rows(driver.shard._tables["plain"].layout) + 1
    with pytest.raises(LimitExceededError, match=f"at most {many - 1}"):
        read(driver, np.arange(many, dtype=np.uint64))
    request = driver.edit_request([message.TableEdit("plain", 0, np.array([3, 3], np.uint64))])
    with pytest.raises(InvalidRequestError, match="id 3 is there twice"):
        driver.send(request)
    twice = replace(request, edits=(message.TableEdit("plain", 0, IDS),) * 2)
    with pytest.raises(InvalidRequestError, match="in the push twice"):
        driver.send(twice)
    bad = assigned(np.full((5, 3), np.inf, np.float32))
    with pytest.raises(InvalidRequestError, match=r"weights of id 7 .* is inf"):
        driver.edit(bad)
    assert driver.shard.settled_lsn() == 0


def test_a_removal_waits_for_its_record_on_the_disk(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an eviction: the store must not have a deletion that the log may lose."""
    driver.edit(assigned(weights(5, 3)))
    tier, log = driver.shard._tables["plain"].tier, driver.shard._log
    assert log is not None
    remove, seen = tier.remove, []

    def noting(ids: np.ndarray, lsn: int) -> int:
        seen.append((log.synced_lsn, lsn))
        return remove(ids, lsn)

    monkeypatch.setattr(tier, "remove", noting)
    driver.edit(message.TableEdit("plain", 0, IDS))
    assert seen == [(2, 2)]
