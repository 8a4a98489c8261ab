# SPDX-License-Identifier: Apache-2.0
"""The cross graph: attributes by entity on the left, what is made of them to the right.

Columns are depths: an attribute is 0, a feature one more than its deepest part. In a column nodes stand in
the order of their parts' mean height, and an edge past a column has a place of its own in it (the heuristics
of Sugiyama, Tagawa and Toda, 1981).
Thread safety: pure functions.
"""

from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, PathPatch
from matplotlib.path import Path

from feature_cross.author.estimate.report import Estimate
from feature_cross.author.estimate.view import short_number
from feature_cross.author.plot.style import FAMILY_COLOURS, FAMILY_NAMES, INK, MUTED, family, new_figure
from feature_cross.config.node import AttributeUse, Plan

__all__ = ["graph_figure"]

NODES_MAX: Final = 150
"""Features that are drawn; past it a page says nothing any more."""

_ROW: Final = 0.36
_WIDTH: Final = 2.5
_GAP: Final = 1.5
_ENTITY_GAP: Final = 0.6
_PASS: Final = "pass"


@dataclass(slots=True)
class _Box:
    """A node: where it stands (rows, down), and what it says; kind `pass` is an edge's place in a column."""

    name: str
    parts: list[str]
    kind: str
    column: int
    note: str = ""
    faint: bool = False
    y: float = 0.0


def graph_figure(plan: Plan, estimate: Estimate | None) -> Figure:
    """The figure.

    Parameters
    ----------
    plan
        The config's features.
    estimate
        For the numbers of distinct ids beside them; None draws none.
    """
    boxes, left_out = _boxes(plan, estimate)
    entities = _place(boxes)
    columns = 1 + max(box.column for box in boxes.values())
    height = max(box.y for box in boxes.values()) + 1
    width = columns * _WIDTH + (columns - 1) * _GAP
    subtitle = "slot and distinct ids beside each feature; dashed: used by others only"
    if left_out:
        subtitle += f"; {left_out} more features are not drawn"
    figure, axes = new_figure(width + 0.9, height * _ROW + 1.7, "What each feature is made of", subtitle)
    axes.set_axis_off()
    axes.set_xlim(-0.3, width + 0.3)
    axes.set_ylim(height * _ROW, -_ROW)
    for box in boxes.values():
        for part in box.parts:
            _edge(axes, boxes[part], box)
    for box in boxes.values():
        if box.kind != _PASS:
            _node(axes, box)
    for entity, y in entities.items():
        axes.text(0, y * _ROW, entity, fontsize=9, fontweight="bold", color=INK, va="center")
    present = {family(box.kind) for box in boxes.values()}
    handles = [Patch(color=FAMILY_COLOURS[name], label=FAMILY_NAMES[name]) for name in FAMILY_COLOURS]
    figure.legend(
        handles=[handle for handle, name in zip(handles, FAMILY_COLOURS, strict=True) if name in present],
        loc="outside lower left", ncols=max(2, int(width // 2.7)), fontsize=8, frameon=False,
    )  # fmt: skip
    return figure


def _boxes(plan: Plan, estimate: Estimate | None) -> tuple[dict[str, _Box], int]:
    counts = {} if estimate is None else {one.name: one.distinct for one in estimate.features}
    drawn = plan.nodes[:NODES_MAX]
    boxes: dict[str, _Box] = {}
    for use in sorted(
        {operand.label: operand for node in drawn for operand in node.operands if _is_use(operand)}.items()
    ):
        boxes[use[0]] = _Box(use[0], [], "entity", 0)
    for node in drawn:
        parts = list(dict.fromkeys(operand.label for operand in node.operands))
        column = 1 + max(boxes[part].column for part in parts)
        notes = [] if node.slot is None else [f"slot {node.slot}"]
        if node.name in counts:
            notes.append(short_number(counts[node.name]))
        boxes[node.name] = _Box(node.name, parts, node.kind, column, "  ".join(notes), not node.emit)
    _add_passes(boxes)
    return boxes, len(plan.nodes) - len(drawn)


def _add_passes(boxes: dict[str, _Box]) -> None:
    """Break every edge that goes past a column into edges between neighbours."""
    for box in list(boxes.values()):
        for index, part in enumerate(box.parts):
            name = part
            for column in range(boxes[part].column + 1, box.column):
                name, before = f"{part} past {column}", name
                boxes.setdefault(name, _Box(name, [before], _PASS, column))
            box.parts[index] = name


def _is_use(operand: object) -> bool:
    return isinstance(operand, AttributeUse)


def _place(boxes: dict[str, _Box]) -> dict[str, float]:
    """Heights, in rows; gives where each entity's heading stands."""
    headings: dict[str, float] = {}
    y = 0.0
    for box in boxes.values():
        if box.column == 0:
            entity = box.name.partition(".")[0]
            if entity not in headings:
                y += _ENTITY_GAP if headings else 0
                headings[entity] = y
                y += 0.9
            box.y = y
            y += 1
    for column in range(1, 1 + max(box.column for box in boxes.values())):
        members = [box for box in boxes.values() if box.column == column]
        wanted = {box.name: sum(boxes[p].y for p in box.parts) / len(box.parts) for box in members}
        members.sort(key=lambda box: wanted[box.name])
        total = max(y - 1, float(len(members)))
        step = max(1.0, min(1.6, total / len(members)))
        centre = sum(wanted.values()) / len(members)
        first = max(0.0, min(centre - step * (len(members) - 1) / 2, total - step * (len(members) - 1)))
        for index, box in enumerate(members):
            box.y = first + index * step
    return headings


def _left(box: _Box) -> float:
    return box.column * (_WIDTH + _GAP)


def _edge(axes: Axes, source: _Box, target: _Box) -> None:
    x0, y0, x1, y1 = _left(source) + _WIDTH, source.y * _ROW, _left(target), target.y * _ROW
    bend = min((x1 - x0) / 2, 0.75 * _GAP)
    curve = Path(
        [(x0, y0), (x0 + bend, y0), (x1 - bend, y1), (x1, y1)],
        [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
    )
    colour = FAMILY_COLOURS.get(family(target.kind), MUTED)  # what passes may lead to several families
    axes.add_patch(PathPatch(curve, fill=False, edgecolor=colour, linewidth=1.1, alpha=0.55))
    if target.kind == _PASS:
        axes.plot([x1, x1 + _WIDTH], [y1, y1], color=colour, linewidth=1.1, alpha=0.55)


def _node(axes: Axes, box: _Box) -> None:
    colour = "#BBBBBB" if box.column == 0 else FAMILY_COLOURS[family(box.kind)]
    x, y = _left(box), box.y * _ROW
    half = 0.36 * _ROW
    axes.add_patch(
        FancyBboxPatch(
            (x, y - half), _WIDTH, 2 * half, boxstyle="round,pad=0,rounding_size=0.06", facecolor="white",
            edgecolor=colour, linewidth=1.3, linestyle="--" if box.faint else "-",
        )
    )  # fmt: skip
    shown = box.name.partition(".")[2] if box.column == 0 else box.name
    room = 34 - len(box.note)
    shown = shown if len(shown) <= room else shown[: room - 1] + "…"
    axes.text(x + 0.09, y, shown, va="center", fontsize=8, color=INK)
    axes.text(x + _WIDTH - 0.09, y, box.note, va="center", ha="right", fontsize=7, color=MUTED)
