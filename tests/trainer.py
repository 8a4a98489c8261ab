# SPDX-License-Identifier: Apache-2.0
"""A trainer's process for tests of trainers that keep pace: `python -m tests.trainer JSON`.

Each step pulls its batch's rows and pushes a gradient that is a function of them, so an old or missing row
changes everything after it. With `all_ranks` one process makes the steps of all of them. It prints a line of
JSON for each step that ended, then one with what it knows at the end, or with the error that ended it.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rowhouse.error import RowhouseError

from ps_client import StepClient, connect

ROOT = Path(__file__).resolve().parent.parent
POOL = np.random.default_rng(0).integers(0, 2**64, 300, np.uint64)
TABLES: list[dict[str, Any]] = [
    {"name": "user", "dim": 8, "optimizer": {"kind": "adagrad", "learning_rate": 0.05}},
    {"name": "item", "dim": 3, "dtype": "fp16", "optimizer": {"kind": "adam", "learning_rate": 0.01}},
]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a trainer's process does."""

    endpoints: str
    group: str
    rank: int
    trainers: int
    steps: int
    pace: str = "bsp"
    staleness: int = 0
    deadline_s: float = 30.0
    on_lost: str = "stop"
    on_uneven: str = "stop"
    all_ranks: int = 0
    steps_of: tuple[int, ...] = ()  # by rank, of one process for all of them; () is `steps` for each
    sleep_s: float = 0.0
    journal: str | None = None


def batch(table: str, rank: int, step: int) -> NDArray[np.uint64]:
    """Ids of one trainer's step, duplicates among them; the third trainer's even steps have none."""
    rng = np.random.default_rng([rank, step, len(table)])
    count = 0 if rank == 2 and step % 2 == 0 else 60
    ids: NDArray[np.uint64] = POOL[rng.zipf(1.3, count).astype(np.int64) % POOL.shape[0]]
    return ids


def gradients(
    client: StepClient, rank: int, step: int
) -> dict[str, tuple[NDArray[np.uint64], NDArray[np.float32]]]:
    """One trainer's part of a step, for push_many."""
    ids = {table["name"]: batch(table["name"], rank, step) for table in TABLES}
    rows = client.pull_many(ids)
    noise = np.random.default_rng([7, rank, step])
    return {n: (ids[n], 0.2 * r + noise.normal(size=r.shape).astype(np.float32)) for n, r in rows.items()}


def rows_of(client: StepClient) -> dict[str, NDArray[np.float32]]:
    """Every row that training may have touched."""
    return {table["name"]: client.pull(table["name"], POOL, read_only=True) for table in TABLES}


def start(job: Job) -> "subprocess.Popen[str]":
    """Start the process; its stdout is a pipe."""
    command = [sys.executable, "-m", "tests.trainer", json.dumps(asdict(job))]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def facts_of(process: "subprocess.Popen[str]", timeout_s: float = 1_200.0) -> list[dict[str, Any]]:
    """What it printed, once it has ended."""
    output, _ = process.communicate(timeout=timeout_s)
    return [json.loads(line) for line in output.splitlines()]


def _say(**facts: Any) -> None:
    print(json.dumps({**facts, "time_s": time.monotonic()}), flush=True)


def _run(job: Job) -> None:
    ranks = range(job.all_ranks) if job.all_ranks else [job.rank]
    with connect(job.endpoints, timeout_s=60) as client:
        trainer = client.trainer(
            group=job.group, rank=job.rank, world_size=job.trainers, pace=job.pace,  # type: ignore[arg-type]
            staleness=job.staleness, deadline_s=job.deadline_s, on_lost=job.on_lost,  # type: ignore[arg-type]
            on_uneven=job.on_uneven, journal=job.journal,  # type: ignore[arg-type]
        )  # fmt: skip
        for step in range(trainer.steps, job.steps):
            if job.rank % 2 == 0:  # some prefetch, some do not
                trainer.prefetch(
                    {table["name"]: batch(table["name"], job.rank, step + 1) for table in TABLES}
                )
            for rank in ranks:
                if step < (job.steps_of[rank] if job.steps_of else job.steps):
                    trainer.push_many(gradients(trainer, rank, step))
            time.sleep(job.sleep_s)
            trainer.step()
            _say(step=trainer.steps)
        _say(ended=trainer.steps, lost=trainer.lost, left=trainer.left)


if __name__ == "__main__":
    try:
        _run(Job(**json.loads(sys.argv[1])))
    except RowhouseError as failure:
        _say(error=type(failure).__name__, text=str(failure))
