# SPDX-License-Identifier: Apache-2.0
"""How the outcomes of `rank`, `prune` and `suggest` look: tables for people, plain values for scripts.

Thread safety: a process's main thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.table import Table
from rowhouse.program import screen, show_table

from feature_cross.author.progress import counted, progress_bar
from feature_cross.author.rank.edit import declaration
from feature_cross.author.rank.inference import Estimate, Gain
from feature_cross.author.rank.pruning import Pruned
from feature_cross.author.rank.ranking import CrossGain, Judgement, Ranking
from feature_cross.author.rank.suggestion import Found, Suggestion
from feature_cross.author.rank.work import Progress as Callback
from feature_cross.author.size import RowShape, show_bytes

__all__ = ["figures", "print_found", "print_pruned", "print_ranking", "pruned_json", "ranking_json",
           "suggestions_json", "told"]  # fmt: skip

_SCREENED_SHOWN = 20
"""Candidates that an interrupted search shows."""


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
    to = screen()
    show_table(table, to)
    to.print(f"{show_judgement(judgement, ranking.planned)}. known: final rows with an id that training has.")
    to.print(shape.text(tier))
    if ranking.interrupted:
        left = ranking.planned - len(ranking.crosses)
        to.print(f"interrupted: {left} of {ranking.planned} crosses were not judged; p counts them as tests")


def _ranking_cells(one: CrossGain, z: float, bytes_per_row: int) -> list[str]:
    verdict = "gain" if one.significant else "left out" if one.penalty is None else "not shown"
    return [
        one.name, f"{one.distinct:,}", show_bytes(one.distinct * bytes_per_row), f"{one.known_rows:.1%}",
        show_estimate(one.gain.log_loss, z), show_estimate(one.gain.auc, z, 4), show_p(one.p_adjusted),
        verdict,
    ]  # fmt: skip


def snippet(found: Found, source: str) -> str:
    """YAML to paste under `features:`; each line of figures stands over its feature."""
    shown = [one for one in found.suggestions if one.body is not None]
    lines = [
        f"  # feature-cross suggest on {source}: {show_rows(found.rows, found.rows_total)};",
        "  # gains on the final rows, each over the ones above it",
    ]
    for one in shown:
        lines += [f"  # {figures(one, found.z)}", f"  {declaration(one.name, one.body or {})}"]
    return "\n".join(lines) + "\n" if shown else ""


def figures(one: Suggestion, z: float) -> str:
    """Gain, intervals, ids and bytes in a line, for a comment."""
    gains = f"log loss {show_estimate(one.gain.log_loss, z)}, AUC {show_estimate(one.gain.auc, z, 4)}"
    return f"{gains}, {one.distinct:,} ids, {show_bytes(one.size_bytes)}"


def suggestions_json(found: Found, judgement: Judgement, source: str) -> dict[str, Any]:
    """The whole outcome as plain values."""
    return {
        "rows": rows_json(found.rows, found.rows_total),
        "level": judgement.level,
        "correction": judgement.correction,
        "candidates": found.planned,
        "family": len(found.suggestions),
        "interrupted": found.interrupted,
        "suggestions": [
            {
                "name": one.name,
                "of": list(one.candidate.operands),
                "declaration": one.body,
                "distinct_ids": one.distinct,
                "bytes": one.size_bytes,
                **gain_json(one.gain, found.z, one.gain.log_loss.p_value, one.p_adjusted, one.significant),
            }
            for one in found.suggestions
        ],
        "total": None if found.total is None else found.total.to_json(found.z),
        "screened": [
            {
                "of": list(step.candidate.operands), "distinct_ids": step.distinct, "bytes": step.size_bytes,
                "selection_gain": step.gain.value, "selection_error": step.gain.error,
                "left_aside": step.reason,
            }
            for step in found.screened
        ],
        "yaml": snippet(found, source),
    }  # fmt: skip


def print_found(found: Found, judgement: Judgement, source: str, meaning: str) -> None:
    """Tables, then the YAML to paste; `meaning` says what the bytes are."""
    to = screen()
    tried = len(found.screened)
    if found.interrupted:
        to.print(f"interrupted: {tried} of {found.planned} candidates so far were tried")
    if found.interrupted and not found.suggestions:
        if not tried:
            return
        table = Table(
            "cross", "ids", "bytes", "log-loss gain on selection rows", title="best candidates so far"
        )
        for step in [step for step in found.screened if not step.reason][:_SCREENED_SHOWN]:
            cells = (f"{step.distinct:,}", show_bytes(step.size_bytes), f"{step.gain.value:+.5f}")
            table.add_row(step.candidate.label, *cells)
        show_table(table, to)
        to.print("these figures chose the candidates, so they are too good: no p goes with them")
        return
    title = f"{tried} candidates tried; {show_rows(found.rows, found.rows_total)}"
    table = Table("cross", "ids", "bytes", "log-loss gain", "AUC gain", "p", "", title=title)
    for one in found.suggestions:
        table.add_row(
            one.candidate.label, f"{one.distinct:,}", show_bytes(one.size_bytes),
            show_estimate(one.gain.log_loss, found.z), show_estimate(one.gain.auc, found.z, 4),
            show_p(one.p_adjusted), "gain" if one.significant else "not shown",
        )  # fmt: skip
    show_table(table, to)
    for reason, count in _reasons(found).items():
        to.print(f"{counted(count, 'candidate')} left aside: {reason}")
    to.print(meaning)
    if not found.suggestions:
        to.print("no candidate helps on selection rows")
        return
    to.print(f"each over the ones above it; {show_judgement(judgement, len(found.suggestions))}")
    if found.total is not None:
        total, z = found.total, found.z
        loss, auc = show_estimate(total.log_loss, z), show_estimate(total.auc, z, 4)
        to.print(
            f"all together: log loss {total.base_log_loss:.5f} {loss} better, AUC {total.base_auc:.4f} {auc}"
        )
    print()
    print(snippet(found, source) or "  # no cross is shown to gain", end="\n")


def _reasons(found: Found) -> dict[str, int]:
    counts: dict[str, int] = {}
    for step in found.screened:
        if step.reason:
            kind = step.reason.split(":")[0] if step.reason.startswith("futile") else step.reason
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def pruned_json(pruned: Pruned, renamed: dict[str, str], out: str | None) -> dict[str, Any]:
    """The whole outcome as plain values."""
    loss = None
    if pruned.loss is not None:
        loss = {**pruned.loss.to_json(pruned.z), "bound": pruned.loss.log_loss.interval(pruned.z)[1]}
    return {
        "rows": rows_json(pruned.rows, pruned.rows_total),
        "interrupted": pruned.interrupted,
        "margin": pruned.margin,
        "dropped": list(pruned.dropped),
        "features": [
            {
                "feature": one.name, "distinct_ids": one.distinct, "bytes": one.size_bytes,
                "selection_hurt": one.hurt.value, "selection_error": one.hurt.error, "dropped": one.dropped,
                "same_as": one.same_as or None,
            }
            for one in pruned.verdicts
        ],
        "bytes_before": pruned.bytes_before,
        "bytes_after": pruned.bytes_after,
        "final": loss,
        "harmless": pruned.harmless,
        "renamed": renamed,
        "out": out,
    }  # fmt: skip


def print_pruned(pruned: Pruned, renamed: dict[str, str], out: str | None, meaning: str) -> None:
    """What goes, what stays, and what the final rows say; `meaning` says what the bytes are."""
    to = screen()
    title = f"log loss that each feature's removal costs; {show_rows(pruned.rows, pruned.rows_total)}"
    table = Table("feature", "ids", "bytes", "cost on selection rows", "", title=title)
    for one in sorted(pruned.verdicts, key=lambda one: (-one.hurt.value, one.name)):
        what = {"harmless": "dropped", "budget": "dropped for the budget"}.get(one.dropped, "stays")
        what = f"dropped: the same as {one.same_as}" if one.same_as else what
        cost = f"{one.hurt.value:+.5f} (at most {one.hurt.interval(pruned.z)[1]:+.5f})"
        table.add_row(one.name, f"{one.distinct:,}", show_bytes(one.size_bytes), cost, what)
    show_table(table, to)
    to.print(
        f"{show_bytes(pruned.bytes_before)} -> {show_bytes(pruned.bytes_after)};"
        f" {counted(len(pruned.dropped), 'feature')} dropped: {', '.join(pruned.dropped) or 'none'}"
    )
    to.print(meaning)
    if pruned.loss is not None:
        bound = pruned.loss.log_loss.interval(pruned.z)[1]
        sure = pruned.loss.log_loss.interval(pruned.z)[0] > pruned.margin
        verdict = "more than the tolerance" if sure else "harm is not ruled out"
        verdict = "no harm" if pruned.harmless else verdict
        to.print(
            f"on the final rows the pruned model loses {pruned.loss.log_loss.value:+.5f} log loss, at most"
            f" {bound:+.5f} (tolerance {pruned.margin:.5f}), and {pruned.loss.auc.value:+.4f} AUC: {verdict}"
        )
    for old, new in renamed.items():
        to.print(f"{old} is now called {new}; its ids are the same")
    if pruned.interrupted:
        to.print("interrupted: no config was written")
    elif out is not None:
        to.print(f"{out}: written")
