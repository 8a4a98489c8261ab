# SPDX-License-Identifier: Apache-2.0
"""The flags of `rank`, `prune` and `suggest`. Thread safety: a process's main thread."""

import argparse
import os

from feature_cross.author.flag import MakeCommand, add_row_flags, number, size
from feature_cross.author.rank.command import run_prune, run_rank, run_suggest
from feature_cross.author.rank.ranking import OVER

__all__ = ["add_rank_commands"]


def add_rank_commands(command: MakeCommand) -> None:
    """Register the subcommands; `command(name, action, summary, example)` makes a parser."""
    rank = command(
        "rank", run_rank, "measure what each cross gains in held-out log loss and AUC over its parts",
        "feature-cross rank crosses.yaml clicks.parquet --label clicked --time-column time",
    )  # fmt: skip
    _add_data(rank)
    rank.add_argument("--feature", action="append", default=[], help="only this cross (repeatable)")
    rank.add_argument(
        "--over", choices=OVER, default="parts",
        help="judge a cross against its own parts (default), all plain columns, or every other feature",
    )  # fmt: skip

    prune = command(
        "prune", run_prune, "drop features whose removal does not hurt, or what a budget cannot hold",
        "feature-cross prune crosses.yaml clicks.parquet --label clicked --budget 2GB --out pruned.yaml",
    )  # fmt: skip
    _add_data(prune, correction=False)
    prune.add_argument("--out", help="config to write; without it only the table is printed")
    prune.add_argument("--budget", type=size, help="bytes that the rest may take, as 2GB or 500MiB")
    prune.add_argument(
        "--tolerance", type=_share, default=0.001,
        help="rise of the log loss that is no harm, as a share of the log loss (0.001)",
    )  # fmt: skip
    prune.add_argument(
        "--keep", action="append", default=[], metavar="FEATURE", help="never drop (repeatable)"
    )
    suggest = command(
        "suggest", run_suggest, "search pairs and triples of plain columns for crosses that the config lacks",
        "feature-cross suggest crosses.yaml clicks.parquet --label clicked --budget 500MB",
    )  # fmt: skip
    _add_data(suggest)
    suggest.add_argument("--out", help="config to write, with the crosses that are shown to gain")
    suggest.add_argument("--budget", type=size, help="bytes of all suggestions, as 2GB or 500MiB")
    suggest.add_argument("--top", type=number(1), default=5, help="most suggestions (5)")
    suggest.add_argument("--beam", type=number(1), default=10, help="pairs that grow to triples (10)")
    suggest.add_argument("--order", type=int, choices=(2, 3), default=3, help="2: pairs; 3: triples too")
    suggest.add_argument(
        "--column", action="append", default=[], metavar="ENTITY.ATTRIBUTE", help="only these (repeatable)"
    )


def _add_data(parser: argparse.ArgumentParser, correction: bool = True) -> None:
    parser.add_argument("config", help="YAML config")
    parser.add_argument("data", help="Parquet, Arrow IPC or CSV file, or a folder of one of them")
    parser.add_argument("--label", required=True, help="column of the label: bool, or 0 and 1")
    parser.add_argument("--time-column", help="train on the oldest rows, report on the newest")
    parser.add_argument("--group-column", help="rows that share a value (a user, a session) are dependent")
    parser.add_argument(
        "--split", type=_shares, default=(0.6, 0.2, 0.2), metavar="T,S,F",
        help="shares of training, selection and final rows (60,20,20)",
    )  # fmt: skip
    parser.add_argument("--seed", type=number(0), default=0, help="of the choice and division of rows (0)")
    parser.add_argument(
        "--max-rows", type=number(1), default=1_000_000, help="of more a random choice is read (1,000,000)"
    )
    parser.add_argument("--level", type=_level, default=0.95, help="of the intervals, all together (0.95)")
    if correction:
        parser.add_argument(
            "--correction",
            choices=("holm", "bh"),
            default="holm",
            help="of p: family-wise error, or false discoveries",
        )
    add_row_flags(parser)
    parser.add_argument("--threads", type=number(1), default=os.cpu_count() or 1, help="threads (all cores)")


def _level(text: str) -> float:
    value = float(text)
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"is {value}; it must be from 0.5 to below 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"is {value}; it must be from 0 to below 1")
    return value


def _shares(text: str) -> tuple[float, float, float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(number > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be three numbers above 0, as 60,20,20")
    whole = sum(numbers)
    return numbers[0] / whole, numbers[1] / whole, numbers[2] / whole
