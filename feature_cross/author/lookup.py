# SPDX-License-Identifier: Apache-2.0
"""`feature-cross dictionary`, and `explain --dictionary`: their flags and what they print.

Thread safety: a process's main thread.
"""

import argparse
import json
import sys

from feature_cross.author.dictionary import Named, look_up, parse_id, write_dictionary
from feature_cross.author.flag import MakeCommand, number
from feature_cross.author.progress import progress_bar
from feature_cross.config.loader import load
from feature_cross.data.output import check_out
from feature_cross.data.source import count_rows
from feature_cross.engine.engine import Engine
from feature_cross.error import FlagError
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["add_dictionary_command", "add_dictionary_flag", "run_lookup"]

_ROWS_DEFAULT = 10_000
_ROWS_MAX = 10_000_000


def add_dictionary_command(make: MakeCommand) -> None:
    """Register `dictionary`.

    Parameters
    ----------
    make
        (name, action, summary, example) to a parser, as feature_cross.author.program has it.
    """
    parser = make(
        "dictionary", run_dictionary, "name the ids of a sample of rows, for `explain --dictionary`",
        "feature-cross dictionary crosses.yaml clicks.parquet --out names.parquet\n"
        "  feature-cross explain 0x0292f1a2a23ae6a9 --dictionary names.parquet",
    )  # fmt: skip
    parser.add_argument("config", help="YAML config")
    parser.add_argument("data", help="Parquet, Arrow IPC or CSV file, or a folder of one of them")
    parser.add_argument("--out", required=True, help=".parquet file; it appears when it is whole")
    parser.add_argument(
        "--rows",
        type=number(1, _ROWS_MAX),
        default=_ROWS_DEFAULT,
        help=f"most rows whose ids are named ({_ROWS_DEFAULT})",
    )
    parser.set_defaults(batch_rows=BATCH_ROWS_DEFAULT)


def add_dictionary_flag(parser: argparse.ArgumentParser) -> None:
    """The flag that makes `explain` take an id instead of data.

    Parameters
    ----------
    parser
        Of `explain`.
    """
    parser.add_argument(
        "--dictionary", metavar="FILE",
        help="from an id back to names: DATA is then an id (decimal, 0x..., or torch's negative int64)",
    )  # fmt: skip


def run_dictionary(flags: argparse.Namespace) -> int:
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
            engine, flags.data, flags.out, rows_max=flags.rows, batch_rows=flags.batch_rows,
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


def run_lookup(flags: argparse.Namespace) -> int:
    """`explain ID --dictionary FILE`: every value that the file knows behind an id."""
    if flags.data is None or flags.values is not None:
        raise FlagError("--dictionary takes an id, as: explain 0x0292f1a2a23ae6a9 --dictionary FILE")
    found = look_up(flags.dictionary, [parse_id(flags.data)])
    if flags.json:
        json.dump([_to_json(one) for one in found], sys.stdout)
        print()
        return 0
    for one in found:
        named = ", ".join(f"{label} = {value!r}" for label, value in one.names)
        print(f"0x{one.id:016x}  {one.feature}: {named}  ({one.count} times in the sampled rows)")
    if len({one.feature for one in found}) < len(found):
        print(f"{len(found)} values have this id: a collision")
    return 0


def _to_json(one: Named) -> dict[str, object]:
    names = [{"from": label, "value": value} for label, value in one.names]
    return {"id": f"0x{one.id:016x}", "feature": one.feature, "names": names, "count": one.count}
