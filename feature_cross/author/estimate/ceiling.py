# SPDX-License-Identifier: Apache-2.0
"""The most distinct ids that a feature can have, as far as its config bounds it.

Buckets, bools, parts of dates, and values that a condition lists are counted; integers and text are not
bounded. A cross has at most the product of its parts, a list's sorted subsets are binomials. The same
arithmetic with projected parts in place of unbounded ones bounds what is projected for a cross.
Thread safety: pure functions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from feature_cross.config.condition import Condition
from feature_cross.config.node import AttributeUse, ConditionUse, Node, NodeUse, Plan

__all__ = ["Known", "ceiling", "group_ceiling", "plain_attribute"]

Known = Mapping[tuple[str, str], float]
"""Distinct values of attributes by (entity.attribute, missing policy), where something else tells them."""

_PARTS: Final = {
    "month": 12, "day": 31, "weekday": 7, "hour": 24, "minute": 60, "hour_of_week": 168,
}  # fmt: skip
"""Values of a date's part; years and dates go on."""

_ENDLESS: Final = 1e18
"""Past it nothing is bounded: no table has so many rows."""

_LENGTH_MAX: Final = 4096
"""Elements of a list whose arrangements are summed."""


def ceiling(plan: Plan, node: Node, known: Known | None = None) -> float | None:
    """Most distinct ids of a node of `plan`; None where nothing bounds them.

    Parameters
    ----------
    plan, node
        A config's features, and one of them.
    known
        Bounds of attributes besides those of the config.
    """
    return _node(plan, node, known or {}, node.conditions)


def group_ceiling(plan: Plan, names: Sequence[str], known: Known | None = None) -> float | None:
    """Most distinct ids of features that share ids: one set where they read alike, else all of them."""
    nodes = [plan.node(name) for name in names]
    found = [ceiling(plan, node, known) for node in nodes]
    bounds = [bound for bound in found if bound is not None]
    if len(bounds) < len(found):
        return None
    alike = {_space(node) for node in nodes}
    return max(bounds) if len(alike) == 1 and None not in alike else sum(bounds)


def plain_attribute(node: Node) -> AttributeUse | None:
    """The attribute whose every value, and nothing else, has an id of this node; None where it is more."""
    operand = node.operands[0]
    alone = len(node.operands) == 1 and not node.conditions and node.kind in ("attribute", "single")
    return operand if alone and isinstance(operand, AttributeUse) and not node.limited else None


def _space(node: Node) -> tuple[object, ...] | None:
    """What the values of a feature of bounded attributes can be; None where a condition chooses some."""
    uses = [operand for operand in node.operands if isinstance(operand, AttributeUse)]
    if node.conditions or len(uses) < len(node.operands):
        return None
    return tuple(
        (use.attribute.type, use.attribute.part, use.attribute.buckets and use.attribute.buckets.lower_edges)
        for use in uses
    )


def _node(plan: Plan, node: Node, known: Known, conditions: tuple[ConditionUse, ...]) -> float | None:
    if node.sizes or node.kind in ("permutation", "sorted"):
        return _of_list(plan, node, known, conditions)
    leaves = _leaves(plan, node, conditions)
    if leaves is not None:  # each attribute once, however often the cross names it
        bounds = [_attribute(use, known, when) for use, when in leaves.values()]
    else:
        bounds = [_operand(plan, operand, known, conditions) for operand in node.operands]
    return _product(bounds)


def _product(bounds: Sequence[float | None]) -> float | None:
    total = 1.0
    for bound in bounds:
        if bound is None:
            return None
        total *= bound
    return total if total <= _ENDLESS else None


def _leaves(
    plan: Plan, node: Node, conditions: tuple[ConditionUse, ...]
) -> dict[tuple[str, str], tuple[AttributeUse, tuple[ConditionUse, ...]]] | None:
    """The single-valued attributes that alone make a cross, with the conditions on it; None if others do."""
    found: dict[tuple[str, str], tuple[AttributeUse, tuple[ConditionUse, ...]]] = {}
    for operand in node.operands:
        if isinstance(operand, NodeUse):
            part = plan.node(operand.name)
            if part.gives_list or part.kind in ("permutation", "sorted"):
                return None
            inner = _leaves(plan, part, (*conditions, *part.conditions))
            if inner is None:
                return None
            found |= inner
        elif operand.attribute.list:
            return None
        else:
            found[operand.label, operand.missing] = (operand, conditions)
    return found


def _operand(
    plan: Plan, operand: AttributeUse | NodeUse, known: Known, conditions: tuple[ConditionUse, ...]
) -> float | None:
    if isinstance(operand, AttributeUse):
        return _attribute(operand, known, conditions)
    part = plan.node(operand.name)
    return _node(plan, part, known, (*conditions, *part.conditions))


def _of_list(plan: Plan, node: Node, known: Known, conditions: tuple[ConditionUse, ...]) -> float | None:
    """Arrangements or sorted subsets of at most L elements, each one of k."""
    operand = node.operands[0]
    elements = _operand(plan, operand, known, conditions)
    if elements is None:
        return None
    most = operand.attribute.max_length if isinstance(operand, AttributeUse) else None
    if node.sizes:
        lengths = [size for size in node.sizes if most is None or size <= most]
    else:
        if node.kind == "sorted" and not node.multiset:
            most = int(min(elements, most or elements))
        if most is None or most > _LENGTH_MAX:
            return None
        lengths = list(range(1, most + 1))
    total = 0.0
    for length in lengths:
        total += _choices(elements, length, node)
        if total > _ENDLESS:
            return None
    return total


def _choices(elements: float, length: int, node: Node) -> float:
    """Lists of `length` of so many elements: in order, or sorted with or without equal ones."""
    if node.kind == "permutation":
        small = elements < 1 or length * math.log(elements) < math.log(2 * _ENDLESS)
        return elements**length if small else 2 * _ENDLESS
    number = elements + length - 1 if node.multiset else elements
    if number < length:
        return 0.0
    log = math.lgamma(number + 1) - math.lgamma(length + 1) - math.lgamma(number - length + 1)
    found = math.exp(min(log, 50.0))
    return float(round(found)) if found < 1e9 and number == round(number) else found * (1 + 1e-9)


def _attribute(use: AttributeUse, known: Known, conditions: tuple[ConditionUse, ...]) -> float | None:
    """Distinct values of one attribute in the rows where the conditions hold, a null's own id with them."""
    asked = [one.condition for one in conditions if one.use.label == use.label]
    null = 1.0 if use.missing == "own_id" else 0.0
    if any(condition.present is False for condition in asked):
        return null
    if asked and not use.attribute.list:
        null = 0.0  # every other condition is met by present values only
    told = known.get((use.label, use.missing))
    bounds = [bound for bound in (_values(use), *(_listed(use, one) for one in asked)) if bound is not None]
    whole = [min(bounds) + null] if bounds else []
    return min([*whole, *([told] if told is not None else [])], default=None)


def _values(use: AttributeUse) -> float | None:
    attribute = use.attribute
    if attribute.buckets is not None:
        return float(len(attribute.buckets.lower_edges))
    if attribute.type == "bool":
        return 2.0
    return float(_PARTS[attribute.part]) if attribute.part in _PARTS else None


def _listed(use: AttributeUse, condition: Condition) -> float | None:
    """Values that a condition leaves to a single-valued attribute."""
    if use.attribute.list:
        return None  # some element is one of these; the others may be anything
    if condition.any_of is not None:
        return float(len(set(condition.any_of)))
    whole = use.attribute.type == "int" and use.attribute.buckets is None
    if whole and condition.at_least is not None and condition.below is not None:
        return float(max(0, math.ceil(condition.below) - math.ceil(condition.at_least)))
    return None
