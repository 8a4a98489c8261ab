# SPDX-License-Identifier: Apache-2.0
"""How the figures of `rank`, `prune` and `suggest` look: tables for people, plain values for scripts.

Thread safety: a process's main thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from feature_cross.author.progress import progress_bar
from feature_cross.author.rank.inference import Estimate, Gain
from feature_cross.author.rank.ranking import CrossGain, Judgement, Ranking
from feature_cross.author.rank.work import Progress as Callback
from feature_cross.author.size import RowShape, show_bytes

__all__ = ["console", "print_ranking", "ranking_json", "rows_json", "show_estimate", "show_judgement", "told"]

_WIDTH_MIN = 150
"""Columns of a table that is not for a terminal: a log or a file wraps its own lines."""


def console() -> Console:
    """Standard output, wide enough for a table where it is no terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=max(found.width, _WIDTH_MIN))


@contextmanager
def told(quiet: bool) -> Iterator[Callback]:
    """A progress bar on stderr: one line per stage, gone when the work is done; nothing where `quiet`."""
    with progress_bar(quiet) as bar:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield update


def show_estimate(estimate: Estimate, z: float, digits: int = 5) -> str:
    """`+0.01234 [+0.01, +0.02]`."""
    low, high = estimate.interval(z)
    return f"{estimate.value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def show_judgement(judgement: Judgement, family: int) -> str:
    """What the intervals and p-values of a table of `family` tests mean."""
    name = {"holm": "Holm: family-wise error", "bh": "Benjamini-Hochberg: false discovery rate"}
    return (
        f"intervals hold for all {family} together at {judgement.level:.0%} (Bonferroni);"
        f" p, two-sided, of no gain in log loss, is corrected"
        f" ({name[judgement.correction]} below {1 - judgement.level:.2g})"
    )


def show_p(p_value: float) -> str:
    """Two digits; below 1e-15 the normal distribution's tail is no statement about data."""
    return "<1e-15" if p_value < 1e-15 else f"{p_value:.2g}"


def rows_json(rows: tuple[int, int, int], total: int) -> dict[str, int]:
    """Rows of each part, and of the source."""
    return {"training": rows[0], "selection": rows[1], "final": rows[2], "source": total}


def show_rows(rows: tuple[int, int, int], total: int) -> str:
    """Rows of each part, for a title."""
    chosen = "" if sum(rows) == total else f" (a random choice of {total:,})"
    return f"{rows[0]:,} training, {rows[1]:,} selection, {rows[2]:,} final rows{chosen}"


def gain_json(gain: Gain, z: float, p_value: float, p_adjusted: float, significant: bool) -> dict[str, Any]:
    """A gain with its tests."""
    tests = {"p_value": p_value, "p_adjusted": p_adjusted, "significant": significant}
    return {**gain.to_json(z), **tests}


def ranking_json(ranking: Ranking, judgement: Judgement, bytes_per_row: int) -> dict[str, Any]:
    """The whole ranking as plain values."""
    return {
        "rows": rows_json(ranking.rows, ranking.rows_total),
        "level": judgement.level,
        "correction": judgement.correction,
        "family": ranking.planned,
        "interrupted": ranking.interrupted,
        "crosses": [
            {
                "feature": one.name,
                "over": list(one.over),
                "distinct_ids": one.distinct,
                "bytes": one.distinct * bytes_per_row,
                "known_rows": one.known_rows,
                "penalty": one.penalty,
                **gain_json(one.gain, ranking.z, one.p_value, one.p_adjusted, one.significant),
            }
            for one in ranking.crosses
        ],
    }


def print_ranking(ranking: Ranking, judgement: Judgement, over: str, shape: RowShape, tier: str) -> None:
    """The ranking as a table, and what its figures mean."""
    against = {"parts": "its parts", "columns": "all plain columns", "rest": "every other feature"}[over]
    title = f"gain of each cross over {against}; {show_rows(ranking.rows, ranking.rows_total)}"
    table = Table("cross", "ids", "bytes", "known", "log-loss gain", "AUC gain", "p", "", title=title)
    for one in ranking.crosses:
        table.add_row(*_ranking_cells(one, ranking.z, shape.row_bytes(tier)))
    screen = console()
    screen.print(table)
    screen.print(
        f"{show_judgement(judgement, ranking.planned)}. known: final rows with an id that training has."
    )
    screen.print(shape.text(tier))
    if ranking.interrupted:
        left = ranking.planned - len(ranking.crosses)
        screen.print(
            f"interrupted: {left} of {ranking.planned} crosses were not judged; p counts them as tests"
        )


def _ranking_cells(one: CrossGain, z: float, bytes_per_row: int) -> list[str]:
    verdict = "gain" if one.significant else "left out" if one.penalty is None else "not shown"
    return [
        one.name, f"{one.distinct:,}", show_bytes(one.distinct * bytes_per_row), f"{one.known_rows:.1%}",
        show_estimate(one.gain.log_loss, z), show_estimate(one.gain.auc, z, 4), show_p(one.p_adjusted),
        verdict,
    ]  # fmt: skip
