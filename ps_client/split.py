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
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.error import InternalError, LimitExceededError
from rowhouse.kernel import as_read_only, ascend, deduplicate
from rowhouse.limit import (
    ANSWER_HEAD_BYTES,
    IDS_PER_REQUEST_MAX,
    MESSAGE_BYTES_MAX,
    TABLE_NAME_BYTES_MAX,
    TABLES_PER_REQUEST_MAX,
)
from rowhouse.message import PullRequest, PullResponse, TableChange, TableGradients, TableIds
from rowhouse.placement import PartitionMap

from ps_client.kernel import group_by_shard
from ps_client.table import Table

Change = TypeVar("Change", TableGradients, TableChange)

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
    pieces: Sequence[Piece],
    partition_map: PartitionMap,
    wire_dtype: int,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
) -> tuple[dict[int, list[Piece]], list[Piece]]:
    """Pieces by shard, and what must wait for a further call, where a shard's part is more than one message.

    LimitExceededError if a shard's part has too many ids or tables.
    """
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
    later: list[Piece] = []
    for shard, part_pieces in parts.items():
        _check_counts("pull", shard, [p.ids.shape[0] for p in part_pieces])
        parts[shard] = _one_message(part_pieces, dtype.STORAGE[wire_dtype].itemsize, message_bytes_max, later)
    return parts, later


def _one_message(
    pieces: Sequence[Piece], element_bytes: int, message_bytes_max: int, later: list[Piece]
) -> list[Piece]:
    """A shard's first pieces, as far as request and answer fit (one id at least); `later` gets the rest."""
    now: list[Piece] = []
    left_bytes = message_bytes_max
    for piece in pieces:
        left_bytes -= ANSWER_HEAD_BYTES
        id_bytes = 8 + piece.table.dim * element_bytes
        count = max(left_bytes // id_bytes, 0 if now else 1)
        left_bytes -= min(count, piece.ids.shape[0]) * id_bytes
        if count >= piece.ids.shape[0]:
            now.append(piece)
            continue
        positions = np.arange(piece.ids.shape[0]) if piece.positions is None else piece.positions
        for part, ids in ((now, slice(None, count)), (later, slice(count, None))):
            if ids.stop != 0:
                part.append(Piece(piece.index, piece.table, piece.ids[ids], positions[ids]))
        left_bytes = 0
    return now


def split_push(
    tables: Sequence[Change],
    partition_map: PartitionMap,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
) -> dict[int, list[Change]]:
    """Gradients, or rows by hand, by shard; LimitExceededError if a shard's part is past a limit."""
    parts: dict[int, list[Change]] = {}
    shard_count = partition_map.shard_count
    for whole in tables:
        if shard_count == 1:
            parts.setdefault(0, []).append(whole)
            continue
        order, bounds = group_by_shard(as_read_only(whole.ids), partition_map.shards, shard_count)
        for shard in np.flatnonzero(np.diff(bounds)).tolist():
            chosen = order[bounds[shard] : bounds[shard + 1]]
            parts.setdefault(shard, []).append(whole.chosen(chosen))
    for shard, changes in parts.items():
        _check_counts("push", shard, [change.ids.shape[0] for change in changes])
        push_bytes = sum(TABLE_HEAD_BYTES_MAX + change.nbytes for change in changes)
        if push_bytes > message_bytes_max:
            count = sum(change.ids.shape[0] for change in changes)
            raise LimitExceededError(
                f"push to shard {shard}: a message of {push_bytes} bytes for {count} ids; at most "
                f"{message_bytes_max}: use smaller steps, or raise memory_budget"
            )
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


def _check_counts(call: str, shard: int, counts: Sequence[int]) -> None:
    """Refuse a part that the shard would refuse; `counts` are the ids of each of its tables."""
    what = f"{call} to shard {shard}"
    if len(counts) > TABLES_PER_REQUEST_MAX:
        raise LimitExceededError(
            f"{what}: {len(counts)} tables; at most {TABLES_PER_REQUEST_MAX} in one step"
        )
    if (count := sum(counts)) > IDS_PER_REQUEST_MAX:
        raise LimitExceededError(f"{what}: {count} distinct ids; at most {IDS_PER_REQUEST_MAX} in one step")


def pull_request(
    pieces: Sequence[Piece],
    partition_map: PartitionMap,
    wire_dtype: int,
    read_only: bool,
    changed_since: int | None = None,
) -> PullRequest:
    """The message that asks one shard for its pieces."""
    tables = tuple(TableIds(p.table.name, p.table.dim, p.ids) for p in pieces)
    return PullRequest(partition_map.stamp, wire_dtype, read_only, tables, changed_since)


def check_answer(endpoint: str, request: PullRequest, response: PullResponse) -> None:
    """InternalError unless the answer holds the request's tables, in order, with a row for each id; or, of
    what changed, with a bit for each."""
    asked = [(t.table, (t.ids.shape[0], t.dim), request.dtype) for t in request.tables]
    given: list[tuple[str, tuple[int, ...], int]] = []
    for (_, (count, _dim), _code), t in zip(asked, response.tables, strict=False):
        whole = t.changed is not None and t.changed.shape[0] == -(-count // 8)
        given.append((t.table, (count if whole else t.rows.shape[0], t.rows.shape[1]), t.dtype))
    if asked != given or len(asked) != len(response.tables):
        raise InternalError(f"shard at {endpoint} answered a pull of {asked[:3]} with {given[:3]}")
