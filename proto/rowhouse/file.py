# SPDX-License-Identifier: Apache-2.0
"""Small files that are whole or absent, also after a kill and after a power cut.

A file is written under another name (`NAME.NUMBER.new`, the number is that of the thread), synced, renamed,
and the folder is synced. What a kill leaves under such a name is removed when the file is written again.

Thread safety: any number of threads and processes may write one file. Each writes under a name of its own,
and the last one that renames wins.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rowhouse.error import StoreError


def sync_directory(directory: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path, *, synced: bool = True) -> Iterator[Path]:
    """Replace a file: the block writes another one, which gets the file's name when the block has ended.

    Parameters
    ----------
    path
        The file; its folder must be there.
    synced
        False: the new content outlives the process, and a power cut may take it.

    Yields
    ------
    Path
        What the block has to write.

    Raises
    ------
    StoreError
        The system refuses, in the block too. The file is then the old one.
    """
    temporary = path.with_name(f"{path.name}.{threading.get_native_id()}.new")
    try:
        remove_left_over(path)
        yield temporary
        if synced:
            sync_file(temporary)
        os.replace(temporary, path)
        if synced:
            sync_directory(path.parent)
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_synced(path: Path, text: str) -> None:
    """Write a text file as `replacing` does, its folder made if need be; StoreError as there."""
    with suppress(OSError):  # `replacing` tells it
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def remove_left_over(path: Path) -> None:
    """Remove what killed writers of a file left: no thread with their number runs any more.

    Does nothing where the system has no /proc. Raises OSError when the folder cannot be read.
    """
    left_over = re.compile(re.escape(path.name) + r"\.([0-9]+)\.new")
    for name in os.listdir(path.parent):
        found = left_over.fullmatch(name)
        if found and Path("/proc/self").exists() and not Path(f"/proc/{found[1]}").exists():
            path.with_name(name).unlink(missing_ok=True)
