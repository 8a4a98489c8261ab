# SPDX-License-Identifier: Apache-2.0
"""How many connections a shard takes: what the limit of open files leaves beside the files of its store.

Thread safety: pure functions, beside the process's own limit.
"""

import resource
from typing import Final

STORE_FILES: Final = 1024
"""Kept for the shard's own files: the store holds up to 512 open (disk/store.py), a checkpoint, a compaction
and a saved copy open some more, and so do the log and the listeners."""

STORE_SHARE: Final = 2
"""Where the limit is small, the store keeps half of it."""

CONNECTIONS_MAX: Final = 16_384
"""Connections of one port, however many files the system allows. A trainer holds one per thread that
calls."""

_FILES_ENOUGH: Final = STORE_FILES + 2 * CONNECTIONS_MAX


def raise_file_limit() -> int:
    """Raise the soft limit of open files as far as it is of use and the hard one allows; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _FILES_ENOUGH)
    if soft == resource.RLIM_INFINITY:
        return _FILES_ENOUGH
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return soft


def connections_max(files_max: int, ports: int) -> int:
    """Connections that each of the ports may take, of so many files that may be open.

    Parameters
    ----------
    files_max
        The limit of open files.
    ports
        How many ports take connections, each as many.
    """
    reserve = min(STORE_FILES, files_max // STORE_SHARE)
    return min((files_max - reserve) // ports, CONNECTIONS_MAX)
