# SPDX-License-Identifier: Apache-2.0
"""Trainers and shards as queues: how many steps per second W trainers make on S shards.

A step pulls from all shards at once, waits for the slowest, works, pushes to all, and waits again. A shard
answers one call after another, in the order in which they come. A call asks all shards at one moment, and
moments are taken in their order; so the wait at a shard is Lindley's recursion (Lindley, 1952): a call is
done at max(its moment, when the one before was done) + its own service. All shards of a call are one line of
numpy, and 2,000 trainers on 256 shards take seconds.

What is left out: prefetching, retries, checkpoints, packets that are lost.

Invariants: 1. a seed gives the same result; 2. a shard serves in order of arrival, and is never idle while a
call waits. Thread safety: pure functions over immutable values.
"""

import heapq
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.error import ConfigError

SHIPPED: Final = Path(__file__).with_name("service.json")
FORMAT: Final = 1
STEPS_MIN: Final = 3000
STEPS_OF_EACH_MIN: Final = 4
"""Steps that are counted, of all trainers together and of each; one of each, or IGNORED_MIN, before them are
not."""

IGNORED_MIN: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Seconds of work, measured at one trainer and one shard.

    Attributes
    ----------
    pull_call_s, pull_id_s, push_call_s, push_id_s
        Of a shard, for a call and for each distinct id in it.
    client_step_s, client_call_s, client_id_s
        Of a trainer, for a step, for each shard that it calls in it, and for each distinct id.
    """

    pull_call_s: float
    pull_id_s: float
    push_call_s: float
    push_id_s: float
    client_step_s: float
    client_call_s: float
    client_id_s: float

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise ConfigError(f"{field.name} is {getattr(self, field.name)}; it must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What is simulated.

    Attributes
    ----------
    trainers, shards
        How many.
    step_ids
        Distinct ids of a trainer's step.
    model_s
        Seconds that a trainer's own model takes in each step.
    straggle
        Standard deviation of the logarithm of a trainer's time for a step (lognormal, its mean kept); 0: all
        steps take the same time.
    service_spread
        Standard deviation of a shard's service, as a share of its mean (gamma; 1 is exponential).
    slow_shard
        The last shard takes so many times as long as the others.
    hot_share
        Share of all ids that belong to the first shard beside its even part.
    link_bytes_per_s, id_bytes
        What a shard's and a trainer's network carry, each way, and the bytes of an id with its row. None: no
        bound.
    cores
        All trainers and shards share one machine, which does so much more than one of them alone would (two
        cores that share caches: less than 2); None: each has a machine of its own.
    """

    trainers: int
    shards: int
    step_ids: float
    model_s: float = 0.0
    straggle: float = 0.0
    service_spread: float = 0.0
    slow_shard: float = 1.0
    hot_share: float = 0.0
    link_bytes_per_s: float | None = None
    id_bytes: float = 72.0
    cores: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("trainers", 1), ("shards", 1), ("step_ids", 0), ("model_s", 0), ("straggle", 0),
                            ("service_spread", 0), ("slow_shard", 0), ("hot_share", 0)):  # fmt: skip
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.hot_share > 1:
            raise ConfigError(f"hot_share is {self.hot_share}; it must be 0 to 1")
        if self.link_bytes_per_s is not None and not self.link_bytes_per_s > 0:
            raise ConfigError(f"link_bytes_per_s is {self.link_bytes_per_s}; it must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it.

    Attributes
    ----------
    steps_per_s
        Of all trainers together.
    utilisation, utilisation_max
        Share of the time that a shard works: the mean, and the busiest one.
    p50_s, p99_s
        Time of a step.
    """

    trainers: int
    shards: int
    steps_per_s: float
    utilisation: float
    utilisation_max: float
    p50_s: float
    p99_s: float


class _Shards:
    """The queues of all shards: when each is done with what it was given, and how long it worked."""

    def __init__(self, cluster: Cluster, rng: np.random.Generator) -> None:
        self._cluster, self._rng = cluster, rng
        shares = np.full(cluster.shards, (1 - cluster.hot_share) / cluster.shards)
        shares[0] += cluster.hot_share
        self._ids = shares * cluster.step_ids
        self._factor = np.ones(cluster.shards)
        self._factor[-1] = cluster.slow_shard
        self.free_s: NDArray[np.float64] = np.zeros(cluster.shards)
        self._sent_s: NDArray[np.float64] = np.zeros(cluster.shards)  # when a shard's network is free
        self.worked_s: NDArray[np.float64] = np.zeros(cluster.shards)

    def call(self, at_s: float, call_s: float, id_s: float, thinking: int) -> float:
        """A call to all shards at `at_s`, the latest so far; when its last answer is there."""
        cluster, rng = self._cluster, self._rng
        ids = rng.poisson(self._ids)
        service = (call_s + id_s * ids) * self._factor
        if cluster.service_spread:
            shape = cluster.service_spread**-2
            service = service * rng.gamma(shape, 1 / shape, cluster.shards)
        if cluster.cores:
            service = service * max(1.0, (cluster.shards + thinking) / cluster.cores)
        asked = ids > 0  # a shard without ids of the step is not called
        if not asked.any():
            return at_s
        self.worked_s += service * asked
        self.free_s = np.where(asked, np.maximum(self.free_s, at_s) + service, self.free_s)
        if cluster.link_bytes_per_s is None:
            return float(self.free_s[asked].max())
        link_s = ids * (cluster.id_bytes / cluster.link_bytes_per_s)
        self._sent_s = np.where(asked, np.maximum(self._sent_s, self.free_s) + link_s, self._sent_s)
        return max(float(self._sent_s[asked].max()), at_s + float(link_s.sum()))


def simulate(service: Service, cluster: Cluster, seed: int = 0) -> Outcome:
    """Let the trainers make steps until enough were counted.

    Parameters
    ----------
    service
        Measured.
    cluster
        What there is.
    seed
        Of everything random.
    """
    rng = np.random.default_rng(seed)
    shards, trainers = _Shards(cluster, rng), cluster.trainers
    client_s = cluster.model_s + service.client_step_s + service.client_call_s * cluster.shards
    client_s += service.client_id_s * cluster.step_ids
    counted = max(STEPS_MIN, STEPS_OF_EACH_MIN * trainers)
    ignored = max(IGNORED_MIN, trainers)
    began_s = rng.random(trainers) * client_s  # nobody starts with everybody else
    # (moment, trainer, what it does then: 0 pulls, 1 has its rows, 2 pushes, 3 is told that it was applied)
    moments = [(at_s, trainer, 0) for trainer, at_s in enumerate(began_s.tolist())]
    heapq.heapify(moments)
    took_s: list[float] = []
    thinking, window_s, worked_s, at_s = 0, 0.0, shards.worked_s.copy(), 0.0
    while len(took_s) < ignored + counted:
        at_s, trainer, what = moments[0]
        next_s = at_s
        if what == 0:
            began_s[trainer] = at_s
            next_s = shards.call(at_s, service.pull_call_s, service.pull_id_s, thinking)
        elif what == 1:
            thinking += 1
            next_s += client_s
            if cluster.straggle:
                next_s += client_s * (rng.lognormal(-(cluster.straggle**2) / 2, cluster.straggle) - 1)
            if cluster.cores:
                busy = thinking + int((shards.free_s > at_s).sum())
                next_s += (next_s - at_s) * (max(1.0, busy / cluster.cores) - 1)
        elif what == 2:
            thinking -= 1
            next_s = shards.call(at_s, service.push_call_s, service.push_id_s, thinking)
        else:
            took_s.append(at_s - began_s[trainer])
            if len(took_s) == ignored:
                window_s, worked_s = at_s, shards.worked_s.copy()
        heapq.heapreplace(moments, (next_s, trainer, (what + 1) % 4))
    passed_s = max(at_s - window_s, 1e-12)
    busy_share = (shards.worked_s - worked_s) / passed_s
    p50, p99 = np.percentile(took_s[ignored:], [50, 99])
    return Outcome(
        trainers=trainers, shards=cluster.shards, steps_per_s=counted / passed_s,
        utilisation=min(float(busy_share.mean()), 1.0), utilisation_max=min(float(busy_share.max()), 1.0),
        p50_s=float(p50), p99_s=float(p99),
    )  # fmt: skip


def grid(service: Service, cluster: Cluster, trainers: list[int], shards: list[int]) -> list[Outcome]:
    """One outcome for each number of trainers on each number of shards, trainers first."""
    return [
        simulate(service, replace(cluster, trainers=count, shards=number))
        for count in trainers for number in shards
    ]  # fmt: skip


def read_service(path: Path | None = None) -> tuple[Service, Mapping[str, Any]]:
    """Measured services of a file, and the whole document; None: those shipped.

    Raises
    ------
    ConfigError
        The file holds something else.
    """
    path = path or SHIPPED
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ConfigError(f"{path}: format is {document['format']!r}; this program reads {FORMAT}")
        return Service(**document["service"]), document
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} holds no measured services: {type(error).__name__}: {error}") from None
