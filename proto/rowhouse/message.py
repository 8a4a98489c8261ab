# SPDX-License-Identifier: Apache-2.0
"""The hot messages as Python sees them: NumPy arrays instead of bytes fields.

They mirror rowhouse.proto field by field; codec.py turns them into its exact encoding and back.
Arrays of a decoded message are views of the received buffer: read-only, valid as long as it lives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rowhouse.error import InvalidRequestError
from rowhouse.v1 import rowhouse_pb2 as pb


@dataclass(frozen=True, slots=True)
class TableIds:
    """Ids of one table: `ids` is (count,) uint64."""

    table: str
    dim: int
    ids: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class PullRequest:
    """One shard's part of a pull; `dtype` is the wire code wanted for the rows. With `changed_since`
    those rows only that records above that LSN may have changed."""

    map_version: int
    dtype: int
    read_only: bool
    tables: tuple[TableIds, ...]
    changed_since: int | None = None


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of one table: `rows` is (count, dim) of dtype.STORAGE[dtype]. With `changed`, packed bits,
    they are of those of n ids whose bit is set, the lowest first."""

    table: str
    dtype: int
    rows: NDArray[Any]
    changed: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class PullResponse:
    """One shard's answer to a pull, tables in the order of the request."""

    lsn: int
    tables: tuple[TableRows, ...]


@dataclass(frozen=True, slots=True)
class TableGradients:
    """Gradients of one table: `ids` (count,) uint64, `gradients` (count, dim) of dtype.STORAGE[dtype];
    `shows` and `clicks` (count,) float32 or None, for tables with a show/click policy."""

    table: str
    dtype: int
    ids: NDArray[np.uint64]
    gradients: NDArray[Any]
    learning_rate: float | None = None
    shows: NDArray[np.float32] | None = None
    clicks: NDArray[np.float32] | None = None

    def chosen(self, places: NDArray[np.int64]) -> "TableGradients":
        """The rows at `places`, (m,) int64, copied."""
        shows = None if self.shows is None else self.shows.take(places)
        clicks = None if self.clicks is None else self.clicks.take(places)
        return TableGradients(
            self.table,
            self.dtype,
            self.ids.take(places),
            self.gradients.take(places, axis=0),
            self.learning_rate,
            shows,
            clicks,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = (self.ids, self.gradients, self.shows, self.clicks)
        return sum(array.nbytes for array in arrays if array is not None)

    def copied(self) -> "TableGradients":
        """The same in memory of its own: not a view of a request's buffer, which it would keep whole."""
        return TableGradients(
            self.table,
            self.dtype,
            self.ids.copy(),
            self.gradients.copy(),
            self.learning_rate,
            None if self.shows is None else self.shows.copy(),
            None if self.clicks is None else self.clicks.copy(),
        )


@dataclass(frozen=True, slots=True)
class TableEdit:
    """Rows of one table by hand: `ids` (count,) uint64, each once. With `weights`, (count, dim) of
    dtype.STORAGE[dtype], they are assigned; without, removed. `state` is (count, state_size) float32, `shows`
    and `clicks` (count,) float32; None where a row keeps its own."""

    table: str
    dtype: int
    ids: NDArray[np.uint64]
    weights: NDArray[Any] | None = None
    state: NDArray[np.float32] | None = None
    shows: NDArray[np.float32] | None = None
    clicks: NDArray[np.float32] | None = None

    def chosen(self, places: NDArray[np.int64]) -> "TableEdit":
        """The rows at `places`, (m,) int64, copied."""
        arrays = (self.weights, self.state, self.shows, self.clicks)
        taken = [None if array is None else array.take(places, axis=0) for array in arrays]
        return TableEdit(self.table, self.dtype, self.ids.take(places), *taken)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = (self.ids, self.weights, self.state, self.shows, self.clicks)
        return sum(array.nbytes for array in arrays if array is not None)


TableChange = TableGradients | TableEdit
"""What a push does to one table."""


def joined_by_table(parts: Sequence[TableGradients]) -> tuple[TableGradients, ...]:
    """Parts of several pushes as one per table, in their order; those of a table have one dtype and rate."""
    found: dict[str, list[TableGradients]] = {}
    for part in parts:
        found.setdefault(part.table, []).append(part)
    return tuple(_joined(same) if len(same) > 1 else same[0] for same in found.values())


def _joined(parts: Sequence[TableGradients]) -> TableGradients:
    first = parts[0]
    assert len({(part.dtype, part.learning_rate) for part in parts}) == 1
    shows = clicks = None
    if any(p.shows is not None or p.clicks is not None for p in parts):  # without them: one show, no click
        ones = [np.ones(p.ids.shape[0], np.float32) if p.shows is None else p.shows for p in parts]
        none = [np.zeros(p.ids.shape[0], np.float32) if p.clicks is None else p.clicks for p in parts]
        shows, clicks = np.concatenate(ones), np.concatenate(none)
    return TableGradients(
        first.table,
        first.dtype,
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.gradients for p in parts]),
        first.learning_rate,
        shows,
        clicks,
    )


@dataclass(frozen=True, slots=True)
class PushRequest:
    """One shard's part of a push, named by (client_id, sequence): gradients, or rows by hand."""

    map_version: int
    client_id: int
    sequence: int
    tables: tuple[TableGradients, ...]
    edits: tuple[TableEdit, ...] = ()

    @staticmethod
    def of(
        map_version: int, client_id: int, sequence: int, changes: Sequence["TableChange"]
    ) -> "PushRequest":
        """A push of either kind; InvalidRequestError for both in one."""
        edits = tuple(change for change in changes if isinstance(change, TableEdit))
        tables = tuple(change for change in changes if isinstance(change, TableGradients))
        if edits and tables:
            raise InvalidRequestError("a push has gradients or rows by hand, not both")
        return PushRequest(map_version, client_id, sequence, tables, edits)

    @property
    def changes(self) -> Sequence["TableChange"]:
        """What it does to each table."""
        return self.edits or self.tables


@dataclass(frozen=True, slots=True)
class PushResponse:
    """Acknowledgement of a push."""

    lsn: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Contribution:
    """One trainer's part of a step of its group; `push` is named by (group, step)."""

    member: pb.Member
    push: PushRequest
