# SPDX-License-Identifier: Apache-2.0
"""What shards report, as plain values: counters, checkpoints, saved tables.

The names of fields are those of rowhouse.proto; no message of protobuf leaves the client.
Thread safety: pure functions and immutable values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

from rowhouse.control import FREEZE_MODES
from rowhouse.error import InvalidRequestError, PreconditionError
from rowhouse.problem import counted
from rowhouse.v1 import rowhouse_pb2 as pb

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableStats:
    """Live counters of one table on one shard; those of ids count since the shard was started.

    Attributes
    ----------
    name
        The table's name.
    rows
        Live rows, in memory or on disk.
    rows_exact
        False while rows are still being counted after a crash.
    hot_rows, dirty_rows
        Rows in memory, and those of them that the store does not have yet.
    record_bytes, index_bytes
        Memory of the hot rows: their records, and the index that finds them.
    pulled_ids, hot_hits
        Ids that were pulled, and how many of them were in memory.
    pushed_ids
        Ids that were pushed, duplicates summed.
    spilled_rows
        Rows that left memory to make room.
    evicted_rows
        Rows that a policy removed.
    refused_ids
        Ids that admission kept out.
    disk_bytes
        Bytes of the table's files on disk.
    frozen
        Whether the table does not apply pushes now.
    freeze
        What it does with a push: "off" (applies it), "refuse" or "ignore".
    """

    name: str
    rows: int
    rows_exact: bool
    hot_rows: int
    dirty_rows: int
    record_bytes: int
    index_bytes: int
    pulled_ids: int
    hot_hits: int
    pushed_ids: int
    spilled_rows: int
    evicted_rows: int
    refused_ids: int
    disk_bytes: int
    frozen: bool
    freeze: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardStats:
    """Live counters of one shard.

    Attributes
    ----------
    shard
        Its number.
    applied_lsn, durable_lsn, checkpoint_lsn
        Log sequence numbers of the newest push that is applied, of the newest that is durable, and of
        the last checkpoint.
    log_bytes, log_records
        What a recovery would replay of the push log.
    memory_budget_bytes, memory_used_bytes
        The budget, and what is charged against it.
    poison
        Why the shard refuses writes; empty while it is healthy.
    tables
        Its tables, in the order of the config.
    """

    shard: int
    applied_lsn: int
    durable_lsn: int
    checkpoint_lsn: int
    log_bytes: int
    log_records: int
    memory_budget_bytes: int
    memory_used_bytes: int
    poison: str
    tables: tuple[TableStats, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One shard's checkpoint.

    Attributes
    ----------
    lsn
        Everything up to this log sequence number is in the store.
    rows_written
        Rows that this checkpoint wrote.
    """

    lsn: int
    rows_written: int


def shard_stats(answer: pb.GetStatsResponse) -> ShardStats:
    """The counters that one shard told."""
    tables = tuple(_plain(TableStats, table, freeze=_freeze(table)) for table in answer.tables)
    return _plain(ShardStats, answer, tables=tables)


def _freeze(table: pb.TableStats) -> str:
    """The word of its freeze mode; an older shard tells only whether it is frozen."""
    words = {mode: word for word, mode in FREEZE_MODES.items()}
    return words.get(table.freeze, "refuse" if table.frozen else "off")


def checkpoint_of(answer: pb.CreateCheckpointResponse) -> Checkpoint:
    """The checkpoint that one shard made."""
    return _plain(Checkpoint, answer)


def _plain(kind: type[T], message: object, **given: Any) -> T:
    """A message as the dataclass `kind`, whose fields have the same names; `given` are some of them."""
    names = [field.name for field in fields(kind) if field.name not in given]  # type: ignore[arg-type]
    return kind(**{name: getattr(message, name) for name in names}, **given)


@dataclass(frozen=True, kw_only=True)
class SavedTables:
    """One save of all tables of a cluster.

    Attributes
    ----------
    name, token
        What it was saved as, and the random number that tells it from any other save of that name.
    lsns
        The log sequence number of each shard.
    map_version
        Version of the partition map.
    dims
        Dim of each table.
    """

    name: str
    token: int
    lsns: tuple[int, ...]
    map_version: int
    dims: Mapping[str, int]

    def to_document(self) -> dict[str, Any]:
        """As plain Python values, for JSON or a training state's file."""
        return {**vars(self), "lsns": list(self.lsns), "dims": dict(self.dims)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Back from `to_document`; InvalidRequestError when it is something else."""
        try:
            return cls(**{**document, "lsns": tuple(document["lsns"])})
        except (TypeError, KeyError) as error:
            raise InvalidRequestError(f"a reference to saved tables is not complete: {error}") from None


def one_save(map_version: int, dims: Mapping[str, int], answers: Sequence[pb.SavedTables]) -> SavedTables:
    """The save that all shards have just made."""
    return SavedTables(
        name=answers[0].name,
        token=answers[0].token,
        lsns=tuple(answer.lsn for answer in answers),
        map_version=map_version,
        dims=dims,
    )


def check_saved(
    saved: SavedTables, map_version: int, dims: Mapping[str, int], answers: Sequence[pb.SavedTables]
) -> None:
    """PreconditionError unless the shards hold just what was saved.

    Parameters
    ----------
    saved
        What it was saved as.
    map_version, dims
        The cluster's, now.
    answers
        By shard.
    """
    what = f"tables saved as {saved.name!r}"
    if saved.map_version != map_version:
        raise PreconditionError(
            f"{what} are of a cluster of {counted(len(saved.lsns), 'shard')} (partition map "
            f"{saved.map_version:#x}); "
            f"this one has {len(answers)} ({map_version:#x})"
        )
    for name, dim in saved.dims.items():
        if dims.get(name) != dim:
            raise PreconditionError(f"{what}: table {name!r} had dim {dim}; now it is {dims.get(name)}")
    for shard, (answer, lsn) in enumerate(zip(answers, saved.lsns, strict=True)):
        if answer.token == saved.token and answer.lsn == answer.applied_lsn == lsn:
            continue
        last = f"last saved as {answer.name!r} at LSN {answer.lsn}" if answer.name else "never saved"
        raise PreconditionError(
            f"{what} at LSN {lsn} are not what shard {shard} holds: it is at LSN {answer.applied_lsn}, {last}"
            f". Stop the cluster and run `ps-server restore --config FILE --name {saved.name}`"
        )
