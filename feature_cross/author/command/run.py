# SPDX-License-Identifier: Apache-2.0
"""`feature-cross run`: ids of a file or folder into one file."""

import argparse
import json
import sys
import time

import pyarrow as pa
from rich.table import Table
from rowhouse.problem import nearest
from rowhouse.program import screen, show_table

from feature_cross.author.progress import progress_bar
from feature_cross.config.loader import load
from feature_cross.data.sink import Sink, check_out
from feature_cross.data.source import count_rows, open_dataset, read_batches
from feature_cross.engine.engine import Engine
from feature_cross.error import FlagError


def run(flags: argparse.Namespace) -> int:
    """`run`: ids of a file or folder into one file."""
    check_out(flags.out, flags.config, flags.data)
    engine = Engine(load(flags.config))
    keep = tuple(dict.fromkeys(flags.keep))
    source = open_dataset(flags.data, engine.plan)
    total = count_rows(flags.data, engine.plan)
    schema = _output_schema(engine, source.schema, keep)
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
        print(f"warning: {flags.data} has no rows, so {flags.out} has none", file=sys.stderr)
    table = Table("feature", "ids", "ids per row", title=f"{rows:,} rows in {seconds:.1f} s -> {flags.out}")
    for name, count in ids.items():
        table.add_row(name, f"{count:,}", f"{count / rows:.2f}" if rows else "-")
    show_table(table, screen(stderr=True))
    return 0


def _output_schema(engine: Engine, data: pa.Schema, keep: tuple[str, ...]) -> pa.Schema:
    for name in keep:
        if name not in data.names:
            raise FlagError(
                f"--keep is {name!r}, which is no column of the data: it has {data.names[:50]}"
                f"; {nearest(name, data.names)}"
            )
        if name in engine.plan.outputs:
            raise FlagError(f"--keep is {name!r}, which is the name of a feature too; rename one")
    kept = [data.field(name) for name in keep]
    return pa.schema([*kept, *engine.schema], metadata=engine.schema.metadata)
