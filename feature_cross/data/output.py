# SPDX-License-Identifier: Apache-2.0
"""Where a command may write, and text files that appear complete or not at all.

Thread safety: one writer per path.
"""

import os
from pathlib import Path

from feature_cross.data.sink import check_apart
from feature_cross.error import DataError, FlagError

__all__ = ["check_out", "write_text"]

Source = str | os.PathLike[str] | None


def check_out(out: str | os.PathLike[str], config: Source, data: Source = None) -> None:
    """Refuse a file to write that cannot be one, or that is what the command reads, before any work.

    Raises
    ------
    FlagError
        `out` is a folder, or in none; or it is the config or the data, by whatever name.
    """
    target = Path(out)
    if target.is_dir():
        raise FlagError(f"--out is {out}, which is a folder; name a file")
    if not target.parent.is_dir():
        raise FlagError(f"--out is {out}, but there is no folder {target.parent}")
    if config is not None and target.exists() and Path(config).exists() and target.samefile(config):
        raise FlagError(f"--out is {out}, which is the config itself; write to another file")
    if data is not None:
        check_apart(data, out)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8, line ends as they are, under a temporary name and rename it; DataError when the file
    system refuses."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        os.replace(partial, target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
