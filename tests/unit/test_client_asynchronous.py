# SPDX-License-Identifier: Apache-2.0
"""asynchronous.py: the blocking client's answers, cancellation at every moment, errors, many at once."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from rowhouse.error import InvalidRequestError, PreconditionError, TableFrozenError, UnknownTableError

from ps_client import AsyncClient, Client, connect_async

from .fake_shard import FakeShard, local_client, make_shards, raising

WAIT_S = 300.0
Story = Callable[[AsyncClient], Awaitable[None]]


def run(shards: list[FakeShard], story: Story, calls_max: int = 16) -> None:
    async def tell() -> None:
        async with AsyncClient(local_client(shards), calls_max=calls_max) as client:
            await story(client)

    asyncio.run(tell())


class Gate:
    """Holds a call of a fake shard until it is opened."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.open.wait(WAIT_S)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, WAIT_S)


def test_every_call_of_the_client_is_there_with_its_arguments() -> None:
    for name in (n for n in dir(Client) if not n.startswith("_")):
        blocking, awaited = getattr(Client, name), getattr(AsyncClient, name, None)
        if name in ("shard_count", "trainer"):
            continue  # a trainer's steps wait for other processes: one thread of its own is no loss
        assert awaited is not None, name
        if not isinstance(blocking, property):
            expected = [p for p in inspect.signature(blocking).parameters if p != "out"]
            assert list(inspect.signature(awaited).parameters) == expected, name


def test_steps_equal_those_of_the_blocking_client() -> None:
    shards, plain = make_shards(3), make_shards(3)
    rng = np.random.default_rng(1)
    steps = [(rng.integers(0, 50, 40), rng.normal(size=(40, 4))) for _ in range(10)]

    async def story(client: AsyncClient) -> None:
        for ids, gradients in steps:
            rows = await client.pull("user", ids)
            many = await client.pull_many({"user": ids, "item": ids[:3].tolist()})
            np.testing.assert_array_equal(many["user"], rows)
            unique = (await client.pull_unique({"user": ids}))["user"]
            np.testing.assert_array_equal(unique.rows[unique.inverse], rows)
            await client.push("user", ids, gradients)
            await client.push_many({"item": ([5, 2**64 - 1], np.ones((2, 3)))}, 0.25)
        assert list(client.tables) == ["user", "item"]

    run(shards, story)
    with local_client(plain) as client:
        for ids, gradients in steps:
            client.push("user", ids, gradients)
            client.push_many({"item": ([5, 2**64 - 1], np.ones((2, 3)))}, 0.25)
    for one, other in zip(shards, plain, strict=True):
        assert {k: v.tolist() for k, v in one.rows.items()} == {k: v.tolist() for k, v in other.rows.items()}


def test_operation_and_errors() -> None:
    async def story(client: AsyncClient) -> None:
        await client.push("user", [1, 2], np.ones((2, 4)))
        assert [a.rows_written for a in await client.checkpoint()] == [2]
        assert [a.applied_lsn for a in await client.stats()] == [1]
        await client.freeze("user", "refuse")
        with pytest.raises(TableFrozenError):
            await client.push("user", [1], np.ones((1, 4)))
        assert await client.evict("user") == 2
        with pytest.raises(UnknownTableError, match="did you mean 'user'"):
            await client.pull("usr", [1])
        with pytest.raises(InvalidRequestError, match=r"ids\[0\] is -1"):
            await client.pull("user", [-1])
        with pytest.raises(PreconditionError, match="prefetch needs a pipeline"):
            await client.prefetch({"user": [1]})

    run(make_shards(1), story)


def test_calls_run_side_by_side_and_the_loop_goes_on() -> None:
    shards = make_shards(1)
    barrier = threading.Barrier(4)
    shards[0].lock = _NoLock()  # type: ignore[assignment]
    shards[0].before["pull"] = [lambda: (barrier.wait(WAIT_S), None)[1]] * 4

    async def story(client: AsyncClient) -> None:
        await asyncio.gather(*(client.pull("user", [i]) for i in range(4)))

    run(shards, story)
    assert len(shards[0].pulls) == 4


class _NoLock:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_a_push_cancelled_under_way_is_applied_once_and_its_arrays_are_free() -> None:
    """Invariants 1 and 2."""
    shards, gate = make_shards(1), Gate()
    shards[0].before["push"] = [gate]

    async def story(client: AsyncClient) -> None:
        gradients = np.ones((1, 4), np.float32)
        pushing = asyncio.create_task(client.push("user", [1], gradients))
        await gate.reached()
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing
        gradients[:] = 77
        assert shards[0].applied == 0
        gate.open.set()
        await client.flush()  # waits for it
        assert shards[0].applied == 1
        await client.push("user", [1], np.ones((1, 4)))

    run(shards, story)
    assert [p.sequence for p in shards[0].pushes] == [1, 2]
    assert all((p.tables[0].gradients == 1).all() for p in shards[0].pushes)


def test_a_call_cancelled_before_its_turn_is_not_made() -> None:
    """Invariant 1."""
    shards, gate = make_shards(1), Gate()
    shards[0].before["pull"] = [gate]

    async def story(client: AsyncClient) -> None:
        first = asyncio.create_task(client.pull("user", [1]))
        await gate.reached()
        second = asyncio.create_task(client.push("user", [1], np.ones((1, 4))))
        await asyncio.sleep(0.02)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.open.set()
        await first
        await client.flush()

    run(shards, story, calls_max=1)
    assert shards[0].applied == 0 and not shards[0].pushes


@pytest.mark.parametrize("last", ["flush", "close"])
def test_a_push_that_fails_after_it_was_cancelled_is_raised_later(last: str) -> None:
    """Invariant 3."""
    shards, gate = make_shards(1), Gate()
    shards[0].before["push"] = [gate]
    shards[0].refuse["push"] = [raising(TableFrozenError)]

    async def story() -> None:
        client = AsyncClient(local_client(shards))
        pushing = asyncio.create_task(client.push("user", [1], np.ones((1, 4))))
        await gate.reached()
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing
        gate.open.set()
        with pytest.raises(TableFrozenError, match="on purpose"):
            await getattr(client, last)()
        await client.close()
        await client.close()
        with pytest.raises(PreconditionError, match="this client is closed"):
            await client.pull("user", [1])

    asyncio.run(story())


def test_a_cancelled_training_loop_leaves_whole_steps() -> None:
    """Cancelled at a random moment, again and again: each push is there once or not at all, in order."""
    shards = make_shards(2)
    rng = np.random.default_rng(5)

    async def story(client: AsyncClient) -> None:
        for _ in range(30):

            async def loop() -> None:
                while True:
                    rows = await client.pull("user", np.arange(20))
                    await client.push("user", np.arange(20), np.full_like(rows, -2.0))

            task = asyncio.create_task(loop())
            await asyncio.sleep(rng.uniform(0, 0.01))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await client.flush()
        rows = await client.pull("user", np.arange(20))
        start = await client.pull("user", np.arange(20, 40))
        assert start.shape == rows.shape

    run(shards, story)
    assert shards[0].applied == shards[1].applied > 0
    for shard in shards:
        assert [p.sequence for p in shard.pushes] == list(range(1, shard.applied + 1))


def test_a_pipeline_is_awaited_too() -> None:
    shards = make_shards(1)

    async def story(client: AsyncClient) -> None:
        async with client.pipeline(staleness=1) as pipeline:
            for step in range(5):
                await pipeline.prefetch({"user": [step]})
                rows = await pipeline.pull("user", [step])
                await pipeline.push("user", [step], rows)
            await pipeline.flush()
            assert shards[0].applied == 5
            with pytest.raises(PreconditionError, match="ask the client that it was made from"):
                await pipeline.stats()
        await client.pull("user", [1])

    run(shards, story)
    assert len(shards[0].pulls) == 6


def test_an_error_of_the_block_is_not_hidden() -> None:
    shards, gate = make_shards(1), Gate()
    shards[0].before["push"] = [gate]
    shards[0].refuse["push"] = [raising(TableFrozenError)]

    async def story() -> None:
        async with AsyncClient(local_client(shards)) as client:
            pushing = asyncio.create_task(client.push("user", [1], np.ones((1, 4))))
            await gate.reached()
            pushing.cancel()
            gate.open.set()
            await asyncio.gather(pushing, return_exceptions=True)
            raise KeyError("of the block")

    with pytest.raises(KeyError) as caught:
        asyncio.run(story())
    assert caught.value.__notes__ == ["and closing failed: TableFrozenError: on purpose"]


def test_connecting(tmp_path: Path) -> None:
    async def story() -> None:
        config = {"tables": [{"name": "user", "dim": 4}]}
        async with await connect_async(f"embedded:{tmp_path}", config=config, timeout_s=5) as client:
            before = await client.pull("user", [1])
            await client.push("user", [1], np.ones((1, 4)))
            assert (await client.pull("user", [1]) != before).all()

    asyncio.run(story())
