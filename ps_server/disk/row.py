# SPDX-License-Identifier: Apache-2.0
"""The layout of a row, in memory and in the store (docs/row_format.md).

In memory a record is

    id (8 bytes) | weights | pad to 4 | state (float32 each) | metadata (uint32 each) | pad to 8

and the store's value is what stands between the id and the last pad, then the LSN that the row holds
as 6 bytes, little-endian. Metadata words exist only where a policy needs them, since every byte per row
is 14 to 25 GB per TB. Thread safety: immutable.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype

ID_BYTES: Final = 8
LSN_BYTES: Final = 6
"""48 bits: at a million pushes a second they last 8.9 years."""

INDEX_BYTES_PER_ROW: Final = 14
"""Index bytes charged per row: 8 per entry at the least load, 0.6 (just after a segment grew), is 13.4."""

ROW_FORMAT_VERSION: Final = 2
ROW_FORMATS_READ: Final = (1, 2)
"""Version 1 has no record of the number of rows; its rows are the same."""

TIME_MAX_S: Final = 2**32 - 1
"""The newest moment that a row's time of its last push can be (in 2106); the oldest is 1970."""


def row_time_s(now_s: float) -> float:
    """The moment nearest to `now_s` (seconds since 1970) that a row can keep: a machine's clock may be wrong,
    and that is no reason to refuse pushes."""
    return min(max(now_s, 0.0), float(TIME_MAX_S))


def _align(offset: int, to: int) -> int:
    return -(-offset // to) * to


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """Where each part of a record lies; offsets and sizes in bytes.

    Attributes
    ----------
    dim, dtype
        Weights per row and the wire code of their element type (rowhouse.dtype).
    state_size
        float32 words of optimizer state.
    push_time, push_count, show_click
        Whether the record has the last push's time (seconds), the number of pushes, and the decayed sums
        of shows and clicks (two float32).
    """

    dim: int
    dtype: int
    state_size: int
    push_time: bool
    push_count: bool
    show_click: bool = False

    @property
    def weights_at(self) -> int:
        """First byte of the weights."""
        return ID_BYTES

    @property
    def state_at(self) -> int:
        """First byte of the state."""
        return _align(ID_BYTES + self.dim * dtype.STORAGE[self.dtype].itemsize, 4)

    @property
    def push_time_at(self) -> int:
        """Byte of the last push's time; only where push_time."""
        return self.state_at + 4 * self.state_size

    @property
    def push_count_at(self) -> int:
        """Byte of the push count; only where push_count."""
        return self.push_time_at + 4 * self.push_time

    @property
    def show_click_at(self) -> int:
        """Byte of the shows' sum, the clicks' follows; only where show_click."""
        return self.push_count_at + 4 * self.push_count

    @property
    def metadata(self) -> dict[str, tuple[int, str]]:
        """Name of each word of metadata in the record: its byte, and its dtype; they follow the state."""
        words: dict[str, tuple[int, str]] = {}
        if self.push_time:
            words["push_time"] = self.push_time_at, "<u4"
        if self.push_count:
            words["push_count"] = self.push_count_at, "<u4"
        if self.show_click:
            words["shows"] = self.show_click_at, "<f4"
            words["clicks"] = self.show_click_at + 4, "<f4"
        return words

    @property
    def stored_bytes(self) -> int:
        """Bytes of the part that goes to the store, without the LSN."""
        return self.show_click_at + 8 * self.show_click - ID_BYTES

    @property
    def value_bytes(self) -> int:
        """Bytes of the store's value."""
        return self.stored_bytes + LSN_BYTES

    @property
    def stride(self) -> int:
        """Bytes from one record to the next."""
        return _align(ID_BYTES + self.stored_bytes, 8)

    @property
    def cost_bytes(self) -> int:
        """Bytes charged to the memory budget for one hot row."""
        return self.stride + INDEX_BYTES_PER_ROW

    def describe(self) -> dict[str, int | bool]:
        """What must not change between two openings of a table."""
        return {
            "row_format_version": ROW_FORMAT_VERSION, "dim": self.dim, "dtype": self.dtype,
            "state_size": self.state_size, "push_time": self.push_time, "push_count": self.push_count,
            "show_click": self.show_click,
        }  # fmt: skip


def put_lsn(values: NDArray[np.uint8], lsn: int | NDArray[np.uint64]) -> None:
    """Write LSNs into the last LSN_BYTES of each value; `values` is (n, value_bytes) uint8."""
    words = np.broadcast_to(np.asarray(lsn, "<u8"), (values.shape[0],))
    values[:, -LSN_BYTES:] = np.ascontiguousarray(words).view(np.uint8).reshape(-1, 8)[:, :LSN_BYTES]


def get_lsn(values: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """LSNs of stored values; `values` is (n, value_bytes) uint8, the answer (n,) uint64."""
    words = np.zeros((values.shape[0], 8), np.uint8)
    words[:, :LSN_BYTES] = values[:, -LSN_BYTES:]
    return words.view("<u8").reshape(-1).astype(np.uint64, copy=False)
