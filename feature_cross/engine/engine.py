# SPDX-License-Identifier: Apache-2.0
"""Runs a plan over columns: the same code for a stream, a table, a batch and one row.

Invariants: 1. ids of a row depend on that row and the config only, not on its batch; 2. a batch is given
out whole or not at all. Thread safety: an Engine is immutable; any threads may call it at once, and the
kernels release the GIL.
"""

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.ipc
from rowhouse.problem import with_article

from feature_cross.config.config import CrossConfig
from feature_cross.config.node import Plan
from feature_cross.config.plan import build_plan
from feature_cross.data.row import row_to_batch
from feature_cross.data.source import read_batches
from feature_cross.data.workspace import Workspace
from feature_cross.engine.batch import WEIGHT_SUFFIX, CrossBatch
from feature_cross.engine.execution import BatchTooLargeError, Run, compile_plan
from feature_cross.engine.stream import Pair, in_order
from feature_cross.error import DataError
from feature_cross.id_format import (
    FORMAT_VERSION,
    METADATA_FORMAT,
    METADATA_SEED,
    METADATA_SLOT,
    METADATA_SLOT_BITS,
)
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["Engine"]


_STEADY: Final = (
    str, os.PathLike, pa.dataset.Dataset, pa.Table, pa.RecordBatch, pa.ipc.RecordBatchStreamReader
)  # fmt: skip
"""Sources whose batches stay as they are when the next one comes."""


class Engine:
    """Derives the ids of a config's features.

    Parameters
    ----------
    config
        From `feature_cross.load`.

    Example
    -------
    >>> engine = Engine(load({
    ...     "entities": {"user": {"attributes": {"city": {"type": "string"}}}},
    ...     "features": {"city": {"kind": "attribute", "of": "user.city"}},
    ... }))
    >>> ids, offsets = engine.transform({"city": "Oslo"})["city"]
    """

    def __init__(self, config: CrossConfig) -> None:
        self._config = config
        self._plan = build_plan(config)
        self._program = compile_plan(self._plan)
        self._schema = _schema(self._plan)
        self._labels = self._plan.columns
        self._names = list(self._labels)
        self._spare: list[Workspace] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_spare": []}  # memory stays where it is

    @contextmanager
    def workspace(self, steady: bool) -> Iterator[Workspace]:
        """Arrays and hashes for one stream or call; the engine keeps 64 MiB of arrays at most for the next.

        Parameters
        ----------
        steady
            As for Workspace.
        """
        try:
            mine = self._spare.pop()  # one step, so no other thread gets the same
        except IndexError:
            mine = Workspace()
        mine.renew(steady)
        try:
            yield mine
        finally:
            mine.renew(False)
            if not self._spare:
                self._spare.append(mine)

    @property
    def config(self) -> CrossConfig:
        """The config that it runs."""
        return self._config

    @property
    def plan(self) -> Plan:
        """The config's resolved features."""
        return self._plan

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the output, with the id format's version in its metadata."""
        return self._schema

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the data must have."""
        return tuple(self._names)

    def transform(self, data: Any) -> CrossBatch:
        """Ids of every row of `data`.

        Parameters
        ----------
        data
            pyarrow RecordBatch or Table; whatever `pyarrow.table` takes (pandas, Polars, anything with
            the Arrow C stream interface); or one row as a mapping from column to value.

        Returns
        -------
        CrossBatch

        Raises
        ------
        DataError
            A column is missing or mistyped, or a value is invalid.
        LimitError
            A row or the whole is past a limit.
        """
        if isinstance(data, Mapping):
            return self._run(row_to_batch(data, self._program.uses), 0)
        if isinstance(data, pa.RecordBatch) and len(data) <= BATCH_ROWS_DEFAULT:
            return self._run(data, 0)
        table = _to_table(data)
        self._require(table.schema.names)
        parts, row_base = [], 0
        with self.workspace(steady=True) as workspace:
            for batch in table.select(self.columns).to_batches(max_chunksize=BATCH_ROWS_DEFAULT):
                parts.append(self._run(batch, row_base, workspace))
                row_base += len(batch)
        if not parts:
            empty = pa.RecordBatch.from_pylist([], schema=table.select(self.columns).schema)
            return self._run(empty, 0)
        return parts[0] if len(parts) == 1 else _concatenate(parts)

    def transform_stream(
        self, source: Any, batch_rows: int = BATCH_ROWS_DEFAULT, threads: int = 1
    ) -> Iterator[CrossBatch]:
        """Ids of a source of any size, batch by batch, in constant memory.

        Parameters
        ----------
        source
            A path (Parquet, Arrow IPC, CSV, or a folder of one of them), a pyarrow dataset, Table or
            RecordBatchReader, or an iterable of RecordBatch. A dictionary that the batches of a file, a
            Table or an IPC stream share is hashed once; one of an iterable once per batch that it gives, for
            its next batch may be in the same memory (with several threads once per `batch_rows`).
        batch_rows
            Most rows of one batch. A batch whose ids would not fit is halved.
        threads
            Batches worked on at once; they come out in order all the same.

        Raises
        ------
        DataError, LimitError
            As `transform`; rows are counted from the source's first.
        """
        steady = isinstance(source, _STEADY)
        with self.workspace(steady or threads == 1) as workspace:
            begin = (lambda: None) if steady else workspace.forget
            batches = read_batches(source, self._plan, batch_rows, begin=begin)
            for _, done in in_order(partial(self.transform_batch, workspace=workspace), batches, threads):
                yield done

    def transform_pairs(
        self, batches: Iterable[pa.RecordBatch], threads: int = 1, steady: bool = False
    ) -> Generator[Pair, None, None]:
        """Pairs of rows and their ids.

        Parameters
        ----------
        batches
            Record batches that have the engine's columns, and may have more.
        threads
            As for `transform_stream`.
        steady
            Whether the batches' memory stays as it is while the stream lasts, as that of files and tables
            does: a dictionary that comes again is then hashed once.

        Raises
        ------
        DataError, LimitError
            As `transform_stream`.
        """
        with self.workspace(steady) as workspace:
            yield from in_order(partial(self.transform_batch, workspace=workspace), batches, threads)

    def transform_batch(
        self, batch: pa.RecordBatch, row_base: int = 0, workspace: Workspace | None = None
    ) -> Iterator[CrossBatch]:
        """As one batch if it can be, else in halves.

        Parameters
        ----------
        batch
            Has the engine's columns.
        row_base
            Its first row's number in messages.
        workspace
            What the batches of a stream share; None where this is the only one.
        """
        try:
            done = self._run(batch, row_base, workspace)
        except BatchTooLargeError:
            half = len(batch) // 2
            if half == 0:
                raise
            yield from self.transform_batch(batch.slice(0, half), row_base, workspace)
            yield from self.transform_batch(batch.slice(half), row_base + half, workspace)
        else:
            yield done

    def _require(self, names: list[str]) -> None:
        for column, label in self._labels.items():
            count = names.count(column)
            if count != 1:
                found = (
                    f"is {count} times in the data"
                    if count
                    else f"is not in the data, which has {names[:50]}"
                )
                raise DataError(f"column {column!r} ({label}) {found}")

    def _run(self, batch: pa.RecordBatch, row_base: int, workspace: Workspace | None = None) -> CrossBatch:
        names = batch.schema.names
        if names != self._names:  # as a stream selects them
            self._require(names)
        columns, weights = Run(self._program, batch, row_base, workspace or Workspace()).outputs()
        return CrossBatch(self._schema, columns, len(batch), weights)


def _to_table(data: Any) -> pa.Table:
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    try:
        return pa.table(data)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{with_article(type(data).__name__)} cannot be read as an Arrow table: {reason}"
        ) from error


def _schema(plan: Plan) -> pa.Schema:
    """Metadata: the format's version and slot_bits for all; each feature's own seed and slot."""
    fields, weights = [], []
    for name in plan.outputs:
        node = plan.node(name)
        metadata = {METADATA_SEED: str(node.seed).encode()}
        if node.slot is not None:
            metadata[METADATA_SLOT] = str(node.slot).encode()
        fields.append(pa.field(name, pa.list_(pa.uint64()), nullable=False, metadata=metadata))
        if node.weighted:
            weights.append(pa.field(name + WEIGHT_SUFFIX, pa.list_(pa.float32()), nullable=False))
    whole = {METADATA_FORMAT: str(FORMAT_VERSION).encode()}
    if plan.slot_bits is not None:
        whole[METADATA_SLOT_BITS] = str(plan.slot_bits).encode()
    return pa.schema([*fields, *weights], metadata=whole)


def _concatenate(parts: list[CrossBatch]) -> CrossBatch:
    rows = sum(len(part) for part in parts)
    columns = {}
    for name in parts[0].features:
        ids = np.concatenate([part[name][0] for part in parts])
        offsets = np.empty(rows + 1, np.int64)
        offsets[0] = row = base = 0
        for part in parts:
            here = part[name][1]
            np.add(here[1:], base, out=offsets[row + 1 : row + len(here)])
            row, base = row + len(here) - 1, base + int(here[-1])
        ids.flags.writeable = False
        offsets.flags.writeable = False
        columns[name] = (ids, offsets)
    weights = {}
    for name in parts[0].weights:
        weights[name] = np.concatenate([part.weights[name] for part in parts])
        weights[name].flags.writeable = False
    return CrossBatch(parts[0].schema, columns, rows, weights)
