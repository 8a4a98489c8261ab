# SPDX-License-Identifier: Apache-2.0
"""Checks of requests against a shard's tables, and the answer that describes them.

Each batch is checked once, vectorised, before anything changes. Thread safety: pure functions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype, message
from rowhouse.error import InvalidRequestError, TableFrozenError, UnknownTableError
from rowhouse.placement import PartitionMap
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.arena import Ids
from ps_server.config import ClusterConfig
from ps_server.config_error import nearest
from ps_server.kernel.gradient import first_non_finite, sum_duplicates
from ps_server.table import Table


@dataclass(frozen=True, slots=True)
class PushPart:
    """One table's part of a push, checked: distinct ids and their summed gradients."""

    table: Table
    ids: Ids
    gradients: NDArray[np.float32]
    learning_rate: float | None


def as_read_only(array: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A view that kernels see as one type wherever the array came from, so they compile once."""
    view = array.view()
    view.flags.writeable = False
    return view


def table_of(name: str, tables: Mapping[str, Table]) -> Table:
    """The table of that name; UnknownTableError names the nearest one."""
    table = tables.get(name)
    if table is None:
        raise UnknownTableError(f"table {name!r} is unknown; {nearest(name, list(tables))}")
    return table


def check_dim(table: Table, dim: int) -> None:
    """InvalidRequestError unless `dim` is the table's."""
    if dim != table.layout.dim:
        raise InvalidRequestError(f"table {table.name!r}: dim is {dim}; it must be {table.layout.dim}")


def checked_parts(request: message.PushRequest, tables: Mapping[str, Table]) -> list[PushPart]:
    """Check a push whole and sum its duplicates; nothing is changed, so no lock is needed.

    Raises InvalidRequestError and its kin, TableFrozenError.
    """
    parts: list[PushPart] = []
    names = [part.table for part in request.tables]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequestError(f"table {twice!r} is in the push twice; join its gradients")
    if request.sequence < 1:
        raise InvalidRequestError(f"sequence is {request.sequence}; it must be 1 or more")
    for part in request.tables:
        table = table_of(part.table, tables)
        if table.frozen == "refuse":
            raise TableFrozenError(f"table {table.name!r} is frozen: pushes are refused")
        check_dim(table, part.gradients.shape[1])
        rate = part.learning_rate
        if rate is not None and not (np.isfinite(rate) and rate > 0):
            raise InvalidRequestError(
                f"table {table.name!r}: learning rate is {rate}; it must be finite and above 0"
            )
        gradients = dtype.widen(part.gradients, part.dtype)
        bad = int(first_non_finite(gradients))
        if bad >= 0:
            row, column = divmod(bad, table.layout.dim)
            raise InvalidRequestError(
                f"table {table.name!r}: the gradient of id {int(part.ids[row])} (row {row}, column "
                f"{column}) is {gradients[row, column]}; it must be finite"
            )
        ids, gradients = sum_duplicates(as_read_only(part.ids), gradients)
        table.check_push(ids.shape[0])
        parts.append(PushPart(table, ids, gradients, rate))
    return parts


def cluster_message(
    config: ClusterConfig, index: int, partition_map: PartitionMap, tables: Mapping[str, Table]
) -> pb.GetClusterResponse:
    """Tables, endpoints and the partition map, as a client asks for them."""
    infos = [
        pb.TableInfo(
            name=name, dim=t.layout.dim, dtype=cast(pb.Dtype, t.layout.dtype),
            config_json=json.dumps(t.config.model_dump(mode="json")),
        )
        for name, t in tables.items()
    ]  # fmt: skip
    return pb.GetClusterResponse(
        map_version=partition_map.version, shard=index, endpoints=config.endpoints,
        partition_shards=partition_map.shards.tobytes(), tables=infos,
    )  # fmt: skip
