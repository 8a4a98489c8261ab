# SPDX-License-Identifier: Apache-2.0
"""table.reopen.*: seconds from the start of a shard that was killed to its first answer.

A real `ps-server serve`: rows in the store, then pushes until its log is as long as asked, then SIGKILL.
The log stays until a checkpoint, so each run recovers from the same one.
"""

import time
from typing import Any

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.batch import load_batches
from benchmarks.embedded import ADAGRAD, TABLE, require_equal, table_config
from benchmarks.server import Server, serving, shard_arguments
from benchmarks.table_load import fill
from ps_client import connect


def measure(settings: Settings, name: str, distribution: str, goal: Goal) -> list[Bar]:
    """Kill -9, start, first pull; what was acknowledged must be there, bit for bit."""
    scratch, data = settings.scratch, settings.scratch / "table"
    config: dict[str, Any] = table_config(ADAGRAD, durability="os")
    fill(data, config, settings.rows)
    arguments = shard_arguments(scratch / "server", {**config, "data_dir": str(data)})
    batches = load_batches(distribution, settings.cache, settings.rows)
    sample = batches[0].distinct
    with serving(arguments, scratch / "first.txt") as server, connect(server.endpoint()) as client:
        while client.stats()[0].log_bytes < settings.log_bytes:
            for batch in batches[:16]:
                client.push(TABLE, batch.distinct, batch.gradients)
            batches = batches[16:] + batches[:16]
        stats = client.stats()[0]
        before = client.pull(TABLE, sample)
        server.kill()
    taken_s = []
    for run in range(settings.runs):
        began_s = time.monotonic()
        again = Server(arguments, scratch / f"again-{run}.txt")
        try:
            with connect(again.endpoint()) as client:
                after = client.pull(TABLE, sample)
                taken_s.append(time.monotonic() - began_s)
        finally:
            again.kill()
        require_equal(name, before, after, 0.0)
    log_gb = stats.log_bytes / 1e9
    detail = {"rows": settings.rows, "log_bytes": stats.log_bytes, "log_records": stats.log_records}
    what = (
        f"kill -9 to the first answer, {settings.rows / 1e6:g} M rows, {log_gb:.2f} GB of log, {distribution}"
    )
    return [make_bar(name, what, "s", goal, taken_s, detail=detail)]
