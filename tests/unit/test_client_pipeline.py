# SPDX-License-Identifier: Apache-2.0
"""pipeline.py: the bits of a run without one, the bound on old rows, errors from the background, limits."""

import copy
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rowhouse.error import (
    ConfigError,
    InvalidRequestError,
    LimitExceededError,
    PreconditionError,
    TableFrozenError,
    UnavailableError,
)

from ps_client import Client, Pipeline, StepClient

from .fake_shard import FakeShard, local_client, make_shards, raising

WAIT_S = 300.0
Step = dict[str, NDArray[np.uint64]]


def zipf_steps(count: int, seed: int = 3) -> list[Step]:
    """Steps over two tables whose ids overlap a good deal, duplicates within each."""
    rng = np.random.default_rng(seed)
    return [
        {name: rng.zipf(1.3, size).astype(np.uint64) % np.uint64(200) for name, size in sizes.items()}
        for sizes in [{"user": 60, "item": 40}] * count
    ]


def train(client: StepClient, steps: Iterator[Step] | list[Step]) -> list[dict[str, NDArray[Any]]]:
    """Each gradient is a function of the rows that were read, so an old row changes everything after it."""
    seen = []
    for step in steps:
        rows = client.pull_many(step)
        seen.append(rows)
        client.push_many({name: (step[name], 0.1 * rows[name] + 0.01) for name in step})
    client.flush()
    return seen


def slow(shards: list[FakeShard], seed: int, calls: int) -> None:
    """Have each call of the shards take up to 4 ms."""
    rng = random.Random(seed)
    for shard in shards:
        for kind in ("pull", "push"):
            shard.before[kind] = [lambda: time.sleep(rng.uniform(0, 0.004))] * calls


@pytest.mark.parametrize("shard_count", [1, 3])
@pytest.mark.parametrize("depth", [1, 3])
def test_staleness_0_gives_the_bits_of_no_pipeline(shard_count: int, depth: int) -> None:
    steps, plain, piped = zipf_steps(40), make_shards(shard_count), make_shards(shard_count)
    slow(piped, depth, 1_000)
    with local_client(plain) as client:
        expected = train(client, steps)
    with local_client(piped) as client, client.pipeline() as pipeline:
        found = train(pipeline, pipeline.ahead(steps, depth=depth))
    for one, other in zip(expected, found, strict=True):
        for name, rows in one.items():
            np.testing.assert_array_equal(rows, other[name])
    for one_shard, other_shard in zip(plain, piped, strict=True):
        assert one_shard.rows.keys() == other_shard.rows.keys()
        for key, row in one_shard.rows.items():
            np.testing.assert_array_equal(row, other_shard.rows[key])


def test_only_rows_that_a_later_push_touched_are_pulled_again() -> None:
    shards = make_shards(1)
    with local_client(shards) as client, client.pipeline() as pipeline:
        pipeline.prefetch({"user": [1, 2, 3]})
        pipeline.pull("user", [1, 2, 3])
        pipeline.prefetch({"user": [3, 4, 5, 3]})
        wait_until(lambda: len(shards[0].pulls) == 2)
        pipeline.push("user", [2, 3], np.ones((2, 4)))
        rows = pipeline.pull("user", [3, 4, 5, 3])
    assert [p.tables[0].ids.tolist() for p in shards[0].pulls] == [[1, 2, 3], [3, 4, 5], [3]]
    np.testing.assert_array_equal(rows, [shards[0].row("user", i) for i in (3, 4, 5, 3)])


def held_by(gate: threading.Event) -> Callable[[], None]:
    """A fault that only waits."""

    def wait() -> None:
        assert gate.wait(WAIT_S)

    return wait


def wait_until(condition: Any) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.001)


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_row_is_older_than_the_bound(staleness: int, depth: int) -> None:
    """Invariant 1: each push adds 1 to id 7, so its row is the number of the push that it holds."""
    shards, lags = make_shards(1), []
    shards[0].rows["user", 7] = np.zeros(4, np.float32)
    slow(shards, staleness, 1_000)
    with local_client(shards) as client, client.pipeline(staleness=staleness) as pipeline:
        for number, step in enumerate(
            pipeline.ahead([{"user": [7, i]} for i in range(100, 160)], depth=depth)
        ):
            row = pipeline.pull_many(step)["user"][0]
            assert (row == row[0]).all()
            lags.append(number - int(row[0]))
            pipeline.push("user", [7], np.full((1, 4), -2.0))  # the fake's rate is 1/2
    assert max(lags) <= staleness
    assert staleness == 0 or max(lags) > 0, "nothing was ever pipelined, so the bound was not tested"
    assert shards[0].rows["user", 7].tolist() == [60.0] * 4


def test_with_staleness_1_the_model_does_not_wait_for_the_last_push() -> None:
    shards, gate = make_shards(1), threading.Event()
    with local_client(shards) as client, client.pipeline(staleness=1) as pipeline:
        pipeline.prefetch({"user": [1]})
        pipeline.pull("user", [1])
        pipeline.prefetch({"user": [1]})
        wait_until(lambda: len(shards[0].pulls) == 2)
        shards[0].before["push"] = [held_by(gate)]
        pipeline.push("user", [1], np.ones((1, 4)))
        pipeline.pull("user", [1])  # hangs when it waits for the push
        assert shards[0].applied == 0
        gate.set()
        pipeline.flush()
        assert shards[0].applied == 1


def test_what_a_push_touched_is_found_before_the_push_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    shards, gate, found = make_shards(1), threading.Event(), threading.Event()
    with local_client(shards) as client, client.pipeline() as pipeline:
        pipeline.prefetch({"user": [1, 2]})
        pipeline.pull("user", [1, 2])
        pipeline.prefetch({"user": [2, 3]})
        wait_until(lambda: len(shards[0].pulls) == 2)
        shards[0].before["push"] = [held_by(gate)]
        pipeline.push("user", [2], np.ones((1, 4)))
        touched = pipeline._touched

        def told(*args: Any) -> Any:
            answer = touched(*args)
            found.set()
            return answer

        monkeypatch.setattr(pipeline, "_touched", told)
        pull = threading.Thread(target=pipeline.pull, args=("user", [2, 3]))
        pull.start()
        assert found.wait(WAIT_S)
        assert shards[0].applied == 0
        gate.set()
        pull.join(WAIT_S)
    assert [p.tables[0].ids.tolist() for p in shards[0].pulls] == [[1, 2], [2, 3], [2]]


def test_a_pull_that_was_not_prefetched_keeps_the_bound_and_a_read_only_one_sees_all() -> None:
    shards = make_shards(1)
    slow(shards, 1, 100)
    with local_client(shards) as client, client.pipeline(staleness=2) as pipeline:
        for number in range(10):
            rows = pipeline.pull("user", [7])
            assert number == 0 or shards[0].applied >= number - 2
            pipeline.push("user", [7], np.ones_like(rows))
            found = pipeline.pull("user", [7], read_only=True)
            assert shards[0].applied == number + 1
            np.testing.assert_array_equal(found[0], shards[0].row("user", 7))


def test_the_caller_may_reuse_its_arrays() -> None:
    shards, gate = make_shards(1), threading.Event()
    with local_client(shards) as client, client.pipeline() as pipeline:
        ids, gradients = np.array([1, 2], np.uint64), np.ones((2, 4), np.float32)
        shards[0].before["push"] = [held_by(gate)]
        pipeline.prefetch({"user": ids})
        pipeline.push("user", ids, gradients)
        ids[:], gradients[:] = (8, 9), 77
        gate.set()
        rows = pipeline.pull("user", ids)
    np.testing.assert_array_equal(rows, [shards[0].row("user", 8), shards[0].row("user", 9)])
    assert shards[0].pushes[0].tables[0].ids.tolist() == [1, 2]
    assert (shards[0].pushes[0].tables[0].gradients == 1).all()


def test_a_push_that_fails_is_raised_by_the_next_call_once() -> None:
    """Invariant 4."""
    shards = make_shards(1)
    with local_client(shards) as client, client.pipeline() as pipeline:
        pipeline.prefetch({"user": [5]})
        gate = threading.Event()
        shards[0].before["push"] = [held_by(gate)]
        shards[0].refuse["push"] = [raising(TableFrozenError), None, raising(InvalidRequestError)]
        for _ in range(3):
            pipeline.push("user", [1], np.ones((1, 4)))
        gate.set()
        wait_until(lambda: pipeline._finished == 3)
        with pytest.raises(TableFrozenError, match="on purpose") as caught:
            pipeline.pull("user", [5])
        assert "and to a later push: InvalidRequestError: on purpose" in caught.value.__notes__
        pipeline.pull("user", [5])  # once, and what was prefetched is still there
        assert len(shards[0].pulls) == 1
        assert shards[0].applied == 1


def test_a_pull_that_waits_for_a_push_raises_when_it_fails() -> None:
    shards = make_shards(1)
    with local_client(shards) as client, client.pipeline() as pipeline:
        gate = threading.Event()
        shards[0].before["push"] = [held_by(gate)]
        shards[0].refuse["push"] = [None, raising(TableFrozenError)]
        for _ in range(2):
            pipeline.push("user", [1], np.ones((1, 4)))
        threading.Timer(0.05, gate.set).start()
        with pytest.raises(TableFrozenError):
            pipeline.pull("user", [1])


def test_a_prefetch_that_fails_is_raised_by_its_pull() -> None:
    shards = make_shards(1)
    with local_client(shards) as client, client.pipeline() as pipeline:
        shards[0].before["pull"] = [raising(InvalidRequestError)]
        pipeline.prefetch({"user": [1]})
        with pytest.raises(InvalidRequestError, match="on purpose"):
            pipeline.pull("user", [1])
        pipeline.pull("user", [1])
        with pytest.raises(InvalidRequestError, match=r"ids\[0\] is -1"):
            pipeline.prefetch({"user": np.array([-1])})
        with pytest.raises(InvalidRequestError, match="did you mean 'user'"):
            pipeline.prefetch({"usr": [1]})


def test_flush_and_close_wait_and_raise() -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        for call in ("flush", "close"):
            pipeline = client.pipeline()
            shards[0].refuse["push"] = [lambda: time.sleep(0.05), raising(TableFrozenError)]
            before = shards[0].applied
            for _ in range(2):
                pipeline.push("user", [1], np.ones((1, 4)))
            with pytest.raises(TableFrozenError, match="on purpose"):
                getattr(pipeline, call)()
            assert shards[0].applied == before + 1
            pipeline.close()
            pipeline.close()
            with pytest.raises(PreconditionError, match="this pipeline is closed"):
                pipeline.pull("user", [1])
        client.pull("user", [1])  # the client is still open


def test_an_error_of_the_block_is_not_hidden_by_one_of_the_background() -> None:
    shards = make_shards(1)
    shards[0].refuse["push"] = [raising(TableFrozenError)]
    with local_client(shards) as client:
        with pytest.raises(KeyError) as caught, client.pipeline() as pipeline:  # noqa: PT012
            pipeline.push("user", [1], np.ones((1, 4)))
            raise KeyError("of the block")
        assert caught.value.__notes__ == [
            "and a push in the background failed: TableFrozenError: on purpose",
        ]


def test_a_shard_that_comes_back_loses_and_doubles_nothing() -> None:
    shards = make_shards(2)
    for shard in shards:
        shard.after["push"] = [raising(UnavailableError) if i % 3 == 1 else None for i in range(60)]
        shard.before["pull"] = [raising(UnavailableError) if i % 4 == 1 else None for i in range(90)]
    plain, steps = make_shards(2), zipf_steps(20)
    with local_client(shards) as client, client.pipeline(staleness=0) as pipeline:
        train(pipeline, pipeline.ahead(steps))
    with local_client(plain) as client:
        train(client, steps)
    for one, other in zip(shards, plain, strict=True):
        assert {k: v.tolist() for k, v in one.rows.items()} == {k: v.tolist() for k, v in other.rows.items()}


def test_prefetches_are_bounded_and_can_be_discarded() -> None:
    """Invariant 3."""
    shards = make_shards(1)
    with local_client(shards) as client, client.pipeline(prefetch_max=2) as pipeline:
        for ids in ([1], [2]):
            pipeline.prefetch({"user": ids})
        with pytest.raises(
            LimitExceededError, match=r"2 prefetched steps wait .* at most 2 \(prefetch_max\)"
        ):
            pipeline.prefetch({"user": [3]})
        pipeline.pull("user", [2])  # out of order
        pipeline.prefetch({"user": [3]})
        pipeline.discard()
        for ids in ([4], [5]):
            pipeline.prefetch({"user": ids})
        pipeline.push("user", [1], np.ones((1, 4)))
        pipeline.flush()
        pipeline.discard()
        assert not pipeline._ahead and not pipeline._behind, "pushes must be forgotten with the prefetches"


def test_pushes_are_bounded() -> None:
    """Invariant 3: the push past the bound waits until one is answered."""
    shards, gate, returned = make_shards(1), threading.Event(), threading.Event()
    with local_client(shards) as client, client.pipeline(push_max=2) as pipeline:
        shards[0].before["push"] = [held_by(gate)]

        def push() -> None:
            for _ in range(3):
                pipeline.push("user", [1], np.ones((1, 4)))
            returned.set()

        pushing = threading.Thread(target=push)
        pushing.start()
        wait_until(lambda: pipeline._queued == 2)
        assert not returned.wait(0.1)
        gate.set()
        pushing.join(WAIT_S)
        assert returned.is_set()
        pipeline.flush()
        assert shards[0].applied == 3


def test_wrong_settings_are_refused() -> None:
    with local_client(make_shards(1)) as client:
        for settings, text in (
            ({"staleness": -1}, "staleness is -1; it must be an integer from 0 up"),
            ({"staleness": None}, "staleness is None"),
            ({"prefetch_max": 0}, "prefetch_max is 0; it must be an integer from 1 up"),
            ({"push_max": 0}, "push_max is 0"),
        ):
            with pytest.raises(ConfigError, match=text):
                client.pipeline(**settings)
        with client.pipeline() as pipeline, pytest.raises(ConfigError, match="depth is 0"):
            next(pipeline.ahead([{"user": [1]}], depth=0))


def test_ahead_keeps_the_order_and_reads_as_far_as_it_says() -> None:
    drawn: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(6):
            drawn.append(number)
            yield number

    with local_client(make_shards(1)) as client, client.pipeline(staleness=2) as pipeline:
        started: list[int] = []
        seen = []
        for batch in pipeline.ahead(batches(), started.append):
            seen.append((batch, drawn[-1]))
        assert seen == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 5), (5, 5)]
        assert started == list(range(6))


def test_a_pipeline_of_a_closed_client_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    client: Client = local_client(make_shards(1))
    pipeline: Pipeline = client.pipeline()
    assert copy.deepcopy(pipeline) is pipeline
    with pytest.raises(TypeError, match="a Pipeline cannot be pickled"):
        pipeline.__reduce__()
    client.close()
    with pytest.raises(PreconditionError, match="this client is closed"):
        pipeline.pull("user", [1])
    with pytest.raises(PreconditionError, match="this client is closed"):
        client.pipeline()
    pipeline.close()
