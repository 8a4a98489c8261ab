# SPDX-License-Identifier: Apache-2.0
"""`feature-cross`: run a config over data, check it, explain its ids, print its JSON Schema.

Exit codes: 0 done; 1 the data do not fit, a file cannot be read or written, `check` found an error, or a
golden vector does not hold; 2 a wrong flag or config; 3 past a bound (`estimate --budget`, rows lost in
`diff`); 130 Ctrl-C.
Thread safety: a process's main thread.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from feature_cross.author.command import run_check, run_data, run_explain, run_schema
from feature_cross.author.estimate.flag import add_estimate_command
from feature_cross.author.fit import add_fit_command
from feature_cross.author.flag import number
from feature_cross.author.guard import add_guard_commands
from feature_cross.author.lock import add_lock_command
from feature_cross.author.lookup import add_dictionary_command, add_dictionary_flag
from feature_cross.author.plot.flag import add_plot_command
from feature_cross.author.rank.flag import add_rank_commands
from feature_cross.error import CrossError
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["run_program"]


def _command(
    commands: Any, name: str, action: Callable[[argparse.Namespace], int], summary: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(action=action)
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="feature-cross",
        description="Turn columns into 64-bit ids, with the crosses that a config declares.",
        epilog="exit codes: 0 done; 1 data do not fit, a file cannot be read or written, check found an"
        " error, or golden a changed id; 2 a wrong flag or config; 3 past --budget, or diff: rows are lost;"
        " 130 interrupted",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = _command(
        commands, "run", run_data, "write the ids of every row",
        "feature-cross run clicks.parquet --config crosses.yaml --out ids.parquet --keep label",
    )  # fmt: skip
    run.add_argument("data", help="Parquet, Arrow IPC or CSV file, or a folder of one of them")
    run.add_argument("--config", required=True, help="YAML config")
    run.add_argument("--out", required=True, help=".parquet or .arrow file; it appears when it is whole")
    run.add_argument("--keep", action="append", default=[], help="column to copy beside the ids (repeatable)")
    run.add_argument("--batch-rows", type=number(1), default=BATCH_ROWS_DEFAULT, help="rows at once")
    run.add_argument("--threads", type=number(1), default=os.cpu_count() or 1, help="threads (all cores)")
    check = _command(
        commands, "check", run_check, "report every problem of a config, with its line",
        "feature-cross check crosses.yaml --data clicks.parquet",
    )  # fmt: skip
    check.add_argument("config", help="YAML config")
    check.add_argument(
        "--data", help="also hold columns to their types, count ids, and confirm futile crosses"
    )
    check.add_argument(
        "--against", metavar="OLD",
        help="previous config or lock file: find slots that moved (default: CONFIG's own .lock.json)",
    )  # fmt: skip
    show = _command(
        commands, "explain", run_explain, "show each step value -> bytes -> hash -> mix -> id of one row",
        "feature-cross explain clicks.parquet --config crosses.yaml --row 0 --feature city_x_age",
    )  # fmt: skip
    row = show.add_mutually_exclusive_group(required=True)
    row.add_argument("data", nargs="?", help="file or folder to take the row from")
    row.add_argument("--values", help='the row itself, as JSON: \'{"city": "Oslo"}\'')
    show.add_argument("--config", help="YAML config (with --dictionary it is not needed)")
    add_dictionary_flag(show)
    show.add_argument("--row", type=number(0), default=0, help="number of the row, from 0")
    show.add_argument("--feature", action="append", default=[], help="only this feature (repeatable)")
    show.add_argument("--ids", type=number(1), default=3, help="most ids to show per feature")
    show.set_defaults(batch_rows=BATCH_ROWS_DEFAULT)
    _command(
        commands, "schema", run_schema, "print the JSON Schema of the config, for editors",
        "feature-cross schema > crosses.schema.json",
    )  # fmt: skip
    add_fit_command(partial(_command, commands))
    add_dictionary_command(partial(_command, commands))
    add_estimate_command(partial(_command, commands))
    add_plot_command(partial(_command, commands))
    add_lock_command(partial(_command, commands))
    add_rank_commands(partial(_command, commands))
    add_guard_commands(partial(_command, commands))
    return parser


def run_program(arguments: Sequence[str] | None = None) -> int:
    """One command; returns the exit code. SystemExit, with 0 or 2, from argparse."""
    try:
        flags = _parser().parse_args(arguments)
        code: int = flags.action(flags)
        sys.stdout.flush()  # here, where a reader that has gone is no error
    except CrossError as error:
        print(f"feature-cross: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output (head) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, SystemError) as error:
        # an interrupt inside a compiled kernel comes out of it as the cause of a SystemError
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        print("feature-cross: interrupted; nothing was written", file=sys.stderr)
        return 130
    return code
