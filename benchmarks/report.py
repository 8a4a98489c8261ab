# SPDX-License-Identifier: Apache-2.0
"""A result for people: a table in the terminal, Markdown, and one HTML page with the plots of figure.py.

Thread safety: pure, but for the files that are written.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from benchmarks import figure
from benchmarks.bar import Bar
from benchmarks.result import Change, Result

COLUMNS: Final = ("bar", "ours", "unit", "beside it", "ratio", "goal", "met", "peer")
_STYLE: Final = (
    "body{font:15px/1.5 sans-serif;max-width:76em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border-bottom:1px solid #ccc;padding:.3em .7em;text-align:left}"
    "img{max-width:100%}"
)


def number(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A figure with three significant digits, and its spread where there is one."""
    if value is None:
        return "–"
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if low is None or high is None or low == high:
        return text
    return f"{text} ({low:.3g}–{high:.3g})"


def cells(bar: Bar) -> tuple[str, ...]:
    """One line of the table."""
    met = {True: "yes", False: "NO", None: "–"}[bar.met]
    noisy = any(v is True for k, v in bar.detail.items() if k.endswith("_noisy"))
    beside = bar.skipped if bar.skipped and bar.peer_figure is None else bar.peer
    return (
        bar.id,
        number(bar.figure, bar.low, bar.high) + (" noisy" if noisy else ""),
        bar.unit,
        number(bar.peer_figure, bar.peer_low, bar.peer_high),
        number(bar.ratio, bar.ratio_low, bar.ratio_high),
        bar.goal or "–",
        met,
        beside,
    )


def terminal(bars: Sequence[Bar], title: str) -> Table:
    """The bars as a rich table."""
    table = Table(title=title, caption="medians; least and largest run in brackets; peers: see `report`")
    for column in COLUMNS[:-1]:  # names of peers are long
        table.add_column(column, overflow="fold")
    for bar in bars:
        style = {True: "green", False: "red", None: ""}[bar.met]
        table.add_row(*cells(bar)[:-1], style=style)
    return table


def changes_table(changes: Sequence[Change]) -> Table:
    """Changes as a rich table."""
    table = Table("bar", "old", "new", "change", "noise", "verdict")
    for c in changes:
        change = "–" if c.change is None else f"{c.change:+.1%}"
        style = {"worse": "red", "better": "green"}.get(c.verdict, "")
        table.add_row(c.id, number(c.old), number(c.new), change, f"±{c.noise:.1%}", c.verdict, style=style)
    return table


def heading(head: Any) -> str:
    """Where and when, in one sentence."""
    machine = head["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    return (
        f"Commit {head['commit']}, {head['time']}, {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_gib']} GiB, {machine['system']}; {versions}. Medians of "
        f"{head['settings']['runs']} interleaved runs, least and largest in brackets."
    )


def markdown(result: Result) -> str:
    """The table as Markdown, a paragraph on the run above it."""
    lines = [heading(result.head), "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for bar in result.bars:
        lines.append(
            "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells(bar)) + " |"
        )
    return "\n".join(lines) + "\n"


def page(result: Result, folder: Path) -> list[Path]:
    """Write results.md, plots and index.html into `folder`; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "results.md", folder / "index.html"]
    written[0].write_text(markdown(result), encoding="utf-8")
    pictures = ""
    for name, (draw, caption) in figure.FIGURES.items():
        if draw(result, folder / name):
            written.append(folder / name)
            pictures += f'<p><img src="{name}" alt="{caption}"></p>'
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(bar)) + "</tr>"
        for bar in result.bars
    )
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    written[1].write_text(
        f"<!doctype html><meta charset=utf-8><title>rowhouse benchmarks</title><style>{_STYLE}</style>"
        f"<h1>rowhouse benchmarks</h1><p>{html.escape(heading(result.head))}</p>{pictures}"
        f"<table><tr>{head}</tr>{rows}</table>\n",
        encoding="utf-8",
    )
    return written
