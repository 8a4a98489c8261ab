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

from feature_cross.author.check.lint import PairCount, cross_pairs, futile_pairs
from feature_cross.config.config import AttributeFeature, Condition, CrossConfig, Feature, Ids, WeakFeature
from feature_cross.config.loader import nearest
from feature_cross.config.node import AttributeUse
from feature_cross.data.column import column_spec, hash_column
from feature_cross.data.reading import read_attribute
from feature_cross.data.source import read_batches
from feature_cross.engine.engine import Engine
from feature_cross.error import DataError, Problem
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["SURVEY_ROWS", "FeatureSurvey", "Survey", "check_columns", "survey"]

SURVEY_ROWS = 1_000_000
"""Rows that are read: exact distinct counts hold every id, 8 bytes each."""

_PENDING_MAX = 1 << 20
"""Ids kept before they are merged into the distinct ones: merging at each batch would sort all again."""


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
    """Exact distinct ids, in at most twice their memory and _PENDING_MAX more."""

    covered_rows: int = 0
    ids: int = 0
    kept: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    pending: list[NDArray[np.uint64]] = field(default_factory=list)
    pending_ids: int = 0

    def add(self, ids: NDArray[np.uint64], offsets: NDArray[np.int64]) -> None:
        self.covered_rows += int((np.diff(offsets) > 0).sum())
        self.ids += len(ids)
        self.pending.append(np.unique(ids))
        self.pending_ids += len(self.pending[-1])
        if self.pending_ids > max(_PENDING_MAX, len(self.kept)):
            self.merge()

    def merge(self) -> None:
        self.kept = np.unique(np.concatenate([self.kept, *self.pending]))
        self.pending, self.pending_ids = [], 0


def check_columns(engine: Engine, schema: pa.Schema, labels: Collection[str] = ()) -> list[Problem]:
    """Attributes whose column is not in the data, or has a type that they do not take; errors with lines.

    Those that the features use, and those of `labels` (entity.attribute) besides.
    """
    found = []
    empty = pa.RecordBatch.from_arrays([pa.nulls(0, kind) for kind in schema.types], names=schema.names)
    uses = {
        f"{entity}.{name}": AttributeUse(
            entity, name, f"{entity}.{name}", attribute.column or name, attribute, attribute.missing
        )
        for entity, declared in engine.config.entities.items()
        for name, attribute in declared.attributes.items()
        if f"{entity}.{name}" in labels
    }
    for label, use in {**uses, **{use.label: use for use in engine.plan.attributes}}.items():
        path = ("entities", use.entity, "attributes", use.name)
        line = engine.config.line(path)
        lost = [column for column in use.columns if column not in schema.names]
        for column in lost:
            message = f"column {column!r} is not in the data{nearest(column, schema.names)}"
            found.append(Problem("unknown-column", message, path, line))
        if lost:
            continue
        try:  # an empty column has its type already
            array = read_attribute(empty, use).array
            hash_column(array, column_spec(use.attribute, f"column {use.column!r} ({label})"))
        except DataError as error:
            found.append(Problem("mistyped-column", str(error), path, line))
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
    for count in (*counts.values(), *probe_counts.values()):
        count.merge()
    ratios, counted = {}, {}
    for number, pair in enumerate(pairs):
        left, right, both = (probe_counts[f"{part}{number}"] for part in ("left", "right", "both"))
        if pair not in futile:
            counted[pair] = PairCount(both.covered_rows, len(left.kept), len(right.kept), len(both.kept))
        elif len(left.kept):
            ratios[pair] = len(both.kept) / len(left.kept)
    features = {name: FeatureSurvey(c.covered_rows, c.ids, len(c.kept)) for name, c in counts.items()}
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
