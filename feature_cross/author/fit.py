# SPDX-License-Identifier: Apache-2.0
"""`feature-cross fit`: quantile edges from data, written into the config, so that ids never depend on data.

Only the edges are inserted into (or replaced in) the text: comments, order and spacing stay. Up to
SAMPLE_MAX values per attribute are kept, drawn evenly with a fixed seed, so equal rows give equal edges.
Thread safety: pure functions, but for the files that they read.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from feature_cross.config.config import (
    AttributeFeature,
    Buckets,
    CombinationFeature,
    CrossConfig,
    Entity,
    Feature,
    Ids,
)
from feature_cross.config.document import parse
from feature_cross.config.loader import read_text, validate
from feature_cross.config.node import AttributeUse
from feature_cross.config.plan import build_plan
from feature_cross.data.column import ColumnSpec, number_column
from feature_cross.data.reading import read_attribute
from feature_cross.data.source import read_batches
from feature_cross.error import ConfigError, DataError, InternalError, Problem
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
        The config is wrong, or one YAML node is two attributes' buckets.
    DataError
        A column does not fit, or has not two different values.
    """
    name = os.fspath(config)
    text = read_text(name)
    document, lines = parse(text, name)
    checked = validate(document, lines, name)
    uses = [use for use in _quantile_uses(checked) if refit or not _buckets(use).fitted]
    if not uses:
        return Fit(text, {}, {})
    samples = _read(checked, uses, data)
    edges: dict[str, Edges] = {}
    for use in uses:
        found = quantile_edges(samples[use.label].values, _buckets(use).quantiles or 0)
        if not found:
            message = f"column {use.column!r} ({use.label}) has {samples[use.label].seen} values, and not two"
            raise DataError(f"{message} different ones; quantiles cut nothing")
        edges[use.label] = found
    written = _write(text, name, {(use.entity, use.name): edges[use.label] for use in uses})
    for use in uses:
        document["entities"][use.entity]["attributes"][use.name]["buckets"]["edges"] = edges[use.label]
    if parse(written, name)[0] != document:
        raise InternalError(f"{name}: the edges could not be put in place; please report this config")
    return Fit(written, edges, {label: sample.seen for label, sample in samples.items()})


def _buckets(use: AttributeUse) -> Buckets:
    assert use.attribute.buckets is not None, "only attributes with quantiles come here"
    return use.attribute.buckets


def _quantile_uses(config: CrossConfig) -> list[AttributeUse]:
    return [
        AttributeUse(entity, name, f"{entity}.{name}", attribute.column or name, attribute, "drop")
        for entity, declared in config.entities.items()
        for name, attribute in declared.attributes.items()
        if attribute.buckets is not None and attribute.buckets.quantiles is not None
    ]


def _read(config: CrossConfig, uses: list[AttributeUse], data: Any) -> dict[str, _Sample]:
    samples = {use.label: _Sample(np.random.default_rng(0)) for use in uses}
    specs = {
        use.label: ColumnSpec(
            use.attribute, f"column {use.column!r} ({use.label})", np.empty(0), np.empty(0, np.uint64)
        )
        for use in uses
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


def _write(text: str, name: str, edges: dict[tuple[str, str], Edges]) -> str:
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    changes: dict[int, tuple[int, str, str]] = {}
    for (entity, attribute), found in edges.items():
        node = root
        for key in ("entities", entity, "attributes", attribute, "buckets"):
            node = dict(_pairs(node))[key][1]
        start, end, new = _change(text, node, found)
        label = f"{entity}.{attribute}"
        if start in changes and changes[start][1] != new:
            message = (
                f"{label} and {changes[start][2]} have one YAML node of buckets (an alias); write them apart"
            )
            path = ("entities", entity, "attributes", attribute, "buckets")
            raise ConfigError([Problem("value", message, path, node.start_mark.line + 1)], name)
        changes[start] = (end, new, label)
    for start in sorted(changes, reverse=True):
        end, new, _ = changes[start]
        text = text[:start] + new + text[end:]
    return text


def _pairs(node: Any) -> list[tuple[str, tuple[Any, Any]]]:
    return [(key.value, (key, value)) for key, value in node.value]


def _change(config: str, buckets: Any, edges: Edges) -> tuple[int, int, str]:
    """(from, to, text) of the replacement that gives a node of buckets these edges."""
    # YAML 1.1 reads 1e-07 as text, and 1.0e-07 as a number.
    texts = [repr(edge) for edge in edges]
    texts = [text.replace("e", ".0e") if "e" in text and "." not in text else text for text in texts]
    shown = "[" + ", ".join(texts) + "]"
    pairs = dict(_pairs(buckets))
    if "edges" in pairs:
        old = pairs["edges"][1]
        end = old.end_mark.index
        if not old.flow_style:  # a block ends where the next token begins, past comments and the line's end
            end = old.value[-1].end_mark.index
        return old.start_mark.index, end, shown
    key, value = pairs["quantiles"]
    quote = config[key.start_mark.index] if config[key.start_mark.index] in "\"'" else ""
    between = ", " if buckets.flow_style else "\n" + " " * key.start_mark.column
    at = value.end_mark.index
    return at, at, f"{between}{quote}edges{quote}: {shown}"
