# SPDX-License-Identifier: Apache-2.0
"""Ids as small numbers: each distinct id of a feature gets a code, in the order of first occurrence.

The rows of training come first (feature_cross/author/rank/sample.py), so the codes seen in training are 0 to
K' - 1 and any code past them is one that training never saw. Crosses are coded from their operands' codes,
with the engine's own kernels. Shapes: N rows, T ids, K codes. Thread safety: pure functions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_cross.error import LimitError
from feature_cross.id_format import OPERATION_ARRANGEMENT, OPERATION_SUBSET, OPERATION_TUPLE, start
from feature_cross.kernel.fold import fold_product, product_offsets
from feature_cross.kernel.subset import count_subsets, fold_rows, fold_subsets, sort_rows
from feature_cross.limit import IDS_PER_ROW_MAX

__all__ = ["CANDIDATE_IDS_MAX", "Coded", "code_ids", "cross_arrangement", "cross_product", "cross_subsets"]

CANDIDATE_IDS_MAX = 1 << 26
"""Ids of one candidate over all rows: half a GiB while they are coded, and some seconds for one fit."""


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """One feature's ids over all rows.

    Attributes
    ----------
    codes
        (T,) int32, from 0 in the order of first occurrence.
    offsets
        (N + 1,) int64; row r has codes[offsets[r]:offsets[r + 1]].
    size
        K, the distinct ids.
    ids
        (K,) uint64, the id of each code, where it was asked to be kept.
    """

    codes: NDArray[np.int32]
    offsets: NDArray[np.int64]
    size: int
    ids: NDArray[np.uint64] | None = None

    def fingerprint(self) -> bytes:
        """Equal for two features that divide the rows alike: codes come in the order of first occurrence."""
        found = hashlib.blake2b(self.offsets.tobytes(), digest_size=16)
        found.update(self.codes.tobytes())
        return found.digest()

    def trained(self, rows: int) -> int:
        """Distinct codes in the first `rows` rows."""
        seen = self.codes[: self.offsets[rows]]
        return int(seen.max()) + 1 if len(seen) else 0


def code_ids(ids: NDArray[np.uint64], offsets: NDArray[np.int64], keep: bool = False) -> Coded:
    """Number the distinct ids of (T,) uint64 with (N + 1,) int64 offsets; `keep` them by their numbers."""
    encoded = pa.array(ids).dictionary_encode()
    codes = encoded.indices.to_numpy()
    kept = encoded.dictionary.to_numpy() if keep else None
    return Coded(codes, offsets, len(encoded.dictionary), kept)


def cross_product(name: str, operands: Sequence[Coded]) -> Coded:
    """The cross of two or more features, as the engine makes it: every pairing within a row.

    Raises
    ------
    LimitError
        A row gives more than IDS_PER_ROW_MAX ids, or all rows more than CANDIDATE_IDS_MAX.
    """
    rows = len(operands[0].offsets) - 1
    alive = np.ones(rows, np.bool_)
    for operand in operands:
        alive &= np.diff(operand.offsets) > 0
    states = np.full(rows, start(0, OPERATION_TUPLE, len(operands)), np.uint64)
    offsets = np.arange(rows + 1, dtype=np.int64)
    for operand in operands:
        out_offsets, past = product_offsets(
            offsets, operand.offsets, alive.view(np.uint8), IDS_PER_ROW_MAX, False
        )
        _check(name, past, out_offsets)
        out = np.empty(out_offsets[-1], np.uint64)
        fold_product(states, offsets, operand.codes.astype(np.uint64), operand.offsets, out, out_offsets)
        states, offsets = out, out_offsets
    return code_ids(states, offsets)


def cross_subsets(name: str, operand: Coded, size: int) -> Coded:
    """The sorted subsets of `size` elements of a list; LimitError as `cross_product`."""
    # sort_rows compares hashes; a code stands for its hash here, and its order is as good as any
    hashes, offsets = sort_rows(operand.codes.astype(np.uint64), operand.offsets, False)
    sizes = np.array([size], np.int64)
    out_offsets, past = count_subsets(hashes, offsets, sizes, IDS_PER_ROW_MAX, False)
    _check(name, past, out_offsets)
    out = np.empty(out_offsets[-1], np.uint64)
    starts = np.array([start(0, OPERATION_SUBSET, size)], np.uint64)
    fold_subsets(hashes, offsets, sizes, starts, out, out_offsets)
    return code_ids(out, out_offsets)


def cross_arrangement(operand: Coded) -> Coded:
    """The whole list in its own order, one id for each row that has any."""
    codes = operand.codes.astype(np.uint64)
    return code_ids(*fold_rows(codes, operand.offsets, np.uint64(0), OPERATION_ARRANGEMENT))


def _check(name: str, past: int, offsets: NDArray[np.int64]) -> None:
    if past >= 0:
        raise LimitError(f"{name} gives more than {IDS_PER_ROW_MAX} ids for one row; set max_length")
    if offsets[-1] > CANDIDATE_IDS_MAX:
        raise LimitError(
            f"{name} gives {offsets[-1]} ids for {len(offsets) - 1} rows; at most {CANDIDATE_IDS_MAX}:"
            " lower --max-rows or set max_length"
        )
