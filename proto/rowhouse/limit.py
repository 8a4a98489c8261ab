# SPDX-License-Identifier: Apache-2.0
"""Every limit of the wire and of a table, each with its reason.

A request past one gets LimitExceededError before anything changes. Client and server read the same
constants, so a client can refuse before it sends.
"""

import math
from typing import Final

DIM_MAX: Final = 1024
"""Weights per row. A wider row is a dense layer; 1024 fp32 weights with two state slots are 12 KiB."""

TABLES_PER_REQUEST_MAX: Final = 1024
"""Tables in one Pull or Push. Models have tens; the bound keeps a forged request's loop short."""

TABLE_NAME_BYTES_MAX: Final = 128
"""Length of a table's name in UTF-8. It names a column family and appears in every message."""

IDS_PER_REQUEST_MAX: Final = 4_194_304
"""Ids in one Pull or Push, all tables together: 150 times a batch of 1024 x 26."""

MESSAGE_BYTES_MAX: Final = 256 * 1024 * 1024
"""One encoded message, either way, of any shard. Larger ones hold a core for over 0.1 s, so others wait. A
shard of a smaller memory_budget takes less (`message_bytes_max`)."""

ANSWER_HEAD_BYTES: Final = 1024
"""What is reckoned for each table of an answer to a pull beside its rows: a 128-byte name and varints."""

CONTROL_BYTES_MAX: Final = 16 * 1024
"""One encoded request of a control call: some names and numbers."""

PARTITIONS: Final = 4096
"""Partitions of the id space: 1024 shards (the most) still get four each, and a map is 8 KiB."""

SHARDS_MAX: Final = 1024
"""Shards of one cluster, bounded by PARTITIONS / 4 so that shards stay within 25 % of even."""

CLIENTS_MAX: Final = 65_536
"""Clients whose last sequence number a shard remembers. Past it the one idle longest is dropped, when it has
been idle for SESSION_KEPT_S; else the new client is refused."""

SESSION_KEPT_S: Final = 3600
"""A shard remembers a client for at least so long after its last push: twice as long as a client sends one
push again, so that clocks may differ."""

RESEND_S: Final = SESSION_KEPT_S // 2
"""A client that sent its first push to a shard so long ago, and got no answer, does not send it again: the
shard might have forgotten it, and would take it for a new one."""

TRAINERS_MAX: Final = 1024
"""Trainers of one group: each has a number, and a step is not applied before all of them are heard."""

GRADIENT_BOUND: Final = 2.0**51
"""What gradient elements, duplicates summed, must stay below in magnitude where an optimizer sums squares:
a float32 sum of squares below 2^102 stops growing at 2^126, so no number of pushes makes it infinite."""

STATELESS_OPTIMIZERS: Final = ("sgd", "fobos")
"""Kinds that keep nothing which a large gradient could spoil for good."""


def gradient_bound(kind: str, clip_value: float | None, clip_norm: float | None) -> float:
    """GRADIENT_BOUND, or infinity where any finite gradient will do.

    Parameters
    ----------
    kind, clip_value, clip_norm
        Of a table's optimizer config. A gradient that is clipped is bounded by that.
    """
    if kind in STATELESS_OPTIMIZERS or min(clip_value or math.inf, clip_norm or math.inf) < GRADIENT_BOUND:
        return math.inf
    return GRADIENT_BOUND


IN_FLIGHT_BYTES_MIN: Final = 32 * 1024 * 1024
"""A shard with the smallest memory_budget still serves a few trainers at once."""

IN_FLIGHT_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Bytes of requests, and of answers not read yet, that any shard holds at once; past its bound a request gets
BusyError and the client backs off."""

_IN_FLIGHT_SHARE: Final = 4
_MESSAGE_SHARE: Final = 4


def in_flight_bytes_max(memory_budget: int) -> int:
    """Bytes of requests and answers that a shard of this memory_budget holds at once: a quarter of it."""
    return min(max(memory_budget // _IN_FLIGHT_SHARE, IN_FLIGHT_BYTES_MIN), IN_FLIGHT_BYTES_MAX)


CLUSTER_ID_PATTERN: Final = "[0-9a-f]{32}"
"""How the 128 bits of a cluster's id are written."""


def message_bytes_max(memory_budget: int) -> int:
    """Largest message that such a shard takes or gives: a quarter of what it holds at once, so that the
    largest request and its answer find room beside others."""
    return in_flight_bytes_max(memory_budget) // _MESSAGE_SHARE


assert IN_FLIGHT_BYTES_MAX == _MESSAGE_SHARE * MESSAGE_BYTES_MAX

PROCESS_BYTES: Final = 256 * 1024 * 1024
"""What a server takes without rows and calls: the interpreter, libraries, compiled kernels (200 MiB), and
what it remembers of clients and trainers."""

KEPT_BYTES: Final = 64 * 1024 * 1024
"""Free memory that malloc keeps (rowhouse/malloc.py)."""


def beyond_budget_bytes(memory_budget: int) -> int:
    """What the process of a shard may take beyond its memory_budget, whatever peers do.

    Requests and answers, once as they are counted and once as copies that gRPC makes; as much for the work on
    them; and half of it for the parts of steps that groups of trainers hold. Held by
    tests/hostile/test_memory.py. Idle connections come on top: some 20 KiB each over gRPC, 1 KiB each on the
    data port.
    """
    return PROCESS_BYTES + KEPT_BYTES + in_flight_bytes_max(memory_budget) * 7 // 2


assert PARTITIONS % SHARDS_MAX == 0 and PARTITIONS & (PARTITIONS - 1) == 0
"""Placement takes high bits of a hash, so the count is a power of two."""

assert PARTITIONS <= 1 << 16, "a partition's shard travels as uint16"
