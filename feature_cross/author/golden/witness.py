# SPDX-License-Identifier: Apache-2.0
"""Rows that meet the conditions of a feature, for golden vectors where an author gives no data.

Each column is looked at alone: values that its conditions name, those on either side of a bound, and the
edges of edge_value.py are tried until all conditions on that column hold. What a row really gives is the
engine's word. Conditions that no such value meets have no witness: their author gives data.
Thread safety: pure functions.
"""

import datetime
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa

from feature_cross.author.explain import meets
from feature_cross.author.golden.edge_value import MOMENT, beside, values_of
from feature_cross.config.node import AttributeUse, ConditionUse, NodeUse, Plan
from feature_cross.engine.engine import Engine
from feature_cross.error import DataError

__all__ = ["WITNESSES_MAX", "witness_rows"]

WITNESSES_MAX: Final = 8
"""Rows for one feature: each value that meets its conditions, next to different values of the others."""

_VALUES_MAX: Final = 64
"""Values of one `any_of` that are tried."""

_EPOCH: Final = datetime.datetime(1970, 1, 1)
_MONDAY: Final = datetime.datetime(2025, 6, 16)


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
                arrays[name] = beside(what, arrays[use.column])
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
    kind, edges = values_of(readers)
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
    moment = datetime.datetime.fromisoformat(MOMENT)
    if age.moment_us is not None:
        moment = _EPOCH + datetime.timedelta(microseconds=age.moment_us)
    for bound in bounds:
        try:
            date = moment - datetime.timedelta(**{f"{age.unit}s": math.ceil(bound)})
        except OverflowError:  # before the year 1
            continue
        yield from (date, date + datetime.timedelta(microseconds=1))
