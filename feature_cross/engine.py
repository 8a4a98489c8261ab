# SPDX-License-Identifier: Apache-2.0
"""Runs a plan over columns: the same code for a stream, a table, a batch and one row.

Invariants: 1. ids of a row depend on that row and the config only, not on its batch; 2. a batch is given
out whole or not at all. Thread safety: an Engine is immutable; any threads may call it at once, and the
kernels release the GIL.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_cross.batch import CrossBatch
from feature_cross.column import RawColumn, hash_column
from feature_cross.config import CrossConfig
from feature_cross.error import DataError, LimitError
from feature_cross.id_format import (
    FORMAT_VERSION,
    METADATA_FORMAT,
    METADATA_SEED,
    METADATA_SLOT,
    METADATA_SLOT_BITS,
    OPERATION_TUPLE,
    TAG_NULL,
    mix,
    start,
    value_hash,
)
from feature_cross.kernel.fold import fold_first, fold_next, fold_pair, fold_product, lay_out, product_offsets
from feature_cross.kernel.jagged import compact
from feature_cross.kernel.subset import count_subsets, fold_rows, fold_subsets, sort_rows
from feature_cross.limit import BATCH_ROWS_DEFAULT, IDS_PER_BATCH_MAX
from feature_cross.plan import AttributeUse, Node, Plan, build_plan
from feature_cross.row import row_to_batch

__all__ = ["BatchTooLargeError", "Engine"]

_NULL_HASH = value_hash(bytes([TAG_NULL]))
_NO_MASK: NDArray[np.uint8] = np.empty(0, np.uint8)


class BatchTooLargeError(LimitError):
    """One feature gives more ids for this batch than IDS_PER_BATCH_MAX; fewer rows at once will do."""


@dataclass(frozen=True, slots=True)
class _Bag:
    """Hashes per row: (total,) uint64 with (rows + 1,) int64 offsets; offsets None: one per row."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64] | None


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
        self._schema = _schema(self._plan)

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
        return tuple(dict.fromkeys(use.column for use in self._plan.attributes))

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
            return self._run(row_to_batch(data, self._plan), 0)
        if isinstance(data, pa.RecordBatch) and len(data) <= BATCH_ROWS_DEFAULT:
            return self._run(data, 0)
        table = pa.Table.from_batches([data]) if isinstance(data, pa.RecordBatch) else data
        table = table if isinstance(table, pa.Table) else pa.table(table)
        self._require(table.schema.names)
        parts, row_base = [], 0
        for batch in table.select(self.columns).to_batches(max_chunksize=BATCH_ROWS_DEFAULT):
            parts.append(self._run(batch, row_base))
            row_base += len(batch)
        if not parts:
            empty = pa.RecordBatch.from_pylist([], schema=table.select(self.columns).schema)
            return self._run(empty, 0)
        return parts[0] if len(parts) == 1 else _concatenate(parts)

    def transform_stream(self, source: Any, batch_rows: int = BATCH_ROWS_DEFAULT) -> Iterator[CrossBatch]:
        """Ids of a source of any size, batch by batch, in constant memory.

        Parameters
        ----------
        source
            A path (Parquet, Arrow IPC, CSV, or a folder of one of them), a pyarrow dataset, Table or
            RecordBatchReader, or an iterable of RecordBatch.
        batch_rows
            Most rows of one batch. A batch whose ids would not fit is halved.

        Raises
        ------
        DataError, LimitError
            As `transform`; rows are counted from the source's first.
        """
        from feature_cross.source import read_batches  # noqa: PLC0415  # reads files; one row needs none

        row_base = 0
        for batch in read_batches(source, self._plan, batch_rows):
            yield from self.transform_batch(batch, row_base)
            row_base += len(batch)

    def transform_batch(self, batch: pa.RecordBatch, row_base: int = 0) -> Iterator[CrossBatch]:
        """As one batch if it can be, else in halves; `row_base` is its first row's number in messages."""
        try:
            done = self._run(batch, row_base)
        except BatchTooLargeError:
            half = len(batch) // 2
            if half == 0:
                raise
            yield from self.transform_batch(batch.slice(0, half), row_base)
            yield from self.transform_batch(batch.slice(half), row_base + half)
        else:
            yield done

    def _require(self, names: list[str]) -> None:
        missing = [use for use in self._plan.attributes if use.column not in names]
        if missing:
            use = missing[0]
            raise DataError(f"column {use.column!r} ({use.label}) is not in the data, which has {names[:50]}")

    def _run(self, batch: pa.RecordBatch, row_base: int) -> CrossBatch:
        return _Run(self._plan, batch, row_base, self._require).outputs(self._schema)


class _Run:
    """One batch on its way: hashes by column, bags by attribute and policy, bags by feature."""

    def __init__(self, plan: Plan, batch: pa.RecordBatch, row_base: int, require: Any) -> None:
        self.plan = plan
        self.batch = batch
        self.rows = len(batch)
        self.row_base = row_base
        require(batch.schema.names)
        self.raw: dict[str, RawColumn] = {}
        self.bags: dict[tuple[str, str], _Bag] = {}
        self.nodes: dict[str, _Bag] = {}
        self.arange = np.arange(self.rows + 1, dtype=np.int64)

    def outputs(self, schema: pa.Schema) -> CrossBatch:
        emitted: dict[str, tuple[NDArray[np.uint64], NDArray[np.int64]]] = {}
        for node in self.plan.nodes:
            bag = self._node(node)
            self.nodes[node.name] = bag
            if node.emit:
                emitted[node.name] = (self._ids(node, bag.hashes), self._offsets(bag))
        for ids, offsets in emitted.values():
            ids.flags.writeable = False
            offsets.flags.writeable = False
        return CrossBatch(schema, {name: emitted[name] for name in self.plan.outputs}, self.rows)

    def _ids(self, node: Node, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        bits = self.plan.slot_bits
        if bits is None or node.slot is None:
            return hashes.view()
        out = np.empty_like(hashes)
        lay_out(hashes, (1 << (64 - bits)) - 1, np.uint64(node.slot << (64 - bits)), out)
        return out

    def _offsets(self, bag: _Bag) -> NDArray[np.int64]:
        return self.arange if bag.offsets is None else bag.offsets

    def _where(self, row: int) -> str:
        return f"row {self.row_base + row}"

    def _operand(self, operand: Any) -> _Bag:
        if not isinstance(operand, AttributeUse):
            return self.nodes[operand.name]
        key = (operand.label, operand.missing)
        if key not in self.bags:
            self.bags[key] = self._attribute(operand)
        return self.bags[key]

    def _attribute(self, use: AttributeUse) -> _Bag:
        label = f"column {use.column!r} ({use.label})"
        if use.label not in self.raw:
            array = self.batch.column(use.column)
            self.raw[use.label] = hash_column(array, use.attribute, label)
        raw = self.raw[use.label]
        if use.missing == "error":
            self._refuse_nulls(raw, label)
        hashes, nulls = raw.values.hashes, raw.values.nulls
        if raw.offsets is not None:
            return self._list(use, raw)
        if nulls is None:
            return _Bag(hashes, None)
        if use.missing == "own_id":
            return _Bag(np.where(nulls, np.uint64(_NULL_HASH), hashes), None)
        offsets = np.zeros(self.rows + 1, np.int64)
        np.cumsum(~nulls, out=offsets[1:])
        return _Bag(hashes[~nulls], offsets)

    def _list(self, use: AttributeUse, raw: RawColumn) -> _Bag:
        nulls, null_rows = raw.values.nulls, raw.null_rows
        length_max = use.attribute.max_length
        assert raw.offsets is not None, "only list columns come here"
        if nulls is None and length_max is None and (null_rows is None or use.missing == "drop"):
            return _Bag(raw.values.hashes, raw.offsets)
        hashes, offsets = compact(
            raw.values.hashes,
            raw.offsets,
            _NO_MASK if nulls is None else nulls.view(np.uint8),
            _NO_MASK if null_rows is None else null_rows.view(np.uint8),
            np.uint64(_NULL_HASH),
            use.missing == "own_id",
            -1 if length_max is None else length_max,
            use.attribute.keep != "first",
        )
        return _Bag(hashes, offsets)

    def _refuse_nulls(self, raw: RawColumn, label: str) -> None:
        for mask in (raw.values.nulls, raw.null_rows):
            if mask is None or not mask.any():
                continue
            at = int(np.flatnonzero(mask)[0])
            if mask is raw.values.nulls and raw.offsets is not None:
                at = int(np.searchsorted(raw.offsets, at, side="right")) - 1
            raise DataError(f"{label} has no value in {self._where(at)}; its missing policy is error")

    def _node(self, node: Node) -> _Bag:
        bags = [self._operand(operand) for operand in node.operands]
        if node.kind in ("permutation", "sorted"):
            return self._combination(node, bags[0])
        first = start(node.seed, OPERATION_TUPLE, len(bags))
        if all(bag.offsets is None for bag in bags):
            return _Bag(self._dense(first, [bag.hashes for bag in bags]), None)
        return self._product(node, first, bags)

    def _dense(self, first: int, columns: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
        out = np.empty(self.rows, np.uint64)
        if len(columns) == 1:
            fold_first(np.uint64(first), columns[0], out)
        else:
            fold_pair(np.uint64(first), columns[0], columns[1], out)
        for column in columns[2:]:
            fold_next(out, column)
        return out

    def _product(self, node: Node, first: int, bags: list[_Bag]) -> _Bag:
        alive = np.ones(self.rows, np.bool_)
        for bag in bags:
            if bag.offsets is not None:
                alive &= bag.offsets[1:] > bag.offsets[:-1]
        states, offsets = np.full(self.rows, first, np.uint64), self.arange
        for bag in bags:
            operand_offsets = self._offsets(bag)
            out_offsets, past = product_offsets(
                offsets, operand_offsets, alive.view(np.uint8), node.limit, node.cut
            )
            self._check_limits(node, past, out_offsets)
            out = np.empty(out_offsets[-1], np.uint64)
            fold_product(states, offsets, bag.hashes, operand_offsets, out, out_offsets)
            states, offsets = out, out_offsets
        return _Bag(states, offsets)

    def _combination(self, node: Node, bag: _Bag) -> _Bag:
        hashes, offsets = bag.hashes, self._offsets(bag)
        if node.kind == "sorted":
            hashes, offsets = sort_rows(hashes, offsets, node.multiset)
        if not node.sizes:
            return _Bag(*fold_rows(hashes, offsets, np.uint64(mix(node.seed)), node.operation))
        sizes = np.array(node.sizes, np.int64)
        out_offsets, past = count_subsets(hashes, offsets, sizes, node.limit, node.cut)
        self._check_limits(node, past, out_offsets)
        starts = np.array([start(node.seed, node.operation, size) for size in node.sizes], np.uint64)
        out = np.empty(out_offsets[-1], np.uint64)
        fold_subsets(hashes, offsets, sizes, starts, out, out_offsets)
        return _Bag(out, out_offsets)

    def _check_limits(self, node: Node, past: int, offsets: NDArray[np.int64]) -> None:
        if past >= 0:
            raise LimitError(
                f"{node.name} gives more than {node.limit} ids for {self._where(past)}; bound its lists"
                " (max_length), or give it a limit with past_limit: cut"
            )
        if offsets[-1] > IDS_PER_BATCH_MAX:
            raise BatchTooLargeError(
                f"{node.name} gives {offsets[-1]} ids for {self.rows} rows; a batch holds {IDS_PER_BATCH_MAX}"
            )


def _schema(plan: Plan) -> pa.Schema:
    """Metadata: the format's version and slot_bits for all; each feature's own seed and slot."""
    fields = []
    for name in plan.outputs:
        node = plan.node(name)
        metadata = {METADATA_SEED: str(node.seed).encode()}
        if node.slot is not None:
            metadata[METADATA_SLOT] = str(node.slot).encode()
        fields.append(pa.field(name, pa.list_(pa.uint64()), nullable=False, metadata=metadata))
    whole = {METADATA_FORMAT: str(FORMAT_VERSION).encode()}
    if plan.slot_bits is not None:
        whole[METADATA_SLOT_BITS] = str(plan.slot_bits).encode()
    return pa.schema(fields, metadata=whole)


def _concatenate(parts: list[CrossBatch]) -> CrossBatch:
    columns = {}
    for name in parts[0].features:
        ids = np.concatenate([part[name][0] for part in parts])
        bases = np.cumsum([0, *(len(part[name][0]) for part in parts)])
        pieces = [part[name][1][1:] + base for part, base in zip(parts, bases[:-1], strict=True)]
        offsets = np.concatenate([np.zeros(1, np.int64), *pieces])
        ids.flags.writeable = False
        offsets.flags.writeable = False
        columns[name] = (ids, offsets)
    return CrossBatch(parts[0].schema, columns, sum(len(part) for part in parts))
