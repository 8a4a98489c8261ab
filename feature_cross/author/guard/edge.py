# SPDX-License-Identifier: Apache-2.0
"""Invented rows for golden vectors where an author gives no data: extreme integers, empty text, both sides of
a bucket's edge; and for a feature whose conditions none of them meets, rows that meet them.

For the latter each column is looked at alone: values that its conditions name, those on either side of a
bound, and the edges are tried until all conditions on that column hold. What a row really gives is the
engine's word. Conditions that no such value meets have no witness: their author gives data.
Thread safety: pure functions.
"""

import datetime
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa

from feature_cross.author.explain import meets
from feature_cross.config.attribute import Attribute
from feature_cross.config.node import AttributeUse, ConditionUse, NodeUse, Plan
from feature_cross.engine.engine import Engine
from feature_cross.error import DataError, FlagError

__all__ = ["EDGE_ROWS", "WITNESSES_MAX", "edge_rows", "witness_rows"]

EDGE_ROWS: Final = 64
"""Rows that are made: each value of each column, next to different values of the others."""

WITNESSES_MAX: Final = 8
"""Rows for one feature: each value that meets its conditions, next to different values of the others."""

_VALUES_MAX: Final = 64
"""Values of one `any_of` that are tried."""

_EPOCH: Final = datetime.datetime(1970, 1, 1)
_MONDAY: Final = datetime.datetime(2025, 6, 16)

_EDGES_MAX: Final = 8
"""Edges of one attribute's buckets that get values on both sides."""

_INTEGERS: Final = [0, 1, 7, -1, 1000, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63)]
_STRINGS: Final = ["a", "7", "", "Zürich", " Oslo ", "ÅNGSTRÖM", "ﬁne", "a_b", "日本", "x" * 40, "\t"]
_TIMES: Final = [
    "1970-01-01 00:00:00", "1969-12-31 23:59:59", "2000-02-29 12:30:59", "2024-12-31 23:59:59",
    "2025-01-01 00:00:00", "2025-06-15 07:05:00", "2038-01-19 03:14:08",
]  # fmt: skip
_MOMENT: Final = "2025-06-30 12:00:00"
"""What a row has as the moment that ages and recency look back from."""

_FLOATS: Final = [0.0, -0.0, 0.1, -1.5, 1e300, -1e300]


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
            columns.setdefault(name, _beside(what, columns[use.column]))
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
    kind, values = _values_of(readers)
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


def witness_rows(engine: Engine, name: str, batch: pa.RecordBatch) -> pa.RecordBatch | None:
    """Rows in which a feature has ids, with the columns of `batch`.

    Parameters
    ----------
    engine, name
        The config, and one of its outputs.
    batch
        Rows of the config's columns; what the conditions leave open is taken from them.

    Returns
    -------
    RecordBatch
        1 to WITNESSES_MAX rows; None where no value meets the conditions.
    """
    conditions, read = _asked(engine.plan, name)
    by_column: dict[str, list[ConditionUse]] = {}
    for condition in conditions:
        by_column.setdefault(condition.use.column, []).append(condition)
    found = {column: _meeting(engine, batch, asked) for column, asked in by_column.items()}
    if not found or not all(found.values()):
        return None
    columns = {}
    for shift, column in enumerate(batch.schema.names):
        values = found.get(column) or _present(batch.column(column), column in read)
        columns[column] = [values[(row + shift) % len(values)] for row in range(4 * WITNESSES_MAX)]
    rows = _with_beside(engine, batch, columns)
    once = {repr(row): number for number, row in reversed(list(enumerate(rows.to_pylist())))}
    kept = [row for row in sorted(once.values()) if _has_ids(engine, name, rows.slice(row, 1))]
    return rows.take(pa.array(kept[:WITNESSES_MAX], pa.int64())) if kept else None


def _asked(plan: Plan, name: str) -> tuple[list[ConditionUse], set[str]]:
    """The conditions of a feature and of those that it derives from, and the columns of their operands."""
    conditions: list[ConditionUse] = []
    read: set[str] = set()
    wanted = [name]
    while wanted:
        node = plan.node(wanted.pop())
        conditions += node.conditions
        wanted += [operand.name for operand in node.operands if isinstance(operand, NodeUse)]
        read |= {operand.column for operand in node.operands if isinstance(operand, AttributeUse)}
    return conditions, read


def _present(array: pa.Array, needed: bool) -> list[Any]:
    """Values of a column as they are; of one that gives operands only those that are there."""
    values = array.to_pylist()
    there = [value for value in values if value is not None and value != []]
    return there if needed and there else values


def _with_beside(engine: Engine, batch: pa.RecordBatch, columns: dict[str, list[Any]]) -> pa.RecordBatch:
    """The rows, with the moments, times and weights that go with their values."""
    arrays = {name: pa.array(values, batch.column(name).type) for name, values in columns.items()}
    own = {use.column for use in engine.plan.attributes}
    done: set[str] = set()
    for use in engine.plan.attributes:
        for what, name in use.attribute.columns.items():
            if name not in own | done:
                arrays[name] = _beside(what, arrays[use.column])
                done.add(name)
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def _has_ids(engine: Engine, name: str, row: pa.RecordBatch) -> bool:
    try:
        return len(engine.transform(row)[name][0]) > 0
    except DataError:  # a limit, or `missing: error` of another feature
        return False


def _meeting(engine: Engine, batch: pa.RecordBatch, asked: Sequence[ConditionUse]) -> list[Any]:
    """Values of one column with which all its conditions hold, those first that the conditions name."""
    column, is_list = asked[0].use.column, asked[0].use.attribute.list
    readers = [use for use in engine.plan.attributes if use.column == column]
    kind, edges = _values_of(readers)
    named = [value for condition in asked for value in _named(condition, kind)]
    pool = pa.array(edges).cast(kind).to_pylist()
    single = list(dict.fromkeys([*named, *pool]))
    tried: list[Any] = [*single, None]
    if is_list:
        more = pool[:3]
        tried = [[value, *more] for value in single] + [[*more, value] for value in single]
        tried += [[value] for value in single] + [[], None]
    first = {name: [batch.column(name)[0].as_py()] * len(tried) for name in batch.schema.names}
    rows = _with_beside(engine, batch, {**first, column: tried})
    return [
        value
        for row, value in enumerate(tried)
        if all(_holds(engine, rows, condition, row) for condition in asked)
    ]


def _holds(engine: Engine, rows: pa.RecordBatch, condition: ConditionUse, row: int) -> bool:
    try:
        return meets(engine, rows, condition, row)
    except DataError:  # not a value that the attribute takes
        return False


def _named(condition: ConditionUse, kind: pa.DataType) -> Iterator[Any]:
    """Values of the column that a condition is about, and those near its bounds, of the column's type."""
    asked, attribute = condition.condition, condition.use.attribute
    numbers = [*(asked.any_of or ())[:_VALUES_MAX]]
    bounds = [bound for bound in (asked.at_least, asked.below) if bound is not None]
    if attribute.part is not None:
        yield from _moments(attribute.part, [*numbers, *bounds])
    elif attribute.age is not None:
        yield from _aged(condition.use, bounds)
    elif pa.types.is_floating(kind):
        yield from (float(bound) for bound in bounds)
        yield from (math.nextafter(bound, -math.inf) for bound in bounds)
        yield sum(bounds) / max(len(bounds), 1)
    elif pa.types.is_integer(kind):
        near = [math.ceil(bound) + step for bound in bounds for step in (0, -1)]
        yield from (n for n in [*numbers, *near] if -(1 << 63) <= int(n) < 1 << 63)
    else:
        yield from numbers


def _moments(part: str, numbers: Sequence[Any]) -> Iterator[datetime.datetime]:
    """Moments of every value of a part that repeats, and of the years or dates that are asked for."""
    if part == "year":
        years = [math.ceil(number) + step for number in numbers for step in (0, -1)]
        yield from (datetime.datetime(year, 1, 1) for year in years if 1 <= year <= 9999)
    elif part == "date":
        days = [math.ceil(number) + step for number in numbers for step in (0, -1)]
        yield from (_EPOCH + datetime.timedelta(days=day) for day in days if abs(day) < 700_000)
    elif part == "month":
        yield from (datetime.datetime(2025, month, 15) for month in range(1, 13))
    elif part == "day":
        yield from (datetime.datetime(2025, 1, day) for day in range(1, 32))
    elif part == "minute":
        yield from (_MONDAY + datetime.timedelta(minutes=minute) for minute in range(60))
    else:
        yield from (_MONDAY + datetime.timedelta(hours=hour) for hour in range(168))


def _aged(use: AttributeUse, bounds: Sequence[int | float]) -> Iterator[datetime.datetime]:
    """Dates of such ages, and a microsecond younger."""
    age = use.attribute.age
    assert age is not None
    moment = datetime.datetime.fromisoformat(_MOMENT)
    if age.moment_us is not None:
        moment = _EPOCH + datetime.timedelta(microseconds=age.moment_us)
    for bound in bounds:
        try:
            date = moment - datetime.timedelta(**{f"{age.unit}s": math.ceil(bound)})
        except OverflowError:  # before the year 1
            continue
        yield from (date, date + datetime.timedelta(microseconds=1))


def _beside(what: str, values: pa.Array) -> pa.Array:
    """A column that goes with another: a moment, or for each value a weight or a time."""
    if what in ("age.column", "recency.column"):
        return pa.array([_MOMENT] * len(values)).cast(pa.timestamp("us"))
    element: list[Any] = [1.0, 0.5] if what == "weights" else [_MOMENT, *_TIMES]
    kind = pa.float64() if what == "weights" else pa.timestamp("us")
    if not pa.types.is_list(values.type):
        return pa.array([element[row % len(element)] for row in range(len(values))]).cast(kind)
    lists = [
        None if row is None else [element[place % len(element)] for place in range(len(row))]
        for row in values.to_pylist()
    ]
    flat = pa.string() if pa.types.is_temporal(kind) else kind
    return pa.array(lists, pa.list_(flat)).cast(pa.list_(kind))


def _values_of(readers: list[AttributeUse]) -> tuple[pa.DataType, list[Any]]:
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
