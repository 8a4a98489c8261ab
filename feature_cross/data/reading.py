# SPDX-License-Identifier: Apache-2.0
"""From a batch to the values of one attribute: its column, with ages worked out and old elements left out.

What comes from here goes to data/column.py as if the data had held it. Weights come along, one per
value. Thread safety: pure functions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_cross.config.attribute import AGE_UNITS_US, Age, Recency
from feature_cross.config.node import AttributeUse
from feature_cross.data.moment import Moments, read_moments, subtract
from feature_cross.error import DataError

__all__ = ["Reading", "read_attribute"]


@dataclass(frozen=True, slots=True)
class Reading:
    """A column, and the weight of each flat value: float32, NaN where the data has none; None: unweighted."""

    array: pa.Array
    weights: NDArray[np.float32] | None


def read_attribute(batch: pa.RecordBatch, use: AttributeUse, row_base: int = 0) -> Reading:
    """The attribute's values in `batch`, which has all of its columns.

    Raises
    ------
    DataError
        A further column (age.column, recency.times, recency.column, weights) has another type, or is not
        as long as the list that it goes with; names the column and the row.
    """
    attribute = use.attribute
    array = batch.column(use.column)
    if attribute.age is None and attribute.recency is None and attribute.weights is None:
        return Reading(array, None)
    return _Reader(batch, use, row_base).read(array)


class _Reader:
    def __init__(self, batch: pa.RecordBatch, use: AttributeUse, row_base: int) -> None:
        self.batch = batch
        self.use = use
        self.row_base = row_base

    def read(self, array: pa.Array) -> Reading:
        use, attribute = self.use, self.use.attribute
        if not attribute.list:
            weights = self._flat_weights(self._column("weights")) if attribute.weights else None
            return Reading(array if attribute.age is None else self._ages(array, None), weights)
        lengths = self._lengths(array, use.title)
        null_rows = pc.is_null(array) if array.null_count else None
        flat = pa.nulls(0) if pa.types.is_null(array.type) else array.flatten()
        weights = None
        if attribute.weights is not None:
            weights = self._flat_weights(self._beside("weights", lengths))
        if attribute.age is not None:
            flat = self._ages(flat, lengths)
        if attribute.recency is not None:
            recent = self._recent(attribute.recency, lengths)
            ends = np.cumsum(lengths)
            kept = np.concatenate([[0], np.cumsum(recent)])
            lengths = kept[ends] - kept[ends - lengths]
            flat = flat.filter(pa.array(recent))
            weights = weights[recent] if weights is not None else None
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rebuilt = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat, mask=null_rows)
        return Reading(rebuilt, weights)

    def _label(self, key: str) -> str:
        return f"column {self.use.attribute.columns[key]!r} ({self.use.label}, {key})"

    def _column(self, key: str) -> pa.Array:
        return self.batch.column(self.use.attribute.columns[key])

    def _lengths(self, array: pa.Array, label: str) -> NDArray[np.int64]:
        if pa.types.is_null(array.type):
            return np.zeros(len(array), np.int64)
        try:
            lengths = pc.fill_null(pc.list_value_length(array), 0)
        except pa.ArrowNotImplementedError as error:
            raise DataError(f"{label} has Arrow type {array.type}; it is declared as a list") from error
        found: NDArray[np.int64] = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
        return found

    def _beside(self, key: str, lengths: NDArray[np.int64]) -> pa.Array:
        """The flat values of a list column that must be as long as the attribute's, row by row."""
        array, label = self._column(key), self._label(key)
        own = self._lengths(array, label)
        differs = np.flatnonzero(own != lengths)
        if len(differs):
            row = int(differs[0])
            raise DataError(
                f"{label} has {own[row]} elements in row {self.row_base + row}, and"
                f" column {self.use.column!r} has {lengths[row]}; each element has its own"
            )
        return pa.nulls(0) if pa.types.is_null(array.type) else array.flatten()

    def _reference(self, key: str, moment: Age | Recency, lengths: NDArray[np.int64] | None) -> Moments:
        """The moment to look back from, one per flat value."""
        values = len(self.batch) if lengths is None else int(lengths.sum())
        if moment.moment_us is not None:
            return np.full(values, moment.moment_us), np.zeros(values, np.bool_)
        found = read_moments(
            self._column(key), self._label(key), self.use.attribute.cast, self.use.attribute.nulls
        )
        return found if lengths is None else (np.repeat(found[0], lengths), np.repeat(found[1], lengths))

    def _ages(self, flat: pa.Array, lengths: NDArray[np.int64] | None) -> pa.Array:
        age = self.use.attribute.age
        assert age is not None, "only attributes with an age come here"
        moments = read_moments(flat, self.use.title, self.use.attribute.cast, self.use.attribute.nulls)
        ages, nulls = subtract(self._reference("age.column", age, lengths), moments, AGE_UNITS_US[age.unit])
        return pa.array(ages, mask=nulls)

    def _recent(self, recency: Recency, lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True for each element that lies in [moment - within, moment]; a time that is missing is not in."""
        flat = self._beside("recency.times", lengths)
        times = read_moments(
            flat, self._label("recency.times"), self.use.attribute.cast, self.use.attribute.nulls
        )
        moment = self._reference("recency.column", recency, lengths)
        ages, nulls = subtract(moment, times, AGE_UNITS_US[recency.unit])
        recent: NDArray[np.bool_] = (ages >= 0) & (ages <= recency.within) & ~nulls
        return recent

    def _flat_weights(self, array: pa.Array) -> NDArray[np.float32]:
        kind: Any = array.type
        if pa.types.is_dictionary(kind):
            array = array.dictionary_decode()
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
            raise DataError(f"{self._label('weights')} has Arrow type {kind}; weights are numbers")
        wide = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):  # past float32 it is infinite, which the engine refuses with its row
            narrow: NDArray[np.float32] = wide.astype(np.float32)
        return narrow
