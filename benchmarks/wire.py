# SPDX-License-Identifier: Apache-2.0
"""wire.*: one client process and one shard process, TCP loopback.

Servers of others run beside ours in environments of their own (wire_server.py); torch in process, bare gRPC
and Arrow Flight run in this one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.batch import BATCH_IDS, DIM, Batch, load_batches
from benchmarks.contest import contest
from benchmarks.embedded import (
    ADAGRAD,
    TABLE,
    all_rows,
    create_rows,
    embedded_scratch,
    require_equal,
    table_config,
    write_log,
)
from benchmarks.peer_flight import NAME as FLIGHT_NAME
from benchmarks.peer_flight import FlightCalls
from benchmarks.peer_grpc import NAME as BARE_NAME
from benchmarks.peer_grpc import BareCalls
from benchmarks.server import serving, shard_arguments
from benchmarks.table_step import CHECK_BATCHES, ROUNDING, training_step
from benchmarks.wire_server import Contender, against_servers
from ps_client import connect
from ps_client.client import Client


@contextmanager
def remote(folder: Path, config: dict[str, Any]) -> Iterator[Client]:
    """A client of a fresh shard in a process of its own."""
    arguments = shard_arguments(folder, config)
    with (
        serving(arguments, folder / "output.txt") as server,
        connect(server.endpoint(), timeout_s=120.0) as client,
    ):
        yield client


def measure_pull(settings: Settings, name: str, distribution: str, goal: Goal) -> list[Bar]:
    """26,624 ids into the caller's array, beside bare gRPC carrying the distinct ids' bytes."""
    batches = load_batches(distribution, settings.cache, settings.ids)
    out = np.empty((BATCH_IDS, DIM), np.float32)
    scratch = settings.scratch
    with (
        remote(scratch / "shard", table_config(ADAGRAD)) as client,
        serving(["-m", "benchmarks.peer_grpc"], scratch / "bare.txt") as bare_server,
    ):
        create_rows(client, settings.ids)
        bare = BareCalls(bare_server.endpoint())

        def ours(batch: Batch) -> None:
            client.pull(TABLE, batch.requested, out)

        mine, wire = contest([ours, bare.pull], batches, settings)
        bare.close()
        what = f"pull over TCP, {distribution}"
        contender = Contender(name, what, "pull", ours, all_rows(client, settings.ids), goal, mine.millions)
        servers = against_servers(contender, batches, settings)
    detail = {
        **mine.detail("ours"), **wire.detail("bare_grpc"),
        "of_bare_grpc_time": float(np.median(np.divide(wire.ids_per_s, mine.ids_per_s))),
    }  # fmt: skip
    servers[0] = replace(servers[0], detail={**servers[0].detail, **detail})
    return servers


def measure_overhead(settings: Settings, name: str, distribution: str, goal: Goal) -> list[Bar]:
    """Time that the wire adds to a pull of distinct ids: remote less embedded, beside bare gRPC."""
    batches = load_batches(distribution, settings.cache, settings.ids)
    scratch, config = settings.scratch, table_config(ADAGRAD)
    with (
        remote(scratch / "shard", config) as far,
        embedded_scratch(settings, "embedded", config) as near,
        serving(["-m", "benchmarks.peer_grpc"], scratch / "bare.txt") as bare_server,
        serving(["-m", "benchmarks.peer_flight"], scratch / "flight.txt") as flight_server,
    ):
        bare, stream = BareCalls(bare_server.endpoint()), FlightCalls(flight_server.endpoint())
        for client in (far, near):
            create_rows(client, settings.ids)
        sample = batches[0].distinct
        require_equal(name, far.pull(TABLE, sample), near.pull(TABLE, sample), 0.0)
        sides = [lambda b: far.pull(TABLE, b.distinct), lambda b: near.pull(TABLE, b.distinct), bare.pull]
        sides.append(stream.pull)
        timings = contest(sides, batches, settings)
        bare.close()
        stream.close()
    # medians of batches: a difference of means would be that of the noise
    remote_s, local_s, bare_s, stream_s = (np.array(t.median_s) for t in timings)
    detail: dict[str, Any] = {}
    for timing, side in zip(timings, ("remote", "embedded", "bare_grpc", "bare_flight"), strict=True):
        detail |= timing.detail(side)
    detail |= {"remote_ms": float(np.median(remote_s) * 1e3), "embedded_ms": float(np.median(local_s) * 1e3)}
    what = f"wire time of a pull (remote less embedded), {distribution}"
    ours_ms, bare_ms = (remote_s - local_s) * 1e3, bare_s * 1e3
    bar = make_bar(name, what, "ms/pull", goal, ours_ms.tolist(), BARE_NAME, bare_ms.tolist(), detail)
    if ours_ms.min() <= 0:  # a difference that is not there cannot meet a goal
        bar = replace(bar, met=None, skipped="too noisy: a remote pull took less time than an embedded one")
    flight_ms = (stream_s * 1e3).tolist()
    return [
        bar,
        make_bar(f"{name}.flight", what, "ms/pull", None, ours_ms.tolist(), FLIGHT_NAME, flight_ms),
    ]


def measure_adagrad(
    settings: Settings, name: str, distribution: str, goal: Goal, server_goal: Goal
) -> list[Bar]:
    """An Adagrad step through the wire against torch in process without one."""
    from benchmarks.peer_torch import TorchTable  # noqa: PLC0415 # torch is optional

    batches = load_batches(distribution, settings.cache, settings.ids)
    with remote(settings.scratch / "shard", table_config(ADAGRAD, durability="os")) as client:
        create_rows(client, settings.ids)
        peer = TorchTable(all_rows(client, settings.ids))
        peer.prepare(batches)
        step = training_step(client)
        for batch in batches[:CHECK_BATCHES]:
            step(batch)
            peer.step(batch)
        for batch in batches[:CHECK_BATCHES]:
            require_equal(name, client.pull(TABLE, batch.distinct), peer.pull(batch), ROUNDING)
        peer.choose_threads(batches)
        before_run = write_log(client, batches, settings.seconds)
        mine, theirs = contest([step, peer.step], batches, settings, before_run)
        what = f"Adagrad step over TCP, {distribution}"
        start = np.zeros((settings.ids, DIM), np.float32)
        contender = Contender(
            f"{name}.server", what, "step", step, start, server_goal, mine.millions, before_run
        )
        servers = against_servers(contender, batches, settings)
    detail = {**mine.detail("ours"), **theirs.detail("peer"), "ours_durability": "os (push log)"}
    return [
        make_bar(name, what, "M rows/s", goal, mine.millions, peer.name, theirs.millions, detail),
        *servers,
    ]
