# SPDX-License-Identifier: Apache-2.0
"""A folder for compiled kernels where numba finds none: no writable home and a read-only installation.

numba keeps compiled kernels beside their source, else in the user's cache folder, else it refuses to
compile at all. Containers often have neither, so `settle` then names a folder of ours in the temporary
one, by NUMBA_CACHE_DIR. What lies there is loaded as code, so it must be ours alone.

Invariants: 1. nothing is changed where numba has a folder, or NUMBA_CACHE_DIR names one; 2. a folder that
others may write to, own, or could swap is never used. Thread safety: for the import of the package only.
"""

import os
import stat
import sys
from pathlib import Path
from typing import Final

__all__ = ["settle"]

VARIABLE: Final = "NUMBA_CACHE_DIR"
"""Where numba itself looks first."""

SHARED_MEMORY: Final = Path("/dev/shm")
"""Writable in containers whose root file system is read-only and that mount no temporary folder."""


def settle(source: Path) -> None:
    """Have numba keep compiled kernels in a temporary folder, if it has no other.

    Parameters
    ----------
    source
        The folder of a package whose kernels numba would keep beside it.
    """
    if os.environ.get(VARIABLE) or _writable(source / "__pycache__") or _writable(_user_cache()):
        return
    for parent in (_temporary(), SHARED_MEMORY):
        if parent is not None and (folder := _own_folder(parent)) is not None:
            os.environ[VARIABLE] = str(folder)  # for processes that this one starts too
            if (loaded := sys.modules.get("numba")) is not None:  # it reads the environment once
                loaded.config.CACHE_DIR = str(folder)
            return


def _writable(folder: Path) -> bool:
    """Whether it could be written to, once it is made."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _user_cache() -> Path:
    """numba's folder in the user's home."""
    if sys.platform == "darwin":
        return Path(os.path.expanduser("~/Library/Caches/numba"))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "numba"


def _temporary() -> Path | None:
    """The folder for temporary files; None where none is writable."""
    import tempfile  # noqa: PLC0415  # a tenth of the time of `import ps_client`, and rarely needed

    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return None


def _own_folder(parent: Path) -> Path | None:
    """The folder that all processes of this user share there; else a new one; None where neither is safe."""
    try:
        above = os.stat(parent)
        if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
            return None  # anybody could put another folder in the place of ours
        shared = parent / f"rowhouse-kernels-{os.getuid()}"
        if not os.path.lexists(shared):
            shared.mkdir(mode=0o700, exist_ok=True)  # another process may be as far
        if _ours(shared):
            return shared
        own = parent / f"{shared.name}-{os.urandom(8).hex()}"
        own.mkdir(mode=0o700)
        return own
    except OSError:
        return None


def _ours(folder: Path) -> bool:
    """Whether it is a folder, no link, that this user owns and nobody else may enter."""
    found = os.lstat(folder)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
