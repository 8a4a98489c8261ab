# SPDX-License-Identifier: Apache-2.0
"""`feature-cross dictionary`: name the ids of a sample of rows."""

import argparse
import json

from feature_cross.author.dictionary import write_dictionary
from feature_cross.author.progress import progress_bar
from feature_cross.config.loader import load
from feature_cross.data.sink import check_out
from feature_cross.data.source import count_rows
from feature_cross.engine.engine import Engine


def run(flags: argparse.Namespace) -> int:
    """`dictionary`: the ids of sampled rows, with names, into a file."""
    check_out(flags.out, flags.config, flags.data)
    engine = Engine(load(flags.config))
    total = count_rows(flags.data, engine.plan)
    with progress_bar(flags.json) as bar:
        tasks = {
            "read": bar.add_task("rows read", total=total),
            "name": bar.add_task("rows named", total=None),
        }
        report = write_dictionary(
            engine, flags.data, flags.out, rows_max=flags.rows,
            progress=lambda step, rows: bar.update(tasks[step], completed=rows),
        )  # fmt: skip
    why = {"interrupt": " (interrupted)", "names": " (as many as a dictionary holds)"}.get(
        report.stopped or "", ""
    )
    if flags.json:
        found = {"rows_read": report.rows_read, "rows_sampled": report.rows_sampled, "names": report.names}
        print(json.dumps({**found, "stopped": report.stopped, "out": str(flags.out)}))
    else:
        rows = f"{report.rows_sampled:,} of {report.rows_read:,} rows"
        print(f"{report.names:,} ids of {rows}{why} -> {flags.out}")
    return 0
