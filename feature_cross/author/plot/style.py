# SPDX-License-Identifier: Apache-2.0
"""What all figures share: colours, axes, numbers on axes, labels at the ends of lines.

Colours are Okabe and Ito's ("Color universal design", 2008), which colour-blind readers tell apart. Figures
are made without pyplot, which keeps global state. Thread safety: a figure belongs to one thread.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from feature_cross.author.estimate.view import short_number

__all__ = [
    "FAMILY_COLOURS", "FAMILY_NAMES", "INK", "LINE_COLOURS", "MUTED", "family", "label_ends", "log_axis",
    "new_figure",
]  # fmt: skip

INK: Final = "#222222"
MUTED: Final = "#777777"
LINE_COLOURS: Final = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#000000",
)  # fmt: skip
FAMILY_COLOURS: Final = {
    "attribute": "#8A8F98", "categorical": "#56B4E9", "interaction": "#0072B2", "weak": "#CC79A7",
    "combination": "#D98200",
}  # fmt: skip
FAMILY_NAMES: Final = {
    "attribute": "attribute", "categorical": "categorical: within one entity",
    "interaction": "interaction: entities meet", "weak": "weak: need not co-occur",
    "combination": "combination: of a list",
}  # fmt: skip
_FORMS: Final = ("permutation", "single", "sorted")


def family(kind: str) -> str:
    """The family of a feature's kind: the forms of a list are `combination`."""
    return "combination" if kind in _FORMS else kind


def new_figure(width: float, height: float, title: str, subtitle: str = "") -> tuple[Figure, Axes]:
    """A figure (inches) of one axes with a title over it, and grey words under the title."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=22 if subtitle else 8)
    if subtitle:
        axes.annotate(
            subtitle, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", fontsize=8.5,
            color=MUTED,
        )  # fmt: skip
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#BBBBBB")
    axes.tick_params(colors="#444444", labelsize=8.5)
    axes.tick_params(which="minor", length=0)
    return figure, axes


def log_axis(axes: Axes, which: str, label: str) -> None:
    """A logarithmic x or y with ticks as 1, 10, ... 1M."""
    axis: Any = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(base=10, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, position: _tick(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_label_text(label, fontsize=9.5, color=INK)
    axes.grid(True, which="major", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def _tick(value: float) -> str:
    if value >= 1:
        return short_number(value) if value < 10_000 else short_number(value).replace(".0", "")
    return f"{value:g}"


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], points: float = 9.0) -> None:
    """Write names beside the ends of lines, pushed apart so that none covers another.

    Parameters
    ----------
    axes
        With its scales and limits set.
    ends
        (x, y, name, colour) of each line's end.
    points
        Least vertical distance.
    """
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # limits and layout are known after it
    order = sorted(range(len(ends)), key=lambda index: ends[index][1])
    pixels = np.array([axes.transData.transform(ends[index][:2])[1] for index in order])
    gap = points * axes.figure.dpi / 72
    placed = _apart(pixels, gap)
    for index, before, after in zip(order, pixels, placed, strict=True):
        x, y, name, colour = ends[index]
        axes.annotate(
            name, (x, y), (6, float(after - before) * 72 / axes.figure.dpi), textcoords="offset points",
            va="center", fontsize=8, color=colour, annotation_clip=False,
        )  # fmt: skip


def _apart(positions: "np.ndarray[Any, Any]", gap: float) -> "np.ndarray[Any, Any]":
    """Rising positions, neighbours moved `gap` apart; blocks that had to move keep their centre."""
    blocks: list[tuple[float, int]] = []  # centre, members
    for position in positions:
        blocks.append((float(position), 1))
        while len(blocks) > 1:
            (low, low_size), (high, high_size) = blocks[-2:]
            if high - low >= gap * (low_size + high_size) / 2:
                break
            centre = (low * low_size + high * high_size) / (low_size + high_size)
            blocks[-2:] = [(centre, low_size + high_size)]
    placed = [centre + gap * (i - (size - 1) / 2) for centre, size in blocks for i in range(size)]
    return np.array(placed)
