# SPDX-License-Identifier: Apache-2.0
"""The flags of `feature-cross plot`, and the files it writes. Thread safety: a process's main thread."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from feature_cross.author.estimate.flag import add_estimate_flags, estimate_data
from feature_cross.author.estimate.report import Estimate, read_estimate
from feature_cross.author.flag import MakeCommand
from feature_cross.config.loader import load
from feature_cross.config.node import Plan
from feature_cross.config.plan import build_plan
from feature_cross.error import DataError, FlagError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["add_plot_command"]

FORMATS: Final = ("png", "svg", "pdf")


def add_plot_command(make: MakeCommand) -> None:
    """Register `plot`.

    Parameters
    ----------
    make
        (name, action, summary, example) to a parser, as feature_cross.author.program has it.
    """
    parser = make(
        "plot", run_plot, "draw the cross graph, cardinalities, frequencies, growth and collisions",
        "feature-cross plot crosses.yaml clicks.parquet --rows 1e9 --out figures",
    )  # fmt: skip
    parser.add_argument("config", help="YAML config")
    parser.add_argument(
        "data", help="file or folder as for `estimate`, or what `estimate --json` printed (a .json file)"
    )
    parser.add_argument("--out", required=True, help="folder for the figures; it is made if need be")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the figures (png)")
    add_estimate_flags(parser)


def run_plot(flags: argparse.Namespace) -> int:
    """`plot`: five figures into a folder."""
    folder = Path(flags.out)
    if folder.exists() and not folder.is_dir():
        raise FlagError(f"--out is {folder}, which is a file; name a folder")
    draw = _figures()
    plan = build_plan(load(flags.config))
    if Path(flags.data).suffix.lower() == ".json":
        estimate = read_estimate(flags.data)
    else:
        estimate = estimate_data(flags)
    _require_features(estimate, plan, flags)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in draw(plan, estimate).items():
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


def _figures() -> "Callable[[Plan, Estimate], dict[str, Figure]]":
    """The drawing code; FlagError where matplotlib is not installed."""
    try:
        from feature_cross.author.plot import chart, graph  # noqa: PLC0415  # the extra is needed here only
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        raise FlagError(
            "plot needs matplotlib, which is not installed: pip install 'rowhouse[plot]'"
        ) from error

    def draw(plan: Plan, estimate: Estimate) -> "dict[str, Figure]":
        return {
            "graph": graph.graph_figure(plan, estimate),
            "cardinality": chart.cardinality_figure(estimate),
            "frequency": chart.frequency_figure(estimate),
            "growth": chart.growth_figure(estimate),
            "collision": chart.collision_figure(estimate),
        }

    return draw
