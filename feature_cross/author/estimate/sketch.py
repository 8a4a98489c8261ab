# SPDX-License-Identifier: Apache-2.0
"""Distinct and frequent ids of one feature by Apache DataSketches, in memory that does not grow.

Distinct: HyperLogLog (Flajolet et al. 2007; the library's estimator is HIP, Ting 2014, Cohen 2014).
Frequent: the library's frequent-items sketch (Anderson et al., "A high-performance algorithm for
identifying frequent items in data streams", IMC 2017), a Misra-Gries summary with bounds on each count.
Thread safety: a sketch belongs to one thread at a time.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import datasketches
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = ["HeavyId", "Sketch"]

DISTINCT_LG: Final = 16
"""2^16 registers of one byte: 0.33 % standard error in 64 KiB."""

FREQUENT_LG: Final = 12
"""2^12 places, three in four used: an id with 0.1 % of the occurrences is never missed."""

_OFFERED: Final = 3072
"""Most frequent ids of each batch that the frequent-items sketch is offered: as many as it can keep."""


@dataclass(frozen=True, slots=True)
class HeavyId:
    """A frequent id; its true count is between `low` and `high`, ends included."""

    id: int
    low: int
    high: int


class Sketch:
    """Distinct and frequent ids of a stream of ids."""

    def __init__(self) -> None:
        kind: Any = datasketches.tgt_hll_type.HLL_8
        self._distinct = datasketches.hll_sketch(DISTINCT_LG, kind)
        self._frequent = datasketches.frequent_items_sketch(FREQUENT_LG)
        self._left_out = 0

    def add(self, ids: NDArray[np.uint64]) -> None:
        """Take (n,) uint64 ids."""
        if not len(ids):
            return
        values, counts = pc.value_counts(pa.array(ids)).flatten()
        uniques, weights = values.to_numpy(), counts.to_numpy()
        deque(map(self._distinct.update, uniques.view(np.int64).tolist()), maxlen=0)
        if len(uniques) > _OFFERED:
            order = np.argpartition(weights, len(weights) - _OFFERED - 1)
            # An id that is not offered is missed this often at most, each time.
            self._left_out += int(weights[order[-_OFFERED - 1]])
            uniques, weights = uniques[order[-_OFFERED:]], weights[order[-_OFFERED:]]
        update = self._frequent.update
        for value, weight in zip(uniques.tolist(), weights.tolist(), strict=True):
            update(value, weight)

    def distinct(self, deviations: int = 2) -> tuple[float, float, float]:
        """Estimate of the distinct ids, and its bounds at 1, 2 or 3 standard deviations."""
        sketch = self._distinct
        return sketch.get_estimate(), sketch.get_lower_bound(deviations), sketch.get_upper_bound(deviations)

    def heavy(self, most: int) -> list[HeavyId]:
        """The `most` most frequent ids, the first first; those of which less than half is certain are not."""
        kind = datasketches.frequent_items_error_type.NO_FALSE_NEGATIVES
        rows = self._frequent.get_frequent_items(kind)
        found = [HeavyId(int(item), int(low), int(high) + self._left_out) for item, _, low, high in rows]
        sure = [heavy for heavy in found if 2 * heavy.low > heavy.high]
        return sorted(sure, key=lambda heavy: (-heavy.low, heavy.id))[:most]
