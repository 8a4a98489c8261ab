# SPDX-License-Identifier: Apache-2.0
"""Checks of requests against a shard's tables.

Each batch is checked once, vectorised, before anything changes. Thread safety: pure functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from rowhouse import message
from rowhouse.control import FREEZE_MODES
from rowhouse.error import InvalidRequestError, StalePartitionMapError, TableFrozenError, UnknownTableError
from rowhouse.placement import PartitionMap
from rowhouse.problem import nearest
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.table.edit import RowEdit, checked_edit
from ps_server.table.push import Ids, TablePush, checked_push
from ps_server.table.table import Table

Part = tuple[Table, TablePush | RowEdit]
"""A table, and what a push does to it."""


def table_of(name: str, tables: Mapping[str, Table]) -> Table:
    """The table of that name; UnknownTableError names the nearest one."""
    table = tables.get(name)
    if table is None:
        raise UnknownTableError(f"table {name!r} is unknown; {nearest(name, list(tables))}")
    return table


def evictable_table_of(name: str, tables: Mapping[str, Table]) -> Table:
    """table_of; InvalidRequestError when it has no eviction policy."""
    table = table_of(name, tables)
    if not table.config.eviction:
        raise InvalidRequestError(f"table {name!r} has no eviction policy; declare one in its config")
    return table


def freeze_mode_of(request: pb.SetTableFreezeRequest) -> str:
    """The mode that a request asks for, as configs write it; InvalidRequestError for any other."""
    names = {mode: name for name, mode in FREEZE_MODES.items()}
    if request.mode not in names:
        raise InvalidRequestError(f"freeze mode is {request.mode}; it must be one of {list(names)}")
    return names[request.mode]


def ids_of(request: pb.ReadRowsRequest) -> Ids:
    """The ids that a request asks for, (n,) uint64; InvalidRequestError for a part of one."""
    if len(request.ids) % 8:
        raise InvalidRequestError(f"ids have {len(request.ids)} bytes; each id has 8")
    return np.frombuffer(request.ids, "<u8")


def check_map(version: int, partition_map: PartitionMap, shard: int) -> None:
    """StalePartitionMapError unless a request was routed by the map that the shard has."""
    if not partition_map.accepts(version):
        raise StalePartitionMapError(
            f"request routed by partition map {version}; shard {shard} has {partition_map.stamp}: an older "
            "map, or another cluster's; reload it with GetCluster"
        )


def check_owned(
    tables: Sequence[message.TableIds | message.TableChange], partition_map: PartitionMap, shard: int
) -> None:
    """InvalidRequestError when an id belongs to another shard: its row here would not be the row there.

    One compare per id, 0.4 ns. The request was routed by this map, so such an id is a fault of the caller.
    """
    for part in tables:
        at = partition_map.first_foreign(part.ids, shard)
        if at >= 0:
            owner = int(partition_map.shards_of(part.ids[at : at + 1])[0])
            raise InvalidRequestError(
                f"table {part.table!r}: id {int(part.ids[at])} (row {at}) belongs to shard {owner}; this is "
                f"shard {shard}: the shard of an id follows from the partition map that GetCluster gives"
            )


def checked_parts(request: message.PushRequest, tables: Mapping[str, Table]) -> list[Part]:
    """Check a push whole, and sum the duplicates of its gradients; nothing is changed, so no lock is needed.

    Raises InvalidRequestError and its kin.
    """
    if not request.edits:
        return [*checked_gradients(request, tables)]
    _check_names(request)
    parts: list[Part] = []
    for edit in request.edits:
        table = table_of(edit.table, tables)
        if edit.weights is not None:
            table.check_push(edit.ids.shape[0])
        parts.append((table, checked_edit(edit, table.config)))
    return parts


def checked_gradients(
    request: message.PushRequest, tables: Mapping[str, Table]
) -> list[tuple[Table, TablePush]]:
    """`checked_parts` of a push of gradients."""
    _check_names(request)
    parts: list[tuple[Table, TablePush]] = []
    for part in request.tables:
        table = table_of(part.table, tables)
        push = checked_push(part, table.config)
        table.check_push(push.ids.shape[0])
        parts.append((table, push))
    return parts


def _check_names(request: message.PushRequest) -> None:
    names = [part.table for part in request.changes]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequestError(f"table {twice!r} is in the push twice; join its gradients")
    if request.sequence < 1:
        raise InvalidRequestError(f"sequence is {request.sequence}; it must be 1 or more")


def without_frozen(
    request: message.PushRequest, encoded: bytes | memoryview | None, parts: list[Part]
) -> tuple[message.PushRequest, bytes | memoryview | None, list[Part]]:
    """A checked push (and its bytes, None when they changed) without the tables that ignore pushes now: what
    is logged is what is applied.

    The caller holds the push lock: no push is applied after a freeze was answered. And it knows that the
    push is no repeat: one that was applied before the freeze is answered, not refused. Raises
    TableFrozenError where a table refuses; one that ignores pushes refuses rows by hand.
    """
    modes = [table.frozen for table, _ in parts]
    for mode, (table, part) in zip(modes, parts, strict=True):
        if mode == "refuse" or (mode == "ignore" and isinstance(part, RowEdit)):
            what = "rows by hand" if isinstance(part, RowEdit) else "pushes"
            raise TableFrozenError(f"table {table.name!r} is frozen: {what} are refused")
    if "ignore" not in modes:
        return request, encoded, parts
    kept = [i for i, mode in enumerate(modes) if mode != "ignore"]
    return replace(request, tables=tuple(request.tables[i] for i in kept)), None, [parts[i] for i in kept]
