# SPDX-License-Identifier: Apache-2.0
"""The simulation of trainers and shards, held to queueing theory and to a naive event loop."""

import heapq
import math
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rowhouse.error import ConfigError

from ps_server.plan.simulation import Cluster, Outcome, Service, grid, read_service, simulate

NO_SERVICE = Service(
    pull_call_s=0.0, pull_id_s=0.0, push_call_s=0.0, push_id_s=0.0, client_step_s=0.0, client_call_s=0.0,
    client_id_s=0.0,
)  # fmt: skip
ONE = Cluster(trainers=1, shards=1, step_ids=1e5)


def repairman(customers: int, think_s: float, service_s: float) -> float:
    """Throughput of one exponential server with so many customers that think, `service_s` the sum of a
    customer's visits, by mean value analysis (Reiser and Lavenberg, 1980)."""
    queue, rate = 0.0, 0.0
    for count in range(1, customers + 1):
        wait_s = service_s * (1 + queue)
        rate = count / (wait_s + think_s)
        queue = rate * wait_s
    return rate


@pytest.mark.parametrize(("trainers", "think_s"), [(1, 0.01), (4, 0.01), (12, 0.01), (40, 0.02)])
def test_exponential_service_is_the_machine_repairman(trainers: int, think_s: float) -> None:
    """Two visits, a pull and a push; of a trainer's time throughput depends on the mean alone."""
    service = replace(NO_SERVICE, pull_call_s=0.001, push_call_s=0.001)
    cluster = replace(ONE, trainers=trainers, model_s=think_s, straggle=1.0, service_spread=1.0)
    found = [simulate(service, cluster, seed).steps_per_s for seed in range(3)]
    assert np.mean(found) == pytest.approx(repairman(trainers, think_s, 0.002), rel=0.05)


def test_the_utilisation_law() -> None:
    """Utilisation is throughput × service (Little's law of the server)."""
    service = replace(NO_SERVICE, pull_call_s=0.001, push_call_s=0.002)
    cluster = replace(ONE, trainers=3, shards=4, model_s=0.01, straggle=0.5, service_spread=0.5)
    found = simulate(service, cluster)
    assert found.utilisation == pytest.approx(found.steps_per_s * 0.003, rel=0.03)


def test_without_randomness_the_bounds_of_operational_analysis_are_met() -> None:
    """Steps/s <= min(trainers / a lone step, 1 / service), and a lone trainer makes just that."""
    service = replace(NO_SERVICE, pull_call_s=0.001, push_call_s=0.003, client_step_s=0.002)
    assert simulate(service, ONE).steps_per_s == pytest.approx(1 / 0.006, rel=1e-3)
    assert simulate(service, ONE).p50_s == pytest.approx(0.006)
    for trainers in (2, 3, 20):
        found = simulate(service, replace(ONE, trainers=trainers)).steps_per_s
        assert found <= min(trainers / 0.006, 1 / 0.004) * 1.001
    assert found == pytest.approx(1 / 0.004, rel=0.01)  # saturated
    assert simulate(service, replace(ONE, trainers=20)).utilisation == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_a_lone_call_waits_for_the_slowest_shard(shards: int) -> None:
    """The longest of n exponential services takes H_n times the mean."""
    service = replace(NO_SERVICE, push_call_s=0.001)
    found = simulate(service, replace(ONE, shards=shards, service_spread=1.0))
    harmonic = sum(1 / k for k in range(1, shards + 1))
    assert 1 / found.steps_per_s == pytest.approx(0.001 * harmonic, rel=0.06)


def test_a_shard_without_ids_of_a_step_is_not_called() -> None:
    """Of 50 shards two ids find nearly two: 1 - (1 - 1/50)^2 of the time is a shard at work."""
    service = replace(NO_SERVICE, push_call_s=0.001)
    found = simulate(service, replace(ONE, shards=50, step_ids=2.0, model_s=0.001))
    called = 50 * (1 - math.exp(-2 / 50))
    assert found.utilisation == pytest.approx(found.steps_per_s * 0.001 * called / 50, rel=0.05)


def naive(service: Service, cluster: Cluster, steps: int) -> float:
    """Steps/s without randomness, call by call, shard by shard, from queues that are lists."""
    ids = cluster.step_ids / cluster.shards
    waiting: list[deque[int]] = [deque() for _ in range(cluster.shards)]
    open_parts = [0] * cluster.trainers
    phase = [0] * cluster.trainers
    events: list[tuple[float, int, int]] = []  # moment, shard (-1: the trainer itself), trainer
    thinks_s = cluster.model_s + service.client_step_s + service.client_call_s * cluster.shards

    def serve(now_s: float, shard: int) -> None:
        trainer = waiting[shard][0]
        call = (service.pull_call_s, service.pull_id_s) if phase[trainer] == 0 else (
            service.push_call_s, service.push_id_s
        )  # fmt: skip
        heapq.heappush(events, (now_s + call[0] + call[1] * ids, shard, trainer))

    began_s = np.random.default_rng(0).random(cluster.trainers) * thinks_s  # as the simulation's: what is not
    for trainer, at_s in enumerate(began_s):  # random falls into step by how it began
        heapq.heappush(events, (at_s, -1, trainer))
    done, half_s, now_s = 0, 0.0, 0.0
    while done < steps:
        now_s, shard, trainer = heapq.heappop(events)
        if shard < 0:
            open_parts[trainer] = cluster.shards
            for each in range(cluster.shards):
                waiting[each].append(trainer)
                if len(waiting[each]) == 1:
                    serve(now_s, each)
            continue
        waiting[shard].popleft()
        open_parts[trainer] -= 1
        if waiting[shard]:
            serve(now_s, shard)
        if not open_parts[trainer]:
            done += phase[trainer]
            half_s = now_s if done == steps // 2 else half_s
            heapq.heappush(events, (now_s + (0.0 if phase[trainer] else thinks_s), -1, trainer))
            phase[trainer] = 1 - phase[trainer]
    return (steps - steps // 2) / (now_s - half_s)


@pytest.mark.parametrize(("trainers", "shards"), [(1, 3), (3, 2), (7, 4), (30, 2)])
def test_a_naive_event_loop_finds_the_same(trainers: int, shards: int) -> None:
    service = Service(
        pull_call_s=0.001, pull_id_s=0.0, push_call_s=0.0025, push_id_s=0.0, client_step_s=0.004,
        client_call_s=0.0003, client_id_s=0.0,
    )  # fmt: skip
    cluster = Cluster(trainers=trainers, shards=shards, step_ids=1000.0, model_s=0.001)
    assert simulate(service, cluster).steps_per_s == pytest.approx(naive(service, cluster, 3000), rel=0.02)


def test_a_seed_gives_the_same_again() -> None:
    service = replace(NO_SERVICE, pull_id_s=1e-6, push_id_s=2e-6)
    cluster = Cluster(trainers=5, shards=3, step_ids=900.0, model_s=0.001, straggle=0.3, service_spread=0.2)
    assert simulate(service, cluster, 7) == simulate(service, cluster, 7)
    assert simulate(service, cluster, 7) != simulate(service, cluster, 8)


def test_what_hurts() -> None:
    service = replace(NO_SERVICE, pull_id_s=1e-6, push_id_s=2e-6)
    cluster = Cluster(trainers=40, shards=8, step_ids=8000.0)
    good = simulate(service, cluster).steps_per_s
    assert good == pytest.approx(1 / 0.003, rel=0.1)
    assert simulate(service, replace(cluster, slow_shard=2.0)).steps_per_s == pytest.approx(
        1 / 0.006, rel=0.1
    )
    hot = 0.1 + 0.9 / 8  # of the ids are the first shard's
    assert simulate(service, replace(cluster, hot_share=0.1)).steps_per_s == pytest.approx(
        1 / (8000 * hot * 3e-6), rel=0.1
    )
    linked = replace(cluster, link_bytes_per_s=1e7, id_bytes=70.0)  # 7 ms for each of two calls
    assert simulate(service, linked).steps_per_s == pytest.approx(1 / 0.014, rel=0.1)
    shared = replace(cluster, cores=2)  # 24 ms of work for a step
    assert simulate(service, shared).steps_per_s == pytest.approx(2 / 0.024, rel=0.1)


def test_a_grid_has_each_point_and_the_largest_cluster_is_simulated() -> None:
    found = grid(NO_SERVICE, replace(ONE, model_s=0.01), [1, 2], [1, 3])
    assert [(one.trainers, one.shards) for one in found] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    service = replace(NO_SERVICE, push_call_s=0.001)
    large = simulate(service, Cluster(trainers=2000, shards=256, step_ids=15_000.0, service_spread=0.2))
    assert isinstance(large, Outcome) and 700 < large.steps_per_s <= 1050
    assert large.p50_s <= large.p99_s and math.isfinite(large.p99_s)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"trainers": 0}, "trainers is 0; it must be 1 or more"), ({"shards": 0}, "shards is 0"),
     ({"straggle": -1.0}, "straggle is -1.0"), ({"hot_share": 1.5}, "hot_share is 1.5; it must be 0 to 1"),
     ({"step_ids": math.nan}, "step_ids is nan"), ({"link_bytes_per_s": 0.0}, "link_bytes_per_s is 0.0")],
)  # fmt: skip
def test_a_cluster_that_cannot_be(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(ONE, **change)  # type: ignore[arg-type]


def test_the_shipped_services_are_read_and_near_their_real_runs(tmp_path: Path) -> None:
    service, document = read_service()
    assert {(point["trainers"], point["shards"]) for point in document["points"]} >= {(1, 1), (1, 2)}
    for point in document["points"]:
        cluster = Cluster(
            trainers=point["trainers"], shards=point["shards"], step_ids=document["step_ids"],
            cores=document["cores"],
        )  # fmt: skip
        again = simulate(service, cluster).steps_per_s
        assert again == pytest.approx(point["simulated_steps_per_s"], rel=0.02)
        assert abs(again / point["measured_steps_per_s"] - 1) < 0.35
    (tmp_path / "other.json").write_text('{"format": 1, "service": {"pull_s": 1}}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"other\.json holds no measured services"):
        read_service(tmp_path / "other.json")
