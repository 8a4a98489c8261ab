# SPDX-License-Identifier: Apache-2.0
"""What the engine gives out: per feature ids and offsets, and their other shapes.

Shapes: F features, B rows, T ids of one feature. Thread safety: a batch is immutable; its arrays are
read-only views.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_cross.error import LimitError

__all__ = ["WEIGHT_SUFFIX", "CrossBatch"]

WEIGHT_SUFFIX = ".weight"
"""Of the Arrow column that holds a feature's weights; a dot is in no feature's own name."""

_ARROW_LIST_MAX = (1 << 31) - 1
"""Elements under the int32 offsets of an Arrow list column."""


@dataclass(frozen=True, eq=False)
class CrossBatch:
    """Ids of B rows.

    Example
    -------
    Two rows, `user` with one id each and `recent` with two and none::

        batch["user"]    ids [u0, u1]   offsets [0, 1, 2]
        batch["recent"]  ids [r0, r1]   offsets [0, 2, 2]
        batch.jagged()   keys ("user", "recent"), values [u0, u1, r0, r1], lengths [1, 1, 2, 0]

    Attributes
    ----------
    schema
        Arrow schema of `to_arrow()`; its metadata names the version of the id format.
    columns
        (ids, offsets) by feature, in the order of declaration.
    rows
        B.
    weights
        (T,) float32 of each feature that has weights, one per id.
    """

    schema: pa.Schema
    columns: Mapping[str, tuple[NDArray[np.uint64], NDArray[np.int64]]]
    rows: int
    weights: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features, in the order of declaration."""
        return tuple(self.columns)

    def __getitem__(self, name: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Ids (T,) uint64 and offsets (B + 1,) int64 of a feature; KeyError if there is none."""
        return self.columns[name]

    def __len__(self) -> int:
        return self.rows

    def to_arrow(self) -> pa.RecordBatch:
        """A list<uint64> column per feature, then a list<float32> column NAME.weight per weighted one.

        The ids are not copied. LimitError past 2^31 - 1 ids of a feature.
        """
        arrays = []
        for name, (ids, offsets) in self.columns.items():
            if len(ids) > _ARROW_LIST_MAX:
                message = (
                    f"{name} has {len(ids)} ids; an Arrow list column holds {_ARROW_LIST_MAX}: use a stream"
                )
                raise LimitError(message)
            arrays.append(pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(ids)))
        for name, weights in self.weights.items():
            offsets = self.columns[name][1].astype(np.int32)
            arrays.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(weights)))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def jagged(self) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.int32]]:
        """The order of torchrec's KeyedJaggedTensor: feature by feature, in each the rows.

        Returns
        -------
        keys
            F names.
        values
            (sum of T,) int64, the ids bit for bit.
        lengths
            (F * B,) int32.
        """
        if not self.columns:
            return (), np.empty(0, np.int64), np.empty(0, np.int32)
        values = np.concatenate([ids for ids, _ in self.columns.values()]).view(np.int64)
        lengths = np.concatenate([np.diff(offsets) for _, offsets in self.columns.values()]).astype(np.int32)
        return self.features, values, lengths

    def jagged_weights(self) -> NDArray[np.float32] | None:
        """Weights of the values of `jagged()`, (sum of T,) float32; 1 where a feature has none.

        None if no feature has weights.
        """
        if not self.weights:
            return None
        named = self.weights
        parts = [
            named[n] if n in named else np.ones(len(ids), np.float32) for n, (ids, _) in self.columns.items()
        ]
        return np.concatenate(parts)
