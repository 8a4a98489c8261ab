# SPDX-License-Identifier: Apache-2.0
"""Where a command may write, and files that appear complete or not at all: batches of ids, or text.

A file is written under a temporary name beside its own and renamed when it is whole, so that no reader ever
sees half of it. Thread safety: one writer per path.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from feature_cross.data.source import FORMATS
from feature_cross.error import DataError, FlagError

__all__ = ["Sink", "check_out", "write_text"]

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
        _check_apart(data, out)


def _check_apart(data: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Refuse an output that is its own input, by whatever names, or lies in the folder that is read: there it
    would be input of the next run, so it is refused even if new."""
    source, target = Path(data), Path(out)
    try:
        if source.is_dir():
            root = source.resolve()
            inside = (
                root in (target.parent.resolve() / target.name).parents or root in target.resolve().parents
            )
            # a link in the folder can lead to a file outside of it
            if inside or (
                target.exists() and any(p.exists() and p.samefile(target) for p in source.rglob("*"))
            ):
                raise FlagError(f"--out is {target}, which is in the input folder {source}; write elsewhere")
        elif source.exists() and target.exists() and source.samefile(target):
            raise FlagError(f"--out is {target}, which is the input {source} itself; write to another file")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise DataError(f"{target}: cannot be compared with {source}: {error}") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8, line ends as they are, under a temporary name and rename it; DataError when the file
    system refuses."""
    target = Path(path)
    partial = _partial(target)
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        os.replace(partial, target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


class Sink:
    """A context manager that writes record batches to one Parquet or Arrow IPC file.

    Parameters
    ----------
    path
        .parquet (zstd) or .arrow (uncompressed IPC, for memory mapping).
    schema
        Of every batch; its metadata goes into the file.

    Raises
    ------
    FlagError
        Another suffix.
    DataError
        The file system refuses; then nothing is left under `path`'s name.
    """

    def __init__(self, path: str | os.PathLike[str], schema: pa.Schema) -> None:
        self.path = Path(path)
        self.partial = _partial(self.path)
        kind = FORMATS.get(self.path.suffix.lower())
        if kind not in ("parquet", "ipc"):
            raise FlagError(f"--out is {self.path}; ids can be written as .parquet or .arrow")
        self.kind = kind
        self.schema = schema
        self.writer: Any = None

    def __enter__(self) -> "Sink":
        try:
            if self.kind == "parquet":
                # Ids are hashes: a dictionary of them is never smaller, and zstd finds the slot's bits.
                self.writer = pa.parquet.ParquetWriter(
                    self.partial, self.schema, compression="zstd", use_dictionary=False
                )
            else:
                self.writer = pa.ipc.new_file(str(self.partial), self.schema)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {_reason(error)}") from error
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch; DataError when the disk refuses."""
        try:
            self.writer.write_batch(batch)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {_reason(error)}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.writer.close()
            if kind is None:
                os.replace(self.partial, self.path)
        except OSError as failure:
            raise DataError(f"{self.path}: cannot be written: {_reason(failure)}") from failure
        finally:
            self.partial.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    """Arrow's errors have a number and a long text around it."""
    return os.strerror(error.errno) if error.errno else error.strerror or str(error)
