# SPDX-License-Identifier: Apache-2.0
"""A plan's parts: nodes, their operands and conditions. config/plan.py makes them from a config.

Thread safety: a plan is immutable.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rowhouse.problem import Path

from feature_cross.config.attribute import Attribute
from feature_cross.config.condition import Condition
from feature_cross.config.config import CrossConfig

__all__ = ["AttributeUse", "ConditionUse", "Node", "NodeUse", "Plan", "declared"]


@dataclass(frozen=True, slots=True)
class AttributeUse:
    """An attribute as one feature reads it; `label` is entity.attribute, `column` the column of the data."""

    entity: str
    name: str
    label: str
    column: str
    attribute: Attribute
    missing: str

    @property
    def title(self) -> str:
        """What messages call it: column 'price' (item.price)."""
        return f"column {self.column!r} ({self.label})"

    @property
    def path(self) -> Path:
        """Where the config declares it."""
        return ("entities", self.entity, "attributes", self.name)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the data that it reads: its own, and those of its age, recency and weights."""
        return (self.column, *self.attribute.columns.values())


def declared(config: CrossConfig) -> Iterator[AttributeUse]:
    """Every attribute of a config, read with its own missing policy."""
    for entity, one in config.entities.items():
        for name, attribute in one.attributes.items():
            column = attribute.column or name
            yield AttributeUse(entity, name, f"{entity}.{name}", column, attribute, attribute.missing)


@dataclass(frozen=True, slots=True)
class NodeUse:
    """Another feature's hashes as an operand."""

    name: str

    @property
    def label(self) -> str:
        """The feature's name."""
        return self.name


@dataclass(frozen=True, slots=True)
class ConditionUse:
    """A condition of a feature, and the attribute that it looks at."""

    use: AttributeUse
    condition: Condition


@dataclass(frozen=True, slots=True)
class Node:
    """One feature, ready to run.

    `sizes` is empty when a sorted list is one id; `limited` is true when the config itself sets `limit`,
    and `shares` when slot and seed are another feature's. `weighted`: an attribute under it has weights.
    """

    name: str
    path: Path
    kind: str
    operation: int
    seed: int
    slot: int | None
    shares: bool
    emit: bool
    operands: tuple[AttributeUse | NodeUse, ...]
    sizes: tuple[int, ...]
    multiset: bool
    limit: int
    limited: bool
    cut: bool
    gives_list: bool
    entities: frozenset[str]
    conditions: tuple[ConditionUse, ...]
    weighted: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Nodes in an order to run them, and the names of the emitted ones in the order of declaration."""

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    slot_bits: int | None

    @property
    def attributes(self) -> tuple[AttributeUse, ...]:
        """Every attribute that a feature reads, once per missing policy."""
        operands = [operand for node in self.nodes for operand in node.operands]
        operands += [condition.use for node in self.nodes for condition in node.conditions]
        uses = {(u.label, u.missing): u for u in operands if isinstance(u, AttributeUse)}
        return tuple(uses.values())

    @property
    def columns(self) -> dict[str, str]:
        """Every column that the data must have, and the label of the first attribute that reads it."""
        named: dict[str, str] = {}
        for use in self.attributes:
            for column in use.columns:
                named.setdefault(column, use.label)
        return named

    def node(self, name: str) -> Node:
        """The node of that name; KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Outputs that have one set of ids (`share`), in one group, by the name of the group's first."""
        spaces: dict[tuple[int | None, int, int], list[str]] = {}
        for name in self.outputs:
            node = self.node(name)
            slot = node.slot if self.slot_bits is not None else None
            spaces.setdefault((slot, node.seed, node.operation), []).append(name)
        return {names[0]: tuple(names) for names in spaces.values()}
