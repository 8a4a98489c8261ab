# SPDX-License-Identifier: Apache-2.0
"""One pass over data: what is counted of each feature, in memory that does not grow with the rows.

Invariants: 1. counts are those of whole batches, also when the pass was stopped; 2. features that share ids
(`share`) have one group, which is counted as the one set of ids that it is. Thread safety: one thread
measures; batches may be made by several.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_cross.author.estimate.collision import CheckedEngine, ValueCheck, second_hashes, values_behind
from feature_cross.author.estimate.growth import SPECTRUM_LENGTH, Growth, checkpoint_after
from feature_cross.author.estimate.sample import IdSample
from feature_cross.author.estimate.sketch import Sketch
from feature_cross.author.interrupt import Interrupt
from feature_cross.author.limit import SAMPLE_IDS_DEFAULT
from feature_cross.config.config import CrossConfig
from feature_cross.config.node import Node, Plan
from feature_cross.data.source import read_batches
from feature_cross.engine.batch import CrossBatch
from feature_cross.error import DataError
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["Distinct", "Measure", "Measurement", "measure"]

_VALUE_BATCHES: Final = 4
"""Batches whose values are compared as bytes: a quarter of a million rows."""


@dataclass(frozen=True, slots=True)
class Distinct:
    """A number of distinct ids between `low` and `high` (two standard errors), or exactly `count`."""

    count: float
    low: float
    high: float
    exact: bool


@dataclass(slots=True)
class Measure:
    """What was counted of one feature, or of a group of features that share ids."""

    name: str
    id_bits: int
    sample: IdSample
    sketch: Sketch = field(default_factory=Sketch)
    covered_rows: int = 0
    occurrences: int = 0
    curve_rows: list[int] = field(default_factory=list)
    curve_spectra: list[NDArray[np.float64]] = field(default_factory=list)

    def add(
        self,
        ids: NDArray[np.uint64],
        checks: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        rows: tuple[int, int],
        row_base: int,
    ) -> None:
        """Count some rows of a batch; the arguments are IdSample.add's."""
        first, last = int(offsets[rows[0]]), int(offsets[rows[1]])
        lengths = np.diff(offsets[rows[0] : rows[1] + 1])
        self.covered_rows += int((lengths > 0).sum())
        self.occurrences += last - first
        self.sketch.add(ids[first:last])
        self.sample.add(ids, checks, offsets, rows, row_base)

    def mark(self, rows: int) -> None:
        """Note a point of the growth curve."""
        self.curve_rows.append(rows)
        self.curve_spectra.append(self.sample.spectrum(SPECTRUM_LENGTH))

    @property
    def observed(self) -> tuple[int, int]:
        """(values, ids) of the sample: the difference are collisions."""
        return self.sample.used, len(np.unique(self.sample.ids))

    @property
    def distinct(self) -> Distinct:
        """Distinct ids."""
        if self.sample.level == 0:
            count = float(self.observed[1])
            return Distinct(count, count, count, True)
        count, low, high = self.sketch.distinct()
        return Distinct(count, low, high, False)

    @property
    def values(self) -> float:
        """Distinct values, of which some may share an id."""
        if self.sample.level == 0:
            return float(self.sample.used)
        return values_behind(self.distinct.count, self.id_bits)

    @property
    def growth(self) -> Growth:
        """Distinct values by rows; its last point is `values`."""
        rows = np.array(self.curve_rows, np.float64)
        firsts = np.sort(self.sample.firsts)
        scale = self.values / self.sample.used if self.sample.used else 0.0
        spectra = np.array(self.curve_spectra).reshape(len(rows), SPECTRUM_LENGTH)
        return Growth(rows, np.searchsorted(firsts, rows).astype(np.float64) * scale, spectra)


@dataclass(frozen=True, slots=True)
class Measurement:
    """All that one pass counted.

    Attributes
    ----------
    plan
        The config's features.
    rows
        Rows read.
    stopped
        `interrupt` or `rows_max` when the pass ended before the data did, else None.
    features
        By name.
    groups
        By the name of the first feature of each: the counts of its features' ids together, and their names.
    values
        Per attribute (distinct values, distinct hashes) on the first rows.
    """

    plan: Plan
    rows: int
    stopped: str | None
    features: dict[str, Measure]
    groups: dict[str, tuple[Measure, tuple[str, ...]]]
    values: dict[str, tuple[int, int]]


def id_bits(plan: Plan, node: Node) -> int:
    """Bits of hash in a feature's ids."""
    return 64 - plan.slot_bits if plan.slot_bits is not None and node.slot is not None else 64


def measure(
    config: CrossConfig,
    source: Any,
    *,
    rows_max: int | None = None,
    sample_ids: int = SAMPLE_IDS_DEFAULT,
    batch_rows: int = BATCH_ROWS_DEFAULT,
    threads: int = 1,
    progress: Callable[[int], None] = lambda rows: None,
) -> Measurement:
    """Read a source once.

    Parameters
    ----------
    config
        From `feature_cross.load`.
    source
        As `Engine.transform_stream` takes it.
    rows_max
        Read no more rows; None reads all.
    sample_ids
        Ids whose counts are kept per feature, a power of two.
    batch_rows, threads
        As in `Engine.transform_stream`.
    progress
        Called with the rows read so far.

    Returns
    -------
    Measurement
        Of what was read; Ctrl-C stops the pass after the batch that it is in.

    Raises
    ------
    DataError, LimitError
        As `Engine.transform`; also when there is no row at all.
    """
    engine = CheckedEngine(config)
    tally = _Tally(engine, sample_ids)
    stopped: str | None = None
    batches = _first_rows(read_batches(source, engine.plan, batch_rows), rows_max)
    with Interrupt() as stop, closing(engine.transform_pairs(batches, threads)) as done:
        for rows, batch in done:
            tally.add(rows, batch)
            progress(tally.rows)
            if stop.wanted:
                stopped = "interrupt"
                break
    if not tally.rows:
        raise DataError("the data has no rows, so there is nothing to estimate")
    if stopped is None and tally.rows == rows_max:
        stopped = "rows_max"
    return tally.result(stopped)


def _first_rows(batches: Iterable[pa.RecordBatch], rows_max: int | None) -> Iterator[pa.RecordBatch]:
    left = rows_max
    for batch in batches:
        if left is None:
            yield batch
            continue
        if left > 0:
            yield batch.slice(0, left)
        left -= len(batch)
        if left <= 0:
            return


class _Tally:
    """Takes batches, cut at the points of the growth curve."""

    def __init__(self, engine: CheckedEngine, sample_ids: int) -> None:
        plan = engine.plan
        self._plan = plan
        self.rows = 0
        self._batches = 0
        self._mark_at = checkpoint_after(0)
        self._value_check = ValueCheck(plan)
        self._members = plan.groups
        self._features = {name: _new(plan, name, sample_ids) for name in plan.outputs}
        self._shared = {
            name: _new(plan, name, sample_ids) for name, names in self._members.items() if len(names) > 1
        }

    def add(self, rows: pa.RecordBatch, batch: CrossBatch) -> None:
        """Count a batch and the rows that it came from."""
        if self._batches < _VALUE_BATCHES:
            self._value_check.add(rows)
        self._batches += 1
        base, last = self.rows, self.rows + len(batch)
        while self.rows < last:
            stop = min(last, self._mark_at)
            self._count(batch, (self.rows - base, stop - base), base)
            self.rows = stop
            if stop == self._mark_at:
                self._mark()
                self._mark_at = checkpoint_after(stop)

    def _count(self, batch: CrossBatch, rows: tuple[int, int], base: int) -> None:
        for name, measured in self._features.items():
            ids, offsets = batch[name]
            measured.add(ids, second_hashes(batch, name), offsets, rows, base)
        for owner, measured in self._shared.items():
            for name in self._members[owner]:
                ids, offsets = batch[name]
                measured.add(ids, second_hashes(batch, name), offsets, rows, base)

    def _mark(self) -> None:
        for measured in (*self._features.values(), *self._shared.values()):
            measured.mark(self.rows)

    def result(self, stopped: str | None) -> Measurement:
        """Everything so far, as the last point of each curve."""
        if not self._features or self.rows not in next(iter(self._features.values())).curve_rows:
            self._mark()
        groups = {
            owner: (self._shared.get(owner, self._features[owner]), names)
            for owner, names in self._members.items()
        }
        return Measurement(self._plan, self.rows, stopped, self._features, groups, self._value_check.result())


def _new(plan: Plan, name: str, sample_ids: int) -> Measure:
    return Measure(name, id_bits(plan, plan.node(name)), IdSample(sample_ids))
