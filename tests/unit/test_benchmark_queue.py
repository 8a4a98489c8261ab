# SPDX-License-Identifier: Apache-2.0
"""wire_queue: services found again in runs that were made of them, a real run, and the plot."""

from pathlib import Path

import pytest

from benchmarks import figure
from benchmarks.wire_queue import LARGE_IDS, RUNS, SMALL_IDS, Found, calibrate, compared, real_cluster
from ps_server.plan.simulation import SHIPPED, Service

MADE = Service(
    pull_call_s=1e-4, pull_id_s=5e-8, push_call_s=3e-4, push_id_s=1e-7, client_step_s=2e-4,
    client_call_s=4e-4, client_id_s=6e-8,
)  # fmt: skip


def found(shards: int, trainers: int, ids: int, kind: str) -> Found:
    """What a run of MADE would find, no two calls ever waiting."""
    cpu_s = MADE.pull_call_s + MADE.pull_id_s * ids / shards
    if kind == "step":
        cpu_s += MADE.push_call_s + MADE.push_id_s * ids / shards
    client_s = MADE.client_step_s + MADE.client_call_s * shards + MADE.client_id_s * ids
    step_s = cpu_s + client_s
    return Found(
        trainers=trainers, steps_per_s=trainers / step_s, p50_s=step_s, p99_s=step_s, shard_cpu_s=cpu_s
    )


def test_the_services_are_those_that_made_the_runs() -> None:
    made = {key: found(*key) for key in RUNS}
    service = calibrate(made)
    for name in Service.__slots__:
        assert getattr(service, name) == pytest.approx(getattr(MADE, name), rel=1e-6), name
    lone = [point for point in compared(made, cores=100.0)["points"] if point["trainers"] == 1]
    assert len(lone) == 2 and all(abs(point["error"]) < 0.01 for point in lone)
    assert {ids for _, _, ids, _ in RUNS} == {SMALL_IDS, LARGE_IDS}


def test_two_trainers_on_two_real_shards(tmp_path: Path) -> None:
    with real_cluster(tmp_path, 2, 20_000) as cluster:
        run = cluster.run(2, 500, "step", 0.2)
    assert run.trainers == 2 and run.steps_per_s > 0 and 0 < run.p50_s <= run.p99_s and run.shard_cpu_s > 0


def test_the_plot_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure, "TRAINERS", (1, 2))
    monkeypatch.setattr(figure, "SHARDS", (1, 2))
    figure.plot_simulation(SHIPPED, tmp_path / "simulation.png")
    assert (tmp_path / "simulation.png").read_bytes().startswith(b"\x89PNG")
