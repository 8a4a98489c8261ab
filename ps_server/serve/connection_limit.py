# SPDX-License-Identifier: Apache-2.0
"""How many connections a shard takes: what the limit of open files leaves beside the files of its store.

Thread safety: a pure function.
"""

from typing import Final

KEPT_FILES: Final = 1024
"""Kept for the shard's own files: the store holds up to 512 open (disk/store.py), a checkpoint, a compaction
and a saved copy open some more, and so do the log and the listeners."""

KEPT_SHARE: Final = 2
"""Where the limit is small, the shard keeps half of it."""

CONNECTIONS_MAX: Final = 16_384
"""Connections of one port, however many files the system allows. A trainer holds one per thread that
calls."""

FILES_ENOUGH: Final = KEPT_FILES + 2 * CONNECTIONS_MAX
"""More open files are of no use."""


def connections_max(files_max: int, ports: int) -> int:
    """Connections that each of the ports may take, of so many files that may be open.

    Parameters
    ----------
    files_max
        The limit of open files.
    ports
        How many ports take connections, each as many.
    """
    reserve = min(KEPT_FILES, files_max // KEPT_SHARE)
    return min((files_max - reserve) // ports, CONNECTIONS_MAX)
