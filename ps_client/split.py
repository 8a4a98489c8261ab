# SPDX-License-Identifier: Apache-2.0
"""The pure core of a step: which distinct ids go to which shard, and where their rows belong.

    ids of a table ── distinct ──▶ Distinct(ids, inverse) ── split_pull ──▶ {shard: [Piece, …]}
    gradients ── sum_groups ──▶ TableGradients ── split_push ──▶ {shard: [TableGradients, …]}

No call is made here, so a blocking and an asyncio client share it. A piece that a shard refused,
because the partition map had changed, is split again by the same functions.

Invariants: 1. the pieces of one split hold each id once and nothing else; 2. a shard without ids has no
entry; 3. each part is within every limit of rowhouse/limit.py before any part is sent.
Thread safety: pure functions over immutable pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.error import InternalError, LimitExceededError
from rowhouse.kernel import as_read_only, ascend, deduplicate
from rowhouse.limit import (
    IDS_PER_REQUEST_MAX,
    MESSAGE_BYTES_MAX,
    TABLE_NAME_BYTES_MAX,
    TABLES_PER_REQUEST_MAX,
)
from rowhouse.message import PullRequest, PullResponse, TableGradients, TableIds
from rowhouse.placement import PartitionMap

from ps_client.kernel import group_by_shard
from ps_client.table import Table

TABLE_HEAD_BYTES_MAX: Final = TABLE_NAME_BYTES_MAX + 64
"""Encoded bytes of a table beside its arrays: its name and at most nine tags and varints."""


@dataclass(frozen=True, slots=True)
class Distinct:
    """The distinct ids of one table in one step.

    Attributes
    ----------
    table
        The table.
    ids
        (u,) uint64 in the order of first appearance.
    inverse
        (n,) int64: `ids[inverse[i]]` is the i-th id of the caller.
    """

    table: Table
    ids: NDArray[np.uint64]
    inverse: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one shard is asked of one table: `ids` go to rows `positions` of table number `index`.

    `positions` is None where the piece is the whole table in order, which spares a copy of its rows.
    """

    index: int
    table: Table
    ids: NDArray[np.uint64]
    positions: NDArray[np.int64] | None


def distinct(table: Table, ids: NDArray[np.uint64]) -> Distinct:
    """Dedup with inverse of a checked (n,) uint64 array."""
    if ascend(as_read_only(ids)):  # as np.unique and torch.unique leave them
        return Distinct(table, ids.copy(), np.arange(ids.shape[0]))
    inverse = np.empty(ids.shape[0], np.int64)
    return Distinct(table, deduplicate(as_read_only(ids), inverse), inverse)


def split_pull(
    pieces: Sequence[Piece], partition_map: PartitionMap, wire_dtype: int
) -> dict[int, list[Piece]]:
    """Pieces by shard; LimitExceededError if a shard's part is past a limit."""
    parts: dict[int, list[Piece]] = {}
    shard_count = partition_map.shard_count
    for piece in pieces:
        if shard_count == 1:
            parts.setdefault(0, []).append(piece)
            continue
        order, bounds = group_by_shard(as_read_only(piece.ids), partition_map.shards, shard_count)
        for shard in np.flatnonzero(np.diff(bounds)).tolist():
            chosen = order[bounds[shard] : bounds[shard + 1]]
            positions = chosen if piece.positions is None else piece.positions.take(chosen)
            part = Piece(piece.index, piece.table, piece.ids.take(chosen), positions)
            parts.setdefault(shard, []).append(part)
    for shard, part_pieces in parts.items():
        element_bytes = dtype.STORAGE[wire_dtype].itemsize
        _check_limits("pull", shard, [(p.ids.shape[0], 8 + p.table.dim * element_bytes) for p in part_pieces])
    return parts


def split_push(
    tables: Sequence[TableGradients], partition_map: PartitionMap
) -> dict[int, list[TableGradients]]:
    """Gradients by shard; LimitExceededError if a shard's part is past a limit."""
    parts: dict[int, list[TableGradients]] = {}
    shard_count = partition_map.shard_count
    for whole in tables:
        if shard_count == 1:
            parts.setdefault(0, []).append(whole)
            continue
        order, bounds = group_by_shard(as_read_only(whole.ids), partition_map.shards, shard_count)
        for shard in np.flatnonzero(np.diff(bounds)).tolist():
            chosen = order[bounds[shard] : bounds[shard + 1]]
            parts.setdefault(shard, []).append(whole.chosen(chosen))
    for shard, gradients in parts.items():
        _check_limits("push", shard, [(g.ids.shape[0], _bytes_per_id(g)) for g in gradients])
    return parts


def check_rows(gradients: TableGradients, partition_map: PartitionMap, rows_max: int) -> None:
    """LimitExceededError if a shard's part of a table has more rows than are sure to fit into its memory."""
    counts = np.bincount(partition_map.shards_of(gradients.ids), minlength=partition_map.shard_count)
    shard = int(counts.argmax())
    if counts[shard] > rows_max:
        raise LimitExceededError(
            f"table {gradients.table!r}: a push of {counts[shard]} distinct ids to shard {shard}; its share "
            f"of memory_budget holds {rows_max} rows: raise the budget or push fewer ids at once"
        )


def _bytes_per_id(gradients: TableGradients) -> int:
    events = (gradients.shows is not None) + (gradients.clicks is not None)
    return int(8 + gradients.gradients.shape[1] * gradients.gradients.itemsize + 4 * events)


def _check_limits(call: str, shard: int, sizes: Sequence[tuple[int, int]]) -> None:
    """Refuse a part that the shard would refuse; `sizes` are (ids, bytes per id) of each of its tables."""
    what = f"{call} to shard {shard}"
    if len(sizes) > TABLES_PER_REQUEST_MAX:
        raise LimitExceededError(f"{what}: {len(sizes)} tables; at most {TABLES_PER_REQUEST_MAX} in one step")
    if (count := sum(ids for ids, _ in sizes)) > IDS_PER_REQUEST_MAX:
        raise LimitExceededError(f"{what}: {count} distinct ids; at most {IDS_PER_REQUEST_MAX} in one step")
    message_bytes = sum(TABLE_HEAD_BYTES_MAX + ids * id_bytes for ids, id_bytes in sizes)
    if message_bytes > MESSAGE_BYTES_MAX:
        raise LimitExceededError(
            f"{what}: a message of {message_bytes} bytes; at most {MESSAGE_BYTES_MAX}: use smaller steps"
        )


def pull_request(
    pieces: Sequence[Piece], partition_map: PartitionMap, wire_dtype: int, read_only: bool
) -> PullRequest:
    """The message that asks one shard for its pieces."""
    tables = tuple(TableIds(p.table.name, p.table.dim, p.ids) for p in pieces)
    return PullRequest(partition_map.version, wire_dtype, read_only, tables)


def check_answer(endpoint: str, request: PullRequest, response: PullResponse) -> None:
    """InternalError unless the answer holds the request's tables, in order, with a row for each id."""
    asked = [(t.table, (t.ids.shape[0], t.dim), request.dtype) for t in request.tables]
    given = [(t.table, t.rows.shape, t.dtype) for t in response.tables]
    if asked != given:
        raise InternalError(f"shard at {endpoint} answered a pull of {asked[:3]} with {given[:3]}")
