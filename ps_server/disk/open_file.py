# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint may open its files: asked before it begins, because nothing can be taken back later.

When RocksDB cannot open a file in the middle of a flush it writes no more, and the shard is poisoned. A
process that is out of files for a moment (many connections, a limit that was lowered) is not broken, so the
checkpoint waits instead.

Thread safety: a pure function.
"""

import errno
import os
import resource
from typing import Final

from rowhouse.error import BusyError, ConfigError

STORE_FILES: Final = 4096
"""Files of rows that RocksDB keeps open at most (max_open_files). They have 64 MiB each: 700 hold a billion
rows. Those beyond are opened anew for each read."""

OWN_FILES: Final = 32
"""A log segment, the store's own logs and manifest, and the files of a compaction."""

PROCESS_FILES: Final = 64
"""What the process has open besides: its ports, libraries, some connections."""

FOLDERS_PER_TABLE: Final = 1
"""Each family of the store keeps the folder open."""


def files_of_checkpoint(tables: int) -> int:
    """Files that a checkpoint may open at once: one for the rows of each table."""
    return min(tables, STORE_FILES) + OWN_FILES


def files_of_tables(tables: int) -> int:
    """Files that a shard of so many tables holds open from its start on."""
    return FOLDERS_PER_TABLE * tables


def raise_file_limit(wanted: int) -> int:
    """Raise the soft limit of open files to `wanted`, as far as the hard one allows; what it is then, and
    `wanted` where there is none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return soft


def store_files() -> int:
    """Files of rows that a store may keep open: half of what the process may have. Raises the soft limit."""
    return min(STORE_FILES, max(raise_file_limit(2 * STORE_FILES) // 2, 1))


def require_files(tables: int) -> None:
    """Raise the soft limit of open files to what a shard of so many tables needs; ConfigError with the number
    when the hard limit is below it."""
    needed = files_of_tables(tables) + files_of_checkpoint(tables) + PROCESS_FILES
    if (limit := raise_file_limit(needed)) < needed:
        raise ConfigError(
            f"tables: {tables} tables need {needed} open files, and the hard limit is {limit} (ulimit -Hn): "
            "raise it, or declare fewer tables"
        )


def check_files(tables: int) -> None:
    """BusyError when a checkpoint of so many tables could not open its files now."""
    wanted = files_of_checkpoint(tables)
    opened: list[int] = []
    try:
        for _ in range(wanted):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            return  # the checkpoint itself will meet that, and say what it is
        raise BusyError(
            f"a checkpoint needs up to {wanted} more open files, and the system gives {len(opened)} "
            f"({error.strerror}): close connections, or raise the limit (ulimit -n)"
        ) from error
    finally:
        for handle in opened:
            os.close(handle)
