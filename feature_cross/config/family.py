# SPDX-License-Identifier: Apache-2.0
"""What the families ask of their operands, and what two features must have in common to share ids.

Each function gives (code, message) of what is wrong. Thread safety: pure functions.
"""

from collections.abc import Iterator

from feature_cross.config.config import (
    AttributeFeature,
    CategoricalFeature,
    CombinationFeature,
    Feature,
    InteractionFeature,
)
from feature_cross.config.node import AttributeUse, Node, NodeUse
from feature_cross.id_format import OPERATION_ARRANGEMENT, OPERATION_SUBSET

__all__ = ["family_faults", "meaning", "weight_faults"]

Fault = tuple[str, str]


def family_faults(
    feature: Feature, operands: tuple[AttributeUse | NodeUse, ...], any_list: bool, entities: frozenset[str]
) -> Iterator[Fault]:
    """Operands that the feature's family does not take."""
    labels = [operand.label for operand in operands]
    if len(set(labels)) != len(labels):
        yield "repeated-operand", f"an operand is given twice in {labels}; it adds nothing"
    if isinstance(feature, AttributeFeature):
        if isinstance(operands[0], NodeUse):
            yield "family", f"{labels[0]} is a feature, and kind: attribute takes entity.attribute"
        elif any_list:
            message = f"{labels[0]} is a list; use kind: combination (form: single gives each element alone)"
            yield "family", message
    elif isinstance(feature, CombinationFeature):
        if not any_list:
            message = f"{labels[0]} gives one value per row; a combination needs a list (list: true)"
            yield "family", message
    elif isinstance(feature, CategoricalFeature) and len(entities) > 1:
        named = ", ".join(sorted(entities))
        yield "family", f"categorical takes attributes of one entity, not of {named}; use interaction"
    elif isinstance(feature, InteractionFeature) and len(entities) == 1:
        only = next(iter(entities))
        message = f"interaction takes attributes of different entities; all are {only}'s; use categorical"
        yield "family", message


def weight_faults(name: str, form: str, weighted: bool) -> Iterator[Fault]:
    """An id of several elements of one list has no weight of its own."""
    if weighted and form in ("permutation", "sorted"):
        message = f"{name} makes one id of several elements, and no one weight is its own; use form: single,"
        yield "weighted-list", f"{message} or declare the column again without weights"


def meaning(node: Node) -> str:
    """What must be equal for two features' ids to mean the same: the operation, and each operand's values."""
    kinds = []
    for operand in node.operands:
        if isinstance(operand, NodeUse):
            kinds.append(operand.name)
        else:
            attribute = operand.attribute
            cut = "" if attribute.buckets is None else f" in buckets {list(attribute.buckets.lower_edges)}"
            age = "" if attribute.age is None else f" age in {attribute.age.unit}s"
            kinds.append(f"{attribute.part or attribute.type}{age}{cut}")
    name = {OPERATION_ARRANGEMENT: "permutation", OPERATION_SUBSET: "sorted"}.get(node.operation, "values")
    return f"{name} of ({', '.join(kinds)})"
