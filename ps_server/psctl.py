# SPDX-License-Identifier: Apache-2.0
"""`psctl`: look at running shards and steer them (online.py), work on the directories of stopped ones
(offline.py), and plan a cluster before it exists (plan.py). This module parses; the commands are in command/.

Thread safety: a process's main thread.
"""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from rowhouse.control import FREEZE_MODES
from rowhouse.error import RowhouseError
from rowhouse.problem import id_in
from rowhouse.program import run_program, screen

from ps_server.config.endpoint import check_endpoint

_EXAMPLES: Final = """\
examples:
  psctl stats --endpoints 127.0.0.1:7470,127.0.0.1:7471
  psctl stats --endpoints 127.0.0.1:7470 --json
  psctl checkpoint --endpoints 127.0.0.1:7470,127.0.0.1:7471
  psctl freeze --endpoints 127.0.0.1:7470,127.0.0.1:7471 --table user --mode refuse
  psctl evict --endpoints 127.0.0.1:7470,127.0.0.1:7471 --table user
"""

_OFFLINE: Final = {
    "verify": "read everything that a stopped shard has on disk, and name what is damaged",
    "load": "load a table's rows from a Parquet file, all or none of it per shard",
    "export": "write a table's rows to a Parquet file",
}

_OFFLINE_EXAMPLES: Final = """\
examples, each on a stopped shard or data_dir (export: running shards too):
  psctl verify data
  psctl verify data/shard-0000 --json
  psctl export data user --out user.parquet
  psctl export user --endpoints 127.0.0.1:7470,127.0.0.1:7471 --out user.parquet
  psctl export data user --out monday.parquet --saved before-monday
  psctl load data user user.parquet
  psctl load data user user.parquet --config cluster.yaml   (makes a new data_dir)
  psctl load data user weights.parquet --config cluster.yaml --reset state,push_time   (pretrained weights)
"""

_ROWS: Final = {
    "list": "the first rows of a table, shard by shard; psctl export has all of them",
    "read": "rows of some ids: weights, optimizer state and what policies read",
    "assign": "give rows the weights of a Parquet file, and the state, shows and clicks that it has",
    "delete": "remove rows; logged, and applied once, as a push is",
}

_ROWS_EXAMPLES: Final = """\
examples:
  psctl rows list user --endpoints 127.0.0.1:7470,127.0.0.1:7471 --limit 5
  psctl rows read user 7 18446744073709551615 --endpoints 127.0.0.1:7470,127.0.0.1:7471 --json
  psctl rows assign user weights.parquet --endpoints 127.0.0.1:7470,127.0.0.1:7471
  psctl rows delete user 7 42 --endpoints 127.0.0.1:7470,127.0.0.1:7471
  psctl rows delete user --ids-from forget.txt --yes --endpoints 127.0.0.1:7470,127.0.0.1:7471
"""

_PLAN_EXAMPLES: Final = """\
examples:
  psctl plan                                         (the real size of rows of 72 and 40 bytes)
  psctl plan --rows 14e9 --dim 16 --optimizer adagrad --share 0.1 --shards 64
  feature-cross estimate features.yaml data.parquet --json > estimate.json
  psctl plan --estimate estimate.json --shards 8 --share 0.2 --json
  psctl plan --config cluster.yaml --rows user=2e9,item=5e7
  psctl plan --rows 25e9 --dtype fp16 --optimizer sgd --share 0.05 --shards 64 --trainers 2000 --simulate
  psctl plan --check                                 (a few minutes: measures here, prints the error)
"""

_CHECK_ROWS: Final = 1_000_000
EVICTION_KINDS: Final = ("ttl", "least_frequent", "l2_norm", "show_click")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="psctl",
        description="Look at running shards and steer them; check, load and export stopped ones.",
        epilog=_EXAMPLES
        + _OFFLINE_EXAMPLES
        + _ROWS_EXAMPLES.removeprefix("examples:\n")
        + _PLAN_EXAMPLES.removeprefix("examples:\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "stats": "live counters of each shard and table",
        "checkpoint": "write every dirty row to the store and drop the push log",
        "freeze": "stop pushes to a table, or allow them again; kept until the config's freeze changes",
        "evict": "run a table's eviction policies now",
    }
    for name, text in helps.items():
        command = commands.add_parser(
            name, help=text, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("--endpoints", required=True, metavar="HOST:PORT,…", type=_endpoints_flag)
        command.add_argument(
            "--timeout-s", type=float, help="the most seconds for one shard (default: 60 without an answer; "
            "a shard that is at work is waited for)"
        )  # fmt: skip
        command.add_argument("--json", action="store_true", help="print JSON instead of a table")
        if name in ("freeze", "evict"):
            command.add_argument("--table", required=True)
        if name == "freeze":
            command.add_argument("--mode", required=True, choices=sorted(FREEZE_MODES))
    planning = commands.add_parser(
        "plan",
        help="bytes per row, machines and times of a cluster before it exists; --check measures them here",
        epilog=_PLAN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_plan_flags(planning)
    _add_rows_commands(commands)
    for name, text in _OFFLINE.items():
        command = commands.add_parser(
            name, help=text, epilog=_OFFLINE_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        _add_offline_flags(command, name)
    return parser


def _add_rows_commands(commands: Any) -> None:
    """`psctl rows` and what is below it."""
    rows = commands.add_parser(
        "rows", help="list, read, assign and delete rows of a running cluster",
        epilog=_ROWS_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = rows.add_subparsers(dest="action", required=True)
    for name, text in _ROWS.items():
        command = actions.add_parser(
            name, help=text, epilog=_ROWS_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("table", metavar="TABLE")
        if name in ("read", "delete"):
            several = "+" if name == "read" else "*"
            command.add_argument("ids", metavar="ID", type=_id_flag, nargs=several, help="0 to 2^64 - 1")
        if name == "assign":
            command.add_argument(
                "file", metavar="FILE", type=Path, help="Parquet file: id, weights, and, as an export has "
                "them, state, shows and clicks; rows keep what the file lacks"
            )  # fmt: skip
        if name == "list":
            command.add_argument(
                "--limit", type=_limit_flag, default=20, metavar="ROWS", help="(20), to 10,000"
            )
        if name == "delete":
            command.add_argument("--ids-from", metavar="FILE", type=Path, help="text file with an id a line")
            command.add_argument("--yes", action="store_true", help="delete without asking")
        command.add_argument(
            "--endpoints", required=True, metavar="HOST:PORT,…", type=_endpoints_flag, help="of the cluster"
        )
        command.add_argument("--timeout-s", type=float, help="the most seconds for one call (60)")
        command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _limit_flag(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and 1 <= int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f"{text!r}; it must be 1 to 10,000: psctl export has all rows")
    return int(text)


def _id_flag(text: str) -> int:
    if (value := id_in(text)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no id: 0 to 2^64 - 1")
    return value


def _count_flag(text: str) -> int:
    try:
        rows = float(text)
    except ValueError:
        rows = math.nan
    if not (1 <= rows <= 1e12 and rows == int(rows)):
        raise argparse.ArgumentTypeError(f"{text!r}; it must be a whole number such as 1e8")
    return int(rows)


def _add_plan_flags(command: argparse.ArgumentParser) -> None:
    """Flags of `psctl plan`."""
    command.add_argument("--rows", metavar="ROWS", help="14e9 or 14B; with --config NAME=ROWS,…")
    command.add_argument(
        "--estimate", metavar="FILE", type=Path, help="what `feature-cross estimate --json` printed"
    )
    command.add_argument("--config", metavar="FILE", help="the cluster's: its tables, shards and log")
    command.add_argument("--dim", type=int, help="weights per row (16, or what the estimate says)")
    command.add_argument(
        "--dtype", choices=["fp32", "fp16", "bf16"], help="(fp32, or what the estimate says)"
    )
    command.add_argument("--optimizer", metavar="KIND", help="(adagrad, or what the estimate says)")
    command.add_argument("--eviction", metavar="KIND,…", default="", help=f"of {', '.join(EVICTION_KINDS)}")
    command.add_argument(
        "--admission-bits", type=int, metavar="BITS", help="width_bits of a min_count admission"
    )
    command.add_argument("--shards", type=int, help="shard processes (1, or the config's)")
    command.add_argument(
        "--share",
        type=float,
        help="share of the rows in memory (1, or what the config's memory_budget holds)",
    )
    command.add_argument(
        "--machine-memory", metavar="SIZE", default="256GiB", help="of one machine, for shards"
    )
    command.add_argument("--machine-disk", metavar="SIZE", default="4TB", help="of one machine, for shards")
    command.add_argument("--log", metavar="SIZE", help="checkpoint_log_bytes (512MiB, or the config's)")
    command.add_argument(
        "--constants", metavar="FILE", type=Path, help="measured runs (default: those shipped)"
    )
    command.add_argument(
        "--scale", metavar="FILE", type=Path, help="runs of many rows (default: those shipped)"
    )
    command.add_argument("--trainers", type=int, help="who trains: adds bytes of a step, and connections")
    command.add_argument("--batch-ids", type=int, help="ids of a trainer's step, repeats included (26624)")
    command.add_argument(
        "--simulate", action="store_true", help="steps per second against trainers and shards, simulated"
    )
    command.add_argument(
        "--model-s", type=float, default=0.0, help="with --simulate: seconds of the model in a step (0)"
    )
    command.add_argument("--check", action="store_true", help="measure rows here and print the plan's error")
    command.add_argument(
        "--check-rows",
        type=_count_flag,
        metavar="ROWS",
        default=_CHECK_ROWS,
        help="rows of a measurement "
        "(1e6); above 4e6 they are loaded, of one kind, with the times of a load and of starts",
    )
    command.add_argument(
        "--folder", metavar="DIR", type=Path, help="where --check writes; a temporary one else"
    )
    command.add_argument(
        "--save", metavar="FILE", type=Path, help="with --check: keep the runs, for --constants or --scale"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_offline_flags(command: argparse.ArgumentParser, name: str) -> None:
    """Arguments of the commands of offline.py."""
    live: dict[str, Any] = {"nargs": "?"} if name == "export" else {}
    command.add_argument(
        "directory", metavar="DIR", type=Path, help="a shard's directory, or a data_dir", **live
    )
    if name != "verify":
        command.add_argument("table", metavar="TABLE")
    if name == "load":
        command.add_argument(
            "file",
            metavar="FILE",
            type=Path,
            help="Parquet file with the columns of an export",
        )
        command.add_argument(
            "--more-follow", action="store_true",
            help="other files of the table are loaded next; the last one's load makes all one sorted run",
        )  # fmt: skip
        command.add_argument(
            "--config", metavar="FILE", help="the cluster's: makes the shards of a new DIR, and knows the "
            "optimizer's first state"
        )  # fmt: skip
        command.add_argument(
            "--reset", metavar="COLUMN,…", type=_columns_flag, default=(), help="columns that begin anew: "
            "state as the optimizer's first; push_time, push_count, shows and clicks as of one push now"
        )  # fmt: skip
        command.add_argument(
            "--skip-not-finite", action="store_true",
            help="leave out rows with a NaN or an infinity, and count them; without it such a row is refused",
        )  # fmt: skip
    if name == "export":
        command.add_argument(
            "--endpoints", metavar="HOST:PORT,…", type=_endpoints_flag, help="running shards, all of the "
            "cluster's, in the place of DIR: each row is as of some moment of the export"
        )  # fmt: skip
        command.add_argument(
            "--timeout-s", type=float, help="with --endpoints: the most seconds for one page"
        )
        command.add_argument("--out", metavar="FILE", type=Path, required=True, help="Parquet file to write")
        command.add_argument("--overwrite", action="store_true", help="replace FILE if there is one")
        command.add_argument(
            "--config", metavar="FILE", help="the cluster's: replays the log of a shard that was not stopped "
            "cleanly, in a temporary folder; DIR is only read"
        )  # fmt: skip
    if name != "load":
        command.add_argument(
            "--saved",
            metavar="NAME",
            help="the tables saved under this name, in the place of the shards' own",
        )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _columns_flag(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _endpoints_flag(text: str) -> list[str]:
    endpoints = text.split(",")
    for endpoint in endpoints:
        try:
            check_endpoint(endpoint)
        except RowhouseError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    twice = next((endpoint for endpoint in endpoints if endpoints.count(endpoint) > 1), None)
    if twice is not None:
        raise argparse.ArgumentTypeError(f"{twice} is named twice; name each shard once")
    return endpoints


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `psctl`; returns the exit code. `argv` is without the program's name."""
    arguments = _parser().parse_args(argv)
    return run_program("psctl", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    # Imported here, a command's own modules only: kernels take a second to load, and --help needs none of it.
    logging.basicConfig(level=logging.INFO, format="psctl: %(message)s")  # whom a command waits for
    rooms = {"plan": "plan", "rows": "rows", "export": "export", "verify": "offline", "load": "offline"}
    room = rooms.get(arguments.command, "online")
    return int(import_module(f"ps_server.command.{room}").run(arguments, screen()))


if __name__ == "__main__":
    sys.exit(main())
