# SPDX-License-Identifier: Apache-2.0
"""Rows at the edges of what a config reads: extreme integers, empty text, both sides of a bucket's edge.

They serve golden vectors where an author gives no data. Thread safety: pure functions.
"""

import math
from typing import Any, Final

import pyarrow as pa

from feature_cross.attribute import Attribute
from feature_cross.engine import Engine
from feature_cross.error import DataError, FlagError
from feature_cross.plan import AttributeUse

__all__ = ["EDGE_ROWS", "edge_rows"]

EDGE_ROWS: Final = 64
"""Rows that are made: each value of each column, next to different values of the others."""

_EDGES_MAX: Final = 8
"""Edges of one attribute's buckets that get values on both sides."""

_INTEGERS: Final = [0, 1, 7, -1, 1000, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63)]
_STRINGS: Final = ["a", "7", "", "Zürich", " Oslo ", "ÅNGSTRÖM", "ﬁne", "a_b", "日本", "x" * 40, "\t"]
_TIMES: Final = [
    "1970-01-01 00:00:00", "1969-12-31 23:59:59", "2000-02-29 12:30:59", "2024-12-31 23:59:59",
    "2025-01-01 00:00:00", "2025-06-15 07:05:00", "2038-01-19 03:14:08",
]  # fmt: skip
_MOMENT: Final = "2025-06-30 12:00:00"
_FLOATS: Final = [0.0, -0.0, 0.1, -1.5, 1e300, -1e300]


def edge_rows(engine: Engine) -> pa.RecordBatch:
    """EDGE_ROWS rows that the engine takes.

    Raises
    ------
    FlagError
        The config asks for something that no invented row has; give data instead.
    """
    uses: dict[str, list[AttributeUse]] = {}
    for use in engine.plan.attributes:
        uses.setdefault(use.column, []).append(use)
    columns = {name: _column(readers, 3 * number) for number, (name, readers) in enumerate(uses.items())}
    for use in engine.plan.attributes:
        for what, name in use.attribute.columns.items():
            columns.setdefault(name, _beside(what, columns[use.column]))
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    try:
        engine.transform(batch)
    except DataError as error:
        raise FlagError(f"no rows can be invented for this config ({error}); give DATA to freeze") from error
    return batch


def _column(readers: list[AttributeUse], shift: int) -> pa.Array:
    first = readers[0].attribute
    kind, values = _values(readers)
    if all(use.missing != "error" for use in readers):
        values = [*values, None]
    if not first.list:
        return pa.array([values[(row + shift) % len(values)] for row in range(EDGE_ROWS)]).cast(kind)
    lists: list[Any] = []
    for row in range(EDGE_ROWS):
        length = (row + shift) % 7
        lists.append([values[(row * 5 + place * (1 + row % 3)) % len(values)] for place in range(length)])
    if values[-1] is None:
        lists[shift % EDGE_ROWS] = None
    flat = pa.string() if pa.types.is_temporal(kind) else kind
    return pa.array(lists, pa.list_(flat)).cast(pa.list_(kind))


def _beside(what: str, values: pa.Array) -> pa.Array:
    """A column that goes with another: a moment, or for each value a weight or a time."""
    if what in ("age.column", "recency.column"):
        return pa.array([_MOMENT] * EDGE_ROWS).cast(pa.timestamp("us"))
    element: list[Any] = [1.0, 0.5] if what == "weights" else [_MOMENT, *_TIMES]
    kind = pa.float64() if what == "weights" else pa.timestamp("us")
    if not pa.types.is_list(values.type):
        return pa.array([element[row % len(element)] for row in range(EDGE_ROWS)]).cast(kind)
    lists = [
        None if row is None else [element[place % len(element)] for place in range(len(row))]
        for row in values.to_pylist()
    ]
    flat = pa.string() if pa.types.is_temporal(kind) else kind
    return pa.array(lists, pa.list_(flat)).cast(pa.list_(kind))


def _values(readers: list[AttributeUse]) -> tuple[pa.DataType, list[Any]]:
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
