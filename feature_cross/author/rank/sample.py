# SPDX-License-Identifier: Apache-2.0
"""Labelled rows in memory, divided into training, selection and fresh final rows.

Which rows are read and where each goes follows from (seed, row number) alone, or from a time column:
reading again gives the same rows. Invariants: 1. the rows of training come first, then those of selection,
then the final ones; 2. no row is in two parts; 3. with a time column no row is older than any of a part
before it. Thread safety: a Sample is immutable.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from numpy.typing import NDArray
from rowhouse.problem import nearest

from feature_cross.author.rank.coding import Coded, code_ids
from feature_cross.author.rank.work import Progress, no_progress
from feature_cross.config.config import CrossConfig
from feature_cross.data.source import open_dataset, read_batches, scan_rows
from feature_cross.engine.bag import PLAIN
from feature_cross.engine.engine import Engine
from feature_cross.error import DataError, FlagError, LimitError
from feature_cross.id_format import name_seed, start
from feature_cross.kernel.fold import fold_first
from feature_cross.limit import BATCH_ROWS_DEFAULT

__all__ = ["Design", "Sample", "read_sample"]

SAMPLE_IDS_MAX = 1 << 28
"""Ids of all features over all rows read: 2 GiB as they are read, 1 GiB as codes."""

PART_ROWS_MIN = 100
"""Rows of a part below which neither a fit nor an interval means anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """How rows are chosen and divided.

    Attributes
    ----------
    label
        Column of the label: bool, or the numbers 0 and 1.
    time_column
        Divide by time, the oldest rows for training; None: by a hash of the row's number.
    group_column
        Rows with one value of it are not independent (one user's, one session's): intervals allow for it.
    seed
        Of the choice and the division of rows.
    rows_max
        Most rows to read, about; of more a random choice is read.
    shares
        Of training, selection and final rows; they add up to 1.
    """

    label: str
    time_column: str | None = None
    group_column: str | None = None
    seed: int = 0
    rows_max: int = 1_000_000
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Rows in memory; N of them, in the order training, selection, final.

    Attributes
    ----------
    labels
        (N,) float64, 0 or 1.
    columns
        Ids of each output of the config that it was read with.
    groups
        (N,) int64 codes of the group column; None: each row by itself.
    bounds
        First rows of selection and of final, and N.
    rows_total
        Rows of the source, of which N were read.
    """

    labels: NDArray[np.float64]
    columns: dict[str, Coded]
    groups: NDArray[np.int64] | None
    bounds: tuple[int, int, int]
    rows_total: int

    @property
    def rows(self) -> tuple[int, int, int]:
        """Rows of training, selection and final."""
        first, second, last = self.bounds
        return first, second - first, last - second


def read_sample(config: CrossConfig, source: Any, design: Design, progress: Progress = no_progress) -> Sample:
    """Read and divide labelled rows.

    Parameters
    ----------
    config
        Whose outputs to read.
    source
        Path of a file or folder, a pyarrow dataset or Table.
    design
        Which rows, and where they go.
    progress
        Is told of the stage "read rows".

    Raises
    ------
    DataError
        A column is not what it must be, a label is not 0 or 1, or a part is too small.
    FlagError
        The design names a column that is not there, or a feature reads the label.
    LimitError
        More ids than fit.
    """
    progress("read rows", 0, 1)
    engine = Engine(config)
    if not isinstance(source, pa.dataset.Dataset | pa.Table):
        source = open_dataset(str(source), engine.plan)
    _check_columns(source.schema.names, engine, design)
    total = source.num_rows if isinstance(source, pa.Table) else scan_rows(source)
    reader = _Reader(engine, design, min(1.0, design.rows_max / max(total, 1)))
    if design.time_column is not None:
        reader.cuts = _time_cuts(reader, source, design)
    reader.read(source)
    sample = reader.sample(total)
    progress("read rows", 1, 1)
    return sample


def _check_columns(names: list[str], engine: Engine, design: Design) -> None:
    wanted = {
        "--label": design.label,
        "--time-column": design.time_column,
        "--group-column": design.group_column,
    }
    for flag, name in wanted.items():
        if name is not None and name not in names:
            raise FlagError(
                f"{flag} is {name!r}, which is no column of the data: it has {names[:50]}"
                f"; {nearest(name, names)}"
            )
    for use in engine.plan.attributes:
        if design.label in use.columns:
            line = engine.config.line(use.path)
            place = f" (line {line} of {engine.config.source})" if line else ""
            raise FlagError(
                f"--label is {design.label!r}, which {use.label}{place} reads:"
                " a feature must not see the label"
            )


def _numbers(column: pa.Array, flag: str, row_base: int) -> NDArray[np.float64]:
    """A time column as float64: its order is all that counts."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        column = column.cast(pa.int64())
    elif pa.types.is_date32(kind):
        column = column.cast(pa.int32())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(f"{flag} has Arrow type {kind}; it must be a timestamp, a date or a number")
    if column.null_count:
        row = row_base + int(np.flatnonzero(pc.is_null(column).to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{flag} is null in row {row}; every row needs its time")
    values: NDArray[np.float64] = column.to_numpy(zero_copy_only=False).astype(np.float64)
    if np.isnan(values).any():
        row = row_base + int(np.flatnonzero(np.isnan(values))[0])
        raise DataError(f"{flag} is NaN in row {row}; every row needs its time")
    return values


def _labels(column: pa.Array, name: str, row_base: int) -> NDArray[np.float64]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(
            f"column {name!r} (--label) has Arrow type {kind}; it must be bool, or numbers 0 and 1"
        )
    values: NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    wrong = ~((values == 0) | (values == 1))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"column {name!r} (--label) is {column[at].as_py()!r} in row {row_base + at}; it must be 0 or 1"
        )
    return values


def _time_cuts(reader: "_Reader", source: Any, design: Design) -> tuple[float, float]:
    """First times of selection and of final, so that rows of one time stay together."""
    seen = [reader.times(batch, row_base)[mask] for batch, mask, row_base in reader.chosen(source)]
    times = np.sort(np.concatenate(seen)) if seen else np.empty(0)
    if len(times) == 0:
        return 0.0, 0.0
    first = float(times[int(len(times) * design.shares[0])])
    last = float(times[min(int(len(times) * (1 - design.shares[2])), len(times) - 1)])
    return first, last


class _Reader:
    def __init__(self, engine: Engine, design: Design, fraction: float) -> None:
        self.engine = engine
        self.design = design
        self.fraction = fraction
        self.cuts: tuple[float, float] | None = None
        self.keep = [n for n in (design.label, design.time_column, design.group_column) if n is not None]
        names = engine.plan.outputs
        self.ids: dict[str, list[list[NDArray[np.uint64]]]] = {n: [[], [], []] for n in names}
        self.counts: dict[str, list[list[NDArray[np.int64]]]] = {n: [[], [], []] for n in names}
        self.labels: list[list[NDArray[np.float64]]] = [[], [], []]
        self.groups: list[list[pa.Array]] = [[], [], []]
        self.held = 0

    def chosen(self, source: Any) -> Any:
        """(batch, mask of its chosen rows, number of its first row) of every batch."""
        row_base = 0
        for batch in read_batches(source, self.engine.plan, BATCH_ROWS_DEFAULT, tuple(self.keep)):
            yield batch, self._uniform("rows", row_base, len(batch)) < self.fraction, row_base
            row_base += len(batch)

    def _uniform(self, what: str, row_base: int, rows: int) -> NDArray[np.float64]:
        """A number in [0, 1) for each row, from the seed and the row's own number."""
        numbers = np.arange(row_base, row_base + rows, dtype=np.uint64)
        out = np.empty(rows, np.uint64)
        fold_first(np.uint64(start(self.design.seed ^ name_seed(what), 0, 1)), numbers, out, *PLAIN)
        return out / 2.0**64

    def times(self, batch: pa.RecordBatch, row_base: int) -> NDArray[np.float64]:
        name = self.design.time_column or ""
        return _numbers(batch.column(name), f"column {name!r} (--time-column)", row_base)

    def _parts(self, batch: pa.RecordBatch, row_base: int) -> NDArray[np.int64]:
        if self.cuts is not None:
            return np.searchsorted(np.array(self.cuts), self.times(batch, row_base), side="right")
        shares = np.cumsum(self.design.shares[:2])
        return np.searchsorted(shares, self._uniform("parts", row_base, len(batch)), side="right")

    def read(self, source: Any) -> None:
        for batch, mask, row_base in self.chosen(source):
            labels = _labels(batch.column(self.design.label), self.design.label, row_base)
            parts = self._parts(batch, row_base)
            for part in range(3):
                rows = np.flatnonzero(mask & (parts == part))
                if len(rows):
                    self._take(batch, rows, part, row_base)
                    self.labels[part].append(labels[rows])
                    if self.design.group_column is not None:
                        groups = batch.column(self.design.group_column)
                        if pa.types.is_dictionary(groups.type):  # each batch may have its own
                            groups = groups.dictionary_decode()
                        self.groups[part].append(groups.take(pa.array(rows)))

    def _take(self, batch: pa.RecordBatch, rows: NDArray[np.int64], part: int, row_base: int) -> None:
        try:
            pieces = list(self.engine.transform_batch(batch.take(pa.array(rows))))
        except DataError:
            for _ in self.engine.transform_batch(batch, row_base):  # for the row's number in the message
                pass
            raise
        for done in pieces:
            for name in self.engine.plan.outputs:
                ids, offsets = done[name]
                self.ids[name][part].append(ids)
                self.counts[name][part].append(np.diff(offsets))
                self.held += len(ids)
        if self.held > SAMPLE_IDS_MAX:
            raise LimitError(
                f"more than {SAMPLE_IDS_MAX} ids in the rows chosen; --max-rows is {self.design.rows_max}:"
                " lower it"
            )

    def sample(self, total: int) -> Sample:
        parts = [np.concatenate([np.empty(0), *part]) for part in self.labels]
        self._check_parts(parts)
        columns = {}
        # what shares ids is counted once, so its ids are kept
        shared = {name for names in self.engine.plan.groups.values() if len(names) > 1 for name in names}
        for name in self.engine.plan.outputs:
            ids = np.concatenate([a for part in self.ids.pop(name) for a in part])
            counts = np.concatenate([a for part in self.counts.pop(name) for a in part])
            offsets = np.zeros(len(counts) + 1, np.int64)
            np.cumsum(counts, out=offsets[1:])
            columns[name] = code_ids(ids, offsets, name in shared)
        groups = None
        if self.design.group_column is not None:
            flat = [array for part in self.groups for array in part]
            encoded = pa.chunked_array(flat).combine_chunks().dictionary_encode(null_encoding="encode")
            groups = encoded.indices.to_numpy().astype(np.int64)
        ends = np.cumsum([len(part) for part in parts])
        bounds = (int(ends[0]), int(ends[1]), int(ends[2]))
        return Sample(np.concatenate(parts), columns, groups, bounds, total)

    def _check_parts(self, parts: list[NDArray[np.float64]]) -> None:
        for name, labels in zip(("training", "selection", "final"), parts, strict=True):
            if len(labels) < PART_ROWS_MIN:
                how = f" by {self.design.time_column}" if self.cuts is not None else ""
                raise DataError(
                    f"the {name} part{how} has {len(labels)} rows of {sum(map(len, parts))};"
                    f" at least {PART_ROWS_MIN} are needed"
                )
            if labels.min() == labels.max():
                raise DataError(
                    f"column {self.design.label!r} (--label) is {labels[0]:g} in all {len(labels)} rows of"
                    f" the {name} part; both values are needed"
                )
