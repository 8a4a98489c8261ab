# SPDX-License-Identifier: Apache-2.0
"""A push's gradients on the rows that are hot: found and stepped in one pass.

Rows of a few cache lines are worked on in the blocks of kernel/index.py: while a block's ids are looked up
its records are on their way to the cache, and they are stepped while they are there. In two passes every row
comes from memory twice (dim 16, a uniform push over TCP: 1.1 times as long). For wide rows that is worse (1.3
to 1.5 times as long from dim 64 on): nothing is under way while a block is stepped. So all their ids are
looked up first, and the optimizer's kernel prefetches some rows ahead.

Arguments of the index are those of kernel/index.py, those of an optimizer's kernel those of
kernel/optimizer.py. Thread safety: none; the table's lock covers each call. All kernels release the GIL.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import njit
from rowhouse.dtype import FLOAT32

from ps_server.kernel import optimizer, optimizer_proximal
from ps_server.kernel.index import BLOCK, STRIDE, find_block
from ps_server.kernel.rounding import round_rows, widen_rows

NARROW_BYTES: Final = 256
"""Records of up to so many bytes are stepped block by block."""

AHEAD: Final = 24
"""Rows that kernels prefetch ahead: more than latency asks for, as a push writes lines back too."""

StepHot = Callable[..., int]


@njit(nogil=True)
def _step_hot(kernel: Any, arguments: Any) -> int:
    """Step the row of each id that is here, and OR `set_flags` into its entry; see STEP_HOT."""
    (
        ids, entries, caps, geometry, records, set_flags, records32, records16, code, weights_at, state_at,
        gradients, hyper, lsn, places,
    ) = arguments  # fmt: skip
    missing = 0
    count, dim = gradients.shape
    stride = geometry[STRIDE] * 8
    width = 4 if code == FLOAT32 else 2
    narrow = stride <= NARROW_BYTES
    words = geometry[STRIDE] if narrow else 1
    group, ahead = (BLOCK, 0) if narrow else (max(count, BLOCK), AHEAD)
    tags = np.empty(BLOCK, np.uint64)
    scratch = np.empty((2, BLOCK), np.int64)
    row_at, row_state_at = np.empty(group, np.int64), np.empty(group, np.int64)
    tile = np.empty((BLOCK, dim), np.float32)
    tile_at = np.arange(BLOCK + AHEAD) * dim
    for start in range(0, count, group):
        size = min(group, count - start)
        for first in range(start, start + size, BLOCK):
            last = min(first + BLOCK, start + size)
            missing += find_block(
                ids[first:last], entries, caps, geometry, records, words, set_flags,
                tags, scratch[0], scratch[1], places[first:last],
            )  # fmt: skip
        here = places[start : start + size]
        for j in range(size):
            row_at[j] = (here[j] * stride + weights_at) // width
            row_state_at[j] = (here[j] * stride + state_at) // 4
        begin = 0
        for j in range(size + 1):
            if j < size and here[j] >= 0 and j - begin < BLOCK:
                continue
            if begin < j:  # a run of rows that are here, and places of some that come after
                to = min(j + ahead, size)
                at, to_state = row_at[begin:to], row_state_at[begin:to]
                first, last = start + begin, start + j
                if code == FLOAT32:
                    kernel(records32, at, records32, to_state, gradients[first:last], hyper)
                else:
                    run = tile[: j - begin]
                    widen_rows(records16, at, dim, code, run)
                    tile_rows = tile_at[: to - begin]
                    kernel(run.reshape(-1), tile_rows, records32, to_state, gradients[first:last], hyper)
                    round_rows(run, ids[first:last], lsn, dim, code, records16, at[: j - begin])
            begin = j if j < size and here[j] >= 0 else j + 1
    return missing


# One per optimizer: a closure over a kernel is never found in numba's cache, but compiled at each start.
@njit(nogil=True, cache=True)
def _sgd(*arguments: Any) -> int:
    return _step_hot(optimizer.sgd, arguments)


@njit(nogil=True, cache=True)
def _momentum(*arguments: Any) -> int:
    return _step_hot(optimizer.momentum, arguments)


@njit(nogil=True, cache=True)
def _adagrad(*arguments: Any) -> int:
    return _step_hot(optimizer.adagrad, arguments)


@njit(nogil=True, cache=True)
def _rowwise_adagrad(*arguments: Any) -> int:
    return _step_hot(optimizer.rowwise_adagrad, arguments)


@njit(nogil=True, cache=True)
def _adam(*arguments: Any) -> int:
    return _step_hot(optimizer.adam, arguments)


@njit(nogil=True, cache=True)
def _ftrl(*arguments: Any) -> int:
    return _step_hot(optimizer_proximal.ftrl, arguments)


@njit(nogil=True, cache=True)
def _group_ftrl(*arguments: Any) -> int:
    return _step_hot(optimizer_proximal.group_ftrl, arguments)


@njit(nogil=True, cache=True)
def _fobos(*arguments: Any) -> int:
    return _step_hot(optimizer_proximal.fobos, arguments)


@njit(nogil=True, cache=True)
def _fobos_adagrad(*arguments: Any) -> int:
    return _step_hot(optimizer_proximal.fobos_adagrad, arguments)


STEP_HOT: Final[dict[str, StepHot]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adagrad": _adagrad,
    "rowwise_adagrad": _rowwise_adagrad,
    "adam": _adam,
    "adamw": _adam,
    "ftrl": _ftrl,
    "group_ftrl": _group_ftrl,
    "fobos": _fobos,
    "fobos_adagrad": _fobos_adagrad,
}
"""By an optimizer's kind:

    (ids, entries, caps, geometry, records, set_flags, records32, records16, code, weights_at, state_at,
     gradients, hyper, lsn, places) -> how many ids are not here

`ids` is (n,) uint64 distinct, `gradients` (n, dim) float32. A record's weights, of wire code `code`, begin at
its byte `weights_at`, its state at byte `state_at`; `records32` and `records16` are its float32 and uint16
views. Weights of 16 bits are rounded by `lsn`. `places` (n,) int64 gets each id's place, -1 where it is not
here."""
