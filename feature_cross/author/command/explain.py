# SPDX-License-Identifier: Apache-2.0
"""`feature-cross explain`: from one row to its ids, step by step, or from an id back to names."""

import argparse
import json
import sys

import pyarrow as pa
from rowhouse.problem import nearest, with_article

from feature_cross.author.dictionary import Named, look_up, parse_id
from feature_cross.author.explain import Explanation, explain, why_absent
from feature_cross.author.progress import counted
from feature_cross.config.loader import load
from feature_cross.data.row import row_to_batch
from feature_cross.data.source import read_batches
from feature_cross.engine.engine import Engine
from feature_cross.error import FlagError
from feature_cross.limit import BATCH_ROWS_DEFAULT


def run(flags: argparse.Namespace) -> int:
    """`explain`: every step from the values of one row to its ids, or from an id back to names."""
    if flags.dictionary is not None:
        return _look_up(flags)
    if flags.config is None:
        raise FlagError("explain needs --config, or --dictionary for an id")
    engine = Engine(load(flags.config))
    for name in flags.feature:
        if name not in engine.plan.outputs:
            known = list(engine.plan.outputs)
            raise FlagError(
                f"--feature is {name!r}, which is no feature of the config: it has {known[:50]}"
                f"; {nearest(name, known)}"
            )
    row = _one_row(flags, engine)
    steps = explain(engine, row)
    if flags.feature:
        steps = [step for step in steps if step.feature in flags.feature]
    if flags.json:
        json.dump([step.to_json() for step in steps], sys.stdout, default=str)
        print()
        return 0
    shown: dict[str, int] = {}
    for step in steps:
        shown[step.feature] = shown.get(step.feature, 0) + 1
        if shown[step.feature] <= flags.ids:
            _print_step(step)
    for name, count in shown.items():
        if count > flags.ids:
            print(f"{name}: {counted(count - flags.ids, 'more id')} (--ids {count} shows all)")
    for name in flags.feature or engine.plan.outputs:
        if name not in shown:
            print(f"{name}: no id in this row: {why_absent(engine, row, name)}")
    return 0


def _one_row(flags: argparse.Namespace, engine: Engine) -> pa.RecordBatch:
    if flags.values is not None:
        try:
            row = json.loads(flags.values)
        except (ValueError, RecursionError) as error:
            raise FlagError(f"--values is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise FlagError(
                f"--values is {with_article(type(row).__name__)}; it must be an object, column to value"
            )
        return row_to_batch(row, engine.plan.attributes)
    first = 0
    for batch in read_batches(flags.data, engine.plan, BATCH_ROWS_DEFAULT):
        if flags.row < first + len(batch):
            return batch.slice(flags.row - first, 1)
        first += len(batch)
    raise FlagError(f"--row is {flags.row}, and the data has {first} rows, counted from 0")


def _print_step(step: Explanation) -> None:
    print(f"{step.feature}  id 0x{step.id:016x} = {step.id}")
    print(f"    seed 0x{step.seed:016x}  operation {step.operation}  arity {len(step.operands)}")
    print(f"    start                                        0x{step.states[0]:016x}")
    for operand, state in zip(step.operands, step.states[1:], strict=True):
        source = "its own hash" if operand.canonical is None else operand.canonical.hex(" ")
        print(f"    {operand.label} = {operand.value!r}")
        print(f"        {source} -> 0x{operand.hash:016x} -> mix  0x{state:016x}")
    if step.slot is not None:
        print(f"    slot {step.slot}")
    if step.weight is not None:
        print(f"    weight {step.weight:g}")


def _look_up(flags: argparse.Namespace) -> int:
    """`explain ID --dictionary FILE`: every value that the file knows behind an id."""
    if flags.data is None or flags.values is not None:
        raise FlagError("--dictionary takes an id, as: explain 0x0292f1a2a23ae6a9 --dictionary FILE")
    found = look_up(flags.dictionary, [parse_id(flags.data)])
    if flags.json:
        json.dump([_named_json(one) for one in found], sys.stdout)
        print()
        return 0
    for one in found:
        named = ", ".join(f"{label} = {value!r}" for label, value in one.names)
        print(f"0x{one.id:016x}  {one.feature}: {named}  ({one.count} times in the sampled rows)")
    if len({one.feature for one in found}) < len(found):
        print(f"{len(found)} values have this id: a collision")
    return 0


def _named_json(one: Named) -> dict[str, object]:
    names = [{"from": label, "value": value} for label, value in one.names]
    return {"id": f"0x{one.id:016x}", "feature": one.feature, "names": names, "count": one.count}
