# SPDX-License-Identifier: Apache-2.0
"""Tell glibc to keep large freed blocks, for both sides of the wire.

By default glibc maps each block above 128 KiB anew and hands it back to the kernel when it is freed,
so every message of that size pays for page faults and for zeroed pages. With the settings below the
pages stay in the process: a pull of 26,447 rows went from 9 to 2 ms together with the hand-written
codec (docs/ARCHITECTURE.md, "Wire"). The price: freed memory of that kind is reused, not returned.

Reference: mallopt(3). Thread safety: mallopt may be called at any time; calling twice changes nothing.
"""

import ctypes
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_TOP_PAD: Final = -2
M_MMAP_THRESHOLD: Final = -3
"""Parameter numbers of glibc's <malloc.h>."""

KEEP_BYTES: Final = 1 << 30
"""Blocks up to this size come from the heap, and this much free heap is kept. Four times
limit.MESSAGE_BYTES_MAX, so a message and its parts always fall under it."""

OLD_KEEP_BYTES: Final = 32 << 20
"""What an older glibc takes at most as M_MMAP_THRESHOLD (half of its HEAP_MAX_SIZE)."""

TOP_PAD_BYTES: Final = 16 << 20
"""The heap grows by this much at a time: fewer brk calls, and at most this much never used."""


def keep_large_blocks() -> bool:
    """Set the three parameters; may be called again.

    Returns
    -------
    bool
        False where the C library has no mallopt (musl, macOS) or refused a value; nothing is lost
        there but speed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    threshold = mallopt(M_MMAP_THRESHOLD, KEEP_BYTES) or mallopt(M_MMAP_THRESHOLD, OLD_KEEP_BYTES)
    trim, pad = mallopt(M_TRIM_THRESHOLD, KEEP_BYTES), mallopt(M_TOP_PAD, TOP_PAD_BYTES)
    return bool(threshold and trim and pad)
