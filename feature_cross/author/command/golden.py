# SPDX-License-Identifier: Apache-2.0
"""`feature-cross golden`: freeze the ids of some rows, and check that they are still the same."""

import argparse
import json
import os
from pathlib import Path

from rowhouse.problem import nearest

from feature_cross.author.guard.edge import edge_rows
from feature_cross.author.guard.golden import GoldenCheck, check_golden, freeze, read_golden, rows_of
from feature_cross.author.progress import counted
from feature_cross.config.loader import load
from feature_cross.data.sink import check_out, write_text
from feature_cross.data.source import read_batches
from feature_cross.engine.engine import Engine
from feature_cross.error import FlagError
from feature_cross.limit import BATCH_ROWS_DEFAULT


def run(flags: argparse.Namespace) -> int:
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
        print(f"{name}: frozen in {flags.check}, but not in {flags.config}; {nearest(name, list(check.new))}")
    for name in check.new:
        print(f"{name}: new, not frozen in {flags.check}")
    print(f"{flags.config}: {'ids are as frozen' if check.passed else 'ids have changed'}, {check.rows} rows")
    return 0 if check.passed else 1
