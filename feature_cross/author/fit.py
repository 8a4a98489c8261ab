# SPDX-License-Identifier: Apache-2.0
"""`feature-cross fit`: quantile edges from data, written into the config, so that ids never depend on data.

Only the edges are inserted into (or replaced in) the text: comments, order and spacing stay. Up to
SAMPLE_MAX values per attribute are kept, drawn evenly with a fixed seed, so equal rows give equal edges.
Thread safety: pure functions, but for the files that they read.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rowhouse.document import parse_document, read_text
from rowhouse.edit import edit

from feature_cross.config.attribute import Buckets
from feature_cross.config.config import (
    AttributeFeature,
    CombinationFeature,
    CrossConfig,
    Entity,
    Feature,
    Ids,
)
from feature_cross.config.loader import validate
from feature_cross.config.node import AttributeUse, declared
from feature_cross.config.plan import build_plan
from feature_cross.data.column import ColumnSpec, number_column
from feature_cross.data.reading import read_attribute
from feature_cross.data.source import read_batches
from feature_cross.error import DataError, config_errors
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["SAMPLE_MAX", "Fit", "fit", "quantile_edges"]

SAMPLE_MAX: Final = 1 << 20
"""Values kept per attribute: 8 MiB, and a quantile off by 0.15 % of the rows at most (3 deviations)."""

Edges = list[int] | list[float]


@dataclass(frozen=True, slots=True)
class Fit:
    """`text` is the config with edges; `edges` and `values` (seen) are by entity.attribute."""

    text: str
    edges: Mapping[str, Edges]
    values: Mapping[str, int]


@dataclass(slots=True)
class _Sample:
    """An even sample: each value gets a random key, and the least keys stay (Vitter's reservoir, by keys)."""

    random: np.random.Generator
    values: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    keys: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    seen: int = 0

    def add(self, values: NDArray[Any]) -> None:
        self.seen += len(values)
        self.values = np.concatenate([self.values, values]) if len(self.values) else values.copy()
        self.keys = np.concatenate([self.keys, self.random.random(len(values))])
        if len(self.values) > SAMPLE_MAX:
            least = np.argpartition(self.keys, SAMPLE_MAX)[:SAMPLE_MAX]
            self.values, self.keys = self.values[least], self.keys[least]


def quantile_edges(values: NDArray[Any], count: int) -> Edges:
    """Edges of `count` buckets of about equal count over `values`, (n,) numbers without NaN.

    Each edge is a value; equal ones are given once. In place of the least value, below which there is
    nothing, stands the next one. A skewed column gives fewer than count - 1, a constant one none.
    """
    ordered = np.sort(values)
    if not len(ordered) or ordered[0] == ordered[-1]:
        return []
    edges = ordered[np.arange(1, count) * len(ordered) // count]
    edges[edges == ordered[0]] = ordered[np.searchsorted(ordered, ordered[0], side="right")]
    edges = np.unique(edges)
    found: Edges = (edges + 0.0 if edges.dtype.kind == "f" else edges).tolist()  # -0.0 is 0.0
    return found


@config_errors()
def fit(config: str | os.PathLike[str], data: Any, refit: bool = False) -> Fit:
    """Find the edges of every attribute with `quantiles`.

    Parameters
    ----------
    config
        Path of a YAML or JSON file; it is not written.
    data
        What `Engine.transform_stream` takes.
    refit
        Also of those that have edges already; their ids change.

    Raises
    ------
    ConfigError
        The config is wrong.
    DataError
        A column does not fit, or has not two different values.
    """
    name = os.fspath(config)
    text = read_text(name)
    document = parse_document(text, name)
    checked = validate(document)
    uses = [use for use in _quantile_uses(checked) if refit or not _buckets(use).fitted]
    if not uses:
        return Fit(text, {}, {})
    samples = _read(checked, uses, data)
    edges: dict[str, Edges] = {}
    for use in uses:
        found = quantile_edges(samples[use.label].values, _buckets(use).quantiles or 0)
        if not found:
            message = f"{use.title} has {samples[use.label].seen} values"
            raise DataError(f"{message} but not two different ones; quantiles need two")
        edges[use.label] = found
    for use in uses:
        attribute = document.value["entities"][use.entity]["attributes"][use.name]
        attribute["buckets"]["edges"] = edges[use.label]
    written = edit(text, name, document.value)
    return Fit(written, edges, {label: sample.seen for label, sample in samples.items()})


def _buckets(use: AttributeUse) -> Buckets:
    assert use.attribute.buckets is not None, "only attributes with quantiles come here"
    return use.attribute.buckets


def _quantile_uses(config: CrossConfig) -> list[AttributeUse]:
    return [
        replace(use, missing="drop")
        for use in declared(config)
        if use.attribute.buckets is not None and use.attribute.buckets.quantiles is not None
    ]


def _read(config: CrossConfig, uses: list[AttributeUse], data: Any) -> dict[str, _Sample]:
    samples = {use.label: _Sample(np.random.default_rng(0)) for use in uses}
    specs = {
        use.label: ColumnSpec(use.attribute, use.title, np.empty(0), np.empty(0, np.uint64)) for use in uses
    }
    row = 0
    for batch in read_batches(data, build_plan(_probe(config, uses)), BATCH_ROWS_DEFAULT):
        for use in uses:
            array = read_attribute(batch, use, row).array
            if use.attribute.list:
                array = pa.nulls(0) if pa.types.is_null(array.type) else _flattened(array, specs[use.label])
            numbers, nulls = number_column(array, specs[use.label])
            samples[use.label].add(numbers if nulls is None else numbers[~nulls])
        row += len(batch)
    return samples


def _flattened(array: pa.Array, spec: ColumnSpec) -> pa.Array:
    if not hasattr(array, "flatten") or not pa.types.is_nested(array.type):
        raise DataError(f"{spec.label} has Arrow type {array.type}; it is declared as a list")
    return array.flatten()


def _probe(config: CrossConfig, uses: list[AttributeUse]) -> CrossConfig:
    """A config of these attributes alone, with an edge each, so that there is a plan to read by."""
    entities: dict[str, Entity] = {}
    features: dict[str, Feature] = {}
    for number, use in enumerate(uses):
        attribute = use.attribute.model_copy(update={"buckets": Buckets(edges=(0.0,)), "column": use.column})
        attribute = attribute.model_copy(update={"weights": None})
        entities[f"e{number}"] = Entity(attributes={"a": attribute})
        kind: dict[str, Any] = {"kind": "attribute", "of": f"e{number}.a"}
        if attribute.list:
            kind = {"kind": "combination", "form": "single", "of": f"e{number}.a"}
        features[f"f{number}"] = (CombinationFeature if attribute.list else AttributeFeature)(**kind)
    return CrossConfig(ids=Ids(), entities=entities, features=features)
