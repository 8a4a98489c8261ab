# SPDX-License-Identifier: Apache-2.0
"""Seeds of the simulation that must hold, and faults planted by hand that it must find."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest

from ps_server.disk.log import PushLog
from ps_server.disk.segment import KIND_EVICT
from ps_server.life import recovery
from ps_server.life.session import Sessions
from ps_server.table import tier
from tests.simulation.run import Failure, run
from tests.simulation.store import SimulatedFamily
from tests.simulation.world import simulated

SHORT = {4: 7_000, 7: 6_500, 5: 6_500}
"""Operations by seed: one seed of each durability (fsync, os, none), 20,000 operations in all."""

HAPPENS = {
    "checkpoint", "clean stops", "clock step", "drop", "evict", "freeze", "kills", "late messages",
    "long calls answered again", "operations within others", "poisoned", "power cuts", "pushes applied",
    "refusal", "refused: frozen", "repeats answered", "restores broken off", "restores made", "rows evicted",
    "saves made",
}  # fmt: skip
"""What each short seed must have seen: a simulation in which nothing can happen finds nothing."""

SOAK_SEEDS = range(100, 120)
SOAK_OPERATIONS = 50_000


def _holds(seed: int, operations: int) -> Counter[str]:
    found = run(seed, operations)
    if isinstance(found, Failure):
        pytest.fail(found.text(), pytrace=False)
    print(f"seed {seed}: {dict(found)}")
    return found


def test_the_short_seeds_have_every_durability() -> None:
    found = []
    for seed in SHORT:
        with simulated(seed) as world:
            found.append(world.durability)
    assert found == ["fsync", "os", "none"]


@pytest.mark.parametrize("seed", SHORT)
def test_simulation(seed: int) -> None:
    assert not HAPPENS - set(_holds(seed, SHORT[seed]))


@pytest.mark.soak
@pytest.mark.parametrize("seed", SOAK_SEEDS)
def test_simulation_for_long(seed: int) -> None:
    """A million operations."""
    _holds(seed, SOAK_OPERATIONS)


def test_a_seed_replays() -> None:
    """The same events in the same order, and a shorter run is the beginning of a longer one."""
    with simulated(11) as world:
        world.run(300)
        trace, events = list(world.trace), world.events
    with simulated(11) as again:
        again.run(300)
        assert (list(again.trace), again.events) == (trace, events)


# ------------------------------------------------------------ faults that it must find
Plant = Callable[[ExitStack], None]


def _patch(owner: Any, name: str, value: Any) -> Plant:
    return lambda stack: stack.enter_context(mock.patch.object(owner, name, value))


def _apply_without(kind: str) -> Callable[..., None]:
    real = recovery.apply_record

    def apply(record: Any, tables: Any, sessions: Sessions) -> None:
        if kind == "evictions" and record.kind == KIND_EVICT:
            return
        real(record, tables, Sessions() if kind == "sessions" else sessions)

    return apply


def _log_late(self: PushLog, record: Any) -> None:
    """Write each record when the next one comes: it is acknowledged before."""
    waiting, self.waiting = getattr(self, "waiting", None), record  # type: ignore[attr-defined]
    if waiting is not None:
        _APPEND(self, waiting)
    self.written_lsn = record.lsn


_APPEND = PushLog.append


def _forget_sync(self: PushLog, lsn: int) -> None:
    self.synced_lsn = self.written_lsn


FAULTS: dict[str, tuple[int, Plant]] = {
    "a repeat is applied": (4, _patch(Sessions, "repeat_of", lambda *_: None)),
    "a replay forgets the sessions": (4, _patch(recovery, "apply_record", _apply_without("sessions"))),
    "a replay forgets the evictions": (7, _patch(recovery, "apply_record", _apply_without("evictions"))),
    "a push is acknowledged before it is logged": (7, _patch(PushLog, "append", _log_late)),
    "a push is acknowledged before it is synced": (4, _patch(PushLog, "sync", _forget_sync)),
    "a replay does not look at the LSN of a row": (
        7, _patch(tier, "get_lsn", lambda values: np.zeros(values.shape[0], np.uint64)),
    ),
    "a checkpoint is recorded before its rows are flushed": (
        4, _patch(SimulatedFamily, "flush", lambda self: None),
    ),
    "a torn end is not cut": (7, _patch(recovery, "cut_torn_end", lambda directory: 0)),
    "rows that are spilled are not written": (4, _patch(tier.Tier, "_write_back", lambda self, places: None)),
}  # fmt: skip
"""By what is wrong: a seed, and what makes it so."""

FOUND_WITHIN = 3_000
"""Operations after which each of them must have been found."""


@contextmanager
def _planted(plant: Plant) -> Iterator[None]:
    with ExitStack() as stack:
        plant(stack)
        yield


@pytest.mark.parametrize("fault", FAULTS)
def test_simulation_finds(fault: str) -> None:
    seed, plant = FAULTS[fault]
    with _planted(plant):
        found = run(seed, FOUND_WITHIN)
    assert isinstance(found, Failure), f"{fault}: not found in {FOUND_WITHIN} operations of seed {seed}"
    print(f"found at operation {found.operation}:\n{found.error}")
