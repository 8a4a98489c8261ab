# SPDX-License-Identifier: Apache-2.0
"""Bytes: as people write and read them, and of a row of rowhouse's tables. Every command counts with these.

feature_cross imports nothing of the server, so the layout's arithmetic (docs/row_format.md) stands here a
second time; tests/unit/test_cross_size.py holds the two together, for every optimizer and dtype.
Thread safety: pure functions.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from feature_cross.error import FlagError

__all__ = ["DTYPE_BYTES", "OPTIMIZER_STATE", "TIERS", "RowShape", "parse_size", "show_bytes"]

DTYPE_BYTES: Final[Mapping[str, int]] = {"fp32": 4, "fp16": 2, "bf16": 2}

OPTIMIZER_STATE: Final[Mapping[str, tuple[int, int]]] = {
    "sgd": (0, 0), "momentum": (1, 0), "adagrad": (1, 0), "rowwise_adagrad": (0, 1), "adam": (2, 1),
    "adamw": (2, 1), "ftrl": (2, 0), "group_ftrl": (2, 0), "fobos": (0, 0), "fobos_adagrad": (1, 0),
}  # fmt: skip
"""float32 words of state by optimizer: per weight, and per row besides."""

TIERS: Final = ("memory", "store")
"""`memory`: every row hot, with its place in the index. `store`: on disk, before compression."""

_ID_BYTES: Final = 8
_LSN_BYTES: Final = 6
_INDEX_BYTES: Final = 14
_STORE_OVERHEAD_BYTES: Final = 12
"""RocksDB's own, compacted and uncompressed: 84 bytes were measured for a key of 8 and a value of 64, 52 for
a value of 32, Bloom filter included (docs/performance.md)."""

_UNITS: Final = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "PIB": 2**50,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShape:
    """What a row of a table is made of.

    Attributes
    ----------
    dim
        Weights.
    dtype
        Their type: fp32, fp16 or bf16.
    optimizer
        Whose state is beside them.
    state
        float32 words of state; None takes the optimizer's.
    metadata_bytes
        Of the table's policies: 4 for a TTL, 4 for least-frequent eviction, 12 for show/click scores.
    """

    dim: int = 16
    dtype: str = "fp32"
    optimizer: str = "adagrad"
    state: int | None = None
    metadata_bytes: int = 0

    def state_words(self, dim: int | None = None) -> int:
        """float32 words of state of a row of `dim` weights (the shape's own if None)."""
        if self.state is not None:
            return self.state
        per_weight, per_row = OPTIMIZER_STATE[self.optimizer]
        return per_weight * (self.dim if dim is None else dim) + per_row

    def row_bytes(self, tier: str, dim: int | None = None) -> int:
        """Bytes of one row in a tier, at `dim` weights (the shape's own if None)."""
        weights = (self.dim if dim is None else dim) * DTYPE_BYTES[self.dtype]
        value = -(-weights // 4) * 4 + 4 * self.state_words(dim) + self.metadata_bytes
        if tier == "store":
            return _ID_BYTES + value + _LSN_BYTES + _STORE_OVERHEAD_BYTES
        return -(-(_ID_BYTES + value) // 8) * 8 + _INDEX_BYTES

    def text(self, tier: str) -> str:
        """What the bytes of a table mean, in a line."""
        state = (
            f"{self.state_words()} words of state" if self.state is not None else f"{self.optimizer} state"
        )
        more = "index" if tier == "memory" else "log number and the store's own"
        where = "in memory" if tier == "memory" else "on disk before compression"
        parts = [f"{self.dim} {self.dtype} weights", state, more]
        if self.metadata_bytes:
            parts.insert(2, f"{self.metadata_bytes} bytes of metadata")
        return f"bytes: {self.row_bytes(tier)} an id {where} (the id, {', '.join(parts)})"

    def to_json(self, tier: str) -> dict[str, Any]:
        """The shape, and bytes of a row in a tier."""
        return {
            "dim": self.dim, "dtype": self.dtype,
            "optimizer": None if self.state is not None else self.optimizer,
            "state_words": self.state_words(), "metadata_bytes": self.metadata_bytes, "tier": tier,
            "bytes": self.row_bytes(tier),
        }  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes of `8GB`, `1.5 TB`, `64GiB` or `1000`; FlagError if it is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise FlagError(f"--budget is {text!r}; it must be a number and a unit, as 8GB, 64GiB or 1.5TB")
    size = round(float(match[1]) * _UNITS[match[2].upper()])
    if size < 1:
        raise FlagError(f"--budget is {text!r}; it must be at least 1 byte")
    return size


def show_bytes(value: float) -> str:
    """1234567 as 1.23 MB, in powers of ten as disks and budgets are."""
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size * 0.9995:
            return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:,.0f} {unit}"
    return f"{value:.0f} B"
