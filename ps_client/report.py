# SPDX-License-Identifier: Apache-2.0
"""What names saved tables, and how it is compared with what the shards hold.

Thread safety: pure functions and immutable values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rowhouse.error import InvalidRequestError, PreconditionError
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.cluster import Cluster


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


def one_save(cluster: Cluster, answers: Sequence[pb.SavedTables]) -> SavedTables:
    """The save that all shards have just made."""
    return SavedTables(
        name=answers[0].name,
        token=answers[0].token,
        lsns=tuple(answer.lsn for answer in answers),
        map_version=cluster.partition_map.version,
        dims={name: table.dim for name, table in cluster.tables.items()},
    )


def check_saved(saved: SavedTables, cluster: Cluster, answers: Sequence[pb.SavedTables]) -> None:
    """PreconditionError unless the shards hold just what was saved; `answers` by shard."""
    what = f"tables saved as {saved.name!r}"
    if saved.map_version != cluster.partition_map.version:
        raise PreconditionError(
            f"{what} are of a cluster of {len(saved.lsns)} shards (partition map {saved.map_version:#x}); "
            f"this one has {len(answers)} ({cluster.partition_map.version:#x})"
        )
    dims = {name: table.dim for name, table in cluster.tables.items()}
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
