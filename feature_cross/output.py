# SPDX-License-Identifier: Apache-2.0
"""Writes a text file complete or not at all. Thread safety: one writer per path."""

import os
from pathlib import Path

from feature_cross.error import DataError

__all__ = ["write_text"]


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 under a temporary name and rename it; DataError when the file system refuses."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
