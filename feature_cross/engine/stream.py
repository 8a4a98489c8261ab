# SPDX-License-Identifier: Apache-2.0
"""Batches through the engine on several threads, in order, with a bounded number under way.

The kernels and Arrow release the GIL, so threads use all cores without copying a batch to another process.
Invariants: 1. results come in the order of the batches; 2. at most threads + 1 batches are in memory.
Thread safety: an iterator belongs to one thread.
"""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_cross.data.workspace import Workspace
from feature_cross.engine.batch import CrossBatch
from feature_cross.error import DataError

if TYPE_CHECKING:
    from feature_cross.engine.engine import Engine

__all__ = ["transform_batches", "transform_within"]

_Done = tuple[pa.RecordBatch, CrossBatch]


def transform_batches(
    engine: "Engine", batches: Iterable[pa.RecordBatch], threads: int = 1, steady: bool = False
) -> Generator[_Done, None, None]:
    """Pairs of rows and their ids.

    Parameters
    ----------
    engine
        The engine.
    batches
        Record batches that have the engine's columns, and may have more.
    threads
        At least 1.
    steady
        Whether the batches' memory stays as it is while the stream lasts, as that of files and tables does: a
        dictionary that comes again is then hashed once.

    Raises
    ------
    DataError, LimitError
        Of the first batch that fails; rows are counted from the first batch's first.
    """
    with engine.workspace(steady) as workspace:
        yield from transform_within(engine, batches, threads, workspace)


def transform_within(
    engine: "Engine", batches: Iterable[pa.RecordBatch], threads: int, workspace: Workspace
) -> Generator[_Done, None, None]:
    """As `transform_batches`, with the workspace that the batches share."""
    if threads < 1:
        raise DataError(f"threads is {threads}; it must be at least 1")

    def work(batch: pa.RecordBatch, row_base: int) -> list[_Done]:
        first, pairs = 0, []
        for done in engine.transform_batch(batch, row_base, workspace):
            pairs.append((batch.slice(first, len(done)), done))
            first += len(done)
        return pairs

    if threads == 1:
        row_base = 0
        for batch in batches:
            first = 0
            for done in engine.transform_batch(batch, row_base, workspace):
                yield batch if len(done) == len(batch) else batch.slice(first, len(done)), done
                first += len(done)
            row_base += len(batch)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="feature-cross") as pool:
        waiting: deque[Future[list[_Done]]] = deque()
        row_base = 0
        try:
            for batch in batches:
                waiting.append(pool.submit(work, batch, row_base))
                row_base += len(batch)
                if len(waiting) > threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
