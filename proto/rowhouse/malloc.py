# SPDX-License-Identifier: Apache-2.0
"""Tell glibc to keep large freed blocks, for both sides of the wire.

By default glibc maps each block above 128 KiB anew and hands it back to the kernel when it is freed,
so every message of that size pays for page faults and for zeroed pages. With the settings below the
pages stay in the process: a pull of 26,447 rows went from 9 to 2 ms together with the hand-written
codec (docs/ARCHITECTURE.md, "Wire"). The price: freed memory of that kind is reused, not returned.

A server pays that price only for blocks of the usual size (`keep_usual_blocks`): what strangers make it
allocate, many times over in each of its threads, must go back.

Reference: mallopt(3), malloc_trim(3). Thread safety: mallopt may be called at any time; calling
twice changes nothing.
"""

import ctypes
from collections.abc import Callable
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_TOP_PAD: Final = -2
M_MMAP_THRESHOLD: Final = -3
M_ARENA_MAX: Final = -8
"""Parameter numbers of glibc's <malloc.h>."""

KEEP_BYTES: Final = 1 << 30
"""Blocks up to this size come from the heap, and this much free heap is kept. Four times
limit.MESSAGE_BYTES_MAX, so a message and its parts always fall under it."""

OLD_KEEP_BYTES: Final = 32 << 20
"""What an older glibc takes at most as M_MMAP_THRESHOLD (half of its HEAP_MAX_SIZE)."""

TOP_PAD_BYTES: Final = 16 << 20
"""The heap grows by this much at a time: fewer brk calls, and at most this much never used."""

USUAL_BYTES: Final = 8 << 20
"""Largest block that a server keeps: a step of 100,000 ids of dim 16 is below it. Page faults of a larger one
are a tenth of its work."""

USUAL_FREE_BYTES: Final = 32 << 20
"""Free memory that a server keeps at the top of each arena."""

ARENAS: Final = 2
"""Arenas of a server. By default each thread has its own, up to eight for each core, and each keeps what its
thread once used."""


def _function(name: str) -> Callable[..., int] | None:
    """A function of the C library, where there is one of that name (not in musl or macOS)."""
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
    return found


def keep_large_blocks() -> bool:
    """Keep every block of a message; may be called again.

    Returns
    -------
    bool
        False where the C library has no mallopt (musl, macOS) or refused a value; nothing is lost
        there but speed.
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    threshold = mallopt(M_MMAP_THRESHOLD, KEEP_BYTES) or mallopt(M_MMAP_THRESHOLD, OLD_KEEP_BYTES)
    trim, pad = mallopt(M_TRIM_THRESHOLD, KEEP_BYTES), mallopt(M_TOP_PAD, TOP_PAD_BYTES)
    return bool(threshold and trim and pad)


def keep_usual_blocks() -> bool:
    """Keep blocks of the usual size, in few arenas, and return the others; as keep_large_blocks."""
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    sizes = (
        (M_MMAP_THRESHOLD, USUAL_BYTES), (M_TRIM_THRESHOLD, USUAL_FREE_BYTES), (M_TOP_PAD, TOP_PAD_BYTES),
        (M_ARENA_MAX, ARENAS),
    )  # fmt: skip
    return sum(bool(mallopt(*one)) for one in sizes) == len(sizes)


def give_back() -> bool:
    """Return free memory to the system, wherever it lies; True when there was some.

    It takes milliseconds, and what is used again has to be faulted in again: for moments after much was used.
    """
    malloc_trim = _function("malloc_trim")
    return malloc_trim is not None and bool(malloc_trim(0))
