# SPDX-License-Identifier: Apache-2.0
"""Bytes of a feature's rows, and budgets as people write them. Thread safety: pure functions."""

import re

from feature_cross.error import FlagError

__all__ = ["DTYPE_BYTES", "parse_bytes", "row_bytes", "show_bytes"]

DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Bytes of one weight."""

_ID_BYTES = 8

_UNITS = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def row_bytes(dim: int, dtype: str) -> int:
    """Bytes of an id and its weights; optimizer state and the table's own overhead come on top."""
    return _ID_BYTES + dim * DTYPE_BYTES[dtype]


def parse_bytes(text: str) -> int:
    """`2GB`, `1.5 TiB`, `300000`: a number of bytes; FlagError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get((match[2] or "b").lower()) if match else None
    if match is None or unit is None:
        known = ", ".join(("B", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"))
        raise FlagError(f"a budget is {text!r}; it must be a number of bytes, with or without one of {known}")
    value = round(float(match[1]) * unit)
    if value < 1:
        raise FlagError(f"a budget is {text!r}; it must be at least one byte")
    return value


def show_bytes(count: float) -> str:
    """Three digits and a decimal unit."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
