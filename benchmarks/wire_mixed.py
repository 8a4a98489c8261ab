# SPDX-License-Identifier: Apache-2.0
"""wire.mixed: one shard under four client processes at once, two that step and two that only pull.

Two trainers and two readers, Zipf and uniform one each: what a shard meets while a model trains and is
evaluated. Every process times each of its batches; reported are p50 and p99 over all of a kind.
Run as a module it is one such client: `python -m benchmarks.wire_mixed ENDPOINT KIND DISTRIBUTION REQUEST`.
"""

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.bar import Bar, Settings, make_bar
from benchmarks.batch import BATCH_IDS, DIM, load_batches
from benchmarks.contest import CpuMeter
from benchmarks.embedded import ADAGRAD, TABLE, create_rows, table_config
from benchmarks.server import serving, shard_arguments
from benchmarks.table_step import training_step
from ps_client import connect

CLIENTS: Final = (("step", "zipf"), ("step", "uniform"), ("pull", "zipf"), ("pull", "uniform"))


def measure(settings: Settings, name: str, goal: None) -> list[Bar]:
    """p50 and p99 of both kinds of client, and what the shard answered in all."""
    scratch = settings.scratch
    for distribution in ("zipf", "uniform"):
        load_batches(distribution, settings.cache, settings.ids)  # drawn once, not by four at the same time
    with serving(shard_arguments(scratch / "shard", table_config(ADAGRAD)), scratch / "shard.txt") as server:
        with connect(server.endpoint()) as client:
            create_rows(client, settings.ids)
        meter = CpuMeter()
        answers = _together(server.endpoint(), settings)
        foreign = round(meter.foreign_cores(), 2)
    bars = []
    for kind in ("step", "pull"):
        mine = [answer for answer in answers if answer["kind"] == kind]
        took_ms = np.concatenate([answer["took_s"] for answer in mine]) * 1e3
        rates = [BATCH_IDS * len(a["took_s"]) / sum(a["took_s"]) / 1e6 for a in mine]
        p50, p99 = np.percentile(took_ms, [50, 99])
        detail = {
            "batches": len(took_ms), "p50_ms": float(p50), "p99_ms": float(p99), "foreign_cores": foreign,
            "slowest_ms": float(took_ms.max()), "M_ids_per_s_of_each": [round(rate, 2) for rate in rates],
        }  # fmt: skip
        what = f"{kind} under a mixed load of {len(CLIENTS)} client processes"
        unit = f"ms/{kind}"
        bars.append(make_bar(f"{name}.{kind}.p50", f"{what}, p50", unit, goal, [float(p50)], detail=detail))
        bars.append(make_bar(f"{name}.{kind}.p99", f"{what}, p99", unit, goal, [float(p99)], detail=detail))
    total = sum(BATCH_IDS * len(answer["took_s"]) / sum(answer["took_s"]) for answer in answers) / 1e6
    bars.append(make_bar(f"{name}.rate", "all clients of a mixed load together", "M rows/s", goal, [total]))
    return bars


def _together(endpoint: str, settings: Settings) -> list[dict[str, Any]]:
    """Start the clients, let all of them warm up, then run them at the same time."""
    seconds = settings.seconds * settings.runs
    request = json.dumps(
        {
            "cache": str(settings.cache),
            "ids": settings.ids,
            "seconds": seconds,
            "warmup": settings.warmup_batches,
        }
    )
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.wire_mixed", endpoint, kind, distribution, request],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )
            for kind, distribution in CLIENTS
        ]  # fmt: skip
        for client in clients:
            _line(client)  # ready
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        return [json.loads(_line(client)) for client in clients]


def _line(client: "subprocess.Popen[str]") -> str:
    assert client.stdout is not None
    line = client.stdout.readline()
    if not line:
        raise RuntimeError(f"a client of the mixed load ended with exit code {client.wait()}")
    return line


def run_client(endpoint: str, kind: str, distribution: str, request: dict[str, Any]) -> None:
    """Be one client: say "ready", wait for a line, work, print the seconds of each batch as JSON."""
    batches = load_batches(distribution, Path(request["cache"]), request["ids"])
    out = np.empty((BATCH_IDS, DIM), np.float32)
    with connect(endpoint, timeout_s=120.0) as client:
        step = training_step(client)
        side = (
            step if kind == "step" else lambda batch: client.pull(TABLE, batch.requested, out, read_only=True)
        )
        for batch in batches[-request["warmup"] :]:
            side(batch)
        print("ready", flush=True)
        sys.stdin.readline()
        took: list[float] = []
        until_s = time.perf_counter() + request["seconds"]
        while time.perf_counter() < until_s:
            before_s = time.perf_counter()
            side(batches[len(took) % len(batches)])
            took.append(time.perf_counter() - before_s)
    print(json.dumps({"kind": kind, "distribution": distribution, "took_s": took}), flush=True)


if __name__ == "__main__":
    run_client(sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
