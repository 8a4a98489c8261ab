# SPDX-License-Identifier: Apache-2.0
"""Rows by hand: read with everything that is kept of them, listed, assigned and deleted.

An assignment and a deletion travel as a push does: each shard logs it, and applies it once however often it
had to be sent. They are made in parts of at most PART_ROWS rows. When one fails, the parts before it are
applied; making the whole again is harmless.

Thread safety: functions over a client's parts, from any thread.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rowhouse import dtype
from rowhouse.error import InternalError, InvalidRequestError
from rowhouse.limit import CONTROL_BYTES_MAX
from rowhouse.message import TableEdit
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.cluster import Cluster
from ps_client.exchange import Exchange
from ps_client.table import Table
from ps_client.transport.transport import Transport
from ps_client.validation import as_array, as_ids

PART_ROWS: Final = 16_384
"""Rows of one push: pushes of trainers wait for it a few milliseconds."""

READ_IDS: Final = (CONTROL_BYTES_MAX - 1024) // 8
READ_BYTES: Final = 1 << 20
ROW_BYTES: Final = 32
"""Ids of one request, bytes of its answer, and what a row has at most beside its weights and state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of one table, n of them, with everything that the shards keep.

    Attributes
    ----------
    ids
        (n,) uint64.
    weights
        (n, dim) float32, whatever the table's dtype.
    state
        (n, state_size) float32, of the table's optimizer; state_size is 0 where it keeps none.
    lsn
        (n,) uint64: every push of the row's shard at or below it is in the row.
    push_time, push_count
        (n,) uint32: seconds since 1970 of the last push, and the number of pushes; None where no policy of
        the table reads them.
    shows, clicks
        (n,) float32, decayed to the last push; None where the table has no show/click policy.
    """

    ids: NDArray[np.uint64]
    weights: NDArray[np.float32]
    state: NDArray[np.float32]
    lsn: NDArray[np.uint64]
    push_time: NDArray[np.uint32] | None = None
    push_count: NDArray[np.uint32] | None = None
    shows: NDArray[np.float32] | None = None
    clicks: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def columns(self) -> dict[str, NDArray[Any]]:
        """Its arrays by name, without those that the table does not keep."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in named.items() if array is not None}

    def chosen(self, places: NDArray[np.int64]) -> Self:
        """The rows at `places`, (m,) int64."""
        return replace(self, **{name: array[places] for name, array in self.columns().items()})


def rows_of(table: Table, given: pb.Rows) -> Rows:
    """The rows of a shard's answer."""
    ids = np.frombuffer(given.ids, "<u8")
    count = ids.shape[0]
    code = next(code for code, name in dtype.NAMES.items() if name == table.dtype)
    words = {"push_time": "<u4", "push_count": "<u4", "shows": "<f4", "clicks": "<f4"}
    kept = {name: getattr(given, name) for name in words}
    try:
        stored = np.frombuffer(given.weights, dtype.STORAGE[code]).reshape(count, table.dim)
        return Rows(
            ids=ids,
            weights=np.array(dtype.widen(stored, code)),
            state=np.frombuffer(given.state, "<f4").reshape(count, -1 if given.state else 0),
            lsn=np.frombuffer(given.lsn, "<u8"),
            **{name: np.frombuffer(data, words[name]) for name, data in kept.items() if data},
        )
    except ValueError as error:
        raise InternalError(
            f"table {table.name!r}: a shard answered with rows that do not fit: {error}"
        ) from None


def joined(table: Table, parts: Sequence[Rows]) -> Rows:
    """Several rows as one, in their order; a part without rows knows no state size."""
    full = [part.columns() for part in parts if len(part)]
    if not full:
        return rows_of(table, pb.Rows())
    return Rows(**{name: np.concatenate([columns[name] for columns in full]) for name in full[0]})


def read_rows(cluster: Cluster, exchange: Exchange, table: Table, ids: ArrayLike) -> Rows:
    """See Client.read_rows."""
    wanted = as_ids(table, ids)
    partition_map = cluster.partition_map
    owners = partition_map.shards_of(wanted)
    size = max(1, min(READ_IDS, READ_BYTES // _row_bytes_max(table)))
    calls: list[Callable[[], Any]] = []
    asked: list[NDArray[np.int64]] = []
    for shard in np.unique(owners).tolist():
        mine = np.flatnonzero(owners == shard)
        for start in range(0, mine.shape[0], size):
            places = mine[start : start + size]
            request = pb.ReadRowsRequest(
                map_version=partition_map.stamp, table=table.name, ids=wanted[places].astype("<u8").tobytes()
            )
            calls.append(partial(exchange.persist, partial(_read, cluster.transports[shard], request)))
            asked.append(places)
    answers = [rows_of(table, answer.rows) for answer in exchange.together(calls)]
    found = joined(table, answers)
    at = [mine[np.isin(wanted[mine], part.ids)] for mine, part in zip(asked, answers, strict=True)]
    return found.chosen(np.argsort(np.concatenate(at))) if len(found) else found


def _read(transport: Transport, request: pb.ReadRowsRequest, timeout_s: float) -> Any:
    return transport.call("ReadRows", request, timeout_s)


def _row_bytes_max(table: Table) -> int:
    """No optimizer keeps more than two numbers for each weight, and one more."""
    return ROW_BYTES + table.dim * 4 + 4 * (2 * table.dim + 1)


def list_rows(cluster: Cluster, exchange: Exchange, table: Table) -> Iterator[Rows]:
    """See Client.list_rows."""
    for transport in cluster.transports:
        key, begun = 0, False
        while key or not begun:
            request = pb.ListRowsRequest(table=table.name, first_key=key)
            page = exchange.persist(partial(_list, transport, request))
            if page.rows.ids:
                yield rows_of(table, page.rows)
            key, begun = page.next_key, True


def _list(transport: Transport, request: pb.ListRowsRequest, timeout_s: float) -> Any:
    return transport.call("ListRows", request, timeout_s)


def assign(
    exchange: Exchange,
    table: Table,
    ids: ArrayLike,
    weights: ArrayLike,
    state: ArrayLike | None,
    shows: ArrayLike | None,
    clicks: ArrayLike | None,
) -> None:
    """See Client.assign."""
    wanted = _distinct(table, ids)
    count = wanted.shape[0]
    edit = TableEdit(
        table.name,
        dtype.FLOAT32,
        wanted,
        _numbers(table, "weights", weights, (count, table.dim)),
        None if state is None else _numbers(table, "state", state, (count, None)),
        None if shows is None else _numbers(table, "shows", shows, (count,)),
        None if clicks is None else _numbers(table, "clicks", clicks, (count,)),
    )
    _push(exchange, edit)


def delete(exchange: Exchange, table: Table, ids: ArrayLike) -> None:
    """See Client.delete."""
    _push(exchange, TableEdit(table.name, 0, np.unique(as_ids(table, ids))))


def _push(exchange: Exchange, edit: TableEdit) -> None:
    for start in range(0, edit.ids.shape[0], PART_ROWS):
        places = np.arange(start, min(start + PART_ROWS, edit.ids.shape[0]))
        exchange.push([edit.chosen(places)])


def _distinct(table: Table, ids: ArrayLike) -> NDArray[np.uint64]:
    wanted = as_ids(table, ids)
    distinct, counts = np.unique(wanted, return_counts=True)
    if distinct.shape[0] != wanted.shape[0]:
        raise InvalidRequestError(f"table {table.name!r}: id {distinct[counts > 1][0]} is there twice")
    return wanted


def _numbers(
    table: Table, name: str, values: ArrayLike, shape: tuple[int | None, ...]
) -> NDArray[np.float32]:
    """What a caller gave as a finite float32 array of that shape; None stands for any size."""
    what = f"table {table.name!r}: {name}"
    array = as_array(what, values)
    fits = array.ndim == len(shape) and all(w in (None, n) for w, n in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.kind not in "fiub":
        raise InvalidRequestError(
            f"{what}: {array.dtype} of shape {array.shape}; it must be numbers of shape "
            f"{tuple('any' if size is None else size for size in shape)}"
        )
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(numbers).all():
        at = tuple(int(axis[0]) for axis in np.nonzero(~np.isfinite(numbers)))
        raise InvalidRequestError(f"{what}{list(at)} is {numbers[at]:g}; it must be finite")
    return numbers
