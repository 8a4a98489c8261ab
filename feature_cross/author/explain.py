# SPDX-License-Identifier: Apache-2.0
"""Shows how each id of one row comes about: value -> bytes -> hash -> mix -> id.

The steps are recomputed in plain Python from feature_cross/id_format.py and held to the engine's own ids;
a difference is an InternalError, so an explanation is never a story. Thread safety: pure functions.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_cross.config.node import AttributeUse, ConditionUse, Node, Plan
from feature_cross.data.column import canonical_values, column_spec, number_column
from feature_cross.data.reading import read_attribute
from feature_cross.engine.engine import Engine
from feature_cross.engine.gate import compile_gate
from feature_cross.error import InternalError, shortened
from feature_cross.id_format import OPERATION_SUBSET, TAG_NULL, mix, start, to_id, value_hash

__all__ = ["Explanation", "Operand", "explain", "meets", "why_absent"]


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand of one id. `canonical` is None where it is another feature's hash."""

    label: str
    value: Any
    canonical: bytes | None
    hash: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """One id: its operands in the mixer's order, and the mixer's state before and after each."""

    feature: str
    seed: int
    operation: int
    operands: tuple[Operand, ...]
    states: tuple[int, ...]
    slot: int | None
    id: int
    weight: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; 64-bit numbers as hexadecimal text, which every JSON reader keeps whole."""
        operands = [
            {
                "from": operand.label,
                "value": operand.value,
                "bytes": None if operand.canonical is None else operand.canonical.hex(" "),
                "hash": f"0x{operand.hash:016x}",
            }
            for operand in self.operands
        ]
        return {
            "feature": self.feature,
            "id": f"0x{self.id:016x}",
            "slot": self.slot,
            "seed": f"0x{self.seed:016x}",
            "operation": self.operation,
            "operands": operands,
            "states": [f"0x{state:016x}" for state in self.states],
            **({} if self.weight is None else {"weight": self.weight}),
        }


def explain(engine: Engine, batch: pa.RecordBatch, row: int = 0) -> list[Explanation]:
    """Every id of one row of a batch, in the order of the outputs.

    Raises
    ------
    DataError, LimitError
        As `Engine.transform`.
    InternalError
        The recomputed id is not the engine's.
    """
    one = batch.slice(row, 1)
    ids = engine.transform(one)
    steps = _Steps(engine.plan, one)
    for node in engine.plan.nodes:
        steps.made[node.name] = list(itertools.islice(steps.of_node(node), node.limit))
    found = []
    for name in engine.plan.outputs:
        made = steps.made[name]
        if [step.id for step in made] != ids[name][0].tolist():
            raise InternalError(
                f"{name}: the recomputed ids differ from the engine's; please report this row"
            )
        weights = ids.weights.get(name)
        if weights is not None:
            pairs = zip(made, weights.tolist(), strict=True)
            made = [replace(step, weight=weight) for step, weight in pairs]
        found += made
    return found


def why_absent(engine: Engine, batch: pa.RecordBatch, name: str, row: int = 0) -> str:
    """Why a feature has no id in one row: a condition that is not met, or a part without a value."""
    steps = _Steps(engine.plan, batch.slice(row, 1))
    for node in engine.plan.nodes:
        steps.made[node.name] = list(itertools.islice(steps.of_node(node), node.limit))
    return steps.why_absent(engine.plan.node(name))


def meets(engine: Engine, batch: pa.RecordBatch, condition: ConditionUse, row: int = 0) -> bool:
    """Whether one row meets one condition."""
    return _Steps(engine.plan, batch.slice(row, 1)).meets(condition)


class _Steps:
    def __init__(self, plan: Plan, batch: pa.RecordBatch) -> None:
        self.plan = plan
        self.batch = batch
        self.made: dict[str, list[Explanation]] = {}

    def why_absent(self, node: Node) -> str:
        for condition in node.conditions:
            if not self.meets(condition):
                asked = condition.condition.model_dump(exclude_none=True)
                shown = ", ".join(f"{key}: {_shown(value)}" for key, value in asked.items())
                values = self.batch.column(condition.use.column)[0].as_py()
                return f"when {condition.use.label} {{{shown}}} is not met: it is {_shown(values)}"
        for operand in node.operands:
            if not self._operand(operand):
                if not isinstance(operand, AttributeUse):
                    return f"{operand.name} has none: {self.why_absent(self.plan.node(operand.name))}"
                return f"{operand.label} has no value (missing: {operand.missing})"
        return f"no {node.kind} of what is there"

    def of_node(self, node: Node) -> Iterator[Explanation]:
        if not all(self.meets(condition) for condition in node.conditions):
            return
        columns = [self._operand(operand) for operand in node.operands]
        if node.kind == "permutation":
            choices: Iterator[tuple[Operand, ...]] = iter([tuple(columns[0])] if columns[0] else [])
        elif node.operation == OPERATION_SUBSET:
            choices = _subsets(columns[0], node)
        else:
            choices = itertools.product(*columns)
        for chosen in choices:
            yield self._fold(node, chosen)

    def _fold(self, node: Node, operands: tuple[Operand, ...]) -> Explanation:
        states = [start(node.seed, node.operation, len(operands))]
        for operand in operands:
            states.append(mix(states[-1] ^ operand.hash))
        made = to_id(states[-1], node.slot, self.plan.slot_bits)
        return Explanation(node.name, node.seed, node.operation, operands, tuple(states), node.slot, made)

    def _operand(self, operand: Any) -> list[Operand]:
        if not isinstance(operand, AttributeUse):
            return [
                Operand(step.feature, [part.value for part in step.operands], None, step.states[-1])
                for step in self.made[operand.name]
            ]
        return self._attribute(operand)

    def meets(self, condition: ConditionUse) -> bool:
        use = condition.use
        spec = column_spec(use.attribute, use.title)
        gate = compile_gate(condition, spec)
        number = None
        if gate.ordered:
            values, nulls = number_column(read_attribute(self.batch, use).array, spec)
            number = None if nulls is not None and nulls[0] else values[0].item()
        return gate.meets([operand.hash for operand in self._attribute(use)], number)

    def _attribute(self, use: AttributeUse) -> list[Operand]:
        array = read_attribute(self.batch, use).array
        attribute = use.attribute
        null_list = attribute.list and not array[0].is_valid
        if attribute.list:
            array = pc.list_flatten(array) if not null_list else pa.nulls(1)
        values = canonical_values(array, column_spec(attribute, use.title))
        null = bytes([TAG_NULL])
        kept = [
            Operand(use.label, value, canonical or null, value_hash(canonical or null))
            for value, canonical in values
            if canonical is not None or use.missing == "own_id"
        ]
        if attribute.max_length is not None:
            most = attribute.max_length
            kept = kept[:most] if attribute.keep == "first" else kept[-most:]
        return kept


def _shown(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False, default=str))


def _subsets(operands: list[Operand], node: Node) -> Iterator[tuple[Operand, ...]]:
    ordered = sorted(operands, key=lambda operand: operand.hash)
    if not node.multiset:
        ordered = list({operand.hash: operand for operand in ordered}.values())
    if not node.sizes:
        if ordered:
            yield tuple(ordered)
        return
    for size in node.sizes:
        seen: set[tuple[int, ...]] = set()
        for chosen in itertools.combinations(ordered, size):
            hashes = tuple(operand.hash for operand in chosen)
            if hashes not in seen:
                seen.add(hashes)
                yield chosen
