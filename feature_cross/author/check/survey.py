# SPDX-License-Identifier: Apache-2.0
"""What data says about a config: do its columns fit, how many ids has each feature, which crosses are futile.

Counts are exact over the rows read. Thread safety: pure functions.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rowhouse.problem import Problem, nearest

from feature_cross.author.check.lint import PairCount, cross_pairs, futile_pairs
from feature_cross.author.distinct import DistinctIds
from feature_cross.config.condition import Condition
from feature_cross.config.config import AttributeFeature, CrossConfig, Feature, Ids, WeakFeature
from feature_cross.config.node import declared
from feature_cross.data.column import column_spec, hash_column
from feature_cross.data.reading import read_attribute
from feature_cross.data.source import read_batches
from feature_cross.engine.engine import Engine
from feature_cross.error import DataError
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["SURVEY_ROWS", "FeatureSurvey", "Survey", "check_columns", "survey"]

SURVEY_ROWS = 1_000_000
"""Rows that are read: exact distinct counts hold every id, 8 bytes each."""


@dataclass(frozen=True, slots=True)
class FeatureSurvey:
    """A feature over the rows read."""

    covered_rows: int
    ids: int
    distinct: int


@dataclass(frozen=True, slots=True)
class Survey:
    """`ratios` is distinct(key x attribute) / distinct(key) by (key, attribute) of each futile pair, over the
    rows where both are present; `pairs` what was counted of every other two attributes that meet in a cross.
    """

    rows: int
    features: dict[str, FeatureSurvey]
    ratios: dict[tuple[str, str], float]
    pairs: dict[tuple[str, str], PairCount]


@dataclass(slots=True)
class _Count:
    covered_rows: int = 0
    ids: int = 0
    distinct: DistinctIds = field(default_factory=DistinctIds)

    def add(self, ids: NDArray[np.uint64], offsets: NDArray[np.int64]) -> None:
        self.covered_rows += int((np.diff(offsets) > 0).sum())
        self.ids += len(ids)
        self.distinct.add(ids)

    def __len__(self) -> int:
        return len(self.distinct.all())


def check_columns(engine: Engine, schema: pa.Schema, labels: Collection[str] = ()) -> list[Problem]:
    """Attributes whose column is not in the data, or has a type that they do not take; errors with lines.

    Those that the features use, and those of `labels` (entity.attribute) besides.
    """
    found = []
    empty = pa.RecordBatch.from_arrays([pa.nulls(0, kind) for kind in schema.types], names=schema.names)
    uses = {use.label: use for use in declared(engine.config) if use.label in labels}
    for use in {**uses, **{use.label: use for use in engine.plan.attributes}}.values():
        line = engine.config.line(use.path)
        lost = [column for column in use.columns if column not in schema.names]
        for column in lost:
            message = f"column {column!r} is not in the data; {nearest(column, schema.names)}"
            found.append(Problem("unknown-column", message, use.path, line))
        if lost:
            continue
        try:  # an empty column has its type already
            array = read_attribute(empty, use).array
            hash_column(array, column_spec(use.attribute, use.title))
        except DataError as error:
            found.append(Problem("mistyped-column", str(error), use.path, line))
    return found


def survey(engine: Engine, source: Any, rows_max: int = SURVEY_ROWS) -> Survey:
    """Run a config over the first `rows_max` rows of a source.

    Raises
    ------
    DataError
        A column is missing or mistyped, or a value invalid.
    """
    futile = list(dict.fromkeys((p.key, p.attribute) for p in futile_pairs(engine.config, engine.plan)))
    pairs = [*futile, *cross_pairs(engine.config, engine.plan)]
    probe = Engine(_probe_config(engine.config, pairs)) if pairs else None
    counts = {name: _Count() for name in engine.plan.outputs}
    probe_counts = {name: _Count() for name in probe.plan.outputs} if probe else {}
    rows = 0
    for batch in read_batches(source, engine.plan, BATCH_ROWS_DEFAULT):
        part = batch.slice(0, rows_max - rows)
        for runner, into in ((engine, counts), (probe, probe_counts)):
            for done in runner.transform_batch(part, rows) if runner else ():
                for name, count in into.items():
                    count.add(*done[name])
        rows += len(part)
        if rows >= rows_max:
            break
    ratios, counted = {}, {}
    for number, pair in enumerate(pairs):
        left, right, both = (probe_counts[f"{part}{number}"] for part in ("left", "right", "both"))
        if pair not in futile:
            counted[pair] = PairCount(both.covered_rows, len(left), len(right), len(both))
        elif len(left):
            ratios[pair] = len(both) / len(left)
    features = {name: FeatureSurvey(c.covered_rows, c.ids, len(c)) for name, c in counts.items()}
    return Survey(rows, features, ratios, counted)


def _probe_config(config: CrossConfig, pairs: list[tuple[str, str]]) -> CrossConfig:
    """The same entities; per pair each of the two where the other is present too, and their cross."""
    features: dict[str, Feature] = {}
    for number, (left, right) in enumerate(pairs):
        for name, own, other in (("left", left, right), ("right", right, left)):
            when = {other: Condition(present=True)}
            feature = AttributeFeature(kind="attribute", of=own, missing="drop", when=when)
            features[f"{name}{number}"] = feature
        features[f"both{number}"] = WeakFeature(kind="weak", of=(left, right), missing="drop")
    return CrossConfig(ids=Ids(), entities=config.entities, features=features)
