# SPDX-License-Identifier: Apache-2.0
"""Ours beside the servers of others, one at a time: ours, it, ours, it, … over the same batches.

One at a time, because eight idle servers would take each other's cores and memory. Before its first turn a
peer's rows are compared with ours (pull) or with float64 arithmetic (step); a wrong answer ends the run.
The bar against "the best remote server" is judged by the server against which our ratio is the least; rates
of different contests met different noise, ratios hardly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.batch import Batch, ids_of
from benchmarks.contest import Remote, Step, contest
from benchmarks.embedded import require_equal
from benchmarks.peer.environment import Unavailable
from benchmarks.peer.remote import RemotePeer, expected_adagrad, running, write_batches
from benchmarks.peer.roster import PEERS

BEST: Final = "the best remote server"
STEPS: Final = 3
"""Steps that are checked; the third meets rows that two others have changed."""

LOADED: Final = 1e-7
"""A peer that cannot be given rows gets them as the result of one SGD step: a float32 rounding of 0.1."""

ROUNDING: Final = 2e-6


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """Our side of the contests.

    Attributes
    ----------
    name, what
        Id of the bar, and what is measured.
    kind
        "pull" or "step".
    ours
        Our side.
    rows
        (ids, DIM) float32 by rank: what a peer starts from.
    goal
        Against the best of them.
    alone
        Our rate of each run of an earlier contest, M rows/s: the figure where there is no server.
    before_run
        As in contest.
    """

    name: str
    what: str
    kind: str
    ours: Step
    rows: NDArray[np.float32]
    goal: Goal
    alone: Sequence[float]
    before_run: Callable[[], Any] = lambda: None


def against_servers(contender: Contender, batches: Sequence[Batch], settings: Settings) -> list[Bar]:
    """The bar against the best server, then one for each peer of the settings.

    Parameters
    ----------
    contender
        Ours.
    batches
        What all sides get.
    settings
        Its `peers` take part.
    """
    if not settings.peers:
        return [_without(contender, "skipped: no peer was asked for (--peers)")]
    work = settings.scratch / "peer"
    write_batches(work, batches)
    bars: list[Bar] = []
    for name in settings.peers:
        try:
            bars.append(_against(contender, name, batches, settings))
        except Unavailable as reason:
            id_ = f"{contender.name}.{name}"
            bars.append(Bar(id=id_, what=contender.what, unit="", peer=name, skipped=f"skipped: {reason}"))
    servers = [b for b in bars if b.peer_figure is not None and PEERS[b.id.rsplit(".", 1)[1]].server]
    if not servers:
        return [_without(contender, "skipped: none of the servers could be had"), *bars]
    best = min(servers, key=lambda bar: bar.ratio or 0.0)
    judged = replace(best, id=contender.name, goal=str(contender.goal), met=contender.goal.met_by(best.ratio))
    return [judged, *bars]


def _without(contender: Contender, why: str) -> Bar:
    return make_bar(
        contender.name, contender.what, "M rows/s", contender.goal, contender.alone, BEST, skipped=why
    )


def _against(contender: Contender, name: str, batches: Sequence[Batch], settings: Settings) -> Bar:
    optimizer = "sgd" if contender.kind == "pull" else "adagrad"
    with running(name, settings.scratch / "peer", optimizer) as peer:
        facts = peer.load(ids_of(0, contender.rows.shape[0]), contender.rows)
        difference = _check(contender, peer, batches)
        sides: list[Step | Remote] = [contender.ours, peer.side(contender.kind)]
        mine, theirs = contest(sides, batches, settings, contender.before_run)
        where = "" if PEERS[name].server else ", in the trainer's process, no network"
        label = f"{peer.name}{where}; durability {peer.durability}"
    detail: dict[str, Any] = {
        **mine.detail("ours"), **theirs.detail("peer"), "largest_difference": difference,
        "peer_durability": peer.durability, "peer_load_s": round(facts["seconds"], 2),
        "peer_bytes_per_row": round(facts["grown_bytes"] / contender.rows.shape[0], 1),
    }  # fmt: skip
    return make_bar(
        f"{contender.name}.{name}", contender.what, "M rows/s", None, mine.millions, label, theirs.millions,
        detail,
    )  # fmt: skip


def _check(contender: Contender, peer: RemotePeer, batches: Sequence[Batch]) -> float:
    """Largest difference of its answers from what they must be."""
    first = batches[0]
    what = f"{contender.name}: {peer.key}"
    if contender.kind == "pull":
        wanted = contender.rows[first.requested_rank]
        return require_equal(what, wanted, peer.pull(first.requested), LOADED)
    for number in range(STEPS):
        peer.step(number)
    wanted = expected_adagrad(contender.rows[first.distinct_rank], batches[:STEPS], peer.formula)
    return require_equal(what, wanted, peer.pull(first.distinct), ROUNDING)
