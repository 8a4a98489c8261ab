# SPDX-License-Identifier: Apache-2.0
"""`feature-cross check`: every problem of a config, with its line."""

import argparse
import json
from typing import Any

from rich.table import Table
from rowhouse.problem import Problem
from rowhouse.program import screen, show_table

from feature_cross.author.check.finding import find
from feature_cross.author.check.survey import Survey
from feature_cross.author.guard.lock import check_against, lock_path, read_previous
from feature_cross.author.progress import counted
from feature_cross.config.plan import build_plan
from feature_cross.error import ConfigError


def run(flags: argparse.Namespace) -> int:
    """`check`: every problem of a config, with its line; exit code 1 if one is an error."""
    measured: Survey | None = None
    problems: list[Problem] = []
    source = flags.config
    try:
        found = find(flags.config, flags.data)
        problems, measured = found.problems, found.measured
        against = flags.against
        if against is None and lock_path(flags.config).exists():
            against = str(lock_path(flags.config))
        if against is not None and found.whole is not None:
            previous = read_previous(against)
            problems = [*check_against(found.whole, build_plan(found.whole), previous), *problems]
    except ConfigError as error:
        if any(one.code == "config-file" for one in error.problems):
            raise  # a file that cannot be read is no finding
        problems, source = list(error.problems), error.source
    errors = sum(problem.severity == "error" for problem in problems)
    if flags.json:
        print(
            json.dumps({"problems": [_problem_json(p) for p in problems], "survey": _survey_json(measured)})
        )
        return 1 if errors else 0
    for problem in problems:
        print(f"{problem.severity}: {problem.text(source)} [{problem.code}]")
    if measured is not None:
        table = Table(
            "feature", "rows with ids", "ids", "distinct", title=f"{measured.rows:,} rows of {flags.data}"
        )
        for name, feature in measured.features.items():
            table.add_row(name, f"{feature.covered_rows:,}", f"{feature.ids:,}", f"{feature.distinct:,}")
        show_table(table, screen())
    print(f"{source}: {counted(errors, 'error')}, {counted(len(problems) - errors, 'warning')}")
    return 1 if errors else 0


def _problem_json(problem: Problem) -> dict[str, Any]:
    return {
        "code": problem.code,
        "severity": problem.severity,
        "line": problem.line,
        "path": list(problem.path),
        "message": problem.message,
    }


def _survey_json(measured: Survey | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    features = {
        name: {"covered_rows": f.covered_rows, "ids": f.ids, "distinct": f.distinct}
        for name, f in measured.features.items()
    }
    ratios = [{"key": k, "attribute": a, "ratio": ratio} for (k, a), ratio in measured.ratios.items()]
    return {"rows": measured.rows, "features": features, "futile_ratios": ratios}
