# SPDX-License-Identifier: Apache-2.0
"""Checks of requests against a shard's tables.

Each batch is checked once, vectorised, before anything changes. Thread safety: pure functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rowhouse import message
from rowhouse.control import FREEZE_MODES
from rowhouse.error import InvalidRequestError, StalePartitionMapError, TableFrozenError, UnknownTableError
from rowhouse.placement import PartitionMap
from rowhouse.problem import nearest
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.table.push import TablePush, checked_push
from ps_server.table.table import Table


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


def check_map(version: int, partition_map: PartitionMap, shard: int) -> None:
    """StalePartitionMapError unless a request was routed by the map that the shard has."""
    if not partition_map.accepts(version):
        raise StalePartitionMapError(
            f"request routed by partition map {version}; shard {shard} has {partition_map.stamp}: an older "
            "map, or another cluster's; reload it with GetCluster"
        )


def check_owned(
    tables: Sequence[message.TableIds | message.TableGradients], partition_map: PartitionMap, shard: int
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


def checked_parts(request: message.PushRequest, tables: Mapping[str, Table]) -> list[tuple[Table, TablePush]]:
    """Check a push whole and sum its duplicates; nothing is changed, so no lock is needed.

    Raises InvalidRequestError and its kin.
    """
    parts: list[tuple[Table, TablePush]] = []
    names = [part.table for part in request.tables]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequestError(f"table {twice!r} is in the push twice; join its gradients")
    if request.sequence < 1:
        raise InvalidRequestError(f"sequence is {request.sequence}; it must be 1 or more")
    for part in request.tables:
        table = table_of(part.table, tables)
        push = checked_push(part, table.config)
        table.check_push(push.ids.shape[0])
        parts.append((table, push))
    return parts


def without_frozen(
    request: message.PushRequest, encoded: bytes | memoryview | None, parts: list[tuple[Table, TablePush]]
) -> tuple[message.PushRequest, bytes | memoryview | None, list[tuple[Table, TablePush]]]:
    """A checked push (and its bytes, None when they changed) without the tables that ignore pushes now: what
    is logged is what is applied.

    The caller holds the push lock: no push is applied after a freeze was answered. And it knows that the
    push is no repeat: one that was applied before the freeze is answered, not refused. Raises
    TableFrozenError where a table refuses.
    """
    modes = [table.frozen for table, _ in parts]
    if "refuse" in modes:
        name = parts[modes.index("refuse")][0].name
        raise TableFrozenError(f"table {name!r} is frozen: pushes are refused")
    if "ignore" not in modes:
        return request, encoded, parts
    kept = [i for i, mode in enumerate(modes) if mode != "ignore"]
    return replace(request, tables=tuple(request.tables[i] for i in kept)), None, [parts[i] for i in kept]
