# SPDX-License-Identifier: Apache-2.0
"""The estimate's charts: cardinality bars, frequency, growth, collisions. Thread safety: pure functions."""

import math
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from feature_cross.author.estimate.collision import expected_collisions, values_behind
from feature_cross.author.estimate.report import Estimate, FeatureReport
from feature_cross.author.estimate.view import short_number
from feature_cross.author.plot.style import (
    FAMILY_COLOURS,
    INK,
    LINE_COLOURS,
    MUTED,
    family,
    label_ends,
    log_axis,
    new_figure,
)
from feature_cross.author.size import show_bytes

__all__ = ["cardinality_figure", "collision_figure", "frequency_figure", "growth_figure"]

BARS_MAX: Final = 60
_LOST_MIN: Final = 1e-6
"""Least expected number of lost values that the collision chart tells apart."""

LINES_MAX: Final = len(LINE_COLOURS)
"""Lines of one chart: more cannot be told apart."""


def _largest(estimate: Estimate, most: int) -> list[FeatureReport]:
    found = [feature for feature in estimate.features if feature.distinct > 0]
    return sorted(found, key=lambda one: -_rows(one))[:most]


def _rows(feature: FeatureReport) -> float:
    return feature.distinct if feature.projection is None else feature.projection.distinct


def _of(estimate: Estimate, shown: int, most: str) -> str:
    rows = f"{short_number(estimate.rows_read)} rows read"
    total = sum(feature.distinct > 0 for feature in estimate.features)
    return rows if shown == total else f"{rows}; the {shown} {most} of {total} features"


def cardinality_figure(estimate: Estimate) -> Figure:
    """Bars: distinct ids now, and as projected, with its bounds.

    Parameters
    ----------
    estimate
        The document.
    """
    features = _largest(estimate, BARS_MAX)[::-1]
    subtitle = _of(estimate, len(features), "largest")
    if estimate.rows_projected is not None:
        subtitle += f"; pale: projected to {short_number(estimate.rows_projected)} rows, with its bounds"
    figure, axes = new_figure(9, 1.6 + 0.32 * len(features), "Distinct ids", subtitle)
    names = [feature.name for feature in features]
    colours = [FAMILY_COLOURS[family(feature.kind)] for feature in features]
    top = max((feature.projection or feature).distinct for feature in features)
    for y, (feature, colour) in enumerate(zip(features, colours, strict=True)):
        ahead = feature.projection
        end = feature.distinct
        if ahead is not None:
            axes.barh(y, ahead.distinct, color=colour, alpha=0.3, height=0.72)
            axes.plot([ahead.low, ahead.high], [y, y], color=colour, linewidth=1.2)
            end, top = max(end, ahead.high), max(top, ahead.high)
        axes.barh(y, feature.distinct, color=colour, height=0.72)
        text = f"{short_number(_rows(feature))} · {show_bytes(feature.bytes['memory'])}"
        axes.annotate(
            text, (end, y), (5, 0), textcoords="offset points", va="center", fontsize=7.5, color=INK
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    log_axis(axes, "x", "distinct ids")
    axes.set_xlim(0.8, top * 12)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    _family_legend(figure, features)
    return figure


def _family_legend(figure: Figure, features: list[FeatureReport]) -> None:
    """What the colours of bars and dots are, under the axes."""
    present = {family(feature.kind) for feature in features}
    handles = [Patch(color=colour, label=name) for name, colour in FAMILY_COLOURS.items() if name in present]
    figure.legend(handles=handles, loc="outside lower left", ncols=5, fontsize=8, frameon=False)


def frequency_figure(estimate: Estimate) -> Figure:
    """Lines: how many ids occurred c times or more (the complementary distribution of frequencies).

    Parameters
    ----------
    estimate
        The document.
    """
    features = [one for one in _largest(estimate, len(estimate.features)) if len(one.frequency) > 1][
        :LINES_MAX
    ]
    subtitle = _of(estimate, len(features), "largest") + "; left: the tail, right: the heavy hitters"
    figure, axes = new_figure(9, 5.4, "How often ids occur", subtitle)
    log_axis(axes, "x", "occurrences c")
    log_axis(axes, "y", "ids that occur c times or more")
    for feature, colour in zip(features, LINE_COLOURS, strict=False):
        counts = [point.count for point in feature.frequency]
        ids = [point.ids for point in feature.frequency]
        axes.plot(counts, ids, color=colour, linewidth=1.6, label=feature.name)
    axes.set_xlim(left=1)
    axes.set_ylim(bottom=0.8)
    if features:  # beside the axes: inside them it would lie on the lines
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def growth_figure(estimate: Estimate) -> Figure:
    """Lines: distinct ids by rows read; dashed with a band where projected.

    Parameters
    ----------
    estimate
        The document.
    """
    features = _largest(estimate, LINES_MAX)
    subtitle = _of(estimate, len(features), "largest")
    if estimate.rows_projected is not None:
        subtitle += "; dashed: projected, band: its bounds"
    figure, axes = new_figure(9, 5.4, "Growth of distinct ids", subtitle)
    log_axis(axes, "x", "rows")
    log_axis(axes, "y", "distinct ids")
    ends = []
    for feature, colour in zip(features, LINE_COLOURS, strict=False):
        points = [point for point in feature.growth if point.distinct > 0]
        axes.plot([p.rows for p in points], [p.distinct for p in points], color=colour, linewidth=1.7)
        last = (float(points[-1].rows), points[-1].distinct)
        ahead = feature.projection
        if ahead is not None and ahead.rows > last[0]:
            rows = [last[0], float(ahead.rows)]
            axes.plot(rows, [last[1], ahead.distinct], color=colour, linewidth=1.3, linestyle=(0, (4, 2)))
            axes.fill_between(
                rows, [last[1], ahead.low], [last[1], ahead.high], color=colour, alpha=0.12, linewidth=0
            )
            last = (float(ahead.rows), ahead.distinct)
        ends.append((*last, feature.name, colour))
    axes.axvline(estimate.rows_read, color=MUTED, linewidth=0.8, linestyle=":")
    label_ends(axes, ends)
    return figure


def collision_figure(estimate: Estimate) -> Figure:
    """Lines: values expected to share an id, by the number of values; dots: the features.

    Parameters
    ----------
    estimate
        The document.
    """
    used = sorted({feature.collisions.bits for feature in estimate.features})
    subtitle = "values expected to share another's id; dots: features as read"
    if estimate.rows_projected is not None:
        subtitle += f", rings: at {short_number(estimate.rows_projected)} rows"
    figure, axes = new_figure(9, 5.4, "Id collisions by bits of hash", subtitle)
    log_axis(axes, "x", "distinct values of a feature")
    log_axis(axes, "y", "values without an id of their own")
    features = _largest(estimate, len(estimate.features))
    most = max([1e10, *(10 * _rows(feature) for feature in features)])
    values = np.logspace(3, math.log10(most), 120)
    ends = []
    for bits in sorted({32, 40, 48, 56, 64} | set(used)):
        lost = [expected_collisions(float(value), bits).lost for value in values]
        own = bits in used
        colour = LINE_COLOURS[0] if own else "#BBBBBB"
        axes.plot(values, lost, color=colour, linewidth=1.8 if own else 1.0)
        ends.append((most, lost[-1], f"{bits} bits" + (", here" if own else ""), colour if own else MUTED))
    axes.axhline(1, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_ylim(_LOST_MIN, most)
    axes.set_xlim(1e3, most)
    for feature in features:
        bits = feature.collisions.bits
        colour = FAMILY_COLOURS[family(feature.kind)]
        for number, filled in ((feature.distinct, True), (_rows(feature), False)):
            behind = max(values_behind(number, bits), 1e3)
            lost_there = max(expected_collisions(behind, bits).lost, _LOST_MIN)  # small ones at the edge
            axes.plot(
                [behind], [lost_there], "o", clip_on=False, color=colour, markersize=6,
                fillstyle="full" if filled else "none", zorder=3,
            )  # fmt: skip
    label_ends(axes, [end for end in ends if end[1] > _LOST_MIN])
    _family_legend(figure, features)
    return figure
