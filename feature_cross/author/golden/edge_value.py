# SPDX-License-Identifier: Apache-2.0
"""Values at the edges of what attributes read, as Arrow columns: edge.py and witness.py make rows of them.

Thread safety: pure functions.
"""

import math
from typing import Any, Final

import pyarrow as pa

from feature_cross.config.attribute import Attribute
from feature_cross.config.plan import AttributeUse

__all__ = ["MOMENT", "beside", "values_of"]

_EDGES_MAX: Final = 8
"""Edges of one attribute's buckets that get values on both sides."""

_INTEGERS: Final = [0, 1, 7, -1, 1000, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63)]
_STRINGS: Final = ["a", "7", "", "Zürich", " Oslo ", "ÅNGSTRÖM", "ﬁne", "a_b", "日本", "x" * 40, "\t"]
_TIMES: Final = [
    "1970-01-01 00:00:00", "1969-12-31 23:59:59", "2000-02-29 12:30:59", "2024-12-31 23:59:59",
    "2025-01-01 00:00:00", "2025-06-15 07:05:00", "2038-01-19 03:14:08",
]  # fmt: skip
MOMENT: Final = "2025-06-30 12:00:00"
"""What a row has as the moment that ages and recency look back from."""

_FLOATS: Final = [0.0, -0.0, 0.1, -1.5, 1e300, -1e300]


def beside(what: str, values: pa.Array) -> pa.Array:
    """A column that goes with another: a moment, or for each value a weight or a time."""
    if what in ("age.column", "recency.column"):
        return pa.array([MOMENT] * len(values)).cast(pa.timestamp("us"))
    element: list[Any] = [1.0, 0.5] if what == "weights" else [MOMENT, *_TIMES]
    kind = pa.float64() if what == "weights" else pa.timestamp("us")
    if not pa.types.is_list(values.type):
        return pa.array([element[row % len(element)] for row in range(len(values))]).cast(kind)
    lists = [
        None if row is None else [element[place % len(element)] for place in range(len(row))]
        for row in values.to_pylist()
    ]
    flat = pa.string() if pa.types.is_temporal(kind) else kind
    return pa.array(lists, pa.list_(flat)).cast(pa.list_(kind))


def values_of(readers: list[AttributeUse]) -> tuple[pa.DataType, list[Any]]:
    """Arrow type and values that all readers of a column take; integers fit buckets of floats too."""
    types = {use.attribute.type for use in readers}
    edges = [edge for use in readers for edge in _bucket_edges(use.attribute)]
    if "int" in types:
        near = [round(edge) + step for edge in edges if abs(edge) < 2**62 for step in (-1, 0)]
        return pa.int64(), list(dict.fromkeys([*_INTEGERS, *near]))
    if "float" in types:
        sides = [side for edge in edges for side in (edge, math.nextafter(edge, -math.inf))]
        return pa.float64(), [*_FLOATS, *sides]
    if "date" in types:
        return pa.timestamp("us"), list(_TIMES)
    if "bool" in types:
        return pa.bool_(), [True, False]
    return pa.string(), list(_STRINGS)


def _bucket_edges(attribute: Attribute) -> list[float]:
    lower = attribute.buckets.lower_edges[1:] if attribute.buckets is not None else ()
    step = max(len(lower) // _EDGES_MAX, 1)
    return list(lower[::step])[:_EDGES_MAX]
