# SPDX-License-Identifier: Apache-2.0
"""Reads record batches from files, folders, datasets and streams, with bounded memory.

Only the columns that the plan needs are read (and `keep`, which travels along). Thread safety: each
iterator belongs to one thread.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.ipc
import pyarrow.parquet
from rowhouse.problem import nearest, with_article

from feature_cross.config.node import Plan
from feature_cross.data.fault import READ_ERRORS, read_error
from feature_cross.error import DataError

__all__ = ["FORMATS", "count_rows", "open_dataset", "read_batches", "scan_rows"]

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "ipc",
    ".ipc": "ipc",
    ".feather": "ipc",
    ".csv": "csv",
}
"""File format by suffix."""

_CSV_TYPES = {"int": pa.int64(), "string": pa.string(), "float": pa.float64(), "bool": pa.bool_()}


def read_batches(
    source: Any,
    plan: Plan,
    batch_rows: int,
    keep: tuple[str, ...] = (),
    begin: Callable[[], None] = lambda: None,
) -> Iterator[pa.RecordBatch]:
    """Batches of at most `batch_rows` rows with the plan's columns and those of `keep`.

    Parameters
    ----------
    source
        Path, dataset, Table, RecordBatch, RecordBatchReader, or an iterable of RecordBatch.
    plan
        Says which columns are needed and, for CSV, their types.
    batch_rows
        At least 1.
    keep
        More columns to read.
    begin
        Called whenever the source has given a batch, before its rows come out.

    Raises
    ------
    DataError
        Nothing to read, an unknown format, or a column that is not there.
    """
    if batch_rows < 1:
        raise DataError(f"batch_rows is {batch_rows}; it must be at least 1")
    names = list(dict.fromkeys([*plan.columns, *keep]))
    if isinstance(source, str | os.PathLike):
        source = open_dataset(os.fspath(source), plan)
    if isinstance(source, pa.dataset.Dataset):
        _require(names, source.schema.names, plan)
        batches: Iterable[pa.RecordBatch] = _scan(source, names, batch_rows)
    elif isinstance(source, pa.Table):
        _require(names, source.schema.names, plan)
        batches = source.select(names).to_batches()
    elif isinstance(source, pa.RecordBatch):
        batches = [source]
    elif isinstance(source, Iterable):
        batches = source
    else:
        raise DataError(f"cannot read batches from {with_article(type(source).__name__)}")
    for batch in batches:
        if not isinstance(batch, pa.RecordBatch):
            raise DataError(f"the source gave {with_article(type(batch).__name__)}; it must give RecordBatch")
        _require(names, batch.schema.names, plan)
        begin()
        chosen = batch.select(names)
        for first in range(0, len(batch), batch_rows):
            yield chosen.slice(first, batch_rows)


def _scan(dataset: pa.dataset.Dataset, names: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    for fragment in dataset.get_fragments():
        batches = _read_fragment(fragment, dataset.schema, names, batch_rows)
        while True:
            try:
                batch = next(batches, None)
            except READ_ERRORS as error:
                raise read_error(getattr(fragment, "path", None), error) from error
            if batch is None:
                break
            yield batch


def _read_fragment(
    fragment: Any, schema: pa.Schema, names: list[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """A Parquet file is read batch by batch: a scan reads row groups ahead, in three times the memory."""
    if isinstance(fragment, pa.dataset.ParquetFileFragment):
        own = fragment.physical_schema
        if all(name in own.names and own.field(name).type == schema.field(name).type for name in names):
            # pre_buffer, the default, keeps the bytes of every row group that was read
            with pa.parquet.ParquetFile(
                fragment.path, filesystem=fragment.filesystem, pre_buffer=False
            ) as file:
                yield from file.iter_batches(batch_rows, columns=names)
            return
    scanner = pa.dataset.Scanner.from_fragment(
        fragment, schema=schema, columns=names, batch_size=batch_rows, batch_readahead=2
    )
    yield from scanner.to_batches()


def open_dataset(path: str, *plans: Plan) -> pa.dataset.Dataset:
    """A dataset over a file or a folder of files of one format, told by suffix; DataError if it cannot be.

    The columns of a CSV file have the types that `plans` declare, the first plan's first.
    """
    root = Path(path)
    try:
        files = [root] if not root.is_dir() else sorted(p for p in root.rglob("*") if p.suffix in FORMATS)
        if not root.exists():
            raise DataError(f"{path}: no such file or folder")
        kinds = {FORMATS.get(file.suffix.lower()) for file in files}
        if len(kinds) != 1 or None in kinds:
            raise DataError(f"{path}: cannot tell one format by suffix; known are {', '.join(FORMATS)}")
        kind = kinds.pop()
        file_format: Any = kind
        if kind == "csv":
            file_format = _csv_format(plans)
        return pa.dataset.dataset([str(file) for file in files], format=file_format)
    except READ_ERRORS as error:
        raise read_error(path if root.is_file() else _named(str(error)) or path, error) from error


def _csv_format(plans: tuple[Plan, ...]) -> pa.dataset.CsvFileFormat:
    """A column's type is declared, never guessed from a file's first rows.

    A field of a text column is its text, the empty one too. An empty field of another column is a null. What
    else stands for a null is the engine's to know (`nulls`), which treats text from any source alike; so it
    gets the text of columns with `cast`.
    """
    plain = [u for plan in reversed(plans) for u in plan.attributes if not u.attribute.list]
    types = {use.attribute.weights: pa.float64() for use in plain if use.attribute.weights}
    for use in plain:
        if use.attribute.cast:
            types[use.column] = pa.string()
        elif use.attribute.type in _CSV_TYPES:
            types[use.column] = _CSV_TYPES[use.attribute.type]
    convert = pa.csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=False)
    return pa.dataset.CsvFileFormat(convert_options=convert)


def _named(said: str) -> str | None:
    """The file of a folder that Arrow's message is about."""
    found = re.search(r"input source '([^']*)'", said)
    return None if found is None else found[1]


def count_rows(path: str, plan: Plan) -> int | None:
    """Rows of a file or folder where its metadata knows them (Parquet, IPC); None for CSV."""
    dataset = open_dataset(path, plan)
    return None if isinstance(dataset.format, pa.dataset.CsvFileFormat) else scan_rows(dataset)


def scan_rows(dataset: pa.dataset.Dataset) -> int:
    """Rows of a dataset, read where no metadata knows them; DataError where a file cannot be read."""
    total = 0
    for fragment in dataset.get_fragments():
        try:
            total += int(fragment.count_rows())
        except READ_ERRORS as error:
            raise read_error(getattr(fragment, "path", None), error) from error
    return total


def _require(wanted: list[str], names: list[str], plan: Plan) -> None:
    for name in wanted:
        count = names.count(name)
        if count != 1:
            label = f" ({plan.columns[name]})" if name in plan.columns else ""
            found = (
                f"is {count} times in the data" if count else f"is not in the data, which has {names[:50]}"
            )
            hint = "" if count else f"; {nearest(name, names)}"
            raise DataError(f"column {name!r}{label} {found}{hint}")
