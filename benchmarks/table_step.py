# SPDX-License-Identifier: Apache-2.0
"""table.adagrad.* and table.log: an Adagrad step of the embedded table.

A step is what a trainer does: pull the batch's distinct ids, push one gradient for each. No checkpoint falls
into a timed run; where the log needs one it stands before; `.sustained` is the same step with the default
`checkpoint_log_bytes`, so that checkpoints run beside it all the time.
"""

import time
from dataclasses import replace
from typing import Any, Final

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.batch import Batch, load_batches
from benchmarks.contest import Step, contest
from benchmarks.embedded import (
    ADAGRAD,
    TABLE,
    all_rows,
    create_rows,
    embedded_scratch,
    require_equal,
    table_config,
    write_log,
)
from ps_client.client import Client

CHECK_BATCHES: Final = 3
ROUNDING: Final = 2e-6
"""float32 rounding of a few Adagrad steps on weights below 0.1; the formulas are the same."""


SUSTAINED_S: Final = 8.0
"""Long enough for a few checkpoints."""


def adagrad_step(client: Client) -> Step:
    """Ours: the work of one step."""

    def step(batch: Batch) -> None:
        client.pull(TABLE, batch.distinct)
        client.push(TABLE, batch.distinct, batch.gradients)

    return step


def measure_adagrad(settings: Settings, name: str, distribution: str, goal: Goal) -> list[Bar]:
    """Ours against torch in process; both checked equal over the first batches."""
    from benchmarks.peer_torch import TorchTable  # noqa: PLC0415 # torch is optional

    batches = load_batches(distribution, settings.cache, settings.ids)
    with embedded_scratch(settings, "table", table_config(ADAGRAD, durability="os")) as client:
        create_rows(client, settings.ids)
        peer = TorchTable(all_rows(client, settings.ids))
        peer.prepare(batches)
        step = adagrad_step(client)
        difference = 0.0
        for batch in batches[:CHECK_BATCHES]:
            step(batch)
            peer.step(batch)
        for batch in batches[:CHECK_BATCHES]:
            ours = client.pull(TABLE, batch.distinct)
            difference = max(difference, require_equal(name, ours, peer.pull(batch), ROUNDING))
        peer.choose_threads(batches)
        before_run = write_log(client, batches, settings.seconds)
        mine, theirs = contest([step, peer.step], batches, settings, before_run)
    detail = {
        **mine.detail("ours"), **theirs.detail("peer"), "largest_difference": difference,
        "ours_durability": "os (push log)", "ids": settings.ids,
    }  # fmt: skip
    what = f"Adagrad step, {distribution}"
    return [
        make_bar(name, what, "M rows/s", goal, mine.millions, peer.name, theirs.millions, detail),
        _sustained(settings, f"{name}.sustained", what, peer.name, theirs.millions, batches),
    ]


def _sustained(
    settings: Settings, name: str, what: str, peer: str, theirs: list[float], batches: list[Batch]
) -> Bar:
    """The step of a long training, checkpoints and all, beside the peer's (which keeps nothing on disk)."""
    config = table_config(ADAGRAD, durability="os")
    del config["checkpoint_log_bytes"]
    with embedded_scratch(settings, "sustained", config) as client:
        create_rows(client, settings.ids)
        step = adagrad_step(client)
        _run(step, batches, SUSTAINED_S / 4)
        timing = contest([step], batches, replace(settings, seconds=SUSTAINED_S / settings.runs))[0]
    detail: dict[str, Any] = {**timing.detail("ours"), "seconds": SUSTAINED_S}
    what = f"{what}, checkpoints running beside it"
    return make_bar(name, what, "M rows/s", None, timing.millions, peer, theirs, detail)


def _run(step: Step, batches: list[Batch], seconds: float) -> None:
    began_s, place = time.perf_counter(), 0
    while time.perf_counter() - began_s < seconds:
        step(batches[place % len(batches)])
        place += 1


def measure_log(settings: Settings, name: str, distribution: str, goal: Goal) -> list[Bar]:
    """The same step with the push log (os) and without (none); the bar is on time, not rate."""
    batches = load_batches(distribution, settings.cache, settings.ids)
    logged = table_config(ADAGRAD, durability="os")
    bare = table_config(ADAGRAD, durability="none")
    with (
        embedded_scratch(settings, "os", logged) as with_log,
        embedded_scratch(settings, "none", bare) as without,
    ):
        for client in (with_log, without):
            create_rows(client, settings.ids)
        steps = [adagrad_step(with_log), adagrad_step(without)]
        for batch in batches[:CHECK_BATCHES]:
            for step in steps:
                step(batch)
        sample = batches[0].distinct
        require_equal(name, with_log.pull(TABLE, sample), without.pull(TABLE, sample), 0.0)
        before_run = write_log(with_log, batches, settings.seconds)
        on, off = contest(steps, batches, settings, before_run)
    detail = {**on.detail("ours"), **off.detail("peer")}
    millis = [26.624 / rate for rate in on.millions]
    bare_millis = [26.624 / rate for rate in off.millions]
    what = f"Adagrad step with the log, {distribution}"
    return [
        make_bar(name, what, "ms/step", goal, millis, "the same with durability none", bare_millis, detail)
    ]
