# SPDX-License-Identifier: Apache-2.0
"""A machine of a simulation with its shard: starts, ends, and what the shard must hold after each.

The shard is the real one, on the simulated store and files whose losses are simulated (disk.py). Beside it
stands its model, which is told what the shard says that it applied. When a shard ends in the middle of a
change, only the next start tells whether the change was made; more than that one change is never open.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rowhouse.error import StoreError, UnavailableError
from rowhouse.mix import mix64, unmix64

from ps_server.config.cluster import ClusterConfig
from ps_server.disk.row import LSN_BYTES
from ps_server.kernel import record as record_kernel
from ps_server.life.saved import check_no_restore
from ps_server.shard.shard import Shard
from ps_server.table.table import Table
from tests.simulation.disk import Disk, Killed, Machine
from tests.simulation.model import Evicted, Part, Pushed, Record, ShardModel
from tests.simulation.store import COUNT, Media, SimulatedStore

T = TypeVar("T")

HISTORY_MAX = 400
"""Records that a model keeps to be able to go back; more are folded into its base."""


@dataclass
class Intent:
    """A push as its author meant it: what each shard is to get, and how often each has applied it."""

    parts: dict[int, tuple[Part, ...]]
    applied: Counter[int] = field(default_factory=Counter)
    lost: bool = False  # a crash took it, as the durability allows


@dataclass(frozen=True)
class Change:
    """A record that a shard applied, or may have applied."""

    record: Record
    intent: Intent | None = None


@dataclass(kw_only=True)
class Faults:
    """How a machine's next end comes about."""

    power_cut: bool = False
    steps: int | None = None


class Host:
    """One shard, over all its lives.

    Parameters
    ----------
    config, index
        Of the shard.
    disk, media
        What its files and its store lie on.
    chance
        Every draw of this machine.
    now_s
        The world's clock, seconds.
    interlude
        Called where other things may happen in the middle of a checkpoint.
    pool
        Every id that may have a row here, (n,) uint64.
    """

    def __init__(
        self,
        config: ClusterConfig,
        index: int,
        disk: Disk,
        media: Media,
        chance: Random,
        now_s: Callable[[], float],
        interlude: Callable[[], None],
        pool: NDArray[np.uint64],
    ) -> None:
        self.config, self.index, self.pool = config, index, pool
        self.folder = disk.folder / f"shard-{index:04d}"
        self._disk, self._media, self._chance = disk, media, chance
        self._now_s, self._interlude = now_s, interlude
        self.skew_s = 0.0
        self.shard: Shard | None = None
        self.store: SimulatedStore | None = None
        self.machine = Machine(self.folder, chance, "boot 0")
        self.depth = 0  # calls of this shard under way
        self.restart_at_s = 0.0
        self.next_end = Faults()
        self._boots = 0
        self._lossy = False  # the last end may have taken what was acknowledged
        self.model = ShardModel(config.tables)
        self.modes: dict[str, set[str]] = {table.name: {table.freeze} for table in config.tables}
        self.open_change: Change | None = None
        self.answered: dict[int, bytes | None] = {}
        """What this life of the shard answered to each ticket of a long call; None: it did not."""
        self._base, self._history = self.model.copy(), list[Change]()
        self.events: Counter[str] = Counter()

    def clock(self) -> float:
        """This machine's time, seconds since the epoch; it may step."""
        return max(self._now_s() + self.skew_s, 0.0)

    # ------------------------------------------------------------ calls
    def run(self, call: Callable[[Shard], T]) -> T:
        """A call of the shard; UnavailableError when it is down, or ends meanwhile."""
        shard = self.shard
        if shard is None or self.machine.dead:
            raise UnavailableError(f"shard {self.index} is down")
        self.depth += 1
        try:
            return call(shard)
        except Killed:
            raise UnavailableError(f"shard {self.index} ended during the call") from None
        finally:
            self.depth -= 1

    def change(self, change: Change | None, call: Callable[[Shard], T]) -> T:
        """A call that makes one change, if it succeeds. When it fails the change is open, until the next
        start shows."""
        if change is None or self.shard is None or self.shard.poison is not None or self.machine.dead:
            return self.run(call)
        self.open_change = change
        answer = self.run(call)
        self.open_change = None
        return answer

    def applied(self, change: Change) -> None:
        """The shard says that it applied a change."""
        self.model.apply(change.record)
        self._history.append(change)
        if len(self._history) > HISTORY_MAX and self.shard is not None:
            self._fold(self.shard._opened.state.lsn)
        if change.intent is not None:
            change.intent.applied[self.index] += 1
            assert change.intent.applied[self.index] == 1, "a push was applied twice"

    def _fold(self, lsn: int) -> None:
        """Take what a checkpoint has into the base: no crash takes it back."""
        for change in self._history:
            if change.record.lsn <= lsn:
                self._base.apply(change.record)
        self._history = [change for change in self._history if change.record.lsn > lsn]

    # ------------------------------------------------------------ ends
    def kill(self, *, power_cut: bool = False) -> None:
        """The machine's process ends now; with a power cut the machine does."""
        self.next_end = Faults(power_cut=power_cut)
        self.machine.dead = True

    def bury(self) -> None:
        """Leave of a dead machine what it left."""
        if self.shard is None and self.store is None:
            return
        cut = self.next_end.power_cut
        self.events["power cuts" if cut else "kills"] += 1
        self.events["torn writes"] += self.machine.torn
        if self.store is not None:
            self.store.crash(self._chance, power_cut=cut)
        self._disk.end(self.machine, power_cut=cut)
        durability = self.config.durability
        self._lossy |= durability == "none" or (durability == "os" and cut)
        self._boots += cut
        self.shard = self.store = None
        self.restart_at_s = self._now_s() + self._chance.choice([0.0, 0.1, 2.0, 2.0, 45.0])

    def close(self) -> None:
        """A clean stop; it may end badly too."""
        shard = self.shard
        if shard is None:
            return
        try:
            self.run(lambda shard: shard.close())
        except (UnavailableError, StoreError):
            self.kill()
            self.bury()
            return
        if shard.poison is not None:
            self.kill()
            self.bury()
            return
        self.events["clean stops"] += 1
        self.check_stored()
        self._disk.end(self.machine, power_cut=False)
        self.shard = self.store = None
        self.restart_at_s = self._now_s()

    # ------------------------------------------------------------ starts
    def boot_machine(self, steps: int | None) -> Machine:
        """A machine that is up, its shard not yet."""
        self.machine = Machine(self.folder, self._chance, f"boot {self._boots}", steps_left=steps)
        self.next_end = Faults(power_cut=self._chance.random() < 0.4)
        self._disk.start(self.machine)
        return self.machine

    def open_store(self, directory: Path, widths: dict[str, int]) -> SimulatedStore:
        """A store on this machine."""
        tick = partial(self.machine.tick, refused=StoreError)
        return SimulatedStore(directory, widths, media=self._media, tick=tick)

    def start(self, steps: int | None) -> bool:
        """Start the shard; with `steps` it ends again after so many. Whether it is up."""
        check_no_restore(self.folder)
        machine = self.boot_machine(steps)
        self.store, self.answered = None, {}

        def make_store(directory: Path, widths: dict[str, int], **_settings: Any) -> Any:
            self.store = self.open_store(directory, widths)
            return self.store

        def failpoint(name: str) -> None:
            machine.tick(name, StoreError)
            if name == "mid checkpoint" and self.depth:  # in somebody's call, not in a start
                self._interlude()
                if machine.dead:
                    raise Killed

        try:
            self.shard = Shard.open(
                self.config, self.index, self.folder, clock=self.clock, failpoint=failpoint,
                make_store=make_store, background=False,
            )  # fmt: skip
        except Killed:
            self.events["ends while starting"] += 1
            self.bury()
            self.restart_at_s = self._now_s()
            return False
        self._compare_with_the_model()
        return True

    def _compare_with_the_model(self) -> None:
        """What a start must have found."""
        shard = self.shard
        assert shard is not None
        self.events["records replayed"] += shard.replayed_records
        for name, table in shard._tables.items():
            assert table.frozen in self.modes[name], f"table {name!r} is {table.frozen}"
            self.modes[name] = {table.frozen}
        change, self.open_change = self.open_change, None
        if self._lossy:
            self._go_back(shard, change)
        else:
            if change is not None and shard._applied_lsn == change.record.lsn:
                self.applied(change)
            assert shard._applied_lsn == self.model.lsn, (
                f"shard {self.index} is at LSN {shard._applied_lsn}; its model is at {self.model.lsn}"
            )
            self.check()
        self._lossy = False
        sessions = {int(client): pair[0] for client, pair in shard._sessions.snapshot().items()}
        assert sessions == self.model.sessions

    def _go_back(self, shard: Shard, change: Change | None) -> None:
        """A crash took records that were not synced: the shard is at an earlier moment, and some rows may be
        of a later one (ARCHITECTURE, "What always holds", 5)."""
        changes = [*self._history, change] if change is not None else self._history
        checkpoint = shard._opened.state.lsn
        later = [c for c in changes if c.record.lsn > checkpoint]
        kept, lost = later[: shard.replayed_records], later[shard.replayed_records :]
        assert len(kept) == shard.replayed_records, "more records were replayed than were written"
        model = self._base.copy()
        for each in [c for c in changes if c.record.lsn <= checkpoint] + kept:
            model.apply(each.record)
        if change is not None and change not in lost and change.intent is not None:
            change.intent.applied[self.index] += 1
        self.events["records lost, as allowed"] += len(lost)
        versions: dict[tuple[str, int], set[bytes | None]] = {}
        further = model.copy()
        for each in lost:
            further.apply(each.record)
            if each.intent is not None:
                each.intent.lost = True
                each.intent.applied[self.index] -= each is not change
            for name, one in _touched(each.record):
                versions.setdefault((name, one), set()).add(further.tables[name].rows.get(one))
        for name, table in shard._tables.items():
            known, found = model.tables[name], peek(table, self.pool)
            for one in self.pool.tolist():
                if found.get(one) != known.rows.get(one):
                    assert found.get(one) in versions.get((name, one), ()), (
                        f"shard {self.index}, table {name!r}: row {one} is of no moment after the checkpoint"
                    )
                    self.events["rows newer than the log"] += 1
            known.rows = found
        model.lsn = shard._applied_lsn
        self.model, self._base, self._history = model, model.copy(), []
        # From here on the model knows the rows of this moment only. So a second loss must not reach back
        # behind it; that is left out of the simulation.
        self.machine.steps_left = None
        shard.checkpoint()

    # ------------------------------------------------------------ saves
    def saved(self) -> tuple[ShardModel, dict[str, set[str]]]:
        """What a save keeps now."""
        return self.model.copy(), {name: set(modes) for name, modes in self.modes.items()}

    def restored(self, saved: tuple[ShardModel, dict[str, set[str]]]) -> None:
        """A restore put a save in the place of what was here."""
        model, modes = saved
        self.model, self._base, self._history = model.copy(), model.copy(), []
        self.modes = {name: set(kept) for name, kept in modes.items()}
        self.open_change = None
        self._lossy = self.config.durability != "fsync"  # the copy is of a life that did not end cleanly

    # ------------------------------------------------------------ checks
    def check(self) -> None:
        """Every row, bit for bit, with optimizer state and metadata."""
        shard = self.shard
        if shard is None or shard.poison is not None:
            return
        self.events["checks of every row"] += 1
        for name, table in shard._tables.items():
            self._same(name, peek(table, self.pool))
            stats = table.stats()
            self.events["rows spilled, at checks"] += stats.spilled_rows
            assert stats.rows_exact and stats.rows == len(self.model.tables[name].rows), (
                f"shard {self.index}, table {name!r}: {stats.rows} rows are told"
            )
        budget = shard._opened.budget
        assert budget.granted_bytes <= budget.total_bytes

    def check_stored(self) -> None:
        """What a clean stop left in the store, with nothing too much."""
        assert self.store is not None
        for name in self.model.tables:
            rows = self.store._medium.families[f"row.{name}"]
            stored = {key: value[:-LSN_BYTES] for key, value in rows.items() if key != COUNT}
            assert int.from_bytes(rows.get(COUNT, b""), "little") == len(stored)
            keys = unmix64(np.fromiter(stored, np.uint64, len(stored))).tolist()
            self._same(name, dict(zip(keys, stored.values(), strict=True)))

    def _same(self, name: str, found: dict[int, bytes]) -> None:
        expected = self.model.tables[name].rows
        if found == expected:
            return
        wrong = sorted(i for i in found.keys() | expected.keys() if found.get(i) != expected.get(i))
        what = [
            "is missing" if i not in found else "is too much" if i not in expected else "differs"
            for i in wrong
        ]
        raise AssertionError(
            f"shard {self.index}, table {name!r}, LSN {self.model.lsn}: {len(wrong)} rows are wrong; "
            f"row {wrong[0]} {what[0]}"
        )


def _touched(record: Record) -> list[tuple[str, int]]:
    if isinstance(record, Evicted):
        return [(record.table, one) for one in record.ids]
    return [(part.table, one) for part in record.parts for one in part.ids.tolist()]


def peek(table: Table, ids: NDArray[np.uint64]) -> dict[int, bytes]:
    """Rows of a table, hot or not, as the store has them without their LSN; nothing becomes hot."""
    tier, layout = table.tier, table.layout
    places, _ = tier.arena.find(ids, 0)
    hot = places >= 0
    values = np.empty((int(hot.sum()), layout.value_bytes), np.uint8)
    record_kernel.copy_out(
        tier.arena.records8, layout.stride, layout.weights_at, places[hot], values, layout.stored_bytes
    )
    found = dict(zip(ids[hot].tolist(), map(bytes, values[:, : layout.stored_bytes]), strict=True))
    cold = ids[~hot]
    present, stored = tier.rows.get(mix64(cold))
    found |= zip(cold[present].tolist(), map(bytes, stored[:, : layout.stored_bytes]), strict=True)
    return found


def pushed_at(record: Pushed, lsn: int) -> Pushed:
    """The record under the LSN that the shard gave it."""
    return record if record.lsn == lsn else replace(record, lsn=lsn)
