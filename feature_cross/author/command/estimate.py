# SPDX-License-Identifier: Apache-2.0
"""`feature-cross estimate`: each feature's rows, growth, collisions and bytes."""

import argparse
import sys
import time
from dataclasses import replace

from rich.progress import TimeRemainingColumn
from rowhouse.program import INTERRUPTED, screen

from feature_cross.author.estimate.growth import ROWS_MIN
from feature_cross.author.estimate.measure import Measurement, measure
from feature_cross.author.estimate.memory import Budget
from feature_cross.author.estimate.report import Estimate
from feature_cross.author.estimate.summary import Request, summarize
from feature_cross.author.estimate.view import print_estimate
from feature_cross.author.flag import row_shape
from feature_cross.author.limit import PAST_BOUND
from feature_cross.author.progress import progress_bar
from feature_cross.config.config import CrossConfig
from feature_cross.config.loader import load
from feature_cross.config.plan import build_plan
from feature_cross.data.source import count_rows


def run(flags: argparse.Namespace) -> int:
    """`estimate`: read data once, say what its features cost."""
    estimate = estimate_data(flags)
    if flags.json:
        print(estimate.model_dump_json())
    else:
        print_estimate(estimate, screen())
    if estimate.stopped == "interrupt":
        print(
            f"feature-cross: interrupted; this is of the first {estimate.rows_read:,} rows", file=sys.stderr
        )
        return INTERRUPTED
    return PAST_BOUND if estimate.budget is not None and not estimate.budget.within else 0


def estimate_data(flags: argparse.Namespace) -> Estimate:
    """The document for parsed flags; shows progress on stderr."""
    budget = None if flags.budget is None else Budget(flags.budget, flags.tier)
    request = Request(rows=flags.rows, shape=row_shape(flags), dims=dict(flags.feature_dim), budget=budget)
    config = load(flags.config)
    total = count_rows(flags.data, build_plan(config))
    begin = time.perf_counter()
    measured = _measured(flags, config, total)
    if measured.stopped == "interrupt" and flags.rows is not None and measured.rows < ROWS_MIN:
        request = replace(request, rows=None, budget=None)  # what was read is told, and nothing else
    return summarize(
        measured, request, config=str(flags.config), data=str(flags.data), rows_total=total,
        seconds=time.perf_counter() - begin,
    )  # fmt: skip


def _measured(flags: argparse.Namespace, config: CrossConfig, total: int | None) -> Measurement:
    wanted = flags.read_rows if total is None else min(total, flags.read_rows or total)
    with progress_bar(flags.json, TimeRemainingColumn()) as progress:
        task = progress.add_task("rows (Ctrl-C tells what was read)", total=wanted)
        return measure(
            config, flags.data, rows_max=flags.read_rows, sample_ids=flags.sample_ids,
            threads=flags.threads,
            progress=lambda rows: progress.update(task, completed=rows),
        )  # fmt: skip
