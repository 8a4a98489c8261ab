# SPDX-License-Identifier: Apache-2.0
"""Which shard holds an id: partition = high bits of mix64(id), shard = partition map[partition].

Invariants: 1. a partition never depends on the number of shards; 2. a map names a shard for each of
the PARTITIONS partitions; 3. maps with equal shards have equal versions, so a restart keeps it.
Thread safety: a PartitionMap is immutable.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from rowhouse.error import InvalidRequestError
from rowhouse.limit import PARTITIONS, SHARDS_MAX
from rowhouse.mix import mix64_scalar

PARTITION_SHIFT: Final = np.uint64(64 - (PARTITIONS.bit_length() - 1))
"""Bits to drop from mix64(id) to get its partition."""


@njit(nogil=True, cache=True)
def partitions_of(ids: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Partition of each id; `ids` is (n,) uint64, the answer a new (n,) uint16."""
    out = np.empty(ids.shape[0], np.uint16)
    for i in range(ids.shape[0]):
        out[i] = mix64_scalar(ids[i]) >> PARTITION_SHIFT
    return out


@dataclass(frozen=True, eq=False)
class PartitionMap:
    """The shard of each partition.

    Attributes
    ----------
    shards
        (PARTITIONS,) uint16, read-only.
    version
        xxh3 of `shards`, so equal maps have equal versions.
    """

    shards: NDArray[np.uint16]
    version: int

    @staticmethod
    def from_bytes(data: bytes) -> "PartitionMap":
        """Read a map from (PARTITIONS,) little-endian uint16; InvalidRequestError on a wrong length."""
        if len(data) != 2 * PARTITIONS:
            raise InvalidRequestError(f"partition map has {len(data)} bytes; it must have {2 * PARTITIONS}")
        return PartitionMap(np.frombuffer(data, "<u2"), xxhash.xxh3_64_intdigest(data))

    @staticmethod
    def even(shard_count: int) -> "PartitionMap":
        """Contiguous, equal ranges of partitions for `shard_count` shards (1 to SHARDS_MAX)."""
        if not 1 <= shard_count <= SHARDS_MAX:
            raise InvalidRequestError(f"shard count is {shard_count}; it must be 1 to {SHARDS_MAX}")
        shards = (np.arange(PARTITIONS) * shard_count // PARTITIONS).astype("<u2")
        return PartitionMap.from_bytes(shards.tobytes())

    @cached_property
    def shard_count(self) -> int:
        """Number of shards that the map names."""
        return int(self.shards.max()) + 1

    def shards_of(self, ids: NDArray[np.uint64]) -> NDArray[np.uint16]:
        """Shard of each id; `ids` is (n,) uint64, the answer a new (n,) uint16."""
        owners: NDArray[np.uint16] = self.shards[partitions_of(ids)]
        return owners
