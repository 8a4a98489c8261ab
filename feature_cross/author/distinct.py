# SPDX-License-Identifier: Apache-2.0
"""Exact distinct ids of a stream of batches. Thread safety: a DistinctIds belongs to one thread."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["DistinctIds"]

_PENDING_MAX = 1 << 20
"""Ids kept before they are merged into the distinct ones: merging at each batch would sort all again."""


@dataclass(slots=True)
class DistinctIds:
    """Distinct ids, in at most twice their memory and _PENDING_MAX more."""

    kept: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    pending: list[NDArray[np.uint64]] = field(default_factory=list)
    pending_ids: int = 0

    def add(self, ids: NDArray[np.uint64]) -> None:
        """Take (n,) ids."""
        self.pending.append(np.unique(ids))
        self.pending_ids += len(self.pending[-1])
        if self.pending_ids > max(_PENDING_MAX, len(self.kept)):
            self.all()

    def all(self) -> NDArray[np.uint64]:
        """The distinct ids so far, sorted."""
        if self.pending:
            self.kept = np.unique(np.concatenate([self.kept, *self.pending]))
            self.pending, self.pending_ids = [], 0
        return self.kept
