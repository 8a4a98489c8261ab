# SPDX-License-Identifier: Apache-2.0
"""`psctl plan --simulate`: steps per second against trainers and shards, and what hurts.

Thread safety: a process's main thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from ps_server.plan.network import Network
from ps_server.plan.simulation import Cluster, Outcome, Service, grid, read_service, simulate

TROUBLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "nothing": {},
    "trainers straggle: a step's time is lognormal, 0.5": {"straggle": 0.5},
    "one shard takes 3 times as long": {"slow_shard": 3.0},
    "one shard has 5 % of the ids more": {"hot_share": 0.05},
    "networks of 10 Gbit/s": {"link_bytes_per_s": 1.25e9},
}
"""What may go wrong, one at a time."""


def sizes(largest: int) -> list[int]:
    """Four sizes up to the largest, each four times the one before."""
    return sorted({max(largest // 4**power, 1) for power in range(4)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A cluster, its outcome by trainers and shards, and with each trouble.

    Attributes
    ----------
    cluster, service
        What was simulated.
    machine
        Where and when the services were measured.
    points
        Real runs of one and two shards beside the simulation.
    grid, troubles
        Outcomes.
    """

    cluster: Cluster
    service: Service
    machine: str
    points: list[dict[str, float]]
    grid: list[Outcome]
    troubles: dict[str, Outcome]


def simulated(network: Network, shards: int, model_s: float) -> Simulation:
    """What so many trainers do on so many shards, on fewer ones, and in trouble."""
    service, document = read_service()
    id_bytes = network.client_bytes / network.distinct_ids / 2  # there is as much in either direction, about
    cluster = Cluster(
        trainers=network.traffic.trainers, shards=shards, step_ids=network.distinct_ids, model_s=model_s,
        id_bytes=id_bytes,
    )  # fmt: skip
    return Simulation(
        cluster=cluster, service=service, machine=f"{document['machine']}, {document['time'][:10]}",
        points=document["points"],
        grid=grid(service, cluster, sizes(cluster.trainers), sizes(shards)),
        troubles={
            name: simulate(service, replace(cluster, **change)) for name, change in TROUBLES.items()
        },
    )  # fmt: skip


def show(simulation: Simulation, console: Console) -> None:
    """Print it."""
    _show_grid(simulation.grid, simulation.cluster, console)
    shown = Table("trouble", "steps/s", "busiest shard", "p50", "p99", title="what hurts, one at a time")
    for name, outcome in simulation.troubles.items():
        shown.add_row(name, *_cells(outcome))
    console.print(shown)
    worst = max(abs(point["error"]) for point in simulation.points)
    console.print(
        f"services measured on {simulation.machine}; a core for each shard; real runs of 1 and 2 shards "
        f"differ from the simulation by up to {worst:.0%}",
        highlight=False,
    )


def _cells(outcome: Outcome) -> tuple[str, ...]:
    return (
        f"{outcome.steps_per_s:,.0f}", f"{outcome.utilisation_max:.0%}", f"{outcome.p50_s * 1e3:,.1f} ms",
        f"{outcome.p99_s * 1e3:,.1f} ms",
    )  # fmt: skip


def _show_grid(found: list[Outcome], cluster: Cluster, console: Console) -> None:
    title = (
        f"simulated: steps/s of all trainers (utilisation of shards; p99 of a step); "
        f"{cluster.step_ids:,.0f} distinct ids a step, {cluster.model_s * 1e3:g} ms of the model"
    )
    shards = sorted({outcome.shards for outcome in found})
    table = Table("trainers", *(f"{count} shards" for count in shards), title=title)
    for trainers in sorted({outcome.trainers for outcome in found}):
        cells = [
            f"{o.steps_per_s:,.0f} ({o.utilisation:.0%}; {o.p99_s * 1e3:,.0f} ms)"
            for o in found if o.trainers == trainers
        ]  # fmt: skip
        table.add_row(f"{trainers:,}", *cells)
    console.print(table)
