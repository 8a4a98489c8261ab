# SPDX-License-Identifier: Apache-2.0
"""What an attribute or a feature gives for each row, and how bags of one hash per row are folded into one.

Three shapes, from cheap to general: one hash per row; the same with some rows null; any number per row.
Crosses of the first two never look at offsets. A dictionary-encoded column stays encoded: its bag has the
dictionary's hashes and each row's position, and the fold looks hashes up on its way.
Thread safety: a bag belongs to one run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_cross.id_format import MASK64, TAG_NULL, value_hash
from feature_cross.kernel.fold import fold_first, fold_next, fold_pair
from feature_cross.kernel.jagged import compact
from feature_cross.kernel.look_up import look_up, look_up_first, look_up_next, look_up_pair

__all__ = ["NO_MASK", "NULL_HASH", "PLAIN", "Bag", "Layout", "closed", "fold_bags"]

NULL_HASH = np.uint64(value_hash(bytes([TAG_NULL])))
NO_MASK: NDArray[np.uint8] = np.empty(0, np.uint8)

Layout = tuple[np.uint64, np.uint64]
"""How a hash becomes an id: hash & keep | top."""

PLAIN: Layout = (np.uint64(MASK64), np.uint64(0))
"""The hash itself."""


@dataclass(slots=True)
class Bag:
    """(rows,) hashes, or (total,) with (rows + 1,) offsets. Only without offsets may rows be null.

    With `positions`, (rows,) unsigned and within `hashes`, a row's hash is hashes[positions[row]]; there are
    no offsets then. `weights` has one float32 per hash; None: each is 1.
    """

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64] | None
    nulls: NDArray[np.bool_] | None = None
    weights: NDArray[np.float32] | None = None
    positions: NDArray[Any] | None = None


def closed(bag: Bag, closed_rows: NDArray[np.bool_]) -> Bag:
    """The bag without the values of some rows."""
    if bag.offsets is None:
        nulls = closed_rows if bag.nulls is None else bag.nulls | closed_rows
        return Bag(bag.hashes, None, nulls, bag.weights, bag.positions)
    rows = closed_rows.view(np.uint8)
    hashes, offsets = compact(bag.hashes, bag.offsets, NO_MASK, rows, NULL_HASH, False, -1, True)
    weights = bag.weights
    if weights is not None:
        weights, _ = compact(weights, bag.offsets, NO_MASK, rows, np.float32(1), False, -1, True)
    return Bag(hashes, offsets, None, weights)


def fold_bags(start: np.uint64, bags: Sequence[Bag], layout: Layout, out: NDArray[np.uint64]) -> None:
    """Fold bags without offsets, in order, and lay the ids out; `out` is (rows,) uint64, written.

    A row that is null in any bag gets some number; its value means nothing.
    """
    done = _fold_start(start, bags, layout, out)
    for number in range(done, len(bags)):
        bag, laid = bags[number], layout if number == len(bags) - 1 else PLAIN
        if bag.positions is None:
            fold_next(out, bag.hashes, *laid)
        else:
            look_up_next(out, bag.hashes, bag.positions, *laid)


def _fold_start(start: np.uint64, bags: Sequence[Bag], layout: Layout, out: NDArray[np.uint64]) -> int:
    """Fold the first bag or two in one pass; says how many."""
    first, second = bags[0], bags[1] if len(bags) > 1 else None
    one, two = layout if second is None else PLAIN, layout if len(bags) == 2 else PLAIN
    if first.positions is None:
        if second is not None and second.positions is None:
            fold_pair(start, first.hashes, second.hashes, out, *two)
            return 2
        fold_first(start, first.hashes, out, *one)
        return 1
    if 2 * len(first.hashes) > len(out):
        look_up_first(start, first.hashes, first.positions, *one, out)
        return 1
    states = np.empty_like(first.hashes)  # once per distinct value, and so for next to nothing
    fold_first(start, first.hashes, states, *one)
    if second is None or second.positions is None:
        look_up(states, first.positions, out)
        return 1
    look_up_pair(states, first.positions, second.hashes, second.positions, *two, out)
    return 2
