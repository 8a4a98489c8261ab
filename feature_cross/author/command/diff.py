# SPDX-License-Identifier: Apache-2.0
"""`feature-cross diff`: which ids a changed config changes, and whether trained rows are lost."""

import argparse
import json
from typing import Any, Final

from rich.table import Table
from rowhouse.problem import nearest
from rowhouse.program import screen, show_table

from feature_cross.author.flag import row_shape
from feature_cross.author.guard.diff import ConfigDiff, FeatureDiff, diff_configs
from feature_cross.author.guard.measure import DiffMeasure, measure
from feature_cross.author.limit import PAST_BOUND
from feature_cross.author.progress import counted
from feature_cross.author.size import RowShape, show_bytes
from feature_cross.config.loader import load
from feature_cross.engine.engine import Engine
from feature_cross.error import FlagError, shortened

_EFFECTS: Final = {
    "none": "no id changes",
    "coverage": "ids keep their meaning; other rows have them",
    "some": "some ids change",
    "all": "every id changes",
}


def run(flags: argparse.Namespace) -> int:
    """`diff`: OLD against NEW."""
    old, new = load(flags.old), load(flags.new)
    found = diff_configs(old, new)
    known = [name for one in found.features for name in (one.name, one.old_name) if name]
    for name in flags.allow:
        if name not in known:
            raise FlagError(
                f"--allow is {name!r}, which is a feature of neither config; {nearest(name, known)}"
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
    return PAST_BOUND if forbidden else 0


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
    to = screen()
    show_table(table, to)
    to.print(shape.text(flags.tier))


def _short(value: Any) -> str:
    """As YAML has it: no Python tuples, None or quotes of its own."""
    return "nothing" if value is None else shortened(json.dumps(value, ensure_ascii=False, default=str))
