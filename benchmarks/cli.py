# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks list | run | compare | report | table | profile | scale`.

Exit codes: 0 done; 1 a workload failed, or `compare` found a bar that got worse; 2 a wrong argument.
A goal that is missed is no failure: the report says so.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks import batch, goal_table, report, result
from benchmarks.bar import Bar, Settings
from benchmarks.catalog import WORKLOADS, Workload, select
from benchmarks.peer.roster import PEERS
from benchmarks.peer.roster import QUICK as QUICK_PEERS
from benchmarks.peer.roster import chosen as chosen_peers
from benchmarks.result import Result
from benchmarks.worker import ROOT, run_workload, settings_json

BUILD: Final = ROOT / "build" / "bench"

QUICK: Final = {"runs": 3, "seconds": 0.5, "warmup_batches": 16, "rows": 2_000_000, "log_bytes": 64 << 20}
FULL: Final = {"runs": 5, "seconds": 3.0, "warmup_batches": 32, "rows": 5_000_000, "log_bytes": 1 << 30}
"""Settings with and without --quick; each has a flag of its own."""


PROFILED: Final = ("pull.zipf", "pull.uniform", "step.zipf", "step.uniform", "cold_pull", "cross")
"""What `profile` takes; profile.WORKS, which loads kernels, has the same."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Named workloads, ours beside its peer in the same run.",
        epilog="example: python -m benchmarks run table --quick --json",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="every workload, its peer and its goal")
    listing.add_argument("--json", action="store_true", help="as JSON")
    run = commands.add_parser("run", help="run workloads: names, prefixes or patterns")
    run.add_argument("names", metavar="NAME", nargs="+", help="table, table.pull.zipf, 'wire.*', …")
    run.add_argument("--quick", action="store_true", help="short runs, for development")
    run.add_argument("--runs", type=_positive, metavar="COUNT", help="interleaved runs of each side")
    run.add_argument("--seconds", type=float, metavar="S", help="seconds of one side in one run")
    run.add_argument("--warmup-batches", type=_positive, metavar="COUNT")
    run.add_argument("--ids", type=_positive, metavar="COUNT", help="ids of the workloads in memory")
    run.add_argument(
        "--rows", type=_positive, metavar="COUNT", help="rows on disk of the cold workloads, such as 1e9"
    )
    run.add_argument(
        "--dir", type=Path, metavar="DIR",
        help="keep the data of `scale` there; a run that was broken off goes on there",
    )  # fmt: skip
    run.add_argument("--log-bytes", type=_positive, metavar="BYTES", help="push log of table.reopen")
    run.add_argument(
        "--peers", metavar="NAME,…", help="servers of others, installed on demand: all, none, or of "
        f"{', '.join(PEERS)}; default {','.join(QUICK_PEERS)} with --quick, else all"
    )  # fmt: skip
    run.add_argument("--scratch", type=Path, metavar="DIR", default=BUILD / "scratch", help="for data")
    run.add_argument("--output", type=Path, metavar="FILE", help="result file; default under build/bench")
    run.add_argument("--keep", action="store_true", help="keep what --output holds of other workloads")
    run.add_argument("--json", action="store_true", help="print bars as JSON instead of a table")
    comparing = commands.add_parser("compare", help="what changed beyond the noise")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    comparing.add_argument("--json", action="store_true", help="as JSON")
    reporting = commands.add_parser("report", help="Markdown of a result; with --output also plots, HTML")
    reporting.add_argument("result", type=Path)
    reporting.add_argument("--output", type=Path, metavar="DIR", help="folder to write into")
    reporting.add_argument("--json", action="store_true", help="print the bars as JSON")
    profiling = commands.add_parser("profile", help="where the time of one batch goes, part by part")
    profiling.add_argument("work", choices=PROFILED)
    profiling.add_argument("--seconds", type=float, default=2.0, help="with and without clocks, each")
    profiling.add_argument("--ids", type=_positive, default=batch.IDS)
    profiling.add_argument("--rows", type=_positive, default=QUICK["rows"], help="rows on disk of cold_pull")
    profiling.add_argument("--scratch", type=Path, metavar="DIR", default=BUILD / "scratch", help="for data")
    profiling.add_argument("--json", action="store_true", help="as JSON")
    _add_tables(commands)
    return parser


def _add_tables(commands: Any) -> None:
    """The commands that print kept results as tables."""
    reading = commands.add_parser("table", help="the goals of a result as one Markdown table")
    reading.add_argument(
        "result", type=Path, nargs="?", default=goal_table.RESULT, help="default: the kept one"
    )
    reading.add_argument("--write", type=Path, metavar="FILE", help="put it between this page's marks")
    scaling = commands.add_parser(
        "scale", help="runs of the workload scale side by side",
        epilog="example: python -m benchmarks scale /data/1e7 /data/1e8 /data/1e9 --output build/scale",
    )  # fmt: skip
    scaling.add_argument(
        "runs", type=Path, nargs="+", metavar="DIR", help="--dir of each run, or a scale.json"
    )
    scaling.add_argument(
        "--output", type=Path, metavar="DIR", help="write scale.json, scale.md, scale.png, plan_scale.json"
    )


def _positive(text: str) -> int:
    value = int(float(text))
    if value < 1:
        raise argparse.ArgumentTypeError(f"it is {value}; it must be 1 or more")
    return value


def _settings(arguments: argparse.Namespace) -> Settings:
    defaults: dict[str, Any] = {**(QUICK if arguments.quick else FULL), "ids": batch.IDS}
    given = {key: getattr(arguments, key) for key in defaults}
    chosen = {key: defaults[key] if value is None else value for key, value in given.items()}
    peers = chosen_peers(arguments.peers, arguments.quick)
    kept: Path | None = arguments.dir.absolute() if arguments.dir else None
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
    return Settings(
        cache=BUILD / "batches", scratch=arguments.scratch.absolute(), peers=peers, folder=kept, **chosen
    )  # fmt: skip


def _list(as_json: bool) -> int:
    if as_json:
        rows = [
            {"name": w.name, "summary": w.summary, "peer": w.peer, "goal": str(w.goal) if w.goal else ""}
            for w in WORKLOADS
        ]
        print(json.dumps(rows, indent=1))
        return 0
    table = Table()
    goals = [str(w.goal) if w.goal else "–" for w in WORKLOADS]
    table.add_column("workload", min_width=max(len(w.name) for w in WORKLOADS))  # never cut: `run` takes it
    table.add_column("what, and what stands beside it")
    table.add_column("goal", min_width=max(len(goal) for goal in goals))
    for w, goal in zip(WORKLOADS, goals, strict=True):
        table.add_row(w.name, f"{w.summary}; {w.peer}" if w.peer else w.summary, goal)
    Console().print(table)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    try:
        chosen = select(arguments.names, arguments.quick)
    except KeyError as unknown:
        print(f"no workload matches {unknown.args[0]!r}; see `list`", file=sys.stderr)
        return 2
    try:
        settings = _settings(arguments)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    hidden = ("cache", "scratch", "folder", "discard")
    kept = {key: value for key, value in settings_json(settings).items() if key not in hidden}
    head = result.describe_run(kept, ROOT)
    console = Console(stderr=True)
    console.print(f"settings: {json.dumps(settings_json(settings))}")
    stamp = head["time"].replace(":", "").replace("-", "")
    path = arguments.output or BUILD / "results" / f"{stamp}-{head['commit'].strip('+')}.json"
    try:
        others = result.load(path).bars if arguments.keep and path.exists() else ()
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    bars: list[Bar] = []
    run_began_s = time.monotonic()
    for number, workload in enumerate(chosen, 1):
        began_s = time.monotonic()
        measured = _measure(workload, settings)
        took_s = time.monotonic() - began_s
        about = {"commit": head["commit"], "workload_s": round(took_s, 1)}
        bars += [replace(bar, detail={**bar.detail, **about}) for bar in measured]
        for bar in measured:
            line = " · ".join(report.cells(bar)[1:7])
            console.print(f"{bar.id} [{took_s:.0f} s] {line} {bar.skipped}", markup=False)
        passed_s = time.monotonic() - run_began_s
        console.print(f"{number} of {len(chosen)} workloads, {passed_s:.0f} s", markup=False)
        # each time: a run that is broken off leaves what it has measured
        Result(head, tuple(result.in_catalog_order([*result.without(others, chosen), *bars]))).save(path)
    if arguments.json:
        print(json.dumps([bar.to_json() for bar in bars], indent=1))
    else:
        Console().print(report.terminal(bars, f"commit {head['commit']}"))
    console.print(f"result: {path}")
    return 1 if any(bar.skipped.startswith("failed") for bar in bars) else 0


def _measure(workload: Workload, settings: Settings) -> list[Bar]:
    folder = settings.scratch / workload.name
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    try:
        return run_workload(workload, replace(settings, scratch=folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compare(arguments: argparse.Namespace) -> int:
    changes = result.compare(result.load(arguments.old).bars, result.load(arguments.new).bars)
    if arguments.json:
        keys = ("id", "old", "new", "change", "noise", "verdict")
        print(json.dumps([{key: getattr(c, key) for key in keys} for c in changes], indent=1))
    else:
        Console().print(report.changes_table(changes))
    return 1 if any(c.verdict == "worse" for c in changes) else 0


def _report(arguments: argparse.Namespace) -> int:
    found = result.load(arguments.result)
    written = report.page(found, arguments.output) if arguments.output else []
    if arguments.json:
        print(json.dumps([bar.to_json() for bar in found.bars], indent=1))
    elif written:
        print("\n".join(str(path) for path in written))
    else:
        print(report.markdown(found), end="")
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from benchmarks import profile  # noqa: PLC0415 # it loads the kernels of every package

    folder = arguments.scratch.absolute() / "profile"
    settings = Settings(
        runs=1, seconds=arguments.seconds, warmup_batches=32, ids=arguments.ids, rows=arguments.rows,
        log_bytes=1, cache=BUILD / "batches", scratch=folder,
    )  # fmt: skip
    try:
        found = profile.measure(arguments.work, settings)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    title = (
        f"{found['work']}: {found['batch_ms']:.2f} ms a batch, {found['profiled_ms']:.2f} with the clocks; "
        f"this machine copies {found['copy_gigabytes_per_s']:.1f} GB/s"
    )
    table = Table("part", "calls", "ms", "share", title=title)
    for part, calls, millis in found["parts"]:
        table.add_row(part, f"{calls:.1f}", f"{millis:.3f}", f"{millis / found['profiled_ms']:.0%}")
    Console().print(table)
    return 0


def _scale(arguments: argparse.Namespace) -> int:
    from benchmarks import scale_report  # noqa: PLC0415 # it loads the kernels of every package

    runs = scale_report.read_runs(arguments.runs)
    print(scale_report.table(runs), end="")
    if arguments.output:
        for path in scale_report.write(runs, result.describe_run({}, ROOT), arguments.output):
            print(path)
    return 0


def _table(arguments: argparse.Namespace) -> int:
    made = goal_table.table(result.load(arguments.result))
    if arguments.write is None:
        print(made)
        return 0
    path: Path = arguments.write
    path.write_text(goal_table.replaced(path.read_text(encoding="utf-8"), made), encoding="utf-8")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point.

    Parameters
    ----------
    argv
        Arguments without the program's name; None takes those of the process.

    Returns
    -------
    int
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    if arguments.command == "list":
        return _list(arguments.json)
    if arguments.command in ("run", "profile"):
        return _run(arguments) if arguments.command == "run" else _profile(arguments)
    try:
        return {"compare": _compare, "report": _report, "table": _table, "scale": _scale}[arguments.command](
            arguments
        )
    except (OSError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
