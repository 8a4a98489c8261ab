# SPDX-License-Identifier: Apache-2.0
"""wire.shards: two shards beside one, under pushes from one client process, on the same machine.

Push heavy: every batch is one push of its distinct ids, no pull. The client takes a core's share of its own,
so on two cores two shards cannot do twice as much.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.batch import Batch, load_batches
from benchmarks.contest import Step, contest
from benchmarks.embedded import ADAGRAD, TABLE, create_rows, require_equal, table_config, write_log
from benchmarks.server import serving, shard_arguments
from ps_client import connect
from ps_client.client import Client

CHECK_BATCHES = 2


def _cluster(stack: ExitStack, folder: Path, shards: int) -> Client:
    """A client of a fresh cluster; each shard a process on a port that the parent found free."""
    from benchmarks.peer.driver import free_port  # noqa: PLC0415 # only this workload needs fixed ports

    endpoints = [f"127.0.0.1:{free_port()}" for _ in range(shards)]
    config: dict[str, Any] = table_config(ADAGRAD, durability="os", memory_budget="2GiB")
    for index in range(shards):
        arguments = shard_arguments(folder, {**config, "shards": endpoints}, index)
        server = stack.enter_context(serving(arguments, folder / f"shard-{index}.txt"))
        server.endpoint()
    return stack.enter_context(connect(",".join(endpoints), timeout_s=120.0))


def _push(client: Client) -> Step:
    def step(batch: Batch) -> None:
        client.push(TABLE, batch.distinct, batch.gradients)

    return step


def measure(settings: Settings, name: str, distribution: str, goal: Goal) -> list[Bar]:
    """Pushes to two shards and to one, in turns; both hold the same rows at the start."""
    batches = load_batches(distribution, settings.cache, settings.ids)
    with ExitStack() as stack:
        clients = [_cluster(stack, settings.scratch / f"of-{count}", count) for count in (2, 1)]
        for client in clients:
            create_rows(client, settings.ids)
        sides = [_push(client) for client in clients]
        for batch in batches[:CHECK_BATCHES]:
            for side in sides:
                side(batch)
        ids = batches[0].distinct
        require_equal(name, clients[0].pull(TABLE, ids), clients[1].pull(TABLE, ids), 0.0)
        before_run = [write_log(client, batches, settings.seconds) for client in clients]
        two, one = contest(sides, batches, settings, lambda: [before() for before in before_run])
    what = f"pushes to two shards on one machine, {distribution}"
    detail = {**two.detail("ours"), **one.detail("peer")}
    return [make_bar(name, what, "M rows/s", goal, two.millions, "one shard", one.millions, detail)]
