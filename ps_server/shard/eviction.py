# SPDX-License-Identifier: Apache-2.0
"""Eviction by policy: which rows go, decided over every tier, at any time.

Candidates come from a scan of the store after a write-back, so hot and cold rows are judged alike. What
is decided is logged as a list of ids (not as a rule), so a replay evicts exactly the same rows; a row
that was pushed since the scan is spared. What goes leaves nothing behind but the log's record.
Thread safety: shard.py runs one eviction at a time; pulls and pushes go on between chunks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from rowhouse.mix import unmix64

from ps_server.disk.row import get_lsn
from ps_server.kernel import index
from ps_server.table.config import LeastFrequentEviction, NormEviction, TtlEviction, ZeroEviction
from ps_server.table.score import ShowClick
from ps_server.table.table import Table

CHUNK_ROWS: Final = 16_384
"""Rows judged and evicted at a time: pushes wait for one chunk, a few milliseconds."""

Policy = TypeVar("Policy", TtlEviction, NormEviction, LeastFrequentEviction, ZeroEviction, ShowClick)
Ids = NDArray[np.uint64]
Values = NDArray[np.uint8]


def _word(table: Table, values: Values, at: int) -> NDArray[np.uint32]:
    """A uint32 metadata word of stored values; `at` is its offset in the record."""
    start = at - table.layout.weights_at
    return np.ascontiguousarray(values[:, start : start + 4]).view("<u4").reshape(-1)


def _chunks(table: Table, stopping: Callable[[], bool]) -> Iterator[tuple[Ids, Values]]:
    """Every stored row, until the shard is to stop: a scan of a billion rows takes minutes."""
    return takewhile(lambda _chunk: not stopping(), table.tier.rows.scan(CHUNK_ROWS))


def _count_threshold(
    table: Table, policy: LeastFrequentEviction, stopping: Callable[[], bool]
) -> tuple[int, int]:
    """(count, how many of that count may go): rows below the count go, and so many at it."""
    counts: dict[int, int] = {}
    for _, values in _chunks(table, stopping):
        found, times = np.unique(_word(table, values, table.layout.push_count_at), return_counts=True)
        for count, n in zip(found.tolist(), times.tolist(), strict=True):
            counts[count] = counts.get(count, 0) + n
    surplus = sum(counts.values()) - policy.max_rows
    for count in sorted(counts):
        if surplus <= counts[count]:
            return count, max(0, surplus)
        surplus -= counts[count]
    return 0, 0


def _policy(table: Table, kind: type[Policy]) -> Policy | None:
    """The table's policy of that kind, if it has one."""
    return next((p for p in table.config.eviction if isinstance(p, kind)), None)


def _victims(table: Table, now_s: int, stopping: Callable[[], bool]) -> Iterator[Ids]:
    """Ids that a policy wants to evict, a chunk at a time."""
    layout = table.layout
    ttl, norm = _policy(table, TtlEviction), _policy(table, NormEviction)
    frequent, score = _policy(table, LeastFrequentEviction), _policy(table, ShowClick)
    zero = _policy(table, ZeroEviction)
    threshold, at_threshold = _count_threshold(table, frequent, stopping) if frequent else (0, 0)
    for keys, values in _chunks(table, stopping):
        goes = np.zeros(keys.shape[0], np.bool_)
        if ttl:
            goes |= _word(table, values, layout.push_time_at) < max(0, int(now_s - ttl.ttl_s))
        if norm:
            weights = table.weights_of(values).astype(np.float64)
            goes |= np.sqrt((weights * weights).sum(axis=1)) < norm.min_l2_norm
        if zero:
            goes |= ~table.weights_of(values).any(axis=1)
        if score:
            periods = score.periods(_word(table, values, layout.push_time_at), now_s)
            shows, clicks = (
                score.decayed(_word(table, values, at).view(np.float32), periods)
                for at in (layout.show_click_at, layout.show_click_at + 4)
            )
            goes |= score.evictable(shows, clicks)
        if frequent:
            counts = _word(table, values, layout.push_count_at)
            tied = np.flatnonzero(counts == threshold)[:at_threshold]
            at_threshold -= tied.shape[0]
            goes |= counts < threshold
            goes[tied] = True
        if goes.any():
            yield unmix64(keys[goes])


@dataclass(frozen=True, slots=True)
class Moment:
    """When a scan for victims began: the table's newest record, and how often rows had left memory."""

    lsn: int
    departures: int


def evict_by_policy(
    table: Table,
    now_s: int,
    remove: Callable[[Table, Ids, Moment], int],
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Evict what the table's policies want gone; returns how many rows went.

    Parameters
    ----------
    table
        A table with at least one policy; without any nothing happens.
    now_s
        The shard's clock, seconds.
    remove
        Logs and removes a chunk of ids under the push lock, and returns how many rows went. It spares
        ids for which `spared` is true.
    stopping
        Whether the shard is to stop; asked for each chunk. Then the eviction ends early.
    """
    if not table.config.eviction:
        return 0
    table.tier.write_back()
    with table.tier.lock:
        began = Moment(table.tier.applied_lsn, table.tier.departures)
    return sum(remove(table, ids, began) for ids in _victims(table, now_s, stopping))


def spared(table: Table, ids: Ids, since: Moment) -> NDArray[np.bool_]:
    """Whether each id was pushed since the scan began, which judged an old value then; (n,) bool. Such a row
    is dirty, or it left memory meanwhile and carries a later LSN. The caller holds the push lock."""
    with table.tier.lock:
        pushed: NDArray[np.bool_] = table.tier.arena.flags_of(ids) & index.DIRTY != 0
        if table.tier.departures != since.departures:
            present, values = table.tier.fetch(ids)
            pushed[present] |= get_lsn(values) > since.lsn
        return pushed
