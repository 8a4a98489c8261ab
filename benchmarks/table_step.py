# SPDX-License-Identifier: Apache-2.0
"""table.adagrad.*, table.sgd, table.adam and table.log: a step of the embedded table.

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
    SGD,
    TABLE,
    all_rows,
    create_rows,
    embedded_scratch,
    require_equal,
    table_config,
    write_log,
)
from ps_client.client import Client

ADAM_EPS: Final = 1e-15
"""SparseAdam adds eps before the bias correction, ours, as torch.optim.Adam, after it: none to speak of."""

ADAM: Final = {"kind": "adam", "learning_rate": 0.01, "eps": ADAM_EPS}
OPTIMIZERS: Final = {"adagrad": ADAGRAD, "sgd": SGD, "adam": ADAM}
CHECK_BATCHES: Final = 3
ROUNDING: Final = 2e-6
"""float32 rounding of a few steps on weights below 0.1; the formulas are the same."""


SUSTAINED_S: Final = 8.0
"""Long enough for a few checkpoints."""


def training_step(client: Client) -> Step:
    """Ours: the work of one step."""

    def step(batch: Batch) -> None:
        client.pull(TABLE, batch.distinct)
        client.push(TABLE, batch.distinct, batch.gradients)

    return step


def measure_adagrad(settings: Settings, name: str, distribution: str, goal: Goal) -> list[Bar]:
    """Ours against torch in process; both checked equal over the first batches."""
    bar, batches, rates = _beside_torch(settings, name, distribution, goal, "adagrad")
    return [bar, _sustained(settings, f"{name}.sustained", bar.what, bar.peer, rates, batches)]


def measure_optimizer(settings: Settings, name: str, kind: str, goal: Goal | None) -> list[Bar]:
    """The same with another optimizer, over both distributions."""
    return [_beside_torch(settings, f"{name}.{d}", d, goal, kind)[0] for d in ("zipf", "uniform")]


def _beside_torch(
    settings: Settings, name: str, distribution: str, goal: Goal | None, kind: str
) -> tuple[Bar, list[Batch], list[float]]:
    """The bar, its batches, and the peer's rates."""
    from benchmarks.peer_torch import TorchTable  # noqa: PLC0415 # torch is optional

    batches = load_batches(distribution, settings.cache, settings.ids)
    config = table_config(OPTIMIZERS[kind], durability="os")
    with embedded_scratch(settings, f"table-{name}", config) as client:
        create_rows(client, settings.ids)
        peer = TorchTable(all_rows(client, settings.ids), kind, ADAM_EPS)
        if kind == "adam":
            peer.touch_all()
        peer.prepare(batches)
        step = training_step(client)
        difference = 0.0
        # Adam counts a row's own steps, SparseAdam those of the table: equal until a row misses one.
        checked = batches[: 1 if kind == "adam" else CHECK_BATCHES]
        for batch in checked:
            step(batch)
            peer.step(batch)
        for batch in checked:
            ours = client.pull(TABLE, batch.distinct)
            difference = max(difference, require_equal(name, ours, peer.pull(batch), ROUNDING))
        peer.choose_threads(batches)
        before_run = write_log(client, batches, settings.seconds)
        mine, theirs = contest([step, peer.step], batches, settings, before_run)
    detail = {
        **mine.detail("ours"), **theirs.detail("peer"), "largest_difference": difference,
        "ours_durability": "os (push log)", "ids": settings.ids,
    }  # fmt: skip
    what = f"{kind.capitalize() if kind != 'sgd' else 'SGD'} step, {distribution}"
    bar = make_bar(name, what, "M rows/s", goal, mine.millions, peer.name, theirs.millions, detail)
    return bar, batches, theirs.millions


def _sustained(
    settings: Settings, name: str, what: str, peer: str, theirs: list[float], batches: list[Batch]
) -> Bar:
    """The step of a long training, checkpoints and all, beside the peer's (which keeps nothing on disk)."""
    config = table_config(ADAGRAD, durability="os")
    del config["checkpoint_log_bytes"]
    with embedded_scratch(settings, "sustained", config) as client:
        create_rows(client, settings.ids)
        step = training_step(client)
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
        steps = [training_step(with_log), training_step(without)]
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
