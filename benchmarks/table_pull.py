# SPDX-License-Identifier: Apache-2.0
"""table.pull.*: 26,624 requested ids into the caller's (26624, 16) float32 array, every row in memory.

All sides do the whole job: dedup, look up each distinct id once, write every requested row in order. With
--peers rocksdb_c, RocksDB's C API stands beside it too, in a process of its own (peer/rocksdb_c.py).
"""

from dataclasses import replace
from typing import Final

import numpy as np

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.batch import BATCH_IDS, DIM, Batch, ids_of, load_batches
from benchmarks.contest import Step, contest
from benchmarks.embedded import (
    SGD,
    TABLE,
    all_rows,
    create_rows,
    embedded_scratch,
    require_equal,
    table_config,
)
from benchmarks.peer_rocksdict import RocksTable
from benchmarks.wire_server import Contender, against_servers
from ps_client.kernel import gather

C_API: Final = "rocksdb_c"
"""The peer that is no server: the limit of a store of rows on RocksDB, without Python between."""


def rocks_pull(table: RocksTable, out: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Step:
    """The peer's pull: np.unique gives ascending keys, for which multi_get is fastest; our gather."""

    def step(batch: Batch) -> None:
        distinct, inverse = np.unique(batch.requested, return_inverse=True)
        gather(table.get(distinct), inverse.astype(np.int64, copy=False), out)

    return step


def measure(settings: Settings, name: str, distribution: str, goal: Goal) -> list[Bar]:
    """Ours against RocksDB with everything cached."""
    batches = load_batches(distribution, settings.cache, settings.ids)
    ours_out, peer_out = np.empty((BATCH_IDS, DIM), np.float32), np.empty((BATCH_IDS, DIM), np.float32)
    with embedded_scratch(settings, "table", table_config(SGD)) as client:
        create_rows(client, settings.ids)
        peer = RocksTable(settings.scratch / "rocks", ids_of(0, settings.ids), all_rows(client, settings.ids))
        pull = rocks_pull(peer, peer_out)

        def ours(batch: Batch) -> None:
            client.pull(TABLE, batch.requested, ours_out)

        for batch in batches[:4]:
            ours(batch)
            pull(batch)
            require_equal(name, ours_out, peer_out, 0.0)
        mine, theirs = contest([ours, pull], batches, settings)
        peer.close()
        what = f"pull, {distribution}, all in memory"
        further: list[Bar] = []
        if C_API in settings.peers:
            contender = Contender(
                name, what, "pull", ours, all_rows(client, settings.ids), goal, mine.millions
            )
            further = against_servers(contender, batches, replace(settings, peers=(C_API,)))[1:]
    detail = {**mine.detail("ours"), **theirs.detail("peer"), "ids": settings.ids}
    bar = make_bar(name, what, "M rows/s", goal, mine.millions, peer.name, theirs.millions, detail)
    return [bar, *further]
