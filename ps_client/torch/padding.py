# SPDX-License-Identifier: Apache-2.0
"""The padding id of a module over one table, which counts for nothing. -1 and 2^64 - 1 are the same id.

Thread safety: pure functions.
"""

from numbers import Integral

import torch
from rowhouse.error import InvalidRequestError
from torch import Tensor


def check_padding(padding_idx: int | None) -> int | None:
    """A padding id; InvalidRequestError for what is no integer, ValueError past 64 bits."""
    if padding_idx is not None and not isinstance(padding_idx, Integral):
        raise InvalidRequestError(f"padding_idx is {padding_idx!r}; it must be an integer")
    if padding_idx is not None and not -(1 << 63) <= padding_idx < 1 << 64:
        raise ValueError(f"padding_idx is {padding_idx}; it must be -2^63 to 2^64 - 1")
    return padding_idx


def not_padding(ids: Tensor, padding_idx: int) -> Tensor:
    """Which ids are not the padding id; bool, of the shape of `ids`."""
    signed = padding_idx - (1 << 64) if padding_idx >= 1 << 63 else padding_idx
    return ids.to(torch.int64) != signed
