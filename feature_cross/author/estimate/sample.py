# SPDX-License-Identifier: Apache-2.0
"""A uniform sample of one feature's distinct ids, with exact counts, in bounded memory.

An id is in the sample when its mixed bits begin with `level` zeros. When the table is full the level rises
by one, and half of the ids leave: adaptive sampling (Wegman; analysed by Flajolet, "On adaptive sampling",
Computing 43, 1990), with counts as in Gibbons, "Distinct sampling for highly-accurate answers", VLDB 2001.

Invariants: 1. an id that is in the sample has been in it since its first occurrence, so its count and first
row are exact; 2. whether an id is sampled depends on the id alone, so every value behind it is there as
well; 3. at level 0 the sample is everything. Thread safety: a sample belongs to one thread at a time.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_cross.author.kernel.sample import observe, reinsert
from feature_cross.author.limit import SAMPLE_IDS_DEFAULT
from feature_cross.id_format import MASK64

__all__ = ["IdSample"]

_FIRST_SIZE: Final = 1 << 11
"""Places of a new table: a feature of few ids stays at 64 KiB."""


class IdSample:
    """Counts of at most `ids_max` ids.

    Parameters
    ----------
    ids_max
        A power of two; between half of it and all of it are in a full sample.
    """

    def __init__(self, ids_max: int = SAMPLE_IDS_DEFAULT) -> None:
        if ids_max < 1 or ids_max & (ids_max - 1):
            raise ValueError(f"ids_max is {ids_max}; it must be a power of two")
        self.ids_max = ids_max
        self.level = 0
        self.used = 0
        self._make(min(_FIRST_SIZE, 2 * ids_max))

    def _make(self, size: int) -> None:
        self._keys = np.zeros(size, np.uint64)
        self._checks = np.zeros(size, np.uint64)
        self._counts = np.zeros(size, np.int64)
        self._firsts = np.zeros(size, np.int64)

    @property
    def _zero_bits(self) -> np.uint64:
        return np.uint64(MASK64 ^ (MASK64 >> self.level))

    @property
    def fraction(self) -> float:
        """Share of the id space that is sampled."""
        return 2.0**-self.level

    @property
    def counts(self) -> NDArray[np.int64]:
        """(used,) occurrences of each sampled id; values that share an id count alone."""
        return self._counts[self._counts > 0]

    @property
    def firsts(self) -> NDArray[np.int64]:
        """(used,) the row of each one's first occurrence, in the order of `counts`."""
        return self._firsts[self._counts > 0]

    @property
    def ids(self) -> NDArray[np.uint64]:
        """(used,) the ids, in the order of `counts`; one occurs twice where two values collide."""
        return self._keys[self._counts > 0]

    def add(
        self,
        ids: NDArray[np.uint64],
        checks: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        rows: tuple[int, int],
        row_base: int,
    ) -> None:
        """Count the ids of some rows of a batch.

        Parameters
        ----------
        ids, checks
            (total,) uint64: the ids, and another hash of the value behind each. Ids are told apart by both,
            so two values of one id are two entries.
        offsets
            (batch rows + 1,) int64.
        rows
            First row, and the one after the last.
        row_base
            Number of the batch's first row in the data.
        """
        row, stop = rows
        at = int(offsets[row])
        while True:
            row, at, self.used = observe(
                ids, checks, offsets, row, stop, at, row_base, self._zero_bits,
                self._keys, self._checks, self._counts, self._firsts, self.used, len(self._keys) // 2,
            )  # fmt: skip
            if row >= stop:
                return
            self._make_room()

    def _make_room(self) -> None:
        size = len(self._keys)
        if size < 2 * self.ids_max:
            size *= 2
        else:
            self.level += 1
        old = self._keys, self._checks, self._counts, self._firsts
        self._make(size)
        self.used = reinsert(*old, self._zero_bits, self._keys, self._checks, self._counts, self._firsts)

    def spectrum(self, length: int) -> NDArray[np.float64]:
        """Ids seen once, twice, ... `length` times: (length,) float64, scaled up from the sample."""
        found = np.bincount(np.minimum(self.counts, length + 1), minlength=length + 2)[1 : length + 1]
        return found / self.fraction
