# SPDX-License-Identifier: Apache-2.0
"""The flags of `feature-cross estimate`, and what it prints.

Exit codes: those of the command, and 3 when the sum is past the budget. Thread safety: a process's main
thread.
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from typing import Final

from rich.console import Console
from rich.progress import TimeRemainingColumn

from feature_cross.author.estimate.growth import ROWS_MIN
from feature_cross.author.estimate.measure import Measurement, measure
from feature_cross.author.estimate.memory import Budget
from feature_cross.author.estimate.report import Estimate
from feature_cross.author.estimate.sample import SAMPLE_IDS_DEFAULT
from feature_cross.author.estimate.summary import Request, summarize
from feature_cross.author.estimate.view import print_estimate
from feature_cross.author.flag import DIM_MAX, MakeCommand, add_row_flags, number, row_shape, size
from feature_cross.author.progress import progress_bar
from feature_cross.config.config import CrossConfig
from feature_cross.config.loader import load
from feature_cross.config.plan import build_plan
from feature_cross.data.source import count_rows
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["OVER_BUDGET", "add_estimate_command", "estimate_data"]

INTERRUPTED: Final = 130
"""Exit code when Ctrl-C ended the reading; what was read is told."""

OVER_BUDGET: Final = 3
"""Exit code when the expected sum is past the budget."""

_PIPE_WIDTH: Final = 120
_SAMPLE_IDS_MAX: Final = 1 << 24
_ROWS_MAX: Final = 10**15


def _feature_dim(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be FEATURE=DIM")
    return name, number(1, DIM_MAX)(value)


def _power_of_two(text: str) -> int:
    value = number(1024, _SAMPLE_IDS_MAX)(text)
    if value & (value - 1):
        raise argparse.ArgumentTypeError(f"is {value}; it must be a power of two")
    return value


def add_estimate_command(make: MakeCommand) -> None:
    """Register `estimate`.

    Parameters
    ----------
    make
        (name, action, summary, example) to a parser, as feature_cross.author.program has it.
    """
    parser = make(
        "estimate", run_estimate, "estimate each feature's rows, growth, collisions and bytes from data",
        "feature-cross estimate crosses.yaml clicks.parquet --rows 1e9 --dim 16 --dtype fp16"
        " --optimizer adagrad --budget 64GB",
    )  # fmt: skip
    parser.epilog = f"{parser.epilog}\n\nexit codes: as all commands; {OVER_BUDGET} when past --budget"
    parser.add_argument("config", help="YAML config")
    parser.add_argument("data", help="Parquet, Arrow IPC or CSV file, or a folder of one of them")
    add_estimate_flags(parser)


def add_estimate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `estimate` and `plot` have in common.

    Parameters
    ----------
    parser
        To add them to.
    """
    parser.add_argument(
        "--rows", type=number(1, _ROWS_MAX), help="also project to so many rows (1e9 will do)"
    )
    add_row_flags(parser)
    parser.add_argument(
        "--feature-dim", type=_feature_dim, action="append", default=[], metavar="FEATURE=DIM",
        help="another dim for one feature (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=size, help="hold the sum of the --tier's bytes to it: 8GB, 64GiB, 1.5TB"
    )
    parser.add_argument("--read-rows", type=number(1, _ROWS_MAX), help="read only the first so many rows")
    parser.add_argument(
        "--sample-ids", type=_power_of_two, default=SAMPLE_IDS_DEFAULT,
        help=f"ids that are counted exactly, per feature ({SAMPLE_IDS_DEFAULT}: at most 4 MiB each)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=number(1, 1024), default=os.cpu_count() or 1, help="threads (all cores)"
    )
    parser.set_defaults(batch_rows=BATCH_ROWS_DEFAULT)


def run_estimate(flags: argparse.Namespace) -> int:
    """`estimate`: read data once, say what its features cost."""
    estimate = estimate_data(flags)
    if flags.json:
        print(estimate.model_dump_json())
    else:
        console = Console()
        print_estimate(estimate, console if console.is_terminal else Console(width=_PIPE_WIDTH))
    if estimate.stopped == "interrupt":
        print(
            f"feature-cross: interrupted; this is of the first {estimate.rows_read:,} rows", file=sys.stderr
        )
        return INTERRUPTED
    return OVER_BUDGET if estimate.budget is not None and not estimate.budget.within else 0


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
            batch_rows=flags.batch_rows, threads=flags.threads,
            progress=lambda rows: progress.update(task, completed=rows),
        )  # fmt: skip
