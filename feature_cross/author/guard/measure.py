# SPDX-License-Identifier: Apache-2.0
"""Two configs over the same rows: which distinct ids both give, which only the old, which only the new.

Counts are exact over the rows read. Thread safety: pure functions.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_cross.author.distinct import DistinctIds
from feature_cross.author.guard.diff import FeatureDiff
from feature_cross.data.source import open_dataset, read_batches
from feature_cross.engine.batch import CrossBatch
from feature_cross.engine.engine import Engine
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["DiffMeasure", "FeatureMeasure", "measure"]


@dataclass(frozen=True, slots=True)
class FeatureMeasure:
    """One feature over the rows read.

    Attributes
    ----------
    old_ids, new_ids, kept_ids
        Distinct ids of the old config, of the new, and of both.
    changed_rows
        Rows whose ids are not the same list.
    """

    old_ids: int
    new_ids: int
    kept_ids: int
    changed_rows: int


@dataclass(frozen=True, slots=True)
class DiffMeasure:
    """All features over the rows read.

    Attributes
    ----------
    features
        By the feature's label.
    rows
        Rows read.
    old_ids, new_ids
        Distinct ids of each config, those of features that share ids counted once: rows of its tables.
    """

    features: dict[str, FeatureMeasure]
    rows: int
    old_ids: int
    new_ids: int


def measure(
    old: Engine, new: Engine, features: Iterable[FeatureDiff], source: Any, rows_max: int
) -> DiffMeasure:
    """Run both configs over the first `rows_max` rows.

    Parameters
    ----------
    old, new
        Engines of the two configs.
    features
        From `diff_configs`.
    source
        Path of a file or folder, a pyarrow dataset or Table with the columns of both.
    rows_max
        Most rows to read.

    Returns
    -------
    DiffMeasure

    Raises
    ------
    DataError
        A column is missing or mistyped, or a value invalid, for either config.
    """
    pairs = [(one.label, one.old_name, one.name) for one in features]
    before = {label: DistinctIds() for label, _, _ in pairs}
    after = {label: DistinctIds() for label, _, _ in pairs}
    changed = dict.fromkeys(before, 0)
    opened = open_dataset(str(source), old.plan, new.plan) if not hasattr(source, "schema") else source
    rows = 0
    for made in _transformed((old, new), opened, rows_max):
        for label, old_name, new_name in pairs:
            if old_name is not None:
                before[label].add(made[0][old_name][0])
            if new_name is not None:
                after[label].add(made[1][new_name][0])
            if old_name is not None and new_name is not None:
                changed[label] += _changed_rows(made[0][old_name], made[1][new_name])
            else:
                bag = made[1][new_name] if old_name is None else made[0][old_name]  # type: ignore[index]
                changed[label] += int((np.diff(bag[1]) > 0).sum())
        rows += len(made[0])
    found = {}
    for label, _, _ in pairs:
        left, right = before[label].all(), after[label].all()
        kept = len(np.intersect1d(left, right, assume_unique=True))
        found[label] = FeatureMeasure(len(left), len(right), kept, changed[label])
    old_sets = {old_name: before[label] for label, old_name, _ in pairs if old_name is not None}
    new_sets = {new_name: after[label] for label, _, new_name in pairs if new_name is not None}
    return DiffMeasure(found, rows, _rows_of(old, old_sets), _rows_of(new, new_sets))


def _rows_of(engine: Engine, sets: dict[str, DistinctIds]) -> int:
    """Distinct ids of a config: each group of features that share ids is one set."""
    groups = engine.plan.groups.values()
    found = [[sets[name].all() for name in names] for names in groups]
    return sum(len(one[0]) if len(one) == 1 else len(np.unique(np.concatenate(one))) for one in found)


def _transformed(engines: tuple[Engine, Engine], source: Any, rows_max: int) -> Iterator[list[CrossBatch]]:
    rows = 0
    for batch in read_batches(source, engines[0].plan, BATCH_ROWS_DEFAULT, engines[1].columns):
        part = batch.slice(0, rows_max - rows)
        yield from _both(engines, part, rows)
        rows += len(part)
        if rows >= rows_max:
            return


def _both(engines: tuple[Engine, Engine], batch: pa.RecordBatch, row_base: int) -> Iterator[list[CrossBatch]]:
    """Both configs' ids of the same rows, in halves where one of them needs it."""
    pieces = [list(engine.transform_batch(batch, row_base)) for engine in engines]
    if all(len(made) == 1 for made in pieces):
        yield [made[0] for made in pieces]
    else:
        half = len(batch) // 2
        yield from _both(engines, batch.slice(0, half), row_base)
        yield from _both(engines, batch.slice(half), row_base + half)


def _changed_rows(
    old: tuple[NDArray[np.uint64], NDArray[np.int64]], new: tuple[NDArray[np.uint64], NDArray[np.int64]]
) -> int:
    counts = [np.diff(offsets) for _, offsets in (old, new)]
    equal = counts[0] == counts[1]
    numbers = np.arange(len(equal))
    # ids of the rows whose counts are equal, side by side
    flat = [ids[np.repeat(equal, count)] for (ids, _), count in zip((old, new), counts, strict=True)]
    of_row = np.repeat(numbers[equal], counts[0][equal])
    differing = np.unique(of_row[flat[0] != flat[1]])
    return int((~equal).sum()) + len(differing)
