# SPDX-License-Identifier: Apache-2.0
"""Conditions at work: which rows of a batch meet one, and the same of plain values for an explanation.

Exact values are told apart by their hashes, which ids rest on anyway. Thread safety: a gate is immutable.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_cross.config.node import AttributeUse, ConditionUse
from feature_cross.data.column import ColumnSpec, canonical_hashes

__all__ = ["Gate", "compile_gate"]

Mask = NDArray[np.bool_]
Numbers = tuple[NDArray[Any], Mask | None]


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of one feature, its values hashed; None for a key that is not given."""

    use: AttributeUse
    any_of: NDArray[np.uint64] | None
    none_of: NDArray[np.uint64] | None
    at_least: int | float | None
    below: int | float | None
    present: bool | None

    @property
    def ordered(self) -> bool:
        """Whether it needs the attribute's numbers."""
        return self.at_least is not None or self.below is not None

    def open_rows(
        self,
        hashes: NDArray[np.uint64],
        offsets: NDArray[np.int64] | None,
        nulls: Mask | None,
        numbers: Numbers | None,
    ) -> Mask:
        """Rows that meet it.

        Parameters
        ----------
        hashes, offsets, nulls
            The attribute's values: (rows,) with nulls, or (total,) with (rows + 1,) offsets and none.
        numbers
            (rows,) numbers and where there are none, if `ordered`.

        Returns
        -------
        (rows,) bool, new.
        """
        if offsets is None:
            there = np.ones(len(hashes), np.bool_) if nulls is None else ~nulls
        else:
            there = offsets[1:] > offsets[:-1]
        if self.present is not None:
            return there if self.present else ~there
        held = there.copy()
        if self.any_of is not None:
            held &= _any_in(hashes, offsets, self.any_of)
        if self.none_of is not None:
            held &= ~_any_in(hashes, offsets, self.none_of)
        if numbers is not None:
            values, unknown = numbers
            if unknown is not None:
                held &= ~unknown
            if self.at_least is not None:
                held &= values >= self.at_least
            if self.below is not None:
                held &= values < self.below
        return held

    def meets(self, hashes: Sequence[int], number: int | float | None) -> bool:
        """The same of one row in plain Python: the hashes of its values, and its number if `ordered`."""
        if self.present is not None:
            return bool(hashes) is self.present
        if not hashes or (self.ordered and number is None):
            return False
        if self.any_of is not None and not set(hashes) & set(self.any_of.tolist()):
            return False
        if self.none_of is not None and set(hashes) & set(self.none_of.tolist()):
            return False
        if self.at_least is not None and (number is None or number < self.at_least):
            return False
        return self.below is None or (number is not None and number < self.below)


def compile_gate(condition: ConditionUse, spec: ColumnSpec) -> Gate:
    """Work out what does not depend on data; an integer is compared with whole bounds, and so exactly."""
    asked, whole = condition.condition, spec.attribute.type == "int" or spec.attribute.part is not None

    def bound(value: int | float | None) -> int | float | None:
        return math.ceil(value) if whole and value is not None else value

    tables = [
        None if values is None else canonical_hashes(values, spec) for values in (asked.any_of, asked.none_of)
    ]
    return Gate(condition.use, tables[0], tables[1], bound(asked.at_least), bound(asked.below), asked.present)


def _any_in(hashes: NDArray[np.uint64], offsets: NDArray[np.int64] | None, table: NDArray[np.uint64]) -> Mask:
    """Rows of which some value is in the table."""
    hit: Mask = np.isin(hashes, table)
    if offsets is None:
        return hit
    counts = np.concatenate([[0], np.cumsum(hit)])
    found: Mask = counts[offsets[1:]] > counts[offsets[:-1]]
    return found
