# SPDX-License-Identifier: Apache-2.0
"""`feature-cross plot`: figures of a config and its estimate, into a folder."""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from feature_cross.author.command.estimate import estimate_data
from feature_cross.author.estimate.report import Estimate, read_estimate
from feature_cross.author.plot import chart, graph
from feature_cross.config.loader import load
from feature_cross.config.node import Plan
from feature_cross.config.plan import build_plan
from feature_cross.error import DataError, FlagError


def run(flags: argparse.Namespace) -> int:
    """`plot`: five figures into a folder."""
    folder = Path(flags.out)
    if folder.exists() and not folder.is_dir():
        raise FlagError(f"--out is {folder}, which is a file; name a folder")
    plan = build_plan(load(flags.config))
    if Path(flags.data).suffix.lower() == ".json":
        estimate = read_estimate(flags.data)
    else:
        estimate = estimate_data(flags)
    _require_features(estimate, plan, flags)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in _figures(plan, estimate).items():
            path = folder / f"{name}.{flags.format}"
            figure.savefig(path)
            written.append(str(path))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    print(json.dumps({"files": written}) if flags.json else "\n".join(written))
    return 0


def _require_features(estimate: Estimate, plan: Plan, flags: argparse.Namespace) -> None:
    named = {feature.name for feature in estimate.features}
    missing = [name for name in plan.outputs if name not in named]
    if missing:
        raise DataError(
            f"{flags.data} is not an estimate of {flags.config}: it has no feature {missing[0]!r}"
            f" (it is of {estimate.config})"
        )
    if not any(feature.distinct > 0 for feature in estimate.features):
        raise DataError(
            f"{flags.data}: no feature has any id in the {estimate.rows_read} rows, nothing to draw"
        )


def _figures(plan: Plan, estimate: Estimate) -> dict[str, Figure]:
    return {
        "graph": graph.graph_figure(plan, estimate),
        "cardinality": chart.cardinality_figure(estimate),
        "frequency": chart.frequency_figure(estimate),
        "growth": chart.growth_figure(estimate),
        "collision": chart.collision_figure(estimate),
    }
