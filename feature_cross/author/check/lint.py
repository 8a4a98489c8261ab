# SPDX-License-Identifier: Apache-2.0
"""What an author should know about a config that is legal: futile crosses, unbounded products, shared seeds.

Faults (duplicate slots, cycles, unknown names, raw floats, family against entities) are ConfigErrors already
when a config is loaded; `feature-cross check` shows both kinds. What data says about it is measured in
feature_cross/author/check/survey.py. Thread safety: pure functions.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass

from rowhouse.problem import Path, Problem

from feature_cross.config.config import CrossConfig
from feature_cross.config.node import AttributeUse, Node, NodeUse, Plan, declared
from feature_cross.id_format import OPERATION_TUPLE

__all__ = ["FUTILE_RATIO", "FutilePair", "PairCount", "check_config", "cross_pairs", "futile_pairs"]

FUTILE_RATIO = 1.05
"""distinct(id x attribute) / distinct(id) up to which it adds nothing: one id in twenty has two values."""

REPEATS_MIN = 3
"""Rows per distinct value before it is said that a value determines another attribute's."""


@dataclass(frozen=True, slots=True)
class FutilePair:
    """An entity's key and its own attribute, together in one cross."""

    node: str
    path: Path
    key: str
    attribute: str


@dataclass(frozen=True, slots=True)
class PairCount:
    """Two attributes over the rows where both are present: rows, distinct values of each, and of the two."""

    rows: int
    left: int
    right: int
    both: int

    def determined(self) -> str | None:
        """`right` where the left one determines it, `left` the other way round, None where neither does.

        A value that is seen once determines everything, so values must come REPEATS_MIN times on average.
        """
        for side, distinct in (("right", self.left), ("left", self.right)):
            if distinct and self.rows >= REPEATS_MIN * distinct and self.both <= FUTILE_RATIO * distinct:
                return side
        return None


def check_config(
    config: CrossConfig,
    plan: Plan,
    ratios: Mapping[tuple[str, str], float] | None = None,
    pairs: Mapping[tuple[str, str], PairCount] | None = None,
) -> list[Problem]:
    """Warnings, in the order of the file.

    Parameters
    ----------
    config, plan
        A config and its plan.
    ratios
        distinct(key x attribute) / distinct(key) by (key, attribute), where data was measured. A pair
        past FUTILE_RATIO is not futile: the attribute changes, and the warning is dropped.
    pairs
        What was counted of each of `cross_pairs`, where data was measured.
    """
    found: list[Problem] = []
    for node in plan.nodes:
        found += _unbounded(config, plan, node)
    for pair in futile_pairs(config, plan):
        ratio = (ratios or {}).get((pair.key, pair.attribute))
        if ratio is not None and ratio > FUTILE_RATIO:
            continue
        measured = "" if ratio is None else f" (measured: distinct(cross) / distinct(id) = {ratio:.3f})"
        message = (
            f"{pair.node} crosses {pair.key} with its own attribute {pair.attribute}, which has one value"
            f" per id{measured}; cross classes of the entity, or another entity"
        )
        found.append(_warning(config, "futile-cross", message, pair.path))
    found += _determined(config, plan, pairs or {})
    found += _same_crosses(config, plan)
    found += _shared_seeds(config, plan)
    found += _unused(config, plan)
    return sorted(found, key=lambda problem: problem.line or 0)


def _warning(config: CrossConfig, code: str, message: str, path: Path) -> Problem:
    return Problem(code, message, path, config.line(path), "warning")


def _parts(plan: Plan, node: Node) -> list[AttributeUse]:
    """The attributes under a node, also those of the features that it derives from."""
    parts: list[AttributeUse] = []
    for operand in node.operands:
        if isinstance(operand, AttributeUse):
            parts.append(operand)
        else:
            parts += _parts(plan, plan.node(operand.name))
    return parts


def futile_pairs(config: CrossConfig, plan: Plan) -> list[FutilePair]:
    """Every cross of an entity's key with that entity's own single-valued attribute."""
    found = []
    for node in plan.nodes:
        if node.operation != OPERATION_TUPLE or len(node.operands) < 2:
            continue
        parts = _parts(plan, node)
        labels = {part.label for part in parts}
        for part in parts:
            key = f"{part.entity}.{config.entities[part.entity].key}"
            if key in labels and part.label != key and not part.attribute.list:
                found.append(FutilePair(node.name, node.path, key, part.label))
    return found


def cross_pairs(config: CrossConfig, plan: Plan) -> list[tuple[str, str]]:
    """Every two single-valued attributes that meet in a cross, apart from an entity's key and its own."""
    futile = {frozenset((pair.key, pair.attribute)) for pair in futile_pairs(config, plan)}
    found: dict[frozenset[str], tuple[str, str]] = {}
    for node in plan.nodes:
        if node.operation != OPERATION_TUPLE or len(node.operands) < 2:
            continue
        labels = list(dict.fromkeys(p.label for p in _parts(plan, node) if not p.attribute.list))
        for left, right in itertools.combinations(labels, 2):
            if frozenset((left, right)) not in futile:
                found.setdefault(frozenset((left, right)), (left, right))
    return list(found.values())


def _determined(config: CrossConfig, plan: Plan, pairs: Mapping[tuple[str, str], PairCount]) -> list[Problem]:
    found = []
    for (left, right), count in pairs.items():
        side = count.determined()
        if side is None:
            continue
        own, other, distinct = (left, right, count.left) if side == "right" else (right, left, count.right)
        for node in plan.nodes:
            if {left, right} <= {part.label for part in _parts(plan, node)} and len(node.operands) > 1:
                message = (
                    f"{own} determines {other} (measured: {distinct} values, {count.both} with {other}),"
                    f" so {other} adds nothing to {own} in {node.name}; leave one out"
                )
                found.append(_warning(config, "determined-attribute", message, (*node.path, "of")))
    return found


def _bound(plan: Plan, operand: object) -> int | None:
    """Most values that an operand gives for a row, or None where nothing in the config bounds it."""
    if isinstance(operand, AttributeUse):
        return operand.attribute.max_length if operand.attribute.list else 1
    source = plan.node(getattr(operand, "name", ""))
    if not source.gives_list:
        return 1
    if source.limited:
        return source.limit
    product = 1
    for part in source.operands:
        bound = _bound(plan, part)
        if bound is None:
            return None
        product *= bound
    return product


def _unbounded(config: CrossConfig, plan: Plan, node: Node) -> list[Problem]:
    bounds = [_bound(plan, operand) for operand in node.operands]
    open_ended = [
        operand.label for operand, bound in zip(node.operands, bounds, strict=True) if bound is None
    ]
    if node.limited or not open_ended:
        return []
    names = ", ".join(open_ended)
    if node.sizes and node.sizes != (1,):
        message = f"{node.name} gives every subset of {names}, which has no max_length; set one, or a limit"
    elif len([bound for bound in bounds if bound != 1]) > 1:
        message = f"{node.name} multiplies lists, and {names} has no max_length; set one, or a limit"
    else:
        return []
    return [_warning(config, "unbounded-product", message, node.path)]


def _shared_seeds(config: CrossConfig, plan: Plan) -> list[Problem]:
    """Two features of one seed and operation share ids where no slot keeps them apart."""
    if plan.slot_bits is not None:
        return []
    owners: dict[tuple[int, int], str] = {}
    found = []
    for node in plan.nodes:
        if node.shares:
            continue
        owner = owners.setdefault((node.seed, node.operation), node.name)
        if owner != node.name:
            message = f"{node.name} has the seed of {owner}, so equal values have equal ids in both"
            found.append(_warning(config, "shared-seed", message, (*node.path, "seed")))
    return found


def _same_crosses(config: CrossConfig, plan: Plan) -> list[Problem]:
    """Two features of the same parts and settings: twice the rows, and nothing that one of them does not say.

    Their ids differ, by seed and slot. Features that are not given out cost no rows, so they are left aside.
    """
    texts: dict[str, int] = {}
    meanings: dict[str, int] = {}
    for node in plan.nodes:  # in an order to run them: what a feature derives from comes before it
        meanings[node.name] = texts.setdefault(_meaning(node, meanings), len(texts))
    owners: dict[int, str] = {}
    found = []
    for name in plan.outputs:
        owner = owners.setdefault(meanings[name], name)
        if owner != name:
            message = (
                f"{name} is the same cross as {owner}: the same parts, conditions and settings, so each of"
                " its rows is there twice; leave one out, or keep both for tables that differ (a dim, an"
                " optimizer)"
            )
            found.append(_warning(config, "same-cross", message, plan.node(name).path))
    return found


def _meaning(node: Node, meanings: Mapping[str, int]) -> str:
    """What a feature says of a row, whatever its name, seed and slot: equal texts, equal features."""
    parts = [_part(operand, meanings) for operand in node.operands]
    if not node.limited:  # a limit keeps the first ids, which the order of the parts decides
        parts.sort()
    conditions = sorted(
        [_part(condition.use, meanings), condition.condition.model_dump_json()]
        for condition in node.conditions
    )
    limit = [node.limit, node.cut] if node.limited else None
    shape = [node.operation, node.kind == "permutation", node.sizes, node.multiset, limit]
    return json.dumps([shape, parts, conditions])


def _part(operand: AttributeUse | NodeUse, meanings: Mapping[str, int]) -> str:
    if isinstance(operand, NodeUse):
        return json.dumps(meanings[operand.name])
    settings = operand.attribute.model_dump_json(exclude={"column", "missing"})
    return json.dumps([operand.column, operand.missing, settings])


def _unused(config: CrossConfig, plan: Plan) -> list[Problem]:
    used = {use.label for use in plan.attributes}
    return [
        _warning(config, "unused-attribute", f"no feature uses {use.label}", use.path)
        for use in declared(config)
        if use.label not in used
    ]
