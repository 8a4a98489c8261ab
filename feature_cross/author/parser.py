# SPDX-License-Identifier: Apache-2.0
"""The commands of `feature-cross` and their flags. It imports nothing large, so `--help` is quick.

What a command does is in its room, command/NAME.py. Thread safety: pure functions.
"""

import argparse
from typing import Any

from feature_cross.author.flag import (
    add_data_flags,
    add_estimate_flags,
    add_rank_flags,
    add_row_flags,
    add_threads_flag,
    number,
    share,
    size,
)
from feature_cross.author.limit import GOLDEN_ROWS_MAX, OVER, PAST_BOUND
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["make_parser"]

_DICTIONARY_ROWS = 10_000
_DICTIONARY_ROWS_MAX = 10_000_000


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `command` of what it gives is the name of one."""
    parser = argparse.ArgumentParser(
        prog="feature-cross",
        description="Turn columns into 64-bit ids, with the crosses that a config declares.",
        epilog="exit codes: 0 done; 1 data do not fit, a file cannot be read or written, check found an"
        " error, or golden a changed id; 2 a wrong flag or config; 3 past --budget, or diff: rows are lost;"
        " 130 interrupted",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        _run, _check, _explain, _schema, _fit, _dictionary, _estimate, _plot, _lock, _rank, _prune, _suggest,
        _diff, _golden,
    ):  # fmt: skip
        add(commands)
    return parser


def _command(commands: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    return parser


def _run(commands: Any) -> None:
    run = _command(
        commands, "run", "write the ids of every row",
        "feature-cross run clicks.parquet --config crosses.yaml --out ids.parquet --keep label",
    )  # fmt: skip
    run.add_argument("data", help="Parquet, Arrow IPC or CSV file, or a folder of one of them")
    run.add_argument("--config", required=True, help="YAML config")
    run.add_argument("--out", required=True, help=".parquet or .arrow file; it appears when it is whole")
    run.add_argument("--keep", action="append", default=[], help="column to copy beside the ids (repeatable)")
    run.add_argument("--batch-rows", type=number(1), default=BATCH_ROWS_DEFAULT, help="rows at once")
    add_threads_flag(run)


def _check(commands: Any) -> None:
    check = _command(
        commands, "check", "report every problem of a config, with its line",
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


def _explain(commands: Any) -> None:
    explain = _command(
        commands, "explain", "show each step value -> bytes -> hash -> mix -> id of one row",
        "feature-cross explain clicks.parquet --config crosses.yaml --row 0 --feature city_x_age",
    )  # fmt: skip
    row = explain.add_mutually_exclusive_group(required=True)
    row.add_argument("data", nargs="?", help="file or folder to take the row from")
    row.add_argument("--values", help='the row itself, as JSON: \'{"city": "Oslo"}\'')
    explain.add_argument("--config", help="YAML config (with --dictionary it is not needed)")
    explain.add_argument(
        "--dictionary", metavar="FILE",
        help="from an id back to names: DATA is then an id (decimal, 0x..., or torch's negative int64)",
    )  # fmt: skip
    explain.add_argument("--row", type=number(0), default=0, help="number of the row, from 0")
    explain.add_argument("--feature", action="append", default=[], help="only this feature (repeatable)")
    explain.add_argument("--ids", type=number(1), default=3, help="most ids to show per feature")


def _schema(commands: Any) -> None:
    _command(
        commands, "schema", "print the JSON Schema of the config, for editors",
        "feature-cross schema > crosses.schema.json",
    )  # fmt: skip


def _fit(commands: Any) -> None:
    fit = _command(
        commands, "fit", "write quantile edges, fitted on data, into a config",
        "feature-cross fit crosses.yaml --data clicks.parquet",
    )  # fmt: skip
    fit.add_argument("config", help="YAML or JSON config with buckets: {quantiles: N}")
    fit.add_argument("--data", required=True, help="Parquet, Arrow IPC or CSV file, or a folder of them")
    fit.add_argument("--out", help="file to write instead of CONFIG itself")
    fit.add_argument("--refit", action="store_true", help="also move edges that are there; ids change")


def _dictionary(commands: Any) -> None:
    dictionary = _command(
        commands, "dictionary", "name the ids of a sample of rows, for `explain --dictionary`",
        "feature-cross dictionary crosses.yaml clicks.parquet --out names.parquet\n"
        "  feature-cross explain 0x0292f1a2a23ae6a9 --dictionary names.parquet",
    )  # fmt: skip
    add_data_flags(dictionary)
    dictionary.add_argument("--out", required=True, help=".parquet file; it appears when it is whole")
    dictionary.add_argument(
        "--rows", type=number(1, _DICTIONARY_ROWS_MAX), default=_DICTIONARY_ROWS,
        help=f"most rows whose ids are named ({_DICTIONARY_ROWS})",
    )  # fmt: skip


def _estimate(commands: Any) -> None:
    estimate = _command(
        commands, "estimate", "estimate each feature's rows, growth, collisions and bytes from data",
        "feature-cross estimate crosses.yaml clicks.parquet --rows 1e9 --dim 16 --dtype fp16"
        " --optimizer adagrad --budget 64GB",
    )  # fmt: skip
    estimate.epilog = f"{estimate.epilog}\n\nexit codes: as all commands; {PAST_BOUND} when past --budget"
    add_data_flags(estimate)
    add_estimate_flags(estimate)


def _plot(commands: Any) -> None:
    plot = _command(
        commands, "plot", "draw the cross graph, cardinalities, frequencies, growth and collisions",
        "feature-cross plot crosses.yaml clicks.parquet --rows 1e9 --out figures",
    )  # fmt: skip
    plot.add_argument("config", help="YAML config")
    plot.add_argument(
        "data", help="file or folder as for `estimate`, or what `estimate --json` printed (a .json file)"
    )
    plot.add_argument("--out", required=True, help="folder for the figures; it is made if need be")
    plot.add_argument("--format", choices=("png", "svg", "pdf"), default="png", help="of the figures (png)")
    add_estimate_flags(plot)


def _lock(commands: Any) -> None:
    lock = _command(
        commands, "lock", "write every feature's slot and seed down, so that `check` sees when one moves",
        "feature-cross lock crosses.yaml    # writes crosses.lock.json; keep it with the config",
    )  # fmt: skip
    lock.add_argument("config", help="YAML or JSON config")
    lock.add_argument("--out", help="lock file (default: the config's name with .lock.json)")
    lock.add_argument("--accept", action="store_true", help="write it though slots or seeds have changed")


def _rank(commands: Any) -> None:
    rank = _command(
        commands, "rank", "measure what each cross gains in held-out log loss and AUC over its parts",
        "feature-cross rank crosses.yaml clicks.parquet --label clicked --time-column time",
    )  # fmt: skip
    add_rank_flags(rank)
    rank.add_argument("--feature", action="append", default=[], help="only this cross (repeatable)")
    rank.add_argument(
        "--over", choices=OVER, default="parts",
        help="judge a cross against its own parts (default), all plain columns, or every other feature",
    )  # fmt: skip


def _prune(commands: Any) -> None:
    prune = _command(
        commands, "prune", "drop features whose removal does not hurt, or what a budget cannot hold",
        "feature-cross prune crosses.yaml clicks.parquet --label clicked --budget 2GB --out pruned.yaml",
    )  # fmt: skip
    add_rank_flags(prune, correction=False)
    prune.add_argument("--out", help="config to write; without it only the table is printed")
    prune.add_argument("--budget", type=size, help="bytes that the rest may take, as 2GB or 500MiB")
    prune.add_argument(
        "--tolerance", type=share, default=0.001,
        help="rise of the log loss that is no harm, as a share of the log loss (0.001)",
    )  # fmt: skip
    prune.add_argument(
        "--keep", action="append", default=[], metavar="FEATURE", help="never drop (repeatable)"
    )


def _suggest(commands: Any) -> None:
    suggest = _command(
        commands, "suggest", "search pairs and triples of plain columns for crosses that the config lacks",
        "feature-cross suggest crosses.yaml clicks.parquet --label clicked --budget 500MB",
    )  # fmt: skip
    add_rank_flags(suggest)
    suggest.add_argument("--out", help="config to write, with the crosses that are shown to gain")
    suggest.add_argument("--budget", type=size, help="bytes of all suggestions, as 2GB or 500MiB")
    suggest.add_argument("--top", type=number(1), default=5, help="most suggestions (5)")
    suggest.add_argument("--beam", type=number(1), default=10, help="pairs that grow to triples (10)")
    suggest.add_argument("--order", type=int, choices=(2, 3), default=3, help="2: pairs; 3: triples too")
    suggest.add_argument(
        "--column", action="append", default=[], metavar="ENTITY.ATTRIBUTE", help="only these (repeatable)"
    )


def _diff(commands: Any) -> None:
    diff = _command(
        commands, "diff", "which ids a changed config changes, why, and whether trained rows are lost",
        "feature-cross diff crosses.yaml new.yaml --data clicks.parquet\n"
        "  feature-cross diff old.yaml new.yaml --allow city_x_age   # in CI: exit code 3 if rows are lost",
    )  # fmt: skip
    diff.add_argument("old", help="YAML config that the model was trained with")
    diff.add_argument("new", help="YAML config to train or serve with")
    diff.add_argument("--data", help="also count ids and bytes of both over these rows")
    diff.add_argument(
        "--max-rows", type=number(1), default=1_000_000, help="most rows of --data to read (1,000,000)"
    )
    diff.add_argument(
        "--allow", action="append", default=[], metavar="FEATURE",
        help="rows lost here are meant (repeatable)",
    )  # fmt: skip
    add_row_flags(diff)


def _golden(commands: Any) -> None:
    golden = _command(
        commands, "golden", "freeze the ids of some rows, and check later that they are still the same",
        "feature-cross golden crosses.yaml clicks.parquet --out crosses.golden.json\n"
        "  feature-cross golden crosses.yaml --check crosses.golden.json   # in CI: exit code 1 on a change",
    )  # fmt: skip
    golden.add_argument("config", help="YAML config")
    golden.add_argument("data", nargs="?", help="rows to freeze; without it rows at the edges are invented")
    what = golden.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", help="golden file to write")
    what.add_argument("--check", help="golden file to hold the config to")
    golden.add_argument("--rows", type=number(1, GOLDEN_ROWS_MAX), help="rows of DATA to freeze (100)")
    golden.add_argument("--force", action="store_true", help="overwrite a golden file that exists")
