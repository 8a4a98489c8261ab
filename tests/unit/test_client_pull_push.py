# SPDX-License-Identifier: Apache-2.0
"""Client.pull and push over one and several shards against a dict of rows (client.py, exchange.py)."""

import copy
import pickle
import threading

import numpy as np
import pytest
from rowhouse import dtype, limit, message
from rowhouse.error import (
    InternalError,
    LimitExceededError,
    PreconditionError,
    TableFrozenError,
)
from rowhouse.placement import PartitionMap
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client import Client
from ps_client.split import TABLE_HEAD_BYTES_MAX, split_push

from .fake_shard import FakeShard, Row, first_row, local_client, make_shards

RATE = np.float32(0.5)


def rows_of(shards: list[FakeShard], table: str, ids: list[int]) -> list[Row]:
    """What the shards hold, each id asked of its owner."""
    owners = shards[0].map.shards_of(np.array(ids, np.uint64))
    return [shards[owner].row(table, row_id) for owner, row_id in zip(owners, ids, strict=True)]


def zipf_ids(seed: int, count: int) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    return np.random.default_rng(seed).zipf(1.3, count).astype(np.uint64) % np.uint64(500)


@pytest.mark.parametrize("shard_count", [1, 2, 3, 7])
def test_twenty_steps_equal_a_dict_of_rows(shard_count: int) -> None:
    shards = make_shards(shard_count)
    expected: dict[int, Row] = {}
    rng = np.random.default_rng(1)
    with local_client(shards) as client:
        for step in range(20):
            ids = zipf_ids(step, 300)
            rows = client.pull("user", ids)
            want = np.array([expected.get(i, first_row(i, 4)) for i in ids.tolist()])
            np.testing.assert_array_equal(rows, want)
            gradients = rng.normal(size=rows.shape).astype(np.float32)
            client.push("user", ids, gradients)
            sums: dict[int, Row] = {}
            for row_id, gradient in zip(ids.tolist(), gradients, strict=True):
                sums[row_id] = sums[row_id] + gradient if row_id in sums else gradient
            for row_id, total in sums.items():
                expected[row_id] = expected.get(row_id, first_row(row_id, 4)) - RATE * total
    held = {row_id: row for shard in shards for (_, row_id), row in shard.rows.items()}
    assert held.keys() == expected.keys()
    for row_id, row in expected.items():
        np.testing.assert_array_equal(held[row_id], row)


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
@pytest.mark.parametrize("shard_count", [1, 3])
@pytest.mark.parametrize("ids", [[0, 3, 4, 7, 2**64 - 1], [7, 3, 0, 4]])
def test_ids_that_are_distinct_come_back_in_memory_of_the_caller(
    ids: list[int], shard_count: int, wire: str
) -> None:
    shards = make_shards(shard_count)
    asked = np.array(ids, np.uint64)
    with local_client(shards, wire_dtype=wire) as client:
        rows, out = client.pull("user", asked), np.empty((len(ids), 4), np.float32)
        assert client.pull("user", asked, out) is out
        np.testing.assert_array_equal(rows, out)
        assert rows.flags.writeable and rows.flags.aligned and rows.flags.c_contiguous
        rows[:] = np.nan
        np.testing.assert_array_equal(client.pull("user", asked), out)
        unique = client.pull_unique({"user": asked})["user"]
        asked[:] = 1  # the caller's array again, whatever was made of it
        assert unique.ids.tolist() == ids and unique.inverse.tolist() == list(range(len(ids)))
        np.testing.assert_array_equal(unique.own_rows(), out)


@pytest.mark.parametrize("shard_count", [1, 3])
def test_pull_writes_into_out_and_a_pull_of_nothing_sends_nothing(shard_count: int) -> None:
    shards = make_shards(shard_count)
    with local_client(shards) as client:
        out = np.full((4, 4), np.nan, np.float32)
        assert client.pull("user", [3, 2**64 - 1, 3, 0], out) is out
        np.testing.assert_array_equal(out, rows_of(shards, "user", [3, 2**64 - 1, 3, 0]))
        before = sum(len(shard.pulls) for shard in shards)
        assert client.pull("user", []).shape == (0, 4)
        client.push("user", [], np.empty((0, 4), np.float32))
        assert client.pull_many({}) == {}
        client.push_many({})
    assert sum(len(shard.pulls) for shard in shards) == before
    assert not any(shard.pushes for shard in shards)


def test_one_call_per_shard_carries_every_table() -> None:
    shards = make_shards(3)
    ids = np.arange(100, dtype=np.uint64)
    with local_client(shards) as client:
        rows = client.pull_many({"user": ids, "item": ids[::-1]}, read_only=True)
        np.testing.assert_array_equal(rows["item"], rows_of(shards, "item", ids[::-1].tolist()))
        ones = {"user": (ids, np.ones((100, 4))), "item": (ids, np.ones((100, 3)))}
        client.push_many(ones, learning_rate=0.25)
        np.testing.assert_array_equal(client.pull("user", ids), rows["user"] - np.float32(0.25))
    for shard in shards:
        assert [len(request.tables) for request in shard.pulls] == [2, 1]
        assert [request.read_only for request in shard.pulls] == [True, False]
        assert [len(request.tables) for request in shard.pushes] == [2]
        assert [request.sequence for request in shard.pushes] == [1]


def test_a_push_of_more_rows_than_a_shard_can_hold_is_sent_to_none() -> None:
    shards = make_shards(2)
    for shard in shards:
        shard.push_rows_max = 60
    with local_client(shards) as client:
        client.push("user", np.arange(80), np.ones((80, 4)))  # about 40 for each
        text = r"table 'user': a push of \d+ distinct ids to shard [01]; its share of .* holds 60 rows"
        with pytest.raises(LimitExceededError, match=text):
            client.push_many({"item": ([1], np.ones((1, 3))), "user": (np.arange(140), np.ones((140, 4)))})
    assert [len(shard.pushes) for shard in shards] == [1, 1]


@pytest.mark.parametrize(
    "bounds", [(60, 1000, 2000), (1000, 60, 2000), (0, 1000, 60), (60, 0, 0), (0, 60, 0)]
)
def test_a_push_must_fit_into_the_smallest_shard(bounds: tuple[int, ...]) -> None:
    shards = make_shards(3)
    for shard, rows in zip(shards, bounds, strict=True):
        shard.push_rows_max = rows
    with local_client(shards) as client:
        assert {table.push_rows_max for table in client.tables.values()} == {60}
        with pytest.raises(LimitExceededError, match="holds 60 rows"):
            client.push("user", np.arange(300), np.ones((300, 4)))
    assert [len(shard.pushes) for shard in shards] == [0, 0, 0]


def test_a_shard_without_ids_gets_no_push_and_keeps_its_numbers() -> None:
    shards = make_shards(2)
    owners = shards[0].map.shards_of(np.arange(50, dtype=np.uint64))
    mine = np.flatnonzero(owners == 1).astype(np.uint64)
    with local_client(shards) as client:
        client.push("user", mine, np.ones((mine.shape[0], 4)))
        client.push("user", np.arange(50), np.ones((50, 4)))
    assert [request.sequence for request in shards[0].pushes] == [1]
    assert [request.sequence for request in shards[1].pushes] == [1, 2]
    assert shards[0].pushes[0].client_id == shards[1].pushes[0].client_id != 0


def test_pull_unique_gives_each_row_once() -> None:
    shards = make_shards(2)
    with local_client(shards) as client:
        unique = client.pull_unique({"user": [7, 5, 7, 9, 5]})["user"]
    assert unique.ids.tolist() == [7, 5, 9] and unique.inverse.tolist() == [0, 1, 0, 2, 1]
    np.testing.assert_array_equal(unique.rows, rows_of(shards, "user", [7, 5, 9]))


@pytest.mark.parametrize("wire", ["fp16", "bf16"])
@pytest.mark.parametrize("shard_count", [1, 2])
def test_a_narrow_wire_rounds_once_each_way(wire: str, shard_count: int) -> None:
    shards = make_shards(shard_count)
    code = dtype.CODES[wire]
    gradients = np.random.default_rng(3).normal(size=(40, 4)).astype(np.float32)
    ids = np.arange(40)
    first = np.array(rows_of(shards, "user", ids.tolist()))
    with local_client(shards, wire) as client:
        rows = client.pull("user", ids)
        client.push("user", ids, gradients)
    np.testing.assert_array_equal(rows, dtype.widen(dtype.narrow(first, code), code))
    assert not (rows == first).all()
    want = first - RATE * dtype.widen(dtype.narrow(gradients, code), code)
    np.testing.assert_array_equal(rows_of(shards, "user", ids.tolist()), want)


def test_tables_stats_checkpoint_freeze_and_evict() -> None:
    shards = make_shards(2)
    with local_client(shards) as client:
        table = client.tables["user"]
        assert (table.name, table.dim, table.dtype, table.config["optimizer"]["kind"]) == (
            "user", 4, "fp32", "sgd",
        )  # fmt: skip
        with pytest.raises(TypeError):
            client.tables["x"] = table  # type: ignore[index]
        client.push("user", np.arange(10), np.ones((10, 4)))
        assert sum(t.rows for s in client.stats() for t in s.tables if t.name == "user") == 10
        assert sum(answer.rows_written for answer in client.checkpoint()) == 10
        client.freeze("user", "refuse")
        with pytest.raises(TableFrozenError):
            client.push("user", np.arange(10), np.ones((10, 4)))
        client.freeze("user", "ignore")
        client.push("user", np.arange(10), np.ones((10, 4)))
        client.freeze("user", "off")
        assert [shard.frozen["user"] for shard in shards] == [pb.FREEZE_MODE_OFF] * 2
        client.push("user", np.arange(10), np.ones((10, 4)))
        np.testing.assert_array_equal(client.pull("user", [3])[0], first_row(3, 4) - 1)
        assert client.evict("user") == 10
    assert all(shard.closed for shard in shards)


def test_threads_share_a_client() -> None:
    shards = make_shards(3)
    threads, steps = 6, 15
    ids = np.arange(60)
    failures: list[BaseException] = []

    def train(client: Client) -> None:
        try:
            for _ in range(steps):
                client.pull("user", ids)
                client.push("user", ids, np.full((60, 4), 2.0))
        except BaseException as failure:
            failures.append(failure)

    with local_client(shards) as client:
        start = client.pull("user", ids)
        workers = [threading.Thread(target=train, args=(client,)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not failures
        # An sgd step of exactly 1.0 each; fp32 adds rounding, so the order-free sum is compared closely.
        np.testing.assert_allclose(client.pull("user", ids), start - threads * steps, rtol=1e-6)
    for shard in shards:
        assert [request.sequence for request in shard.pushes] == list(range(1, threads * steps + 1))


def test_a_closed_client_says_so() -> None:
    client = local_client(make_shards(1))
    client.close()
    client.close()
    for call in (client.stats, client.flush, lambda: client.pull("user", [1])):
        with pytest.raises(PreconditionError, match="closed"):
            call()


def test_an_answer_of_a_wrong_shape_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = make_shards(1)
    right = shards[0].pull

    def short(request: message.PullRequest) -> message.PullResponse:
        answer = right(request).tables[0]
        return message.PullResponse(1, (message.TableRows(answer.table, answer.dtype, answer.rows[:-1]),))

    monkeypatch.setattr(shards[0], "pull", short)
    with local_client(shards) as client, pytest.raises(InternalError, match=r"embedded:0 answered a pull"):
        client.pull("user", [1, 2])


def test_a_step_past_a_limit_is_refused_before_anything_is_sent() -> None:
    wide = {f"t{i}": 1024 for i in range(limit.TABLES_PER_REQUEST_MAX + 1)}
    shards = make_shards(1, wide)
    with local_client(shards) as client:
        with pytest.raises(LimitExceededError, match=r"pull to shard 0: 1025 tables; at most 1024"):
            client.pull_many({name: [1] for name in wide})
        half = np.arange(limit.IDS_PER_REQUEST_MAX // 2 + 1)
        with pytest.raises(LimitExceededError, match="4194306 distinct ids; at most 4194304"):
            client.pull_many({"t0": half, "t1": half})
    assert not shards[0].pulls
    assert TABLE_HEAD_BYTES_MAX >= limit.TABLE_NAME_BYTES_MAX + 9 * 6


def test_a_pull_past_a_message_is_made_in_several_calls_and_a_push_is_refused() -> None:
    """The smallest bound that a shard tells holds for all of them."""
    shards = make_shards(2, {"user": 4, "item": 3, "wide": 1024})
    shards[0].message_bytes_max, shards[1].message_bytes_max = 20_000, 30_000
    ids = {
        "user": np.arange(2_000, 0, -1, dtype=np.uint64),
        "wide": np.array([7, 9, 7, 2**64 - 1, 5], np.uint64),
        "item": np.arange(900, dtype=np.uint64),
    }
    with local_client(shards) as client:
        rows = client.pull_many(ids)
        for name, some in ids.items():
            wanted = np.stack([first_row(int(i), client.tables[name].dim) for i in some])
            np.testing.assert_array_equal(rows[name], wanted, err_msg=name)
        for shard in shards:
            sizes = [sum(1024 + t.ids.size * (8 + 4 * t.dim) for t in p.tables) for p in shard.pulls]
            assert len(sizes) > 2 and max(sizes) <= 20_000
        with pytest.raises(LimitExceededError, match=r"bytes for \d+ ids; at most 20000: use smaller steps"):
            client.push("user", ids["user"], np.zeros((2_000, 4), np.float32))
        assert not shards[0].pushes and not shards[1].pushes
        shards[0].message_bytes_max = shards[1].message_bytes_max = 1  # nonsense ends, an id at a time
    with local_client(shards) as client:
        assert client.pull("user", [1, 2, 3]).shape == (3, 4)


def test_a_copy_of_a_model_shares_its_client_and_a_pickle_is_refused() -> None:
    with local_client(make_shards(1)) as client:
        assert copy.deepcopy({"client": client})["client"] is client
        with pytest.raises(TypeError, match=r"cannot be pickled: call connect\(\)"):
            pickle.dumps(client)


def test_shows_and_clicks_count_towards_a_message() -> None:
    dim = 56
    count = (limit.MESSAGE_BYTES_MAX - TABLE_HEAD_BYTES_MAX) // (8 + 4 * dim)
    zeros = np.broadcast_to(np.float32(0), (count,))
    ids, gradients = np.arange(count, dtype=np.uint64), np.broadcast_to(zeros[:1], (count, dim))
    fits = message.TableGradients("t", dtype.FLOAT32, ids, gradients)
    assert split_push([fits], PartitionMap.even(1)) == {0: [fits]}
    scored = message.TableGradients("t", dtype.FLOAT32, ids, gradients, None, zeros, zeros)
    with pytest.raises(LimitExceededError, match=r"push to shard 0: a message of \d+ bytes"):
        split_push([scored], PartitionMap.even(1))
