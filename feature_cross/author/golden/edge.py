# SPDX-License-Identifier: Apache-2.0
"""Rows at the edges of what a config reads: extreme integers, empty text, both sides of a bucket's edge.

They serve golden vectors where an author gives no data. Features whose conditions none of them meets get
rows of their own (witness.py). Thread safety: pure functions.
"""

from typing import Any, Final

import pyarrow as pa

from feature_cross.author.golden.edge_value import beside, values_of
from feature_cross.author.golden.witness import witness_rows
from feature_cross.config.plan import AttributeUse
from feature_cross.engine.engine import Engine
from feature_cross.error import DataError, FlagError

__all__ = ["EDGE_ROWS", "edge_rows"]

EDGE_ROWS: Final = 64
"""Rows that are made: each value of each column, next to different values of the others."""


def edge_rows(engine: Engine) -> pa.RecordBatch:
    """EDGE_ROWS rows that the engine takes, and some more where conditions ask for them.

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
            columns.setdefault(name, beside(what, columns[use.column]))
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    try:
        made = engine.transform(batch)
    except DataError as error:
        raise FlagError(f"no rows can be invented for this config ({error}); give DATA to freeze") from error
    for name in made.features:
        if not len(made[name][0]) and (more := witness_rows(engine, name, batch)) is not None:
            columns = {c: pa.concat_arrays([columns[c], more.column(c)]) for c in columns}
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _column(readers: list[AttributeUse], shift: int) -> pa.Array:
    first = readers[0].attribute
    kind, values = values_of(readers)
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
