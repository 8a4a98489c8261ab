# SPDX-License-Identifier: Apache-2.0
"""Which shard holds an id: partition = high bits of mix64(id), shard = partition map[partition].

Invariants: 1. a partition never depends on the number of shards; 2. a map names a shard for each of
the PARTITIONS partitions; 3. maps with equal shards have equal versions, so a restart keeps it.
Thread safety: a PartitionMap is immutable.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from rowhouse.error import InvalidRequestError
from rowhouse.kernel import as_read_only
from rowhouse.limit import CLUSTER_ID_PATTERN, PARTITIONS, SHARDS_MAX
from rowhouse.mix import mix64_scalar

PARTITION_SHIFT: Final = np.uint64(64 - (PARTITIONS.bit_length() - 1))
"""Bits to drop from mix64(id) to get its partition."""

_BLOCK: Final = 1024


@njit(nogil=True, cache=True)
def partitions_of(ids: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Partition of each id; `ids` is (n,) uint64, the answer a new (n,) uint16."""
    out = np.empty(ids.shape[0], np.uint16)
    for i in range(ids.shape[0]):
        out[i] = mix64_scalar(ids[i]) >> PARTITION_SHIFT
    return out


@njit(nogil=True, cache=True)
def first_outside(ids: NDArray[np.uint64], first: np.uint64, size: np.uint64) -> int:
    """Index of the first of `ids` ((n,) uint64) whose partition is not one of `size` from `first` on; -1 if
    there is none."""
    for begin in range(0, ids.shape[0], _BLOCK):
        block = ids[begin : min(begin + _BLOCK, ids.shape[0])]
        outside = np.uint64(0)
        for i in range(block.shape[0]):  # counted without an exit, in vectors
            outside += np.uint64((mix64_scalar(block[i]) >> PARTITION_SHIFT) - first >= size)
        if outside:
            for i in range(block.shape[0]):
                if (mix64_scalar(block[i]) >> PARTITION_SHIFT) - first >= size:
                    return begin + i
    return -1


@dataclass(frozen=True, eq=False)
class PartitionMap:
    """The shard of each partition.

    Attributes
    ----------
    shards
        (PARTITIONS,) uint16, read-only.
    version
        xxh3 of `shards`, so equal maps have equal versions.
    cluster_id
        Whose map it is, 32 hexadecimal digits; empty where that is not known.
    """

    shards: NDArray[np.uint16]
    version: int
    cluster_id: str = ""

    @staticmethod
    def from_bytes(data: bytes, cluster_id: str = "") -> "PartitionMap":
        """Read a map from (PARTITIONS,) little-endian uint16; InvalidRequestError on a wrong length or id."""
        if len(data) != 2 * PARTITIONS:
            raise InvalidRequestError(f"partition map has {len(data)} bytes; it must have {2 * PARTITIONS}")
        if cluster_id and not re.fullmatch(CLUSTER_ID_PATTERN, cluster_id):
            raise InvalidRequestError(f"cluster id is {cluster_id!r}; it must be 32 hexadecimal digits")
        return PartitionMap(np.frombuffer(data, "<u2"), xxhash.xxh3_64_intdigest(data), cluster_id)

    @staticmethod
    def even(shard_count: int, cluster_id: str = "") -> "PartitionMap":
        """Contiguous, equal ranges of partitions for `shard_count` shards (1 to SHARDS_MAX)."""
        if not 1 <= shard_count <= SHARDS_MAX:
            raise InvalidRequestError(f"shard count is {shard_count}; it must be 1 to {SHARDS_MAX}")
        shards = (np.arange(PARTITIONS) * shard_count // PARTITIONS).astype("<u2")
        return PartitionMap.from_bytes(shards.tobytes(), cluster_id)

    @cached_property
    def stamp(self) -> int:
        """What requests carry: the version, mixed with the cluster's id where that is known. So a shard of
        another cluster that took over an address refuses what was meant for this one."""
        if not self.cluster_id:
            return self.version
        return xxhash.xxh3_64_intdigest(self.shards.tobytes() + bytes.fromhex(self.cluster_id))

    def accepts(self, stamp: int) -> bool:
        """Whether a request was routed by this map; clients that know no cluster ids send its version."""
        return stamp in (self.stamp, self.version)

    @cached_property
    def shard_count(self) -> int:
        """Number of shards that the map names."""
        return int(self.shards.max()) + 1

    def shards_of(self, ids: NDArray[np.uint64]) -> NDArray[np.uint16]:
        """Shard of each id; `ids` is (n,) uint64, the answer a new (n,) uint16."""
        owners: NDArray[np.uint16] = self.shards[partitions_of(ids)]
        return owners

    def first_foreign(self, ids: NDArray[np.uint64], shard: int) -> int:
        """Index of the first of `ids` ((n,) uint64) that is not `shard`'s; -1 if there is none."""
        owned = self._owned.get(shard)
        if owned is None:
            owned = self._owned[shard] = np.flatnonzero(self.shards == shard)
        if owned.shape[0] == PARTITIONS:
            return -1
        if owned.shape[0] and owned[-1] - owned[0] + 1 == owned.shape[0]:  # one range, as in every even map
            return int(first_outside(as_read_only(ids), np.uint64(owned[0]), np.uint64(owned.shape[0])))
        foreign = np.flatnonzero(self.shards_of(ids) != shard)
        return int(foreign[0]) if foreign.shape[0] else -1

    @cached_property
    def _owned(self) -> dict[int, NDArray[np.int64]]:
        """Partitions of the shards that were asked for."""
        return {}
