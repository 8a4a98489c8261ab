# SPDX-License-Identifier: Apache-2.0
"""The table of goals, made from a result file: `python -m benchmarks table RESULT.json [--write PAGE.md]`.

It has every bar with a goal, met or missed, and the percentiles of the mixed load. docs/performance.md keeps
it between two marks; a test holds what stands there to benchmarks/result.json.

Thread safety: pure functions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.bar import Bar
from benchmarks.report import number
from benchmarks.result import Result

BEGIN: Final = "<!-- made by `python -m benchmarks table`: do not edit by hand -->"
END: Final = "<!-- end of the table -->"
RESULT: Final = Path(__file__).with_name("result.json")
WITHOUT_GOAL: Final = ("wire.mixed.",)
PEER_CHARACTERS_MAX: Final = 70
VERDICTS: Final = {True: "yes", False: "**no**", None: "–"}


def shown(bar: Bar) -> bool:
    """Whether a bar is a line of the table."""
    return bool(bar.goal) or bar.id.startswith(WITHOUT_GOAL)


def short(peer: str) -> str:
    """A peer's name without its configuration, which the report has."""
    name = peer.split(",", maxsplit=1)[0].split(";", maxsplit=1)[0]
    return name if len(name) <= PEER_CHARACTERS_MAX else name[: PEER_CHARACTERS_MAX - 1] + "…"


def _line(bar: Bar) -> str:
    ours = f"{number(bar.figure)} {bar.unit}" if bar.figure is not None else "–"
    beside = f"{number(bar.peer_figure)}: {short(bar.peer)}" if bar.peer_figure is not None else "–"
    ratio = number(bar.ratio, bar.ratio_low, bar.ratio_high)
    noisy = any(value is True for key, value in bar.detail.items() if key.endswith("_noisy"))
    goal = bar.goal or "–"
    what = bar.what.replace("|", "/")
    why = f" ({_reason(bar)})" if bar.skipped and bar.ratio is None else ""
    cells = (what + (", noisy" if noisy else "") + why, ours, beside, ratio, goal, VERDICTS[bar.met])
    return "| " + " | ".join(cells) + " |"


def _reason(bar: Bar) -> str:
    return bar.skipped.splitlines()[-1].replace("|", "/")[:PEER_CHARACTERS_MAX]


def _heading(head: Any, bars: Sequence[Bar]) -> str:
    machine, settings = head["machine"], head["settings"]
    commits = list(dict.fromkeys(str(bar.detail.get("commit", head["commit"])) for bar in bars))
    named = f"Commit {commits[0]}" if len(commits) == 1 else f"Commits {', '.join(commits)}"
    return (
        f"{named}, {head['time'][:10]}: {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_gib']:.0f} GiB, Python {head['versions']['python']}; {settings['runs']} runs of "
        f"each side in turns, {settings['seconds']:g} s each; medians, least and largest ratio in brackets."
    )


def table(result: Result) -> str:
    """The paragraph and the table, marks included."""
    bars = [bar for bar in result.bars if shown(bar)]
    judged = [bar for bar in bars if bar.met is not None]
    met = sum(bool(bar.met) for bar in judged)
    verdict = f"{met} of {len(judged)} goals that could be judged are met."
    lines = [
        BEGIN, "", _heading(result.head, bars), verdict, "",
        "| work | rowhouse | beside it | ratio | goal | met |", "|---|---|---|---|---|---|",
        *(_line(bar) for bar in bars), "", END,
    ]  # fmt: skip
    return "\n".join(lines)


def replaced(text: str, made: str) -> str:
    """A page's text with the table between its marks replaced.

    Raises
    ------
    ValueError
        The marks are not there, once each and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the text must have {BEGIN!r} and then {END!r}, once each")
    before, _, rest = text.partition(BEGIN)
    return before + made + rest.partition(END)[2]
