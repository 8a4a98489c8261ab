# SPDX-License-Identifier: Apache-2.0
"""One batch on its way through a plan: columns to hashes, hashes to bags, bags to ids.

What goes from step to step is a bag (feature_cross/engine/bag.py).
Invariants: 1. each column is hashed once, whatever number of features use it; 2. `Program` never changes,
a `Run` serves one batch. Thread safety: a Program may be shared, a Run may not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_cross.config.node import AttributeUse, Node, Plan
from feature_cross.data.column import ColumnSpec, RawColumn, column_spec, hash_column, number_column
from feature_cross.data.reading import Reading, read_attribute
from feature_cross.data.workspace import Workspace
from feature_cross.engine.bag import NO_MASK, NULL_HASH, PLAIN, Bag, Layout, closed, fold_bags
from feature_cross.engine.gate import Gate, compile_gate
from feature_cross.error import DataError, LimitError
from feature_cross.id_format import MASK64, OPERATION_TUPLE, mix, start
from feature_cross.kernel.fold import fold_first, fold_product, lay_out, multiply_product, product_offsets
from feature_cross.kernel.jagged import compact, compress
from feature_cross.kernel.look_up import look_up
from feature_cross.kernel.subset import count_subsets, fold_rows, fold_subsets, sort_rows
from feature_cross.limit import IDS_PER_BATCH_MAX

__all__ = ["BatchTooLargeError", "Program", "Run", "compile_plan"]

Ids = tuple[NDArray[np.uint64], NDArray[np.int64]]
"""A feature's ids, (total,), and offsets, (rows + 1,)."""


class BatchTooLargeError(LimitError):
    """One feature gives more ids for this batch than IDS_PER_BATCH_MAX; fewer rows at once will do."""


@dataclass(frozen=True, slots=True)
class _Code:
    """A node's numbers, worked out once; `starts` has the mixer's first state, one per subset size.

    `layout` makes ids of hashes. `used`: another node is derived from the hashes, which must outlive that.
    """

    node: Node
    starts: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    mixed_seed: np.uint64
    layout: Layout
    used: bool
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
    specs = {use.label: column_spec(use.attribute, use.title) for use in plan.attributes}
    used = {o.name for node in plan.nodes for o in node.operands if not isinstance(o, AttributeUse)}
    codes = tuple(_code(node, plan.slot_bits, specs, node.name in used) for node in plan.nodes)
    return Program(plan, codes, plan.attributes, specs)


def _code(node: Node, slot_bits: int | None, specs: Mapping[str, ColumnSpec], used: bool) -> _Code:
    sizes = node.sizes or (len(node.operands),)
    starts = np.array([start(node.seed, node.operation, size) for size in sizes], np.uint64)
    laid_out = slot_bits is not None and node.slot is not None
    hash_bits = 64 - (slot_bits or 0) if laid_out else 64
    top = (node.slot or 0) << hash_bits if laid_out else 0
    layout = (np.uint64(MASK64 >> (64 - hash_bits)), np.uint64(top))
    seed = np.uint64(mix(node.seed))
    gates = tuple(compile_gate(condition, specs[condition.use.label]) for condition in node.conditions)
    return _Code(node, starts, np.array(sizes, np.int64), seed, layout, used, gates)


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
    workspace
        The stream's, or one of this batch.
    """

    def __init__(self, program: Program, batch: pa.RecordBatch, row_base: int, workspace: Workspace) -> None:
        self._program = program
        self._batch = batch
        self._rows = len(batch)
        self._row_base = row_base
        self._readings: dict[str, Reading] = {}
        self._raw: dict[str, RawColumn] = {}
        self._bags: dict[tuple[str, bool], Bag] = {}
        self._nodes: dict[str, Bag] = {}
        self._workspace = workspace
        self._each = workspace.each(self._rows)

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
                ids = self._ids(code, bag, hashes)
                ids.flags.writeable = False
                offsets.flags.writeable = False
                emitted[code.node.name] = (ids, offsets)
                if weights is not None:
                    weights = weights.view()
                    weights.flags.writeable = False
                    weighted[code.node.name] = weights
        outputs = self._program.plan.outputs
        return {n: emitted[n] for n in outputs}, {n: weighted[n] for n in outputs if n in weighted}

    def _ids(self, code: _Code, bag: Bag, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """A view of the hashes laid out: in their place, unless another node needs them."""
        if code.layout == PLAIN or (bag.offsets is None and not code.used):  # a dense fold lays out itself
            return hashes.view()
        ids = hashes.view()
        if code.used:
            ids = self._workspace.numbers(len(hashes))
            np.copyto(ids, hashes)
        lay_out(ids, *code.layout)
        return ids

    def _jagged(self, bag: Bag) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.float32] | None]:
        if bag.offsets is not None:
            return bag.hashes, bag.offsets, bag.weights
        dense = self._dense(bag)
        if bag.nulls is None:
            return dense, self._each, bag.weights
        hashes, offsets = compress(dense, bag.nulls)
        weights = compress(bag.weights, bag.nulls)[0] if bag.weights is not None else None
        return hashes, offsets, weights

    def _dense(self, bag: Bag) -> NDArray[np.uint64]:
        """A hash per row, or per element: looked up once if the column is a dictionary's."""
        if bag.positions is not None:
            looked_up = self._workspace.numbers(self._rows)
            look_up(bag.hashes, bag.positions, looked_up)
            bag.hashes, bag.positions = looked_up, None
        return bag.hashes

    def _where(self, row: int) -> str:
        return f"row {self._row_base + row}"

    def _operand(self, operand: Any) -> Bag:
        if not isinstance(operand, AttributeUse):
            return self._nodes[operand.name]
        key = (operand.label, operand.missing == "own_id")
        if key not in self._bags:
            self._bags[key] = self._attribute(operand)
        return self._bags[key]

    def _raw_column(self, use: AttributeUse) -> RawColumn:
        if use.label not in self._raw:
            reading = read_attribute(self._batch, use, self._row_base)
            raw = hash_column(reading.array, self._program.specs[use.label], self._workspace)
            if reading.weights is not None:
                reading = Reading(reading.array, self._checked_weights(use, raw, reading.weights))
            self._readings[use.label], self._raw[use.label] = reading, raw
        return self._raw[use.label]

    def _attribute(self, use: AttributeUse) -> Bag:
        raw = self._raw_column(use)
        weights = self._readings[use.label].weights
        if raw.offsets is not None:
            return self._list(use, raw, weights)
        values = raw.values
        bag = Bag(values.hashes, None, values.nulls, weights, values.positions)
        if values.nulls is not None and use.missing == "own_id":
            return Bag(np.where(values.nulls, NULL_HASH, self._dense(bag)), None, None, weights)
        return bag

    def _list(self, use: AttributeUse, raw: RawColumn, weights: NDArray[np.float32] | None) -> Bag:
        nulls, null_rows = raw.values.nulls, raw.null_rows
        length_max = use.attribute.max_length
        assert raw.offsets is not None, "only list columns come here"
        if nulls is None and length_max is None and (null_rows is None or use.missing != "own_id"):
            return Bag(raw.values.hashes, raw.offsets, None, weights)
        hashes, offsets = self._compacted(use, raw, raw.values.hashes, NULL_HASH)
        if weights is not None:
            weights, _ = self._compacted(use, raw, weights, np.float32(1))
        return Bag(hashes, offsets, None, weights)

    def _compacted(
        self, use: AttributeUse, raw: RawColumn, values: NDArray[Any], null: Any
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        nulls, null_rows = raw.values.nulls, raw.null_rows
        length_max = use.attribute.max_length
        assert raw.offsets is not None, "only list columns come here"
        compacted: tuple[NDArray[Any], NDArray[np.int64]] = compact(
            values,
            raw.offsets,
            NO_MASK if nulls is None else nulls.view(np.uint8),
            NO_MASK if null_rows is None else null_rows.view(np.uint8),
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
            held &= gate.open_rows(self._dense(bag), bag.offsets, bag.nulls, numbers)
        return held

    def _node(self, code: _Code) -> Bag:
        open_rows = self._open_rows(code)
        for operand in code.node.operands:
            if isinstance(operand, AttributeUse) and operand.missing == "error":
                self._refuse_nulls(operand, open_rows)
        bags = [self._operand(operand) for operand in code.node.operands]
        if open_rows is not None:
            # A row whose first operand is empty has no id, whatever the family, and meets no limit.
            bags[0] = closed(bags[0], ~open_rows)
        if code.node.operation != OPERATION_TUPLE:
            return self._combination(code, bags[0])
        if all(bag.offsets is None for bag in bags):
            return self._cross(code, bags)
        return self._product(code, bags)

    def _cross(self, code: _Code, bags: list[Bag]) -> Bag:
        out = self._workspace.numbers(self._rows)
        fold_bags(code.starts[0], bags, PLAIN if code.used else code.layout, out)
        weights = None
        for bag in bags:
            if bag.weights is not None:
                weights = bag.weights if weights is None else weights * bag.weights
        masks = [bag.nulls for bag in bags if bag.nulls is not None]
        nulls = np.logical_or.reduce(masks) if len(masks) > 1 else masks[0] if masks else None
        return Bag(out, None, nulls, weights)

    def _product(self, code: _Code, bags: list[Bag]) -> Bag:
        node = code.node
        if len(bags) == 1 and bags[0].offsets is not None:
            hashes, offsets = bags[0].hashes, bags[0].offsets
            longest = int(np.diff(offsets).max()) if self._rows else 0
            if longest <= node.limit and len(hashes) <= IDS_PER_BATCH_MAX:  # else it is cut, or an error
                out = self._workspace.numbers(len(hashes))
                fold_first(code.starts[0], hashes, out, *PLAIN)
                return Bag(out, offsets, None, bags[0].weights)
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
            out = self._workspace.numbers(int(out_offsets[-1]))
            fold_product(states, offsets, hashes, hash_offsets, out, out_offsets)
            if node.weighted:
                right = np.ones(len(hashes), np.float32) if weights is None else weights
                multiplied = np.empty(out_offsets[-1], np.float32)
                multiply_product(products, offsets, right, hash_offsets, multiplied, out_offsets)
                products = multiplied
            states, offsets = out, out_offsets
        return Bag(states, offsets, None, products if node.weighted else None)

    def _combination(self, code: _Code, bag: Bag) -> Bag:
        node = code.node
        hashes, offsets, _ = self._jagged(bag)
        if node.kind == "sorted":
            hashes, offsets = sort_rows(hashes, offsets, node.multiset)
        if not node.sizes:
            return Bag(*fold_rows(hashes, offsets, code.mixed_seed, node.operation))
        out_offsets, past = count_subsets(hashes, offsets, code.sizes, node.limit, node.cut)
        self._check_limits(node, past, out_offsets)
        out = self._workspace.numbers(int(out_offsets[-1]))
        fold_subsets(hashes, offsets, code.sizes, code.starts, out, out_offsets)
        return Bag(out, out_offsets)

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
