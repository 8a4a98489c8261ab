# SPDX-License-Identifier: Apache-2.0
"""The client for asyncio: the same core, each call on a thread of its own pool.

There is no second implementation: a call is checked, planned, retried and numbered by the code that the
blocking client runs, and the event loop only waits. numba and gRPC release the GIL meanwhile.

Invariants: 1. a call that is cancelled before its turn is not made; one that is under way ends by itself, so
a push is applied once or not at all, never in part; 2. the arrays of a call are copied or not used any more
when it returns or is cancelled; 3. what happened to a push that was cancelled under way is raised by `flush`
or `close`.
Thread safety: calls may come from several event loops and threads.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rowhouse.error import PreconditionError

from ps_client.client import Client
from ps_client.connection import connect
from ps_client.pace.pipeline import PREFETCH_MAX, PUSH_MAX
from ps_client.report import Checkpoint, SavedTables, ShardStats
from ps_client.row import Rows
from ps_client.step import StepClient, UniqueRows
from ps_client.table import Table

CALLS_MAX: Final = 16
"""Calls under way at once; further ones wait their turn. A call mostly waits for a shard: some per core."""

P = ParamSpec("P")
T = TypeVar("T")


async def connect_async(target: str, **options: Any) -> "AsyncClient":
    """`connect` for asyncio.

    Parameters
    ----------
    target
        As for `connect`.
    options
        `config`, `timeout_s` and `wire_dtype` of `connect`.

    Returns
    -------
    AsyncClient
        Connected to every shard of the cluster.
    """
    return AsyncClient(await asyncio.to_thread(partial(connect, target, **options)))


class AsyncClient:
    """A client whose calls are awaited. Made by `connect_async`, or over a client that is there already.

    Parameters
    ----------
    client
        A Client or a Pipeline; `close` closes it.
    calls_max
        Calls under way at once.
    """

    def __init__(self, client: StepClient, *, calls_max: int = CALLS_MAX) -> None:
        self._client = client
        self._pool = ThreadPoolExecutor(calls_max, thread_name_prefix="rowhouse-async")
        self._lock = threading.Lock()
        self._left: list[Future[Any]] = []  # pushes that were cancelled under way

    def __repr__(self) -> str:
        return f"<AsyncClient over {self._client!r}>"

    @property
    def tables(self) -> Mapping[str, Table]:
        """Every table of the cluster by name (read-only): dim, dtype, config."""
        return self._client.tables

    # ------------------------------------------------------------ steps
    async def pull(self, table: str, ids: ArrayLike, *, read_only: bool = False) -> NDArray[np.float32]:
        """As Client.pull; the rows are a new array."""
        return await self._call(self._client.pull, table, deepcopy(ids), read_only=read_only)

    async def pull_many(
        self, ids: Mapping[str, ArrayLike], *, read_only: bool = False
    ) -> dict[str, NDArray[np.float32]]:
        """As Client.pull_many."""
        return await self._call(self._client.pull_many, deepcopy(ids), read_only=read_only)

    async def pull_unique(
        self, ids: Mapping[str, ArrayLike], *, read_only: bool = False
    ) -> dict[str, UniqueRows]:
        """As Client.pull_unique."""
        return await self._call(self._client.pull_unique, deepcopy(ids), read_only=read_only)

    async def push(
        self,
        table: str,
        ids: ArrayLike,
        gradients: ArrayLike,
        learning_rate: float | None = None,
        *,
        shows: ArrayLike | None = None,
        clicks: ArrayLike | None = None,
    ) -> None:
        """As Client.push. Cancelled under way it is applied all the same; `flush` waits for it."""
        ids, gradients, shows, clicks = deepcopy((ids, gradients, shows, clicks))
        step = partial(self._client.push, table, ids, gradients, learning_rate, shows=shows, clicks=clicks)
        await self._call_kept(step)

    async def push_many(
        self, gradients: Mapping[str, tuple[ArrayLike, ArrayLike]], learning_rate: float | None = None
    ) -> None:
        """As Client.push_many. Cancelled under way it is applied all the same; `flush` waits for it."""
        await self._call_kept(partial(self._client.push_many, deepcopy(gradients), learning_rate))

    async def push_unique(
        self,
        gradients: Mapping[str, tuple[NDArray[np.uint64], NDArray[np.float32]]],
        learning_rates: Mapping[str, float] | None = None,
    ) -> None:
        """As Client.push_unique. Cancelled under way it is applied all the same; `flush` waits for it."""
        await self._call_kept(partial(self._client.push_unique, deepcopy(dict(gradients)), learning_rates))

    async def prefetch(self, ids: Mapping[str, ArrayLike], *, read_only: bool = False) -> None:
        """As Pipeline.prefetch; PreconditionError when this is not made over a pipeline."""
        await self._call(self._client.prefetch, deepcopy(ids), read_only=read_only)

    def pipeline(
        self, *, staleness: int = 0, prefetch_max: int = PREFETCH_MAX, push_max: int = PUSH_MAX
    ) -> "AsyncClient":
        """As Client.pipeline: an AsyncClient that pulls ahead and pushes behind."""
        made = self._whole.pipeline(staleness=staleness, prefetch_max=prefetch_max, push_max=push_max)
        return AsyncClient(made)

    # ------------------------------------------------------------ operation
    async def flush(self) -> None:
        """As the client's; also waits for pushes that were cancelled under way, and raises what failed."""
        await self._call(self._settle)
        await self._call(self._client.flush)

    async def checkpoint(self, timeout_s: float | None = None) -> Sequence[Checkpoint]:
        """As Client.checkpoint."""
        return await self._call(self._whole.checkpoint, timeout_s)

    async def save_tables(self, name: str, timeout_s: float | None = None) -> SavedTables:
        """As Client.save_tables."""
        return await self._call(self._whole.save_tables, name, timeout_s)

    async def check_tables(self, saved: SavedTables) -> None:
        """As Client.check_tables."""
        await self._call(self._whole.check_tables, saved)

    async def drop_tables(self, name: str) -> bool:
        """As Client.drop_tables."""
        return await self._call(self._whole.drop_tables, name)

    async def stats(self) -> Sequence[ShardStats]:
        """As Client.stats."""
        return await self._call(self._whole.stats)

    async def freeze(self, table: str, mode: Literal["off", "refuse", "ignore"]) -> None:
        """As Client.freeze."""
        await self._call(self._whole.freeze, table, mode)

    async def evict(self, table: str, timeout_s: float | None = None) -> int:
        """As Client.evict."""
        return await self._call(self._whole.evict, table, timeout_s)

    async def read_rows(self, table: str, ids: ArrayLike) -> Rows:
        """As Client.read_rows."""
        return await self._call(self._whole.read_rows, table, deepcopy(ids))

    async def list_rows(self, table: str) -> AsyncIterator[Rows]:
        """As Client.list_rows; each page is awaited."""
        pages = self._whole.list_rows(table)
        while (page := await self._call(next, pages, None)) is not None:
            yield page

    async def assign(
        self,
        table: str,
        ids: ArrayLike,
        weights: ArrayLike,
        *,
        state: ArrayLike | None = None,
        shows: ArrayLike | None = None,
        clicks: ArrayLike | None = None,
    ) -> None:
        """As Client.assign. Cancelled under way it is applied all the same; `flush` waits for it."""
        ids, weights, state, shows, clicks = deepcopy((ids, weights, state, shows, clicks))
        given = {"state": state, "shows": shows, "clicks": clicks}
        await self._call_kept(partial(self._whole.assign, table, ids, weights, **given))

    async def delete(self, table: str, ids: ArrayLike) -> None:
        """As Client.delete. Cancelled under way it is applied all the same; `flush` waits for it."""
        await self._call_kept(partial(self._whole.delete, table, deepcopy(ids)))

    async def close(self) -> None:
        """Wait for the calls under way, then close the client; raises what failed in the background."""
        await asyncio.to_thread(self._end)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except Exception as failure:
            if value is None:
                raise
            value.add_note(f"and closing failed: {type(failure).__name__}: {failure}")

    # ------------------------------------------------------------ threads
    @property
    def _whole(self) -> Client:
        if not isinstance(self._client, Client):
            raise PreconditionError("this is the client of a pipeline; ask the client that it was made from")
        return self._client

    def _submit(self, call: Callable[[], T]) -> Future[T]:
        try:
            return self._pool.submit(call)
        except RuntimeError:  # the pool's word for shut down
            raise PreconditionError("this client is closed; call connect_async() for another one") from None

    async def _call(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._submit(partial(call, *args, **kwargs)))

    async def _call_kept(self, call: Callable[[], None]) -> None:
        """A call whose failure must not be lost with the one who waits for it."""
        future = self._submit(call)
        try:
            await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            with self._lock:
                self._left.append(future)
            raise

    def _settle(self) -> None:
        """Wait for the pushes that were cancelled under way; raise the first failure."""
        with self._lock:
            left, self._left = self._left, []
        wait(left)
        failures = [e for e in (f.exception() for f in left if not f.cancelled()) if e is not None]
        for further in failures[1:]:
            failures[0].add_note(f"and of a later push: {type(further).__name__}: {further}")
        if failures:
            raise failures[0]

    def _end(self) -> None:
        self._pool.shutdown(wait=True)
        try:
            self._settle()
        finally:
            self._client.close()
