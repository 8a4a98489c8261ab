# SPDX-License-Identifier: Apache-2.0
"""Measured services of trainers and shards, and the plan's simulation beside real runs of 1 and 2 shards.

    python -m benchmarks.wire_queue --output ps_server/plan/service.json
    python -m benchmarks.wire_queue --plot docs/simulation.png

One trainer on one shard with two sizes of a step gives the seconds of a shard per call and per id (CPU of its
process), and the trainer's (the rest of the step). One trainer on two shards with small steps gives what each
further shard costs a trainer. Two trainers, each with a shard of its own, tell how much the cores of this
machine do at once. What several trainers do on one and on two shards is then simulated and measured.
`psctl plan --simulate` takes the file. There is no push log: what the kernel writes back takes cores that no
queue knows.

Run with an endpoint it is one trainer: it says "ready", waits for a line, works, and prints JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from rowhouse.mix import mix64

from benchmarks.batch import DIM, IDS
from benchmarks.embedded import ADAGRAD, TABLE, create_rows, table_config
from benchmarks.figure import plot_simulation
from benchmarks.server import serving, shard_arguments
from ps_client import connect
from ps_server.plan.simulation import FORMAT, SHIPPED, Cluster, Service, simulate

SMALL_IDS, LARGE_IDS = 2_000, 15_000
"""Distinct ids of a step; the larger one is about what a Zipf batch of 26,624 ids has."""

BATCHES: Final = 64
POINTS: Final = tuple((trainers, shards) for shards in (1, 2) for trainers in (1, 2, 4))


@dataclass(frozen=True, slots=True)
class Found:
    """One run: steps per second, their times, and CPU seconds of a shard per step."""

    trainers: int
    steps_per_s: float
    p50_s: float
    p99_s: float
    shard_cpu_s: float

    @property
    def client_s(self) -> float:
        """What a trainer's step takes beside its shard's work."""
        return self.trainers / self.steps_per_s - self.shard_cpu_s


class RealCluster:
    """Shards in processes of their own, and their rows.

    Parameters
    ----------
    endpoints
        Where they serve.
    processes
        By shard.
    """

    def __init__(self, endpoints: str, processes: list[psutil.Process]) -> None:
        self.endpoints, self.processes = endpoints, processes

    def cpu_s(self) -> float:
        """CPU seconds of all shards so far."""
        times = [process.cpu_times() for process in self.processes]
        return sum(one.user + one.system for one in times)

    def run(self, trainers: int, ids: int, kind: str, seconds: float) -> Found:
        """Let so many trainers work at the same time."""
        words = ["--endpoint", self.endpoints, "--ids", str(ids), "--kind", kind, "--seconds", str(seconds)]
        with ExitStack() as stack:
            children = [
                stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-m", "benchmarks.wire_queue", *words, "--seed", str(seed)],
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                    )
                )
                for seed in range(trainers)
            ]  # fmt: skip
            for child in children:
                _line(child)
            before_s = self.cpu_s()
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            answers = [json.loads(_line(child)) for child in children]
            spent_s = self.cpu_s() - before_s
        took_s = np.concatenate(answers)
        return Found(
            trainers=trainers, steps_per_s=sum(len(took) / sum(took) for took in answers),
            p50_s=float(np.percentile(took_s, 50)), p99_s=float(np.percentile(took_s, 99)),
            shard_cpu_s=spent_s / len(self.processes) / took_s.shape[0],
        )  # fmt: skip


def _line(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    if not (line := child.stdout.readline()):
        raise RuntimeError(f"a trainer ended with exit code {child.wait()}")
    return line


@contextmanager
def real_cluster(folder: Path, shards: int, rows: int) -> Iterator[RealCluster]:
    """Fresh shards that hold `rows` rows."""
    from benchmarks.peer.driver import free_port  # noqa: PLC0415 # as wire_shards.py

    endpoints = [f"127.0.0.1:{free_port()}" for _ in range(shards)]
    config = {**table_config(ADAGRAD, durability="none", memory_budget="2GiB"), "shards": endpoints}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serving(shard_arguments(folder, config, i), folder / f"shard-{i}.txt"))
            for i in range(shards)
        ]
        for server in servers:
            server.endpoint()
        with connect(",".join(endpoints), timeout_s=120.0) as client:
            create_rows(client, rows)
            client.checkpoint()
        yield RealCluster(",".join(endpoints), [psutil.Process(server.process.pid) for server in servers])


def be_trainer(arguments: argparse.Namespace) -> None:
    """Work as one trainer, as the parent says."""
    rng = np.random.default_rng(arguments.seed)
    batches = [
        np.unique(mix64(rng.integers(0, arguments.rows, arguments.ids).astype(np.uint64)))
        for _ in range(BATCHES)
    ]
    gradients = rng.standard_normal((arguments.ids, DIM)).astype(np.float32) * np.float32(0.01)
    with connect(arguments.endpoint, timeout_s=120.0) as client:

        def step(number: int) -> float:
            ids = batches[number % BATCHES]
            began_s = time.perf_counter()
            client.pull(TABLE, ids)
            if arguments.kind == "step":
                client.push(TABLE, ids, gradients[: ids.shape[0]])
            return time.perf_counter() - began_s

        for number in range(BATCHES):
            step(number)
        print("ready", flush=True)
        sys.stdin.readline()
        took: list[float] = []
        until_s = time.perf_counter() + arguments.seconds
        while time.perf_counter() < until_s:
            took.append(step(len(took)))
    print(json.dumps(took), flush=True)


Key = tuple[int, int, int, str]
"""A run: shards, trainers, ids of a step, kind."""

RUNS: Final[tuple[Key, ...]] = (
    (1, 1, SMALL_IDS, "step"), (1, 1, LARGE_IDS, "step"),
    (1, 1, SMALL_IDS, "pull"), (1, 1, LARGE_IDS, "pull"), (2, 1, SMALL_IDS, "step"),
    *((shards, trainers, LARGE_IDS, "step") for trainers, shards in POINTS[1:]),
)  # fmt: skip


def calibrate(found: Mapping[Key, Found]) -> Service:
    """Services by what one trainer sees of a step, and the CPU that the shard took."""
    small, large = found[1, 1, SMALL_IDS, "step"], found[1, 1, LARGE_IDS, "step"]
    pulls = [found[1, 1, ids, "pull"].shard_cpu_s for ids in (SMALL_IDS, LARGE_IDS)]
    ids = LARGE_IDS - SMALL_IDS
    step_id_s, pull_id_s = (large.shard_cpu_s - small.shard_cpu_s) / ids, (pulls[1] - pulls[0]) / ids
    pull_call_s = pulls[0] - pull_id_s * SMALL_IDS
    push_call_s = small.shard_cpu_s - step_id_s * SMALL_IDS - pull_call_s
    client_id_s = (large.client_s - small.client_s) / ids
    fixed_s = small.client_s - client_id_s * SMALL_IDS
    client_call_s = min(found[2, 1, SMALL_IDS, "step"].client_s - small.client_s, fixed_s)
    return Service(
        pull_call_s=max(pull_call_s, 0.0), pull_id_s=max(pull_id_s, 0.0), push_call_s=max(push_call_s, 0.0),
        push_id_s=max(step_id_s - pull_id_s, 0.0), client_step_s=max(fixed_s - client_call_s, 0.0),
        client_call_s=max(client_call_s, 0.0), client_id_s=max(client_id_s, 0.0),
    )  # fmt: skip


def measure(seconds: float, rounds: int, rows: int, scratch: Path) -> dict[str, Any]:
    """Services, and each point simulated and measured; of each run the best of so many rounds."""
    found: dict[Key, list[Found]] = {key: [] for key in RUNS}
    together_per_s = []
    with (
        real_cluster(scratch / "one", 1, rows) as one,
        real_cluster(scratch / "apart", 1, rows) as apart,
        real_cluster(scratch / "two", 2, rows) as two,
        ThreadPoolExecutor() as both,
    ):
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for key in RUNS:
                found[key].append((one if key[0] == 1 else two).run(*key[1:], seconds))
            pairs = both.map(lambda cluster: cluster.run(1, LARGE_IDS, "step", seconds), (one, apart))
            together_per_s.append(sum(pair.steps_per_s for pair in pairs))
    best = {key: best_of(several) for key, several in found.items()}
    cores = max(max(together_per_s) / best[1, 1, LARGE_IDS, "step"].steps_per_s, 1.0)
    return {
        "format": FORMAT, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "step_ids": LARGE_IDS, "cores": cores, **compared(best, cores),
    }  # fmt: skip


def best_of(several: Sequence[Found]) -> Found:
    """The fastest: what else runs on a machine makes a run slower, never faster."""
    return max(several, key=lambda found: found.steps_per_s)


def compared(found: Mapping[Key, Found], cores: float) -> dict[str, Any]:
    """The services, and the simulation of each point beside what was measured."""
    service, points = calibrate(found), []
    for trainers, shards in POINTS:
        real = found[shards, trainers, LARGE_IDS, "step"]
        planned = simulate(
            service, Cluster(trainers=trainers, shards=shards, step_ids=LARGE_IDS, cores=cores)
        )
        points.append(
            {
                "trainers": trainers, "shards": shards, "measured_steps_per_s": real.steps_per_s,
                "simulated_steps_per_s": planned.steps_per_s,
                "error": planned.steps_per_s / real.steps_per_s - 1,
                "measured_p50_s": real.p50_s, "simulated_p50_s": planned.p50_s,
                "measured_p99_s": real.p99_s, "simulated_p99_s": planned.p99_s,
            }
        )  # fmt: skip
    return {"service": asdict(service), "points": points}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire_queue", description=__doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the measured services go")
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw what --output holds already, and measure nothing"
    )
    parser.add_argument("--seconds", type=float, default=1.5, help="of each run")
    parser.add_argument("--rounds", type=int, default=6, help="how often each run is made")
    parser.add_argument("--rows", type=int, default=IDS, help="of the table")
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    parser.add_argument("--ids", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=["pull", "step"], help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.endpoint:
        be_trainer(arguments)
        return
    if arguments.plot:
        plot_simulation(arguments.output or SHIPPED, arguments.plot)
        return
    with tempfile.TemporaryDirectory(prefix="rowhouse-queue-") as scratch:
        document = measure(arguments.seconds, arguments.rounds, arguments.rows, Path(scratch))
    text = json.dumps(document, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
