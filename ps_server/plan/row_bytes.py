# SPDX-License-Identifier: Apache-2.0
"""Bytes of one row by purpose, in memory and on disk.

The parts that the config decides (id, weights, state, metadata, LSN) are those of row.py, to the byte. What
only a running shard knows (index entries, what RocksDB adds and compression takes away, rates) comes from
measured runs, kept in plan.json and fitted by plan_constant.py.

Invariant: the purposes of a row sum to its bytes. Thread safety: pure functions over immutable values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rowhouse import dtype
from rowhouse.error import ConfigError

from ps_server.config.cluster import load_config
from ps_server.disk.row import ID_BYTES, LSN_BYTES, RowLayout
from ps_server.table.config import TableConfig

FILTER_BYTES: Final = 10 / 8
"""Bloom filter of the store: 10 bits per row (store.py)."""

SAVED_SHARE: Final = 1 / 8
"""RocksDB keeps a compressed block only if it saves an eighth (its max_compressed_bytes_per_kb). Weights
hardly compress; what zstd saves is keys, 15 bytes of a row: an eighth, for values up to about 110 bytes."""

COUNTER_BYTES: Final = 4
"""Adam's state is two words per weight and a count of steps, which is the same in many rows and vanishes."""

SAVED_SPREAD: Final = 0.015
"""Blocks of one table, and what a model makes of them, differ by so much: near an eighth some are packed, and
a plan gives both bounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What only measuring tells; see plan_constant.py for the fit.

    Attributes
    ----------
    index_bytes
        Index per hot row, and pages that growing left behind.
    process_bytes
        Resident memory of a shard without rows.
    plain_row, plain_byte
        A row on disk in a block that is stored as it is: so many bytes, and so many per byte of its value.
    saved_row, saved_weight_byte, saved_bf16_byte
        What zstd takes off a row: so many bytes, so many per byte of weights, and of bf16 weights besides,
        half of whose bits are signs and exponents, which repeat.
    load_row_s, load_byte_s
        Seconds of a bulk load per row, and per byte of its value, one shard.
    replay_row_s
        Seconds of recovery per row of the log, read from the store.
    start_s
        Seconds from the start of a shard without a log to its first answer.
    """

    index_bytes: float
    process_bytes: float
    plain_row: float
    plain_byte: float
    saved_row: float
    saved_weight_byte: float
    saved_bf16_byte: float
    load_row_s: float
    load_byte_s: float
    replay_row_s: float
    start_s: float


@dataclass(frozen=True, slots=True)
class RowBytes:
    """One row by purpose, in bytes; `total` is the sum. `low` and `high` are what it can be where the plan
    cannot tell, else both are the total."""

    parts: Mapping[str, float]
    low: float
    high: float

    @property
    def total(self) -> float:
        """Bytes of the row."""
        return sum(self.parts.values())


def raw_bytes(layout: RowLayout) -> int:
    """The least that anybody could store: the id and the weights."""
    return ID_BYTES + layout.dim * int(dtype.STORAGE[layout.dtype].itemsize)


def _own_parts(layout: RowLayout) -> dict[str, float]:
    """What a row is made of, in memory and on disk alike."""
    weights = layout.dim * int(dtype.STORAGE[layout.dtype].itemsize)
    state = 4 * layout.state_size
    return {
        "id": ID_BYTES, "weights": weights, "state": state,
        "metadata": layout.stored_bytes + ID_BYTES - layout.push_time_at,
        "padding": layout.push_time_at - ID_BYTES - weights - state,
    }  # fmt: skip


def memory_row(layout: RowLayout, constants: Constants) -> RowBytes:
    """A hot row: its record, and its share of the index."""
    parts = _own_parts(layout)
    parts["padding"] += layout.stride - ID_BYTES - layout.stored_bytes
    parts["index"] = constants.index_bytes
    total = sum(parts.values())
    return RowBytes(parts, total, total)


def disk_row(layout: RowLayout, constants: Constants) -> RowBytes:
    """A row in the store, compacted. "keys and blocks" closes the sum: RocksDB's sequence numbers, block
    headers and index, less what compression saves."""
    plain = constants.plain_row + constants.plain_byte * layout.value_bytes
    weights = layout.dim * int(dtype.STORAGE[layout.dtype].itemsize)
    saved = constants.saved_row + constants.saved_weight_byte * weights
    if layout.state_size > layout.dim:
        saved += COUNTER_BYTES * (layout.state_size % layout.dim)
    if layout.dtype == dtype.BFLOAT16:
        saved += constants.saved_bf16_byte * weights
    share = (saved / plain - SAVED_SHARE + SAVED_SPREAD) / (2 * SAVED_SPREAD)
    total = plain - saved * min(max(share, 0.0), 1.0)
    low, high = (plain - saved, plain) if 0 < share < 1 else (total, total)
    named = {**_own_parts(layout), "LSN": LSN_BYTES, "filter": FILTER_BYTES}
    return RowBytes({**named, "keys and blocks": total - sum(named.values())}, low, high)


ARITHMETIC: Final = (
    ("fp32", "sgd"),
    ("fp16", "sgd"),
    ("fp32", "adagrad"),
    ("fp16", "adagrad"),
    ("fp32", "adam"),
)
"""Rows of the first table: dtype and optimizer at dim 16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArithmeticLine:
    """One kind of row at dim 16: what the id and the weights take, and what rowhouse does."""

    what: str
    raw_bytes: int
    memory_bytes: float
    disk_bytes: float

    def rows_in(self, bytes_: float, place: str) -> float:
        """Rows that fit: place is "raw", "memory" or "disk"."""
        return bytes_ / float(getattr(self, f"{place}_bytes"))


def arithmetic(constants: Constants, dim: int = 16) -> tuple[ArithmeticLine, ...]:
    """72 and 40 bytes, and what they become."""
    lines = []
    for name, optimizer in ARITHMETIC:
        layout = table_of("t", dim=dim, dtype_name=name, optimizer=optimizer).layout
        lines.append(
            ArithmeticLine(
                what=f"{name}, dim {dim}, {optimizer}", raw_bytes=raw_bytes(layout),
                memory_bytes=memory_row(layout, constants).total,
                disk_bytes=disk_row(layout, constants).total,
            )
        )  # fmt: skip
    return tuple(lines)


EVICTION: Final[Mapping[str, Mapping[str, object]]] = {
    "ttl": {"kind": "ttl", "ttl_s": 1.0},
    "least_frequent": {"kind": "least_frequent", "max_rows": 1},
    "l2_norm": {"kind": "l2_norm", "min_l2_norm": 1.0},
    "show_click": {"kind": "show_click", "min_score": 1.0},
}
"""A policy of each kind that keeps metadata, or none: its bounds do not change a row's bytes."""


def table_of(
    name: str,
    *,
    dim: int,
    dtype_name: str,
    optimizer: str,
    eviction: Sequence[str] = (),
    admission_bits: int | None = None,
) -> TableConfig:
    """A table's config from what decides its bytes.

    Parameters
    ----------
    name
        Its name.
    dim, dtype_name, optimizer
        As in a cluster's config; the optimizer by its kind.
    eviction
        Kinds of EVICTION.
    admission_bits
        width_bits of a min_count admission; None: every id is admitted.

    Raises
    ------
    ConfigError
        A value that a cluster's config could not have either.
    """
    for kind in eviction:
        if kind not in EVICTION:
            raise ConfigError(f"eviction {kind!r} is unknown; it must be one of {', '.join(EVICTION)}")
    table: dict[str, object] = {
        "name": name, "dim": dim, "dtype": dtype_name, "optimizer": {"kind": optimizer},
        "eviction": [dict(EVICTION[kind]) for kind in eviction],
    }  # fmt: skip
    if admission_bits is not None:
        table["admission"] = {"kind": "min_count", "min_count": 2, "width_bits": admission_bits}
    return load_config({"tables": [table], "data_dir": "."}).tables[0]
