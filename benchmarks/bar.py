# SPDX-License-Identifier: Apache-2.0
"""What a workload promises and what it found: goals, bars, and the settings of a run.

A bar is one line of the report: our figure beside the peer's, measured in the same run, the ratio, and
the goal. Thread safety: immutable values.
"""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

COST_UNITS: Final = frozenset({"s", "ms", "ms/step", "ms/pull", "µs/row", "B/row", "exponent"})
"""Units of which less is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How long, how often and how large.

    Attributes
    ----------
    runs
        Interleaved runs of each side (A, B, A, B, …).
    seconds
        Seconds of one side in one run, at least.
    warmup_batches
        Batches before the clock starts, each side.
    ids
        Ids of the workloads in memory.
    rows
        Rows on disk of the cold workloads.
    log_bytes
        Push log that a killed shard leaves behind.
    cache, scratch
        Folder of drawn batches, and of data that goes away after the run.
    peers
        Peers with an environment of their own that take part (benchmarks/peer/roster.py).
    folder
        Where the workload `scale` keeps its data, so that a run that was broken off goes on; None: `scratch`.
    discard
        Tables in `scratch` need not be closed: the process ends without them, as that of a worker does.
    """

    runs: int
    seconds: float
    warmup_batches: int
    ids: int
    rows: int
    log_bytes: int
    cache: Path
    scratch: Path
    peers: tuple[str, ...] = ()
    folder: Path | None = None
    discard: bool = False


@dataclass(frozen=True, slots=True)
class Goal:
    """`figure` or `ratio` must be at least, or at most, `bound`; None: reported only."""

    of: Literal["ratio", "figure"]
    side: Literal["at least", "at most"]
    bound: float

    def met_by(self, value: float | None) -> bool | None:
        """Whether `value` meets it; None where there is no value."""
        if value is None or math.isnan(value):
            return None
        return value >= self.bound if self.side == "at least" else value <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.side == "at least" else "≤"
        return f"{sign} {self.bound:g}{'×' if self.of == 'ratio' else ''}"


@dataclass(frozen=True, slots=True)
class Series:
    """One figure per run."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the runs."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """Least run."""
        return min(self.values)

    @property
    def high(self) -> float:
        """Largest run."""
        return max(self.values)

    def per(self, other: "Series") -> "Series":
        """Ratio run by run: both sides of a run met the same noise."""
        return Series(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))


def without_places(text: str) -> str:
    """`text` with each path cut to its last name and each URL to its scheme: a result is for others."""
    text = re.sub(r"\b(https?|file)://[^\s'\"]+", r"\1://…", text)
    return re.sub(r"(?<![\w.:/…])/(?:[^\s/:'\",;()]+/)+", "…/", text)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One measured line.

    Attributes
    ----------
    id
        Name of the bar: the workload's, and a suffix where it has several.
    what, unit
        What was measured, and the unit of `figure` and `peer_figure`.
    goal
        As a Goal prints it, or "" where there is none.
    figure, low, high
        Median, least and largest run of ours; None where it was skipped.
    peer, peer_figure, peer_low, peer_high
        What stood beside it, with version and configuration.
    ratio, ratio_low, ratio_high
        Ours to the peer's (or as `what` says), run by run.
    met
        None where the goal could not be judged.
    skipped
        Why there is no figure or no peer; "" otherwise.
    detail
        Further figures: percentiles, batch sizes, CPU of other processes.
    """

    id: str
    what: str
    unit: str
    goal: str = ""
    figure: float | None = None
    low: float | None = None
    high: float | None = None
    peer: str = ""
    peer_figure: float | None = None
    peer_low: float | None = None
    peer_high: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    met: bool | None = None
    skipped: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def smaller_is_better(self) -> bool:
        """Which way is better: as the goal says, else by the unit (times and bytes)."""
        return self.goal.startswith("≤") if self.goal else self.unit in COST_UNITS

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, without places of this machine."""
        return {**asdict(self), "skipped": without_places(self.skipped)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Bar":
        """The bar that `to_json` gave; a TypeError names an unknown or missing key."""
        return Bar(**value)


def make_bar(
    id: str,
    what: str,
    unit: str,
    goal: Goal | None,
    ours: Sequence[float],
    peer: str = "",
    theirs: Sequence[float] = (),
    detail: Mapping[str, Any] | None = None,
    ratio_to: float | None = None,
    skipped: str = "",
) -> Bar:
    """A bar of figures taken run by run.

    Parameters
    ----------
    id, what, unit
        As in Bar.
    goal
        What is asked; None: reported only.
    ours
        Our figure of each run.
    peer
        Name of the other side.
    theirs
        Its figure of each run; empty where there was none.
    detail
        As in Bar.
    ratio_to
        A fixed figure to stand in for a peer, such as 72 bytes.
    skipped
        Why the peer is missing.
    """
    mine = Series(tuple(ours))
    other = Series(tuple(theirs)) if theirs else None
    if other is None and ratio_to is not None:
        other = Series((ratio_to,) * len(mine.values))
    bar = Bar(
        id=id, what=what, unit=unit, goal=str(goal) if goal else "", peer=peer,
        figure=mine.median, low=mine.low, high=mine.high, skipped=skipped, detail=dict(detail or {}),
    )  # fmt: skip
    if other is not None:
        ratio = mine.per(other)
        bar = replace(
            bar, peer_figure=other.median, peer_low=other.low, peer_high=other.high,
            ratio=ratio.median, ratio_low=ratio.low, ratio_high=ratio.high,
        )  # fmt: skip
    if goal is None:
        return bar
    return replace(bar, met=goal.met_by(bar.figure if goal.of == "figure" else bar.ratio))
