# SPDX-License-Identifier: Apache-2.0
"""Timing of two or more sides over the same batches, run by run in turn: A, B, A, B, …

Turns put both sides into the same weather: on a shared machine a ratio is steadier than its parts. Each
side is warmed up before the first run, cycles through all batches, and goes on where it was in its next
turn. CPU that other processes took meanwhile is noted beside each figure.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import psutil

from benchmarks.bar import Settings
from benchmarks.batch import Batch

BATCHES_MIN: Final = 8
"""A run of a slow side still covers this many batches."""

NOISY_CORES: Final = 0.25
"""More than this of other processes' CPU during a run makes its figure doubtful."""

Step = Callable[[Batch], Any]


class Remote(Protocol):
    """A side that runs in a process of its own and times itself there (benchmarks/peer/remote.py)."""

    def warm_up(self, place: int, batches: int) -> None:
        """Run `batches` batches, from number `place` on, before the clock starts."""

    def turn(self, place: int, seconds: float, batches_min: int) -> tuple[list[float], float]:
        """Seconds of each batch of one turn, and of the wait for outstanding work at its end."""


@dataclass(slots=True)
class Timing:
    """What one side did, by run: ids requested per second, median time of a batch; and every batch's time."""

    ids_per_s: list[float] = field(default_factory=list)
    median_s: list[float] = field(default_factory=list)
    batch_s: list[float] = field(default_factory=list)
    foreign_cores: list[float] = field(default_factory=list)

    @property
    def millions(self) -> list[float]:
        """Millions of requested ids per second, by run."""
        return [rate / 1e6 for rate in self.ids_per_s]

    def detail(self, name: str) -> dict[str, float | bool]:
        """p50 and p99 of a batch in ms, other processes' CPU, whether that was too much."""
        p50, p99 = np.percentile(np.array(self.batch_s) * 1e3, [50, 99])
        foreign = float(np.median(self.foreign_cores))
        return {
            f"{name}_p50_ms": round(float(p50), 3), f"{name}_p99_ms": round(float(p99), 3),
            f"{name}_foreign_cores": round(foreign, 2), f"{name}_noisy": foreign > NOISY_CORES,
        }  # fmt: skip


class CpuMeter:
    """CPU seconds of everyone but this process and its children."""

    def __init__(self) -> None:
        self._self = psutil.Process()
        self._start = self._sample()

    def _sample(self) -> tuple[float, float, float]:
        mine = 0.0
        for process in [self._self, *self._self.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            mine += times.user + times.system
        total = psutil.cpu_times()
        busy = sum(total) - total.idle - getattr(total, "iowait", 0.0)
        busy -= getattr(total, "guest", 0.0) + getattr(total, "guest_nice", 0.0)  # inside user already
        return mine, busy, time.perf_counter()

    def foreign_cores(self) -> float:
        """Cores that others used since the meter was made."""
        mine, busy, at_s = self._sample()
        passed_s = max(at_s - self._start[2], 1e-9)
        return max(0.0, ((busy - self._start[1]) - (mine - self._start[0])) / passed_s)


def contest(
    sides: Sequence[Step | Remote],
    batches: Sequence[Batch],
    settings: Settings,
    before_run: Callable[[], Any] = lambda: None,
) -> list[Timing]:
    """Time each side over the batches, in turns.

    Parameters
    ----------
    sides
        One callable per side, which has done its work when it returns, or a Remote, which may have work
        outstanding when a batch returns: its turn ends when that is done.
    batches
        What they get; the same ones in the same order.
    settings
        Runs, seconds per run, batches of warm-up.
    before_run
        Called before each run of all sides, not timed.

    Returns
    -------
    list
        One Timing per side.
    """
    for side in sides:
        _warm_up(side, batches, settings.warmup_batches)
    timings = [Timing() for _ in sides]
    places = [0] * len(sides)
    gc.collect()
    gc.disable()  # a collection inside one side's turn would be charged to it
    try:
        for _ in range(settings.runs):
            before_run()
            for number, side in enumerate(sides):
                places[number] = _turn(side, batches, places[number], settings.seconds, timings[number])
    finally:
        gc.enable()
    return timings


def _warm_up(side: Step | Remote, batches: Sequence[Batch], count: int) -> None:
    if callable(side):
        for batch in batches[-count:]:
            side(batch)
    else:
        side.warm_up(max(len(batches) - count, 0), count)


def _turn(side: Step | Remote, batches: Sequence[Batch], place: int, seconds: float, timing: Timing) -> int:
    meter = CpuMeter()
    if callable(side):
        took, tail_s = _own_turn(side, batches, place, seconds), 0.0
    else:
        took, tail_s = side.turn(place, seconds, BATCHES_MIN)
    ids = sum(batches[(place + i) % len(batches)].requested.shape[0] for i in range(len(took)))
    timing.batch_s += took
    timing.median_s.append(float(np.median(took)))
    timing.ids_per_s.append(ids / (sum(took) + tail_s))
    timing.foreign_cores.append(meter.foreign_cores())
    return place + len(took)


def _own_turn(side: Step, batches: Sequence[Batch], place: int, seconds: float) -> list[float]:
    spent_s = 0.0
    took: list[float] = []
    while spent_s < seconds or len(took) < BATCHES_MIN:
        batch = batches[(place + len(took)) % len(batches)]
        before_s = time.perf_counter()
        side(batch)
        took.append(time.perf_counter() - before_s)
        spent_s += took[-1]
    return took
