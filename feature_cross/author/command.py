# SPDX-License-Identifier: Apache-2.0
"""What the subcommands of `feature-cross` do; feature_cross/author/program.py reads their flags.

Each takes the parsed flags and gives an exit code. Tables for people and progress go to stderr where stdout
carries data. Thread safety: a process's main thread.
"""

import argparse
import json
import sys
import time
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from feature_cross.author.check.finding import find
from feature_cross.author.check.survey import Survey
from feature_cross.author.explain import Explanation, explain, why_absent
from feature_cross.author.lock import check_against, lock_path, read_previous
from feature_cross.author.lookup import run_lookup
from feature_cross.author.progress import counted, progress_bar
from feature_cross.config.config import CrossConfig
from feature_cross.config.loader import load, nearest
from feature_cross.config.plan import build_plan
from feature_cross.data.output import check_out
from feature_cross.data.row import row_to_batch
from feature_cross.data.sink import Sink
from feature_cross.data.source import count_rows, open_dataset, read_batches
from feature_cross.engine.engine import Engine
from feature_cross.error import ConfigError, FlagError, Problem

__all__ = ["run_check", "run_data", "run_explain", "run_schema"]


def run_data(flags: argparse.Namespace) -> int:
    """`run`: ids of a file or folder into one file."""
    check_out(flags.out, flags.config, flags.data)
    engine = Engine(load(flags.config))
    keep = tuple(dict.fromkeys(flags.keep))
    source = open_dataset(flags.data, engine.plan)
    total = count_rows(flags.data, engine.plan)
    schema = _output_schema(engine, source.schema, keep)
    console = Console(stderr=True)
    begin = time.perf_counter()
    rows, ids = 0, dict.fromkeys(engine.plan.outputs, 0)
    with progress_bar(flags.json) as progress:
        task = progress.add_task("rows", total=total)
        with Sink(flags.out, schema) as sink:
            batches = read_batches(source, engine.plan, flags.batch_rows, keep)
            for batch, done in engine.transform_pairs(batches, flags.threads, steady=True):
                made = done.to_arrow()
                kept = [batch.column(name) for name in keep]
                sink.write(pa.RecordBatch.from_arrays([*kept, *made.columns], schema=schema))
                rows += len(done)
                for name in engine.plan.outputs:
                    ids[name] += len(done[name][0])
                progress.update(task, completed=rows)
    seconds = time.perf_counter() - begin
    report = {"rows": rows, "ids": ids, "seconds": round(seconds, 3), "out": str(flags.out)}
    if flags.json:
        print(json.dumps(report))
        return 0
    if not rows:
        console.print(f"warning: {flags.data} has no rows, so {flags.out} has none")
    table = Table("feature", "ids", "ids per row", title=f"{rows:,} rows in {seconds:.1f} s -> {flags.out}")
    for name, count in ids.items():
        table.add_row(name, f"{count:,}", f"{count / rows:.2f}" if rows else "-")
    console.print(table)
    return 0


def _output_schema(engine: Engine, data: pa.Schema, keep: tuple[str, ...]) -> pa.Schema:
    for name in keep:
        if name not in data.names:
            raise FlagError(
                f"--keep is {name!r}, which is no column of the data: it has {data.names[:50]}"
                f"{nearest(name, data.names)}"
            )
        if name in engine.plan.outputs:
            raise FlagError(f"--keep is {name!r}, which is the name of a feature too; rename one")
    kept = [data.field(name) for name in keep]
    return pa.schema([*kept, *engine.schema], metadata=engine.schema.metadata)


def run_check(flags: argparse.Namespace) -> int:
    """`check`: every problem of a config, with its line; exit code 1 if one is an error."""
    measured: Survey | None = None
    problems: list[Problem] = []
    source = flags.config
    try:
        found = find(flags.config, flags.data)
        problems, measured = found.problems, found.measured
        against = flags.against
        if against is None and lock_path(flags.config).exists():
            against = str(lock_path(flags.config))
        if against is not None and found.whole is not None:
            previous = read_previous(against)
            problems = [*check_against(found.whole, build_plan(found.whole), previous), *problems]
    except ConfigError as error:
        if any(one.code == "config-file" for one in error.problems):
            raise  # a file that cannot be read is no finding
        problems, source = list(error.problems), error.source
    errors = sum(problem.severity == "error" for problem in problems)
    if flags.json:
        print(
            json.dumps({"problems": [_problem_json(p) for p in problems], "survey": _survey_json(measured)})
        )
        return 1 if errors else 0
    for problem in problems:
        print(f"{problem.severity}: {problem.text(source)} [{problem.code}]")
    if measured is not None:
        table = Table(
            "feature", "rows with ids", "ids", "distinct", title=f"{measured.rows:,} rows of {flags.data}"
        )
        for name, feature in measured.features.items():
            table.add_row(name, f"{feature.covered_rows:,}", f"{feature.ids:,}", f"{feature.distinct:,}")
        Console().print(table)
    print(f"{source}: {counted(errors, 'error')}, {counted(len(problems) - errors, 'warning')}")
    return 1 if errors else 0


def _problem_json(problem: Problem) -> dict[str, Any]:
    return {
        "code": problem.code,
        "severity": problem.severity,
        "line": problem.line,
        "path": list(problem.path),
        "message": problem.message,
    }


def _survey_json(measured: Survey | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    features = {
        name: {"covered_rows": f.covered_rows, "ids": f.ids, "distinct": f.distinct}
        for name, f in measured.features.items()
    }
    ratios = [{"key": k, "attribute": a, "ratio": ratio} for (k, a), ratio in measured.ratios.items()]
    return {"rows": measured.rows, "features": features, "futile_ratios": ratios}


def run_explain(flags: argparse.Namespace) -> int:
    """`explain`: every step from the values of one row to its ids, or from an id back to names."""
    if flags.dictionary is not None:
        return run_lookup(flags)
    if flags.config is None:
        raise FlagError("explain needs --config, or --dictionary for an id")
    engine = Engine(load(flags.config))
    for name in flags.feature:
        if name not in engine.plan.outputs:
            known = list(engine.plan.outputs)
            raise FlagError(
                f"--feature is {name!r}, which is no feature of the config: it has {known[:50]}"
                f"{nearest(name, known)}"
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
            raise FlagError(f"--values is a {type(row).__name__}; it must be an object, column to value")
        return row_to_batch(row, engine.plan.attributes)
    first = 0
    for batch in read_batches(flags.data, engine.plan, flags.batch_rows):
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


def run_schema(flags: argparse.Namespace) -> int:
    """`schema`: the JSON Schema of the config language."""
    print(json.dumps(CrossConfig.model_json_schema(), indent=None if flags.json else 2))
    return 0
