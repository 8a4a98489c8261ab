# SPDX-License-Identifier: Apache-2.0
"""Batches through a transform on several threads, in order, with a bounded number under way.

The kernels and Arrow release the GIL, so threads use all cores without copying a batch to another process.
Invariants: 1. results come in the order of the batches; 2. at most threads + 1 batches are in memory.
Thread safety: an iterator belongs to one thread.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from feature_cross.engine.batch import CrossBatch
from feature_cross.error import DataError

__all__ = ["Pair", "in_order"]

Pair = tuple[pa.RecordBatch, CrossBatch]
"""Rows and their ids."""


def in_order(
    transform: Callable[[pa.RecordBatch, int], Iterable[CrossBatch]],
    batches: Iterable[pa.RecordBatch],
    threads: int,
) -> Generator[Pair, None, None]:
    """Pairs of rows and their ids, in the order of the batches.

    Parameters
    ----------
    transform
        (rows, number of the first row) to the ids of the rows, in one or several parts; any thread calls it.
    batches
        Record batches.
    threads
        At least 1.

    Raises
    ------
    DataError, LimitError
        Of the first batch that fails; rows are counted from the first batch's first.
    """
    if threads < 1:
        raise DataError(f"threads is {threads}; it must be at least 1")

    def work(batch: pa.RecordBatch, row_base: int) -> list[Pair]:
        first, pairs = 0, []
        for done in transform(batch, row_base):
            pairs.append((batch.slice(first, len(done)), done))
            first += len(done)
        return pairs

    if threads == 1:
        row_base = 0
        for batch in batches:
            first = 0
            for done in transform(batch, row_base):
                yield batch if len(done) == len(batch) else batch.slice(first, len(done)), done
                first += len(done)
            row_base += len(batch)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="feature-cross") as pool:
        waiting: deque[Future[list[Pair]]] = deque()
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
