# SPDX-License-Identifier: Apache-2.0
"""The estimate as tables for people. Thread safety: pure functions, but for writing to the console."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rowhouse.program import show_table

from feature_cross.author.estimate.report import CollisionReport, Estimate, FeatureReport, VerdictReport
from feature_cross.author.size import show_bytes

__all__ = ["print_estimate", "short_number"]


def short_number(value: float) -> str:
    """1234567 as 1.23M; below 10,000 in full."""
    if value < 10_000:
        return f"{value:,.0f}"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value / 1e3:.3g}k"


def _small(value: float) -> str:
    if value < 1e-3:
        return "0" if value == 0 else "<0.001"
    return f"{value:.2g}" if value < 10 else short_number(value)


def print_estimate(estimate: Estimate, console: Console) -> None:
    """Print the document.

    Parameters
    ----------
    estimate
        The document.
    console
        Where to.
    """
    of = "" if estimate.rows_total is None else f" of {estimate.rows_total:,}"
    console.print(f"{escape(estimate.data)}: {estimate.rows_read:,}{of} rows read, {estimate.seconds:.1f} s")
    show_table(_rows_table(estimate), console)
    show_table(_spread_table(estimate), console)
    for value in estimate.values:
        if value.values != value.hashes:
            lost = value.values - value.hashes
            console.print(f"{value.attribute}: {lost} of {value.values:,} values share the hash of another")
    _print_sum(estimate, console)


def _table(title: str, *columns: str) -> Table:
    """A table whose first column, the feature's name, is never shortened."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("feature", no_wrap=True, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _rows_table(estimate: Estimate) -> Table:
    columns = ["covered", "ids a row", "distinct", "at most"]
    if estimate.rows_projected is not None:
        columns += [f"at {short_number(estimate.rows_projected)} rows", "between"]
    table = _table("rows and bytes", *columns, "row bytes", "bytes")
    for feature in sorted(estimate.features, key=lambda one: -one.bytes["memory"]):
        cells = [f"{feature.coverage:.1%}", f"{feature.ids_per_row:.3g}", _distinct(feature)]
        cells.append("" if feature.ceiling is None else short_number(feature.ceiling))
        if estimate.rows_projected is not None:
            cells += _projected(feature)
        shared = feature.group != feature.name
        size = f"in {feature.group}" if shared else show_bytes(feature.bytes["memory"])
        table.add_row(feature.name, *cells, str(feature.bytes_per_row["memory"]), size)
    return table


def _distinct(feature: FeatureReport) -> str:
    if feature.exact:
        return short_number(feature.distinct)
    return f"~{short_number(feature.distinct)}"


def _projected(feature: FeatureReport) -> list[str]:
    projection = feature.projection
    if projection is None:
        return ["", ""]
    low, high = short_number(projection.low), short_number(projection.high)
    return [short_number(projection.distinct), low if low == high else f"{low}–{high}"]


def _spread_table(estimate: Estimate) -> Table:
    columns = ("seen once", "top 1", "top 100", "top 1000", "bits", "collisions", "observed")
    table = _table("spread and collisions", *columns)
    for feature in estimate.features:
        shares = {share.ids: share for share in feature.top_share}
        tops = [
            f"{(shares[top].low + shares[top].high) / 2:.1%}" if top in shares else "–"
            for top in (1, 100, 1000)
        ]
        table.add_row(
            feature.name, f"{feature.seen_once_share:.1%}", *tops, str(feature.collisions.bits),
            _expected(feature.collisions), _observed(feature.collisions),
        )  # fmt: skip
    return table


def _expected(collisions: CollisionReport) -> str:
    now = _small(collisions.expected_lost)
    later = None if collisions.projected_lost is None else _small(collisions.projected_lost)
    return now if later in (None, now) else f"{now} → {later}"


def _observed(collisions: CollisionReport) -> str:
    lost = collisions.sampled_values - collisions.sampled_ids
    return f"{lost:,} of {short_number(collisions.sampled_values)}"


def _print_sum(estimate: Estimate, console: Console) -> None:
    row, totals = estimate.row, estimate.totals
    optimizer = f"{row.state_words} words of state" if row.optimizer is None else row.optimizer
    when = "now" if estimate.rows_projected is None else f"at {short_number(estimate.rows_projected)} rows"
    low, high = show_bytes(totals.bytes_low["memory"]), show_bytes(totals.bytes_high["memory"])
    console.print(
        f"dim {row.dim}, {row.dtype}, {optimizer}: {short_number(totals.rows)} embedding rows {when}\n"
        f"{show_bytes(totals.bytes['memory'])} in memory with the index ({low} – {high}),"
        f" {show_bytes(totals.bytes['store'])} on disk before compression"
    )
    if estimate.budget is not None:
        for line in _verdict_lines(estimate.budget):
            console.print(line)


def _share(share: float) -> str:
    return f"{share:.0%} of" if share < 10 else f"{short_number(share)} times"


def _verdict_lines(found: VerdictReport) -> list[str]:
    lines = [
        f"[bold]{found.verdict}[/bold]: {show_bytes(found.bytes)} is {_share(found.share)} the budget of"
        f" {show_bytes(found.budget_bytes)} ({found.tier}; between {show_bytes(found.low)} and"
        f" {show_bytes(found.high)})"
    ]
    if found.within:
        return lines
    cut = ", then ".join(found.cut)
    lines.append(f"cut first: {cut}; that frees {show_bytes(found.cut_bytes)}")
    fits = "and fits" if found.admit_twice_bytes <= found.budget_bytes else "and does not fit either"
    lines.append(
        f"or admit an id at its second occurrence: {show_bytes(found.admit_twice_bytes)}, {fits}"
        " (by the share of ids seen once in the rows read)"
    )
    if found.dim_that_fits is not None:
        lines.append(f"or take dim {found.dim_that_fits}")
    return lines
