# SPDX-License-Identifier: Apache-2.0
"""Projections of a measurement: the growth of each feature, held to what its config and its parts allow.

Growth knows nothing of where values come from; author/estimate/ceiling.py does. A cross is held to the
product of its parts, of which those that are features themselves are projected first.
Thread safety: a projector belongs to one thread.
"""

from collections.abc import Sequence

from feature_cross.author.estimate.ceiling import group_ceiling, plain_attribute
from feature_cross.author.estimate.collision import expected_collisions
from feature_cross.author.estimate.growth import ROWS_MIN, project
from feature_cross.author.estimate.measure import Measure, Measurement
from feature_cross.author.estimate.report import ProjectionReport
from feature_cross.error import DataError

__all__ = ["Projector", "as_ids"]


def as_ids(values: float, bits: int) -> float:
    """Distinct ids of so many distinct values."""
    return round(values - expected_collisions(values, bits).lost, 3)


class Projector:
    """Projects every feature of a measurement to `rows` rows; None asks for no projection.

    Raises
    ------
    DataError
        Fewer than ROWS_MIN rows were read: the stated error would not hold.
    """

    def __init__(self, measured: Measurement, rows: int | None) -> None:
        self.measured = measured
        self.rows = rows
        self._parts: tuple[dict[tuple[str, str], float], ...] = ({}, {})
        if rows is None:
            return
        if measured.rows < min(rows, ROWS_MIN):
            raise DataError(
                f"--rows is {rows:,}, but only {measured.rows:,} rows were read: nothing is projected from"
                f" fewer than {ROWS_MIN:,}; give more data, or leave out --rows"
            )
        for name, measure in measured.features.items():
            use = plain_attribute(measured.plan.node(name))
            if use is not None:
                found = self._values(measure, [name])
                for known, value in zip(self._parts, (found[0], found[2]), strict=True):
                    known[use.label, use.missing] = value

    def ceiling(self, names: Sequence[str]) -> float | None:
        """Most distinct ids of one feature, or of a group that shares ids, by the config alone."""
        return group_ceiling(self.measured.plan, names)

    def project(self, measure: Measure, names: Sequence[str]) -> ProjectionReport | None:
        """The growth of values, told in ids: where the id space fills up, ids grow slower than values.

        Parameters
        ----------
        measure
            What was counted of the feature or group.
        names
            Of its features.
        """
        if self.rows is None:
            return None
        growth = project(measure.growth, self.rows, measure.occurrences / self.measured.rows)
        distinct, low, high = (as_ids(value, measure.id_bits) for value in self._values(measure, names))
        return ProjectionReport(
            rows=self.rows, distinct=distinct, low=low, high=high, method=growth.method, error=growth.error,
            tested_factor=growth.tested_factor,
        )  # fmt: skip

    def _values(self, measure: Measure, names: Sequence[str]) -> tuple[float, float, float]:
        """Distinct values, with bounds."""
        assert self.rows is not None, "the caller asks for a projection"
        found = project(measure.growth, self.rows, measure.occurrences / self.measured.rows)
        low, high, seen = found.low, found.high, measure.distinct
        if not seen.exact and seen.count > 0:  # what was seen is itself known within bounds only
            low, high = low * seen.low / seen.count, high * seen.high / seen.count
        expected, most = (group_ceiling(self.measured.plan, names, parts) for parts in self._parts)
        if most is not None:
            high = min(high, most)
        distinct = min(value for value in (found.distinct, expected, high) if value is not None)
        return distinct, min(low, distinct), high
