# SPDX-License-Identifier: Apache-2.0
"""Rows with everything that is kept of them, on the wire and as the store has them, and pages of a table.

A page is read from the store; rows that have changed in memory since are taken from there. So each row of a
listing is whole, and as it was at some moment between the listing's beginning and the end of its page: the
pages are of different moments, because pushes go on.

Thread safety: pure functions; `list_rows` takes the table's lock for a copy.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.error import LimitExceededError
from rowhouse.mix import mix64, unmix64
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.disk.row import RowLayout, get_lsn, put_lsn
from ps_server.disk.store import Keys, Values
from ps_server.kernel import index
from ps_server.table.arena import Ids
from ps_server.table.table import Table

PAGE_BYTES: Final = 1 << 20
"""Of rows in one page: tens of milliseconds, and far below the largest message of any shard."""


def to_message(keys: Keys, values: Values, layout: RowLayout) -> pb.Rows:
    """Stored rows, `keys` (n,) and `values` (n, value_bytes), as a message."""
    state_at = layout.state_at - layout.weights_at
    width = layout.dim * dtype.STORAGE[layout.dtype].itemsize
    rows = pb.Rows(
        ids=unmix64(keys).astype("<u8").tobytes(), weights=values[:, :width].tobytes(),
        state=values[:, state_at : state_at + 4 * layout.state_size].tobytes(),
        lsn=get_lsn(values).astype("<u8").tobytes(),
    )  # fmt: skip
    for name, (at, _) in layout.metadata.items():
        start = at - layout.weights_at
        setattr(rows, name, values[:, start : start + 4].tobytes())
    return rows


def from_message(rows: pb.Rows, layout: RowLayout) -> tuple[NDArray[np.uint64], Values]:
    """Ids (n,) and stored values (n, value_bytes) of a message that `to_message` made."""
    ids = np.frombuffer(rows.ids, "<u8")
    values = np.zeros((ids.shape[0], layout.value_bytes), np.uint8)
    parts = [(layout.weights_at, rows.weights), (layout.state_at, rows.state)]
    parts += [(at, getattr(rows, name)) for name, (at, _) in layout.metadata.items()]
    for at, data in parts:
        part = np.frombuffer(data, np.uint8).reshape(ids.shape[0], len(data) // max(ids.shape[0], 1))
        start = at - layout.weights_at
        values[:, start : start + part.shape[1]] = part
    put_lsn(values, np.frombuffer(rows.lsn, "<u8"))
    return ids, values


def list_rows(table: Table, first_key: int, rows_max: int) -> tuple[pb.Rows, int]:
    """A page of a table's rows from a mixed id on, and where the next one begins, 0 when there is none.

    Parameters
    ----------
    table
        Whose dirty rows were written back when the listing began.
    first_key
        Where the page begins.
    rows_max
        Rows of it, at most; 0: as many as PAGE_BYTES hold. More are never given.
    """
    layout, tier = table.layout, table.tier
    fitting = page_rows(layout)
    limit = min(rows_max, fitting) if rows_max else fitting
    scan = tier.rows.scan(limit, first_key)
    keys, found = next(scan, (np.empty(0, np.uint64), np.empty((0, layout.value_bytes), np.uint8)))
    values = found.copy()
    with tier.lock:
        places, _ = tier.arena.find(unmix64(keys), 0)
        changed = (places >= 0) & (tier.arena.flags_of(unmix64(keys)) & index.DIRTY != 0)
        if changed.any():
            values[changed] = tier.copy(places[changed])[1]
    following = (int(keys[-1]) + 1) % (1 << 64) if keys.shape[0] == limit else 0
    return to_message(keys, values, layout), following


def page_rows(layout: RowLayout) -> int:
    """Most rows of a page."""
    return max(1, PAGE_BYTES // layout.value_bytes)


def read_rows(table: Table, ids: Ids) -> pb.Rows:
    """Those rows of `ids`, (n,) uint64, that there are, each as it was last, in the order of `ids`;
    LimitExceededError for more than a page has. Nothing becomes hot."""
    layout, tier = table.layout, table.tier
    if ids.shape[0] > page_rows(layout):
        raise LimitExceededError(f"{ids.shape[0]} ids; at most {page_rows(layout)} of table {table.name!r}")
    values = np.empty((ids.shape[0], layout.value_bytes), np.uint8)
    with tier.lock:
        places, _ = tier.arena.find(ids, 0)
        departures = tier.departures
    there = places >= 0
    cold = np.flatnonzero(~there)
    found, stored = tier.fetch(ids[cold])  # without the lock: pulls and pushes go on
    with tier.lock:
        places, _ = tier.arena.find(ids, 0)
        hot = places >= 0
        if tier.departures != departures:
            cold = np.flatnonzero(~hot)
            found, stored = tier.fetch(ids[cold])
        there[:] = False
        there[cold[found]] = True
        values[cold[found]] = stored
        values[hot] = tier.copy(places[hot])[1]
    there |= hot
    return to_message(mix64(ids[there]), values[there], layout)
