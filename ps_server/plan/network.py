# SPDX-License-Identifier: Apache-2.0
"""What training steps send: bytes of a trainer and of a shard, and connections.

A trainer pulls the distinct ids of its step and pushes one gradient for each (ps_client/split.py), so what
counts is how many distinct ids a batch has. Rows and gradients travel as fp32, whatever the table keeps.

Thread safety: pure functions over immutable values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.error import ConfigError

from ps_server.disk.row import ID_BYTES

BATCH_IDS: Final = 26_624
"""Of the benchmarks: 1,024 samples with 26 features."""

ALPHA: Final = 1.05
"""Of the benchmarks' Zipf distribution: the id of rank r is asked for r^-ALPHA as often as the first."""

WIRE_BYTES: Final = 4
"""Of a weight and of a gradient on the wire: fp32, which is what a client asks for unless it is told."""

MESSAGE_BYTES: Final = 80
"""Frame head, fields and table's name of a message beside its arrays (tests hold it to the codec)."""

CONNECTIONS: Final = 2
"""Of a trainer to a shard: one to each of its ports. A trainer that prefetches holds another one."""

EXACT_RANKS: Final = 1 << 16
"""The most frequent ids are summed one by one, the others in BINS groups of neighbours."""

BINS: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Who trains.

    Attributes
    ----------
    trainers
        Processes that pull and push.
    batch_ids
        Ids of a trainer's step, repeats included.
    """

    trainers: int
    batch_ids: int = BATCH_IDS

    def __post_init__(self) -> None:
        for name in ("trainers", "batch_ids"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A step of every trainer, in bytes of messages, TCP's own headers left out.

    Attributes
    ----------
    traffic
        Who trains.
    distinct_ids
        Of a trainer's step, expected where ids are Zipf distributed.
    ids_bytes, rows_bytes, push_bytes
        Of a trainer's step: the ids that it asks for, the rows that it gets (and the word that its push was
        applied), the gradients that it pushes.
    client_bytes
        Their sum.
    shard_in_bytes, shard_out_bytes
        What a shard gets and gives in a step of all trainers.
    shard_connections, connections
        To a shard, and to all.
    """

    traffic: Traffic
    distinct_ids: float
    ids_bytes: float
    rows_bytes: float
    push_bytes: float
    shard_in_bytes: float
    shard_out_bytes: float
    shard_connections: int
    connections: int

    @property
    def client_bytes(self) -> float:
        """All bytes of a trainer's step, both ways."""
        return self.ids_bytes + self.rows_bytes + self.push_bytes


def zipf_ranks(generator: np.random.Generator, rows: int, count: int) -> NDArray[np.int64]:
    """(count,) row numbers below `rows`, of which number r is drawn about (r + 1)^-ALPHA often.

    By the inverse of the continuous distribution on [1, rows + 1): the discrete one's needs a table of all.
    """
    power = 1 - ALPHA
    top = (rows + 1.0) ** power
    drawn = (1 - generator.random(count) * (1 - top)) ** (1 / power)
    ranks: NDArray[np.int64] = np.minimum(drawn.astype(np.int64) - 1, rows - 1)
    return ranks


def expected_distinct(draws: float, rows: float, alpha: float = ALPHA) -> float:
    """Expected distinct ids of `draws` ids out of `rows`, Zipf distributed with exponent `alpha`.

    An id of probability p is in a batch with probability 1 - (1 - p)^draws.

    Parameters
    ----------
    draws
        Ids of the batch.
    rows
        Ids to draw from.
    alpha
        0 for a uniform distribution.
    """
    if rows < 1 or draws <= 0:
        return 0.0
    exact = np.arange(1, min(rows, EXACT_RANKS) + 1, dtype=np.float64)
    count = np.ones_like(exact)
    if rows > EXACT_RANKS:
        edges = np.geomspace(EXACT_RANKS + 0.5, rows + 0.5, BINS + 1)
        exact = np.concatenate([exact, np.sqrt(edges[:-1] * edges[1:])])
        count = np.concatenate([count, np.diff(edges)])
    weight = exact**-alpha
    share = weight / (weight * count).sum()
    return float((count * -np.expm1(draws * np.log1p(-np.minimum(share, 1 - 1e-12)))).sum())


def make_network(traffic: Traffic, tables: Sequence[tuple[float, int]], shards: int) -> Network:
    """What a step of all trainers sends.

    Parameters
    ----------
    traffic
        Trainers, and ids of their steps.
    tables
        (rows, dim) of each; a step's ids are shared out among tables as the rows are.
    shards
        Shard processes.
    """
    all_rows = sum(rows for rows, _ in tables)
    distinct, row_bytes = 0.0, 0.0
    for rows, dim in tables:
        mine = expected_distinct(traffic.batch_ids * rows / all_rows, rows) if rows else 0.0
        distinct += mine
        row_bytes += mine * WIRE_BYTES * dim
    heads = MESSAGE_BYTES * shards
    ids_bytes = ID_BYTES * distinct + heads
    rows_bytes = row_bytes + 2 * heads
    push_bytes = ID_BYTES * distinct + row_bytes + heads
    per_shard = traffic.trainers / shards
    return Network(
        traffic=traffic, distinct_ids=distinct, ids_bytes=ids_bytes, rows_bytes=rows_bytes,
        push_bytes=push_bytes, shard_in_bytes=per_shard * (ids_bytes + push_bytes),
        shard_out_bytes=per_shard * rows_bytes, shard_connections=CONNECTIONS * traffic.trainers,
        connections=CONNECTIONS * traffic.trainers * shards,
    )  # fmt: skip
