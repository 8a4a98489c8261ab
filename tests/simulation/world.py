# SPDX-License-Identifier: Apache-2.0
"""One seeded run: two shards, three clients and a supervisor in one thread, and everything that goes wrong.

A `World` draws one operation after the other: what a client does, what an operator does, how a machine ends.
Clients are real (ps_client over a simulated network), shards are real (on simulated disks), and whoever
waits lets the others go on, so a push of one client may come between two parts of another one's. After each
answer the shard's model is compared; every row is compared after each start, and now and then.

A run is a function of (seed, number of operations): a failure comes again with the same two numbers, and
all operations before it are the same in a longer run.
"""

import logging
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest import mock

import numpy as np
from rowhouse import codec
from rowhouse.control import METHODS
from rowhouse.error import (
    BusyError,
    CorruptionError,
    LimitExceededError,
    PoisonedError,
    PreconditionError,
    RowhouseError,
    SequenceGapError,
    StoreError,
    TableFrozenError,
    UnavailableError,
)
from rowhouse.message import PushRequest

from ps_client.client import Client
from ps_client.cluster import Cluster
from ps_client.retry import Retry
from ps_server.config.cluster import load_config
from ps_server.disk import checkpoint
from ps_server.life import saved
from ps_server.life.saved import RESTORING, restore_tables
from tests import naive
from tests.simulation.disk import Disk, Killed
from tests.simulation.host import Change, Host, Intent, pushed_at
from tests.simulation.model import Evicted, Part, Pushed
from tests.simulation.network import FATES, Link, deliver_late
from tests.simulation.store import Media, SimulatedStore
from tests.workload import BUDGET, DIMS, EVICTING, MEMORY, POOL, TABLES

SHARDS: Final = 2
CLIENTS: Final = 3
TIMEOUT_S: Final = 30.0
INTENTS_MAX: Final = 500
SAVES_MAX: Final = 2
TRACE_MAX: Final = 60

OPERATIONS: Final = {
    "push": 46, "pull": 22, "flush": 2, "wait": 5, "checkpoint": 2, "evict": 2, "freeze": 1, "prefetch": 2,
    "count rows": 2, "check": 0.5, "stats": 1, "reconnect": 0.5, "kill": 1, "power cut": 0.7,
    "end in the middle": 2.5, "refusal": 0.6, "clock step": 0.7, "restart": 0.6, "save": 0.25, "drop": 0.05,
    "restore": 0.12,
}  # fmt: skip
"""What an operation is, and how often."""

ENDINGS: Final = ("kill", "power cut", "end in the middle", "refusal", "restart")
WEATHER: Final = (0.03, 0.3, 1.0)
"""How often machines end, beside OPERATIONS: in calm weather memory fills up, and rows are spilled."""

WEATHER_OPERATIONS: Final = 400

IDS: Final = np.concatenate([POOL, np.random.default_rng(9).integers(0, 2**64, 3_000, np.uint64)])
"""Every id; most pushes are of the first ones."""

OWNER: Final = {one: naive.mix64(one) * SHARDS >> 64 for one in IDS.tolist()}
"""Shard of each id: an even split of the range of mix64."""

Fingerprint = tuple[Any, ...]


class AtOnce:
    """An executor that makes each call before it returns."""

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call(*arguments))
        return future

    def shutdown(self, wait: bool) -> None:
        pass


@dataclass
class Actor:
    """One client, over all its connections."""

    name: str
    client: Client | None = None
    busy: bool = False
    seen: dict[tuple[str, int], bytes] = field(default_factory=dict)


def fingerprint(parts: tuple[Part, ...]) -> Fingerprint:
    """What makes two pushes to one shard the same."""
    found: list[Any] = []
    for part in sorted(parts, key=lambda part: part.table):
        order = np.argsort(part.ids)
        found += [part.table, part.rate, part.ids[order].tobytes(), part.gradients[order].tobytes()]
    return tuple(found)


class World:
    """See the module. Use `simulated`.

    Parameters
    ----------
    seed
        Every draw follows from it.
    folder
        Empty, in memory.
    without
        Operations and fates of messages that are left out.
    """

    def __init__(self, seed: int, folder: Path, without: frozenset[str] = frozenset()) -> None:
        self.seed, self.folder = seed, folder
        self.chance = Random(seed)
        self.numbers = np.random.default_rng(seed)
        self._weights = {name: 0 if name in without else weight for name, weight in OPERATIONS.items()}
        self._now = self._weights
        self._fates = {name: 0 if name in without else weight for name, weight in FATES.items()}
        self.now_s = 1_000_000.0
        self.events: Counter[str] = Counter()
        self.trace: deque[str] = deque(maxlen=TRACE_MAX)
        self.operation = 0
        self.late: list[Any] = []
        self._depth = 0
        self._quiet = False
        self._intents: dict[tuple[int, Fingerprint], Intent] = {}
        self._saves: dict[str, list[Any]] = {}
        self._names = 0
        self._booting: Host | None = None
        self.durability = self.chance.choice(["fsync", "fsync", "os", "os", "none"])
        tables = [{**table} for table in TABLES]
        self.config = load_config(
            {
                "data_dir": str(folder), "memory_budget": BUDGET, "tables": tables, "shards": SHARDS,
                "durability": self.durability, "checkpoint_log_bytes": "1MiB",
            }
        )  # fmt: skip
        self.disk, self.media = Disk(folder), Media()
        owners = np.array([OWNER[one] for one in IDS.tolist()])
        self.hosts = [
            Host(
                self.config, index, self.disk, self.media, self.chance, lambda: self.now_s,
                lambda: self.interlude(0.5), IDS[owners == index],
            )
            for index in range(SHARDS)
        ]  # fmt: skip
        self.actors = [Actor(f"client {number}") for number in range(CLIENTS)]

    # ------------------------------------------------------------ the run
    def run(self, operations: int) -> None:
        """Draw and make so many operations, then end cleanly and compare what is stored."""
        while self.operation < operations:
            self._supervise()
            deliver_late(self)
            self._operate()
        self._finish()

    def _operate(self) -> None:
        if self.operation % WEATHER_OPERATIONS == 0:
            factor = self.chance.choice(WEATHER)
            self._now = {n: w * factor if n in ENDINGS else w for n, w in self._weights.items()}
        self.operation += 1
        self.now_s += 0.01
        free = [actor for actor in self.actors if not actor.busy]
        # in the middle of somebody's call only another client's comes
        kind = self.chance.choice(["push", "push", "pull"]) if self._depth else self._draw(self._now)
        if not free:
            return
        actor = self.chance.choice(free)
        self.events[kind] += 1
        self.trace.append(f"{self.operation} {'  ' * self._depth}{kind} ({actor.name}, {self.now_s:.2f} s)")
        actor.busy = True
        try:
            getattr(self, "_" + kind.replace(" ", "_"))(actor)
        finally:
            actor.busy = False

    def _draw(self, weights: Mapping[str, float]) -> str:
        return self.chance.choices(list(weights), list(weights.values()))[0]

    def fate_of_a_message(self) -> str:
        """What becomes of the next message."""
        fate = "arrives" if self._quiet and self._booting else self._draw(self._fates)
        self.events[f"messages: {fate}"] += 1
        if fate != "arrives":
            self.trace.append(f"{self.operation} {'  ' * self._depth}  message: {fate}")
        return fate

    def interlude(self, probability: float) -> None:
        """Whoever waits here lets others go on."""
        if self._quiet:
            return
        deliver_late(self)
        if self._depth < CLIENTS - 1 and self.chance.random() < probability:
            self._depth += 1
            self.events["operations within others"] += 1
            try:
                self._operate()
            finally:
                self._depth -= 1

    def sleep(self, seconds: float) -> None:
        """Time passes; the supervisor and the others go on."""
        self.now_s += max(seconds, 0.001)
        self._supervise()
        self.interlude(0.2)

    def _supervise(self) -> None:
        """Start again what ended, and what refuses to go on."""
        for host in self.hosts:
            if host.depth:
                continue
            if host.shard is not None and host.shard.poison is not None and not host.machine.dead:
                self.events["poisoned"] += 1
                host.kill()
            if host.machine.dead:
                host.bury()
            if host.shard is None and host.restart_at_s <= self.now_s:
                steps = self.chance.randint(1, 120) if self.chance.random() < 0.15 else None
                if not self._weights["end in the middle"]:
                    steps = None
                self._start(host, steps)

    def _start(self, host: Host, steps: int | None) -> None:
        self.trace.append(f"{self.operation} {'  ' * self._depth}  start of shard {host.index}")
        self.events["starts"] += 1
        outer, self._booting = self._booting, host  # a message under way may start another shard meanwhile
        try:
            if host.start(steps):
                host.machine.steps_left = None
        finally:
            self._booting = outer

    def boot_id(self) -> str:
        """That of the machine whose shard starts."""
        assert self._booting is not None
        return self._booting.machine.boot

    def open_copy(self, directory: Path, widths: dict[str, int], *, read_only: bool) -> SimulatedStore:
        """The store of a save that is being made, as ps_server.disk.directory.open_store."""
        assert not read_only
        (host,) = (host for host in self.hosts if directory.is_relative_to(host.folder))
        return host.open_store(directory / "store", widths)

    def _up(self) -> None:
        """Wait until every shard is up; nothing ends any more."""
        for host in self.hosts:
            host.machine.steps_left = host.machine.refusals_left = None
        while any(host.shard is None or host.machine.dead or host.shard.poison for host in self.hosts):
            self.now_s += 1.0
            for host in self.hosts:
                if host.shard is not None and (host.machine.dead or host.shard.poison):
                    host.kill()
                    host.bury()
                if host.shard is None and host.restart_at_s <= self.now_s:
                    self._start(host, None)

    def _finish(self) -> None:
        self._fates = {"arrives": 1}
        self._up()
        self._quiet = True
        for actor in self.actors:
            if actor.client is not None:
                self._settled(actor)
        for host in self.hosts:
            host.check()
            host.close()
        self.now_s += 1.0
        for host in self.hosts:
            host.restart_at_s = self.now_s
            self._start(host, None)
            assert host.shard is not None and host.shard.replayed_records == 0
            host.close()
        for host in self.hosts:
            self.events += host.events

    # ------------------------------------------------------------ what clients do
    def _client(self, actor: Actor) -> Client | None:
        """The actor's client; None when no connection comes about."""
        if actor.client is None:
            retry = Retry(
                timeout_s=TIMEOUT_S, clock=lambda: self.now_s, sleep=self.sleep, uniform=self.chance.uniform
            )
            names = [str(shard) for shard in range(SHARDS)]
            try:
                cluster = Cluster.join(names, lambda name: Link(self, actor, int(name)), retry.start())
            except (UnavailableError, BusyError, StoreError):
                self.events["no connection"] += 1
                return None
            actor.client = Client(cluster, retry)
            actor.client._exchange._pool = AtOnce()  # type: ignore[assignment]
        return actor.client

    def _attempt(self, actor: Actor, call: Callable[[Client], Any]) -> Any:
        """A call of a client that may fail as the network and the shards fail; None then."""
        client = self._client(actor)
        if client is None:
            return None
        try:
            return call(client)
        except SequenceGapError:
            assert self.durability != "fsync" or self.events["restore"], "a push is missing"
            assert self.events["restore"] or self._lost_something(), "a push is missing"
            self.events["sequence gaps"] += 1
            actor.client = None
        except TableFrozenError:
            assert self.events["freeze"], "no table was ever frozen"
            self.events["refused: frozen"] += 1
        except LimitExceededError:  # found by the client: nothing was sent
            self.events["refused: too many rows"] += 1
        except CorruptionError:  # nothing here damages a file
            raise
        except (UnavailableError, BusyError, StoreError) as failure:
            self.events[f"gave up: {type(failure).__name__}"] += 1
        return None

    def _lost_something(self) -> bool:
        return any(host.events["records lost, as allowed"] for host in self.hosts)

    def _push(self, actor: Actor) -> None:
        rng = self.numbers
        names = self.chance.sample(sorted(DIMS), self.chance.choice([1, 1, 1, 2]))
        spread, most = self.chance.choice([40, 300, 1_000]), self.chance.choice([3, 6, 20])
        if self.chance.random() < 0.06:  # so that memory has no room for all
            names, spread, most = sorted(DIMS), IDS.shape[0], 120
        rate = self.chance.choice([None, None, 0.5])
        gradients = {}
        for name in names:
            ids = rng.choice(IDS[:spread], int(rng.integers(1, most)))
            rows = rng.standard_normal((ids.shape[0], DIMS[name]), np.float32) * np.float32(0.02)
            gradients[name] = ids, rows
        intent = self._meant(gradients, rate)

        def push(client: Client) -> bool:
            client.push_many(gradients, rate)
            return True

        if self._attempt(actor, push):
            for shard in intent.parts:
                assert intent.applied[shard] == 1 or intent.lost, (
                    f"a push was answered, and shard {shard} has applied it {intent.applied[shard]} times"
                )

    def _meant(self, gradients: dict[str, Any], rate: float | None) -> Intent:
        """What each shard is to get of a push."""
        parts: dict[int, list[Part]] = {}
        for name, (ids, rows) in gradients.items():
            sums = naive.sum_duplicates(ids.tolist(), rows)
            for shard in range(SHARDS):
                mine = [one for one in sums if OWNER[one] == shard]
                if mine:
                    summed = np.stack([sums[one] for one in mine])
                    parts.setdefault(shard, []).append(Part(name, np.array(mine, np.uint64), summed, rate))
        intent = Intent({shard: tuple(mine) for shard, mine in parts.items()})
        for shard, part in intent.parts.items():
            self._intents[shard, fingerprint(part)] = intent
        while len(self._intents) > INTENTS_MAX:
            del self._intents[next(iter(self._intents))]
        return intent

    def _pull(self, actor: Actor) -> None:
        names = self.chance.sample(sorted(DIMS), self.chance.choice([1, 1, 2]))
        ids = {
            name: self.numbers.choice(
                IDS[: self.chance.choice([300, 4_000])], self.chance.choice([3, 10, 30])
            )
            for name in names
        }
        actor.seen.clear()
        read_only = self.chance.random() < 0.3
        rows = self._attempt(actor, lambda client: client.pull_many(ids, read_only=read_only))
        for name, found in (rows or {}).items():
            for one, row in zip(ids[name].tolist(), found, strict=True):
                assert actor.seen[name, one] == row.tobytes(), (
                    f"row {one} of {name!r} was mixed up on its way"
                )

    def _flush(self, actor: Actor) -> None:
        self._attempt(actor, lambda client: client.flush())

    def _settled(self, actor: Actor) -> None:
        client = actor.client
        assert client is not None
        try:
            client.flush()
        except (
            SequenceGapError,
            TableFrozenError,
        ):  # the push of before an end that took records; a frozen table
            return
        assert all(lane.pending is None for lane in client._cluster.lanes)

    def _checkpoint(self, actor: Actor) -> None:
        self._attempt(actor, lambda client: client.checkpoint())

    def _evict(self, actor: Actor) -> None:
        name = self.chance.choice(EVICTING)
        self._attempt(actor, lambda client: client.evict(name))

    def _freeze(self, actor: Actor) -> None:
        name = self.chance.choice(sorted(DIMS))
        mode: Any = self.chance.choice([*["off"] * 5, "refuse", "ignore"])
        self._attempt(actor, lambda client: client.freeze(name, mode))

    def _stats(self, actor: Actor) -> None:
        self._attempt(actor, lambda client: client.stats())

    def _reconnect(self, actor: Actor) -> None:
        actor.client = None

    def _save(self, actor: Actor) -> None:
        self._names += 1
        name = f"save-{self._names}"
        if self._client(actor) is None:
            return
        with self._alone():
            if self._attempt(actor, lambda client: _unless_refused(lambda: client.save_tables(name))):
                self.events["saves made"] += 1
                self._saves[name] = [host.saved() for host in self.hosts]
        if len(self._saves) > SAVES_MAX:
            self._drop(actor)

    def _drop(self, actor: Actor) -> None:
        if self._saves:
            name = next(iter(self._saves))
            del self._saves[name]
            self._attempt(actor, lambda client: client.drop_tables(name))

    # ------------------------------------------------------------ what operators and machines do
    def _host(self) -> Host:
        return self.chance.choice(self.hosts)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else's calls come in between."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _wait(self, _actor: Actor) -> None:
        self.now_s += self.chance.choice([1.0, 5.0, 5.0, 90.0])

    def _prefetch(self, _actor: Actor) -> None:
        host = self._host()
        ids = self.numbers.choice(host.pool, 30)
        self._quietly(lambda: host.run(lambda shard: shard.prefetch(self.chance.choice(sorted(DIMS)), ids)))

    def _count_rows(self, _actor: Actor) -> None:
        host = self._host()
        self._quietly(lambda: host.run(lambda shard: shard.count_rows()))

    def _check(self, _actor: Actor) -> None:
        for host in self.hosts:
            if not host.machine.dead:
                host.check()

    def _kill(self, _actor: Actor) -> None:
        self._host().kill()

    def _power_cut(self, _actor: Actor) -> None:
        self._host().kill(power_cut=True)

    def _end_in_the_middle(self, _actor: Actor) -> None:
        self._host().machine.steps_left = self.chance.randint(1, self.chance.choice([8, 60, 250]))

    def _refusal(self, _actor: Actor) -> None:
        self._host().machine.refusals_left = self.chance.randint(1, 40)

    def _clock_step(self, _actor: Actor) -> None:
        self._host().skew_s += self.chance.choice([-3600.0, -5.0, 5.0, 150.0])

    def _restart(self, _actor: Actor) -> None:
        host = self._host()
        if host.shard is not None and not host.machine.dead and host.shard.poison is None:
            with self._alone():
                host.close()

    def _restore(self, _actor: Actor) -> None:
        """Every shard is stopped, and put back to a save; what breaks it off is tried again."""
        if not self._saves:
            return
        name = self.chance.choice(sorted(self._saves))
        with self._alone():
            for host in self.hosts:
                if host.shard is None or host.machine.dead or self.chance.random() < 0.5:
                    host.kill()
                    host.bury()
                else:
                    host.close()
            for attempt in range(4):
                for host in self.hosts:
                    host.boot_machine(self.chance.randint(1, 40) if attempt < 3 else None)
                try:
                    restore_tables([host.folder for host in self.hosts], name)
                except Killed:
                    self.events["restores broken off"] += 1
                    for host in self.hosts:
                        self.disk.end(host.machine, power_cut=False)
                    continue
                break
            for host, kept in zip(self.hosts, self._saves[name], strict=True):
                assert not (host.folder / RESTORING).exists()
                self.disk.end(host.machine, power_cut=False)
                host.restored(kept)
        self.events["restores made"] += 1
        for intent in self._intents.values():
            intent.lost, intent.applied = True, Counter(dict.fromkeys(range(SHARDS), -9))
        self._intents.clear()
        self._saves = {name: self._saves[name]}
        for actor in self.actors:  # a cluster that was put back wants new clients
            actor.client = None

    def _quietly(self, call: Callable[[], Any]) -> None:
        with suppress(UnavailableError, StoreError):
            call()

    # ------------------------------------------------------------ the shards' side of a message
    def pull(self, index: int, data: bytes, actor: Actor) -> bytes:
        """A pull arrives; its rows are compared with the model's."""
        host, request = self.hosts[index], codec.decode_pull_request(data)
        answer = host.run(lambda shard: shard.pull(request))
        for part, rows in zip(request.tables, answer.tables, strict=True):
            expected = host.model.tables[part.table].pull(part.ids)
            if rows.rows.tobytes() != expected.tobytes():
                wrong = part.ids[(rows.rows != expected).any(axis=1)].tolist()
                raise AssertionError(
                    f"shard {index}, table {part.table!r}: a pull gave wrong rows of {wrong[:3]}"
                )
            keys = [(part.table, one) for one in part.ids.tolist()]
            actor.seen |= zip(keys, map(bytes, np.ascontiguousarray(rows.rows)), strict=True)
        return codec.encode_pull_response(answer)

    def push(self, index: int, data: bytes) -> bytes:
        """A push arrives; what the shard says of it must be right."""
        host, request = self.hosts[index], codec.decode_push_request(data)
        last = host.model.sessions.get(request.client_id, 0)
        change = None
        if request.sequence == last + 1 and host.shard is not None:
            change = self._change(host, request)
        try:
            answer = host.change(change, lambda shard: shard.push(request, data))
        except (PoisonedError, StoreError, UnavailableError):
            raise
        except RowhouseError as refusal:
            host.open_change = None
            kind = SequenceGapError if request.sequence > last + 1 else TableFrozenError
            if not isinstance(refusal, kind):
                text = f"push {request.sequence} after {last} was refused: {refusal!r}"
                raise AssertionError(text) from refusal
            raise
        told = "a repeat" if answer.duplicate else "new"
        assert answer.duplicate == (request.sequence <= last), (
            f"push {request.sequence} after {last} was answered as {told}"
        )
        if answer.duplicate:
            self.events["repeats answered"] += 1
        else:
            assert change is not None and isinstance(change.record, Pushed)
            self.events["pushes applied"] += 1
            host.applied(Change(pushed_at(change.record, answer.lsn), change.intent))
        return codec.encode_push_response(answer)

    def _change(self, host: Host, request: PushRequest) -> Change:
        """What a push is to change, as its author meant it."""
        assert host.shard is not None
        parts = tuple(Part(t.table, t.ids, t.gradients, t.learning_rate) for t in request.tables)
        intent = self._intents.get((host.index, fingerprint(parts)))
        if intent is not None:
            parts = intent.parts[host.index]
        else:  # so old that it is forgotten here, or from before a restore
            self.events["old pushes"] += 1
        thawed = tuple(p for p in parts if host.shard._tables[p.table].frozen != "ignore")
        time_s = int(host.clock() * 1000) // 1000
        record = Pushed(host.model.lsn + 1, request.client_id, request.sequence, thawed, time_s)
        return Change(record, intent)

    def call(self, index: int, method: str, data: bytes) -> bytes:
        """A control call arrives."""
        host, request = self.hosts[index], METHODS[method].read_request(data)
        change, wanted = None, None
        ticket = getattr(request, "ticket", 0)
        if ticket in host.answered:
            return self._answer_again(host, method, request)
        if method == "EvictRows" and host.shard is not None:
            ids = host.model.tables[request.table].victims(int(host.clock()))
            change = Change(Evicted(host.model.lsn + 1, request.table, ids)) if ids else None
        if method == "SetTableFreeze":
            wanted = {1: "off", 2: "refuse", 3: "ignore"}[request.mode]
            if host.shard is not None and not host.machine.dead:
                host.modes[request.table] |= {wanted}
        if ticket and host.shard is not None:
            host.answered[ticket] = None
        answer = host.change(change, lambda shard: shard.call(method, request))
        if wanted is not None:
            host.modes[request.table] = {wanted}
        if method == "EvictRows":
            expected = len(change.record.ids) if change and isinstance(change.record, Evicted) else 0
            assert answer.rows_evicted == expected, f"{answer.rows_evicted} rows were evicted, not {expected}"
            if change is not None:
                self.events["rows evicted"] += expected
                host.applied(change)
        encoded: bytes = answer.SerializeToString()
        if ticket:
            host.answered[ticket] = encoded
        return encoded

    def _answer_again(self, host: Host, method: str, request: Any) -> bytes:
        """A long call comes once more in one life of the shard: it gets what it got, and changes nothing."""
        lsn, failed = host.model.lsn, host.answered[request.ticket] is None
        answer = host.run(lambda shard: shard.call(method, request))
        encoded: bytes = answer.SerializeToString()
        assert not failed, f"{method} failed, and was answered when it came again"
        assert encoded == host.answered[request.ticket], f"{method} came again, and got another answer"
        assert host.shard is not None and host.shard._applied_lsn == lsn, f"{method} was made twice"
        self.events["long calls answered again"] += 1
        return encoded


def _unless_refused(call: Callable[[], Any]) -> Any:
    """The answer of a save; None where it was refused, as when a shard came back in the middle of it."""
    try:
        return call()
    except (SequenceGapError, TableFrozenError):
        raise
    except PreconditionError:
        return None


@contextmanager
def simulated(seed: int, without: frozenset[str] = frozenset()) -> Iterator[World]:
    """A world that runs in a folder of its own, in memory, with its clocks and its random numbers."""
    folder = Path(tempfile.mkdtemp(prefix="simulation", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        world = World(seed, folder, without)
        with ExitStack() as stack:
            stack.enter_context(world.disk)
            stack.enter_context(mock.patch.object(checkpoint, "boot_id", world.boot_id))
            stack.enter_context(mock.patch.object(saved, "open_store", world.open_copy))
            stack.enter_context(mock.patch("secrets.randbits", world.chance.getrandbits))
            logging.disable(logging.CRITICAL)
            stack.callback(logging.disable, logging.NOTSET)
            yield world
    finally:
        shutil.rmtree(folder)
