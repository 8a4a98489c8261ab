# SPDX-License-Identifier: Apache-2.0
"""Small files that are whole or absent, also after a power cut.

Thread safety: any number of threads and processes may write one file. Each writes under a name of its own,
and the last one that renames wins.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path

from rowhouse.error import StoreError


def sync_directory(directory: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, text: str) -> None:
    """Write a file: into another name, synced, renamed, and the folder (made if need be) synced.

    Raises StoreError when the system refuses. The file is then the old one or the new one, and whole.
    """
    temporary = path.with_name(f"{path.name}.{threading.get_native_id()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StoreError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None
