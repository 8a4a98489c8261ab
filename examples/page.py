# SPDX-License-Identifier: Apache-2.0
"""report.html: the figures and three plots in one file that needs no other.

Thread safety: pure functions of a Result; plots are drawn without matplotlib's global state.
"""

import html
import io
import re
from pathlib import Path
from typing import Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from examples.recipe import SINGLE
from examples.report import Result, arithmetic, per_row, show

_COLORS: Final = {"without": "#8d99ae", "with": "#d1495b"}
_STYLE: Final = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre { background: #f6f6f4; padding: 1rem; overflow-x: auto; line-height: 1.2; }
svg { max-width: 100%; height: auto; }
"""


def write_page(result: Result, path: Path) -> None:
    """Write report.html."""
    text = io.StringIO()
    show(result, Console(file=text, width=118, color_system=None))
    title = f"rowhouse demo: {result.example}"
    plots = [
        ("AUC by step", _auc_plot(result)),
        ("Rows by kind of cross", _rows_plot(result)),
        ("Bytes per row", _bytes_plot(result)),
    ]
    body = "\n".join(f"<h2>{name}</h2>\n{svg}" for name, svg in plots)
    path.write_text(
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>\n{_STYLE}</style>\n<h1>{title}</h1>\n<pre>{html.escape(text.getvalue())}</pre>\n{body}\n</html>\n",
        encoding="utf-8",
    )


def _auc_plot(result: Result) -> str:
    figure, axes = _figure()
    for run in result.runs:
        steps, auc = zip(*result.curves[run.name], strict=True)
        first = run.seed == result.runs[0].seed
        label = f"{run.arm} crosses" if first else None
        axes.plot(steps, auc, color=_COLORS[run.arm], marker="o", markersize=3, label=label)
    axes.set_xlabel("step (a batch of each trainer)")
    axes.set_ylabel("AUC on part of the test")
    axes.legend()
    return _svg(figure)


def _rows_plot(result: Result) -> str:
    rows: dict[str, int] = {}
    for name, use in result.recipe.tables.items():
        if use.part == "wide":  # one row per id; the deep table holds the single columns once more
            rows[use.family] = rows.get(use.family, 0) + result.copies(name)[-1].rows
    figure, axes = _figure()
    colors = [_COLORS["without" if family == SINGLE else "with"] for family in rows]
    bars = axes.bar(list(rows), list(rows.values()), color=colors)
    axes.bar_label(bars, labels=[f"{count:,}" for count in rows.values()])
    axes.set_yscale("log")
    axes.set_ylim(bottom=1)
    axes.set_ylabel("rows of one run")
    return _svg(figure)


def _bytes_plot(result: Result) -> str:
    names = list(result.recipe.tables)
    sizes = [per_row(result.copies(name)) for name in names]
    plain = [arithmetic(result.dim(name)) for name in names]
    series: dict[str, list[float]] = {
        "memory, with state and index": [s["memory"] for s in sizes],
        "disk, with state": [s["disk"] for s in sizes],
        "id + fp32 weights": [p["fp32"] for p in plain],
        "id + fp16 weights": [p["fp16"] for p in plain],
    }
    figure, axes = _figure()
    width = 0.8 / len(series)
    for number, (label, values) in enumerate(series.items()):
        at = [place + (number - 1.5) * width for place in range(len(names))]
        axes.bar_label(axes.bar(at, values, width, label=label), fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_yscale("log")  # a table of a hundred rows pays for its index's least size
    axes.set_ylim(bottom=1)
    axes.set_ylabel("bytes per row")
    axes.legend(fontsize=8)
    return _svg(figure)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes: Axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "rowhouse"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    found = re.search(r"<svg.*</svg>", text.getvalue(), re.DOTALL)
    assert found is not None
    return found[0]
