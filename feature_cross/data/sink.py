# SPDX-License-Identifier: Apache-2.0
"""Writes batches of ids to one Parquet or Arrow IPC file, complete or not at all.

The file is written under a temporary name beside its own and renamed when it is whole, so that no reader
ever sees half of it. Thread safety: a Sink belongs to one thread.
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

__all__ = ["Sink", "check_apart"]


def check_apart(data: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Refuse an output that is its own input, before either is opened.

    Parameters
    ----------
    data
        File or folder to read.
    out
        File to write. In the folder it would be input of the next run, so it is refused there even if new.

    Raises
    ------
    FlagError
        The two are one file, by whatever names, or `out` is in the folder.
    """
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


class Sink:
    """A context manager that writes record batches.

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
        self.partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
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
