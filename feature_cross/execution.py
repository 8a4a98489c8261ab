# SPDX-License-Identifier: Apache-2.0
"""One batch on its way through a plan: columns to hashes, hashes to bags, bags to ids.

A bag is what an attribute or a feature gives for each row. Three shapes, from cheap to general: one hash
per row; the same with some rows null; any number per row. Crosses of the first two never look at offsets.
Invariants: 1. each column is hashed once, whatever number of features use it; 2. `Program` never changes,
a `Run` serves one batch. Thread safety: a Program may be shared, a Run may not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_cross.column import ColumnSpec, RawColumn, column_spec, hash_column, number_column
from feature_cross.error import DataError, LimitError
from feature_cross.gate import Gate, compile_gate
from feature_cross.id_format import MASK64, OPERATION_TUPLE, TAG_NULL, mix, start, value_hash
from feature_cross.kernel.fold import (
    fold_first,
    fold_next,
    fold_pair,
    fold_product,
    lay_out,
    multiply_product,
    product_offsets,
)
from feature_cross.kernel.jagged import compact, compress
from feature_cross.kernel.subset import count_subsets, fold_rows, fold_subsets, sort_rows
from feature_cross.limit import IDS_PER_BATCH_MAX
from feature_cross.node import AttributeUse, Node, Plan
from feature_cross.reading import Reading, read_attribute

__all__ = ["BatchTooLargeError", "Program", "Run", "compile_plan"]

_NULL_HASH = np.uint64(value_hash(bytes([TAG_NULL])))
_NO_MASK: NDArray[np.uint8] = np.empty(0, np.uint8)
Ids = tuple[NDArray[np.uint64], NDArray[np.int64]]
"""A feature's ids, (total,), and offsets, (rows + 1,)."""


class BatchTooLargeError(LimitError):
    """One feature gives more ids for this batch than IDS_PER_BATCH_MAX; fewer rows at once will do."""


@dataclass(frozen=True, slots=True)
class _Bag:
    """(rows,) hashes, or (total,) with (rows + 1,) offsets. Only without offsets may rows be null.

    `weights` has one float32 per hash; None: each is 1.
    """

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64] | None
    nulls: NDArray[np.bool_] | None = None
    weights: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class _Code:
    """A node's numbers, worked out once; `starts` has the mixer's first state, one per subset size."""

    node: Node
    starts: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    mixed_seed: np.uint64
    keep: np.uint64
    top: np.uint64
    gates: tuple[Gate, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A plan, ready to run over batches."""

    plan: Plan
    codes: tuple[_Code, ...]
    uses: tuple[AttributeUse, ...]
    specs: Mapping[str, ColumnSpec]


def compile_plan(plan: Plan) -> Program:
    """Work out what does not depend on data."""
    specs = {
        use.label: column_spec(use.attribute, f"column {use.column!r} ({use.label})")
        for use in plan.attributes
    }
    codes = tuple(_code(node, plan.slot_bits, specs) for node in plan.nodes)
    return Program(plan, codes, plan.attributes, specs)


def _code(node: Node, slot_bits: int | None, specs: Mapping[str, ColumnSpec]) -> _Code:
    sizes = node.sizes or (len(node.operands),)
    starts = np.array([start(node.seed, node.operation, size) for size in sizes], np.uint64)
    laid_out = slot_bits is not None and node.slot is not None
    hash_bits = 64 - (slot_bits or 0) if laid_out else 64
    top = (node.slot or 0) << hash_bits if laid_out else 0
    keep = MASK64 >> (64 - hash_bits)
    seed = np.uint64(mix(node.seed))
    gates = tuple(compile_gate(condition, specs[condition.use.label]) for condition in node.conditions)
    return _Code(node, starts, np.array(sizes, np.int64), seed, np.uint64(keep), np.uint64(top), gates)


class Run:
    """One batch.

    Parameters
    ----------
    program
        From `compile_plan`.
    batch
        Has every column of the plan.
    row_base
        Number of the batch's first row, for messages.
    """

    def __init__(self, program: Program, batch: pa.RecordBatch, row_base: int) -> None:
        self._program = program
        self._batch = batch
        self._rows = len(batch)
        self._row_base = row_base
        self._readings: dict[str, Reading] = {}
        self._raw: dict[str, RawColumn] = {}
        self._bags: dict[tuple[str, bool], _Bag] = {}
        self._nodes: dict[str, _Bag] = {}
        self._each: NDArray[np.int64] = np.arange(self._rows + 1, dtype=np.int64)
        self._each.flags.writeable = False

    def outputs(self) -> tuple[dict[str, Ids], dict[str, NDArray[np.float32]]]:
        """Of every emitted feature ids and offsets, in the order of declaration, and of the weighted ones
        the weights; the arrays are read-only.
        """
        emitted: dict[str, Ids] = {}
        weighted: dict[str, NDArray[np.float32]] = {}
        for code in self._program.codes:
            bag = self._node(code)
            self._nodes[code.node.name] = bag
            if code.node.emit:
                hashes, offsets, weights = self._jagged(bag)
                ids = hashes.view()
                if code.top or int(code.keep) != MASK64:
                    ids = np.empty_like(hashes)
                    lay_out(hashes, code.keep, code.top, ids)
                ids.flags.writeable = False
                offsets.flags.writeable = False
                emitted[code.node.name] = (ids, offsets)
                if weights is not None:
                    weights = weights.view()
                    weights.flags.writeable = False
                    weighted[code.node.name] = weights
        outputs = self._program.plan.outputs
        return {n: emitted[n] for n in outputs}, {n: weighted[n] for n in outputs if n in weighted}

    def _jagged(self, bag: _Bag) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.float32] | None]:
        if bag.offsets is not None:
            return bag.hashes, bag.offsets, bag.weights
        if bag.nulls is None:
            return bag.hashes, self._each, bag.weights
        hashes, offsets = compress(bag.hashes, bag.nulls)
        weights = compress(bag.weights, bag.nulls)[0] if bag.weights is not None else None
        return hashes, offsets, weights

    def _where(self, row: int) -> str:
        return f"row {self._row_base + row}"

    def _operand(self, operand: Any) -> _Bag:
        if not isinstance(operand, AttributeUse):
            return self._nodes[operand.name]
        key = (operand.label, operand.missing == "own_id")
        if key not in self._bags:
            self._bags[key] = self._attribute(operand)
        return self._bags[key]

    def _raw_column(self, use: AttributeUse) -> RawColumn:
        if use.label not in self._raw:
            reading = read_attribute(self._batch, use, self._row_base)
            raw = hash_column(reading.array, self._program.specs[use.label])
            if reading.weights is not None:
                reading = Reading(reading.array, self._checked_weights(use, raw, reading.weights))
            self._readings[use.label], self._raw[use.label] = reading, raw
        return self._raw[use.label]

    def _attribute(self, use: AttributeUse) -> _Bag:
        raw = self._raw_column(use)
        weights = self._readings[use.label].weights
        if raw.offsets is not None:
            return self._list(use, raw, weights)
        hashes, nulls = raw.values.hashes, raw.values.nulls
        if nulls is not None and use.missing == "own_id":
            return _Bag(np.where(nulls, _NULL_HASH, hashes), None, None, weights)
        return _Bag(hashes, None, nulls, weights)

    def _list(self, use: AttributeUse, raw: RawColumn, weights: NDArray[np.float32] | None) -> _Bag:
        nulls, null_rows = raw.values.nulls, raw.null_rows
        length_max = use.attribute.max_length
        assert raw.offsets is not None, "only list columns come here"
        if nulls is None and length_max is None and (null_rows is None or use.missing != "own_id"):
            return _Bag(raw.values.hashes, raw.offsets, None, weights)
        hashes, offsets = self._compacted(use, raw, raw.values.hashes, _NULL_HASH)
        if weights is not None:
            weights, _ = self._compacted(use, raw, weights, np.float32(1))
        return _Bag(hashes, offsets, None, weights)

    def _compacted(
        self, use: AttributeUse, raw: RawColumn, values: NDArray[Any], null: Any
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        nulls, null_rows = raw.values.nulls, raw.null_rows
        length_max = use.attribute.max_length
        assert raw.offsets is not None, "only list columns come here"
        compacted: tuple[NDArray[Any], NDArray[np.int64]] = compact(
            values,
            raw.offsets,
            _NO_MASK if nulls is None else nulls.view(np.uint8),
            _NO_MASK if null_rows is None else null_rows.view(np.uint8),
            null,
            use.missing == "own_id",
            -1 if length_max is None else length_max,
            use.attribute.keep != "first",
        )
        return compacted

    def _checked_weights(
        self, use: AttributeUse, raw: RawColumn, weights: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Weights of the values; a missing value's own is 1, and a value must have a finite one."""
        nulls = raw.values.nulls
        if nulls is not None:
            weights = np.where(nulls, np.float32(1), weights)
        finite = np.isfinite(weights)
        if not finite.all():
            at = row = int(np.flatnonzero(~finite)[0])
            if raw.offsets is not None:
                row = int(np.searchsorted(raw.offsets, at, side="right")) - 1
            label = f"column {use.attribute.weights!r} ({use.label}, weights)"
            raise DataError(f"{label} is {weights[at]} in {self._where(row)}; a weight is a finite float32")
        return weights

    def _refuse_nulls(self, use: AttributeUse, open_rows: NDArray[np.bool_] | None) -> None:
        """Raise for a missing value under `missing: error`, in rows where the feature's gates are open."""
        raw = self._raw_column(use)
        for mask in (raw.values.nulls, raw.null_rows):
            if mask is None:
                continue
            rows = np.flatnonzero(mask)
            if mask is raw.values.nulls and raw.offsets is not None:
                rows = np.searchsorted(raw.offsets, rows, side="right") - 1
            rows = rows if open_rows is None else rows[open_rows[rows]]
            if len(rows):
                label = self._program.specs[use.label].label
                where = self._where(int(rows[0]))
                raise DataError(f"{label} has no value in {where}; its missing policy is error")

    def _open_rows(self, code: _Code) -> NDArray[np.bool_] | None:
        """Rows in which the feature's conditions hold; None where it has none."""
        if not code.gates:
            return None
        held = np.ones(self._rows, np.bool_)
        for gate in code.gates:
            bag = self._operand(gate.use)
            numbers = None
            if gate.ordered:
                spec = self._program.specs[gate.use.label]
                numbers = number_column(self._readings[gate.use.label].array, spec)
            held &= gate.open_rows(bag.hashes, bag.offsets, bag.nulls, numbers)
        return held

    def _node(self, code: _Code) -> _Bag:
        open_rows = self._open_rows(code)
        for operand in code.node.operands:
            if isinstance(operand, AttributeUse) and operand.missing == "error":
                self._refuse_nulls(operand, open_rows)
        bags = [self._operand(operand) for operand in code.node.operands]
        if open_rows is not None:
            # A row whose first operand is empty has no id, whatever the family, and meets no limit.
            bags[0] = _closed(bags[0], ~open_rows)
        if code.node.operation != OPERATION_TUPLE:
            return self._combination(code, bags[0])
        if all(bag.offsets is None for bag in bags):
            return self._dense(code, bags)
        return self._product(code, bags)

    def _dense(self, code: _Code, bags: list[_Bag]) -> _Bag:
        out = np.empty(self._rows, np.uint64)
        if len(bags) == 1:
            fold_first(code.starts[0], bags[0].hashes, out)
        else:
            fold_pair(code.starts[0], bags[0].hashes, bags[1].hashes, out)
        for bag in bags[2:]:
            fold_next(out, bag.hashes)
        weights = None
        for bag in bags:
            if bag.weights is not None:
                weights = bag.weights if weights is None else weights * bag.weights
        masks = [bag.nulls for bag in bags if bag.nulls is not None]
        nulls = np.logical_or.reduce(masks) if len(masks) > 1 else masks[0] if masks else None
        return _Bag(out, None, nulls, weights)

    def _product(self, code: _Code, bags: list[_Bag]) -> _Bag:
        node = code.node
        if len(bags) == 1 and bags[0].offsets is not None:
            hashes, offsets = bags[0].hashes, bags[0].offsets
            longest = int(np.diff(offsets).max()) if self._rows else 0
            if longest <= node.limit and len(hashes) <= IDS_PER_BATCH_MAX:  # else it is cut, or an error
                out = np.empty(len(hashes), np.uint64)
                fold_first(code.starts[0], hashes, out)
                return _Bag(out, offsets, None, bags[0].weights)
        alive = np.ones(self._rows, np.bool_)
        columns = [self._jagged(bag) for bag in bags]
        for _, offsets, _ in columns:
            if offsets is not self._each:
                alive &= offsets[1:] > offsets[:-1]
        states, offsets = np.full(self._rows, code.starts[0], np.uint64), self._each
        products = np.ones(self._rows, np.float32)
        for hashes, hash_offsets, weights in columns:
            out_offsets, past = product_offsets(
                offsets, hash_offsets, alive.view(np.uint8), node.limit, node.cut
            )
            self._check_limits(node, past, out_offsets)
            out = np.empty(out_offsets[-1], np.uint64)
            fold_product(states, offsets, hashes, hash_offsets, out, out_offsets)
            if node.weighted:
                right = np.ones(len(hashes), np.float32) if weights is None else weights
                multiplied = np.empty(out_offsets[-1], np.float32)
                multiply_product(products, offsets, right, hash_offsets, multiplied, out_offsets)
                products = multiplied
            states, offsets = out, out_offsets
        return _Bag(states, offsets, None, products if node.weighted else None)

    def _combination(self, code: _Code, bag: _Bag) -> _Bag:
        node = code.node
        hashes, offsets, _ = self._jagged(bag)
        if node.kind == "sorted":
            hashes, offsets = sort_rows(hashes, offsets, node.multiset)
        if not node.sizes:
            return _Bag(*fold_rows(hashes, offsets, code.mixed_seed, node.operation))
        out_offsets, past = count_subsets(hashes, offsets, code.sizes, node.limit, node.cut)
        self._check_limits(node, past, out_offsets)
        out = np.empty(out_offsets[-1], np.uint64)
        fold_subsets(hashes, offsets, code.sizes, code.starts, out, out_offsets)
        return _Bag(out, out_offsets)

    def _check_limits(self, node: Node, past: int, offsets: NDArray[np.int64]) -> None:
        if past >= 0:
            raise LimitError(
                f"{node.name} gives more than {node.limit} ids for {self._where(past)}; bound its lists"
                " (max_length), or give it a limit with past_limit: cut"
            )
        if offsets[-1] > IDS_PER_BATCH_MAX:
            raise BatchTooLargeError(
                f"{node.name} gives {offsets[-1]} ids for {self._rows} rows; at most {IDS_PER_BATCH_MAX}"
            )


def _closed(bag: _Bag, closed_rows: NDArray[np.bool_]) -> _Bag:
    """The bag without the values of some rows."""
    if bag.offsets is None:
        nulls = closed_rows if bag.nulls is None else bag.nulls | closed_rows
        return _Bag(bag.hashes, None, nulls, bag.weights)
    rows = closed_rows.view(np.uint8)
    hashes, offsets = compact(bag.hashes, bag.offsets, _NO_MASK, rows, _NULL_HASH, False, -1, True)
    weights = bag.weights
    if weights is not None:
        weights, _ = compact(weights, bag.offsets, _NO_MASK, rows, np.float32(1), False, -1, True)
    return _Bag(hashes, offsets, None, weights)
