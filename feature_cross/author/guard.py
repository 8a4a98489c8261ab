# SPDX-License-Identifier: Apache-2.0
"""`feature-cross diff` and `golden`: the two commands that keep ids from changing unseen.

Exit codes: 0; 1 a golden vector does not hold, or the data does not fit; 2 a wrong flag or config; 3 `diff`:
trained rows are lost. Thread safety: a process's main thread.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from feature_cross.author.diff.diff import ConfigDiff, FeatureDiff, diff_configs
from feature_cross.author.diff.measure import DiffMeasure, measure
from feature_cross.author.flag import MakeCommand, add_row_flags, number, row_shape
from feature_cross.author.golden.edge import edge_rows
from feature_cross.author.golden.golden import GoldenCheck, check_golden, freeze, read_golden, rows_of
from feature_cross.author.progress import counted
from feature_cross.author.size import RowShape, show_bytes
from feature_cross.config.loader import load, nearest
from feature_cross.data.output import check_out, write_text
from feature_cross.data.source import read_batches
from feature_cross.engine.engine import Engine
from feature_cross.error import FlagError
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["ROWS_LOST", "add_guard_commands", "run_diff", "run_golden"]

ROWS_LOST: Final = 3
"""Exit code of `diff` where trained rows are lost: not 1, which says that data does not fit."""

GOLDEN_ROWS_MAX: Final = 10_000
"""Rows of one golden file: it is read by people and kept with the code."""

_EFFECTS: Final = {
    "none": "no id changes",
    "coverage": "ids keep their meaning; other rows have them",
    "some": "some ids change",
    "all": "every id changes",
}


def add_guard_commands(command: MakeCommand) -> None:
    """Register the subcommands; `command(name, action, summary, example)` makes a parser."""
    diff = command(
        "diff", run_diff, "which ids a changed config changes, why, and whether trained rows are lost",
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
        "--allow",
        action="append",
        default=[],
        metavar="FEATURE",
        help="rows lost here are meant (repeatable)",
    )
    add_row_flags(diff)
    golden = command(
        "golden", run_golden, "freeze the ids of some rows, and check later that they are still the same",
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


def run_diff(flags: argparse.Namespace) -> int:
    """`diff`: OLD against NEW."""
    old, new = load(flags.old), load(flags.new)
    found = diff_configs(old, new)
    known = [name for one in found.features for name in (one.name, one.old_name) if name]
    for name in flags.allow:
        if name not in known:
            raise FlagError(
                f"--allow is {name!r}, which is a feature of neither config{nearest(name, known)}"
            )
    measured = None
    if flags.data is not None:
        measured = measure(Engine(old), Engine(new), found.features, flags.data, flags.max_rows)
    lost = [one for one in found.features if _lost(one, measured)]
    forbidden = [one for one in lost if not {one.name, one.old_name} & set(flags.allow)]
    shape = row_shape(flags)
    if flags.json:
        report = _diff_json(found, measured, shape.row_bytes(flags.tier), [one.label for one in lost])
        print(json.dumps({**report, "row": shape.to_json(flags.tier)}))
    else:
        _print_diff(flags, found, measured, shape)
        allowed = len(lost) - len(forbidden)
        print(
            f"{len(lost)} of {counted(len(found.features), 'feature')}"
            f" {'loses' if len(lost) == 1 else 'lose'} trained rows"
            + (f", {allowed} of them allowed" if allowed else "")
        )
    return ROWS_LOST if forbidden else 0


def _lost(one: FeatureDiff, measured: DiffMeasure | None) -> bool:
    """A change that no row of the data shows loses nothing; a change that loses nothing needs no data."""
    found = None if measured is None else measured.features[one.label]
    return one.rows_lost and (found is None or found.kept_ids < found.old_ids)


def _diff_json(found: ConfigDiff, measured: DiffMeasure | None, size: int, lost: list[str]) -> dict[str, Any]:
    features = []
    for one in found.features:
        changes = [
            {
                "key": change.key, "old": change.old, "new": change.new, "effect": change.effect,
                "old_line": change.old_line, "new_line": change.new_line,
            }
            for change in one.changes
        ]  # fmt: skip
        counts = None if measured is None else measured.features[one.label]
        features.append(
            {
                "feature": one.name, "old_feature": one.old_name, "status": one.status, "effect": one.effect,
                "slot": one.slot, "rows_lost": one.label in lost, "changes": changes,
                "measured": None if counts is None else {
                    "old_ids": counts.old_ids, "new_ids": counts.new_ids, "kept_ids": counts.kept_ids,
                    "changed_rows": counts.changed_rows, "old_bytes": counts.old_ids * size,
                    "new_bytes": counts.new_ids * size,
                },
            }
        )  # fmt: skip
    memory = None
    if measured is not None:
        before, after = measured.old_ids * size, measured.new_ids * size
        memory = {"rows_read": measured.rows, "old_bytes": before, "new_bytes": after}
    return {
        "features": features,
        "warnings": list(found.warnings),
        "memory": memory,
        "rows_lost": bool(lost),
    }


def _print_diff(
    flags: argparse.Namespace, found: ConfigDiff, measured: DiffMeasure | None, shape: RowShape
) -> None:
    same = 0
    for one in found.features:
        if one.status == "unchanged" and not one.changes:
            same += 1
            continue
        what = {"added": "new ids, no trained rows", "removed": "its trained rows are left behind"}
        print(f"{one.status:<9} {one.label}: {what.get(one.status, _EFFECTS[one.effect])}")
        for change in one.changes:
            places = [(flags.old, change.old_line), (flags.new, change.new_line)]
            where = ", ".join(f"{file}:{line}" for file, line in places if line is not None)
            print(
                f"    {change.key}: {_short(change.old)} -> {_short(change.new)} ({where}; {change.effect})"
            )
    print(f"unchanged {same} of {len(found.features)} features")
    for warning in found.warnings:
        print(f"warning: {warning}")
    if measured is None:
        print("ids and bytes before and after: give --data")
        return
    title = f"distinct ids over {measured.rows:,} rows of {flags.data}"
    table = Table("feature", "before", "after", "kept", "rows that differ", title=title)
    for label, m in measured.features.items():
        table.add_row(label, f"{m.old_ids:,}", f"{m.new_ids:,}", f"{m.kept_ids:,}", f"{m.changed_rows:,}")
    size = shape.row_bytes(flags.tier)
    table.add_section()
    table.add_row("bytes", show_bytes(measured.old_ids * size), show_bytes(measured.new_ids * size), "", "")
    screen = Console()
    screen = screen if screen.is_terminal else Console(width=max(screen.width, 120))
    screen.print(table)
    screen.print(shape.text(flags.tier))


def _short(value: Any) -> str:
    """As YAML has it: no Python tuples, None or quotes of its own."""
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def run_golden(flags: argparse.Namespace) -> int:
    """`golden`: freeze, or check."""
    engine = Engine(load(flags.config))
    if flags.check is not None:
        for name in ("data", "rows"):
            if getattr(flags, name) is not None:
                shown = name.upper() if name == "data" else f"--{name}"
                raise FlagError(f"{shown} does nothing with --check: the golden file has its own rows")
        if flags.force:
            raise FlagError("--force does nothing with --check: nothing is written")
        return _check(flags, check_golden(engine, read_golden(flags.check)))
    check_out(flags.out, flags.config, flags.data)
    if Path(flags.out).exists() and not flags.force:
        raise FlagError(f"--out is {flags.out}, which exists: frozen ids are overwritten with --force only")
    if flags.data is None:
        if flags.rows is not None:
            raise FlagError("--rows does nothing without DATA")
        batch = edge_rows(engine)
    else:
        batch = rows_of(read_batches(flags.data, engine.plan, BATCH_ROWS_DEFAULT), flags.rows or 100)
    golden = freeze(engine, batch)
    write_text(flags.out, golden.text())
    ids = {name: sum(map(len, rows)) for name, rows in golden.features.items()}
    uncovered = [name for name, count in ids.items() if not count]
    if flags.json:
        report = {"rows": len(batch), "ids": ids, "uncovered": uncovered, "out": os.fspath(flags.out)}
        print(json.dumps(report))
    else:
        made = f"{counted(sum(ids.values()), 'id')} of {counted(len(ids), 'feature')}"
        print(f"{flags.out}: {counted(len(batch), 'row')}, {made}")
        for name in uncovered:
            rare = "no row meets its `when`; " if engine.plan.node(name).conditions else ""
            give = "give DATA that has such rows" if flags.data is None else "give other rows"
            print(f"warning: {name} has no id in these rows, so nothing of it is frozen: {rare}{give}")
    return 0


def _check(flags: argparse.Namespace, check: GoldenCheck) -> int:
    if flags.json:
        mismatches = [
            {
                "feature": one.feature, "row": one.row, "values": one.values,
                "frozen": [f"0x{made:016x}" for made in one.frozen],
                "found": [f"0x{made:016x}" for made in one.found],
            }
            for one in check.mismatches
        ]  # fmt: skip
        report = {
            "passed": check.passed, "rows": check.rows, "mismatches": mismatches, "absent": check.absent,
            "new": check.new,
        }  # fmt: skip
        print(json.dumps(report, default=str))
        return 0 if check.passed else 1
    by_feature: dict[str, int] = {}
    for one in check.mismatches:
        by_feature[one.feature] = by_feature.get(one.feature, 0) + 1
        if by_feature[one.feature] <= 3:
            print(one.text())
    for name, count in by_feature.items():
        print(f"{name}: {count} of {check.rows} rows have other ids than {flags.check} froze")
    for name in check.absent:
        print(f"{name}: frozen in {flags.check}, but not in {flags.config}{nearest(name, list(check.new))}")
    for name in check.new:
        print(f"{name}: new, not frozen in {flags.check}")
    print(f"{flags.config}: {'ids are as frozen' if check.passed else 'ids have changed'}, {check.rows} rows")
    return 0 if check.passed else 1
