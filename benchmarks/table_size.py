# SPDX-License-Identifier: Apache-2.0
"""table.size: what a load, a reopen, a pull and a step cost at 10⁵, 10⁶, 10⁷, … rows.

Each should grow no faster than its work. The work of a load is its rows, so its goal is on the exponent e of
cost ~ rows^e over all sizes. So is that of a reopen, here the start of a shard that was closed, with nothing
to replay; it should not depend on its rows at all. A pull and a step always have 26,624 ids; what grows with
the table is how often these miss the processor's caches, so their exponent is reported without a goal.
"""

import shutil
import time
from typing import Any, Final

import numpy as np

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.batch import BATCH_IDS, BATCHES, DIM, Batch, draw_ranks, make_batch
from benchmarks.contest import contest
from benchmarks.embedded import ADAGRAD, TABLE, create_rows, embedded, table_config
from benchmarks.table_load import noise_rows, shard_folder
from benchmarks.table_step import training_step
from ps_client import connect
from ps_server.bulk.load import bulk_load

SIZES: Final = (100_000, 1_000_000, 10_000_000, 50_000_000)
MARGIN: Final = 2
"""Sizes up to twice --rows are measured: a quick run (2 M rows) ends at 10⁶, a full one (5 M) at 10⁷."""

HOT_ROW_BYTES: Final = 160
"""A row with Adagrad state is 150 bytes of budget; all of them are to stay in memory."""

BATCHES_HERE: Final = min(BATCHES, 64)
NOTHING_S: Final = 0.01
"""Cost below which the exponent of a reopen is that of the clock: 10 ms are added to every size."""


def sizes(rows: int) -> tuple[int, ...]:
    """Sizes to measure for --rows; the two smallest always."""
    return tuple(size for size in SIZES if size <= max(MARGIN * rows, SIZES[1]))


def exponent(rows: list[int], costs: list[float]) -> float:
    """Slope of log(cost) against log(rows), by least squares."""
    return float(np.polyfit(np.log(rows), np.log(costs), 1)[0])


def _batches(ids: int) -> list[Batch]:
    gradients = np.full((BATCH_IDS, DIM), 0.01, np.float32)
    return [make_batch(ranks, gradients) for ranks in draw_ranks("uniform", ids, BATCHES_HERE)]


def _load_and_reopen(settings: Settings, rows: int) -> dict[str, float]:
    """Seconds of a bulk load, and of an open and its first pull afterwards (the least of some runs)."""
    config = table_config(ADAGRAD)
    folder = settings.scratch / f"load-{rows}"
    with embedded(folder, config):
        pass
    chunks = ((ids, weights, np.square(weights) + np.float32(0.1)) for ids, weights in noise_rows(rows))
    began_s = time.perf_counter()
    bulk_load(shard_folder(folder, config), TABLE, chunks)
    load_s = time.perf_counter() - began_s
    reopen_s = []
    first = _batches(rows)[0].distinct[:64]
    for _ in range(settings.runs):
        began_s = time.perf_counter()
        with connect(f"embedded:{folder}") as client:
            client.pull(TABLE, first, read_only=True)
            reopen_s.append(time.perf_counter() - began_s)
    shutil.rmtree(folder)
    return {"load": load_s, "reopen": min(reopen_s)}


def _pull_and_step(settings: Settings, rows: int) -> dict[str, float]:
    """Median seconds of a pull and of an Adagrad step of a uniform batch, every row in memory."""
    budget = max(3 << 30, (1 << 30) + rows * HOT_ROW_BYTES)
    config = table_config(ADAGRAD, durability="none", memory_budget=budget)
    batches = _batches(rows)
    out = np.empty((BATCH_IDS, DIM), np.float32)
    folder = settings.scratch / f"hot-{rows}"
    with embedded(folder, config) as client:
        create_rows(client, rows)
        hot = client.stats()[0].tables[0].hot_rows
        if hot != rows:
            raise ValueError(f"table.size: {hot} rows are hot; all {rows} must be")

        def pull(batch: Batch) -> None:
            client.pull(TABLE, batch.requested, out)

        pulls, steps = contest([pull, training_step(client)], batches, settings)
    shutil.rmtree(folder)
    return {"pull": float(np.median(pulls.median_s)), "step": float(np.median(steps.median_s))}


def measure(settings: Settings, name: str, goal: Goal) -> list[Bar]:
    """The exponents, and the cost at each size."""
    counts = list(sizes(settings.rows))
    found = [{**_load_and_reopen(settings, rows), **_pull_and_step(settings, rows)} for rows in counts]
    bars = []
    for work, unit, scale in (
        ("load", "µs/row", 1e6), ("reopen", "ms", 1e3), ("pull", "ms/pull", 1e3), ("step", "ms/step", 1e3),
    ):  # fmt: skip
        costs = [facts[work] for facts in found]
        total = [cost + NOTHING_S for cost in costs] if work == "reopen" else costs
        judged = goal if work in ("load", "reopen") else None
        what = f"exponent of a {work}'s cost in rows, {counts[0]:.0e} to {counts[-1]:.0e}"
        detail: dict[str, Any] = {"sizes": counts, "seconds": costs}
        bars.append(
            make_bar(f"{name}.{work}", what, "exponent", judged, [exponent(counts, total)], detail=detail)
        )
        for rows, cost in zip(counts, costs, strict=True):
            figure = cost / rows * scale if work == "load" else cost * scale
            line = f"{work} at {rows:,} rows"
            bars.append(make_bar(f"{name}.{work}.{rows}", line, unit, None, [figure], detail={"rows": rows}))
    return bars
