# SPDX-License-Identifier: Apache-2.0
"""Crosses that could be: pairs and triples of plain columns, and pairs and triples of one list's elements.

Thread safety: pure functions.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_cross.author.guard.lock import lock_path, read_previous
from feature_cross.author.rank.coding import Coded, cross_arrangement, cross_product, cross_subsets
from feature_cross.config.config import CrossConfig
from feature_cross.config.node import AttributeUse, Plan
from feature_cross.id_format import OPERATION_ARRANGEMENT, OPERATION_SUBSET, OPERATION_TUPLE
from feature_cross.limit import IDS_PER_ROW_MAX, NAME_CHARACTERS_MAX

__all__ = ["Candidate", "code", "declare", "existing", "highest_slot", "pairs", "triples"]


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """A cross by the labels (entity.attribute) of its operands, sorted.

    A list's subsets repeat its label; its label alone is the whole list in its own order.
    """

    operands: tuple[str, ...]

    @property
    def is_subset(self) -> bool:
        """Sorted subsets of one list's elements."""
        return len(self.operands) > 1 and len(set(self.operands)) == 1

    @property
    def is_arrangement(self) -> bool:
        """One list in its own order."""
        return len(self.operands) == 1

    def is_part_of(self, other: "Candidate") -> bool:
        """All of it is in the larger one; a list's order is a part of nothing."""
        if self.is_arrangement or len(self.operands) >= len(other.operands):
            return False
        return all(self.operands.count(label) <= other.operands.count(label) for label in self.operands)

    @property
    def label(self) -> str:
        """What to call it before it has a name."""
        if self.is_arrangement:
            return f"order of {self.operands[0]}"
        if self.is_subset:
            return f"{len(self.operands)} of {self.operands[0]}"
        return " x ".join(self.operands)


def pairs(labels: Iterable[str], lists: Iterable[str]) -> list[Candidate]:
    """Every two plain columns; of each list its order, and every two of its elements."""
    of_lists = [Candidate((label,) * count) for label in lists for count in (1, 2)]
    return [*(Candidate(pair) for pair in itertools.combinations(sorted(labels), 2)), *sorted(of_lists)]


def triples(beam: Iterable[Candidate], labels: Iterable[str]) -> list[Candidate]:
    """Every candidate of a beam with one more plain column, or one more element of its list; each once."""
    names, found = sorted(labels), set()
    for candidate in beam:
        if candidate.is_subset:
            found.add(Candidate((*candidate.operands, candidate.operands[0])))
        for label in names:
            if label not in candidate.operands and len(set(candidate.operands)) == 2:
                found.add(Candidate(tuple(sorted((*candidate.operands, label)))))
    return sorted(found)


def existing(plan: Plan) -> set[Candidate]:
    """The candidates that a config has already, in whatever order of operands."""
    found = set()
    for node in plan.nodes:
        labels = [operand.label for operand in node.operands if isinstance(operand, AttributeUse)]
        if len(labels) != len(node.operands):
            continue
        if node.operation == OPERATION_TUPLE and len(labels) > 1:
            found.add(Candidate(tuple(sorted(labels))))
        elif node.operation == OPERATION_ARRANGEMENT:
            found.add(Candidate((labels[0],)))
        elif node.operation == OPERATION_SUBSET:
            found |= {Candidate((labels[0],) * size) for size in node.sizes}
    return found


def code(candidate: Candidate, columns: Mapping[str, Coded]) -> Coded:
    """Its ids, from those of its plain columns by label; LimitError if there are too many."""
    if candidate.is_arrangement:
        return cross_arrangement(columns[candidate.operands[0]])
    if candidate.is_subset:
        label = candidate.operands[0]
        return cross_subsets(candidate.label, columns[label], len(candidate.operands))
    return cross_product(candidate.label, [columns[label] for label in candidate.operands])


def declare(
    config: CrossConfig, plan: Plan, chosen: Iterable[Candidate], lengths: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """What to write under `features:` for each candidate, by its new name; slots follow the highest one.

    `lengths` has the longest list of each label in the data: where nothing else bounds a product of lists, or
    a list's subsets, a limit is written that all rows read are within.
    """
    slot = highest_slot(config, plan)
    declared: dict[str, dict[str, Any]] = {}
    for candidate in chosen:
        parts = _split(candidate)
        body: dict[str, Any] = {"kind": "combination", "form": "permutation"}
        if candidate.is_subset:
            body |= {"form": "sorted", "size": len(parts)}
        elif not candidate.is_arrangement:
            body = {"kind": _family(config, parts)}
        if config.ids.slot_bits is not None:
            slot += 1
            body["slot"] = slot
        one_list = candidate.is_subset or candidate.is_arrangement
        body["of"] = candidate.operands[0] if one_list else list(candidate.operands)
        most = _limit(config, candidate, lengths)
        if most is not None:
            body |= {"limit": most, "past_limit": "cut"}
        declared[_name(candidate, {*config.features, *declared})] = body
    return declared


def _limit(config: CrossConfig, candidate: Candidate, lengths: Mapping[str, int]) -> int | None:
    """A power of two that no row of the data is past; None where the config bounds the ids of a row."""
    attributes = [config.entities[entity].attributes[name] for entity, name in _split(candidate)]
    lists = [attribute for attribute in attributes if attribute.list]
    if candidate.is_arrangement or len(lists) < 2 or all(one.max_length is not None for one in lists):
        return None
    longest = [lengths.get(label, 1) for label in candidate.operands]
    ids = math.comb(longest[0], len(longest)) if candidate.is_subset else math.prod(longest)
    return min(1 << max(ids - 1, 0).bit_length(), IDS_PER_ROW_MAX)


def _split(candidate: Candidate) -> list[list[str]]:
    return [label.split(".") for label in candidate.operands]


def highest_slot(config: CrossConfig, plan: Plan) -> int:
    """The highest slot of a config and of the lock beside it, which knows removed features; 0 without one."""
    slots = [node.slot for node in plan.nodes]
    lock = lock_path(config.source)
    if Path(config.source).is_file() and lock.is_file():
        known = read_previous(lock)
        slots += [slot for slot, _ in (*known.features.values(), *known.retired.values())]
    return max((slot for slot in slots if slot is not None), default=0)


def _family(config: CrossConfig, parts: list[list[str]]) -> str:
    if len({entity for entity, _ in parts}) == 1:
        return "categorical"
    any_list = any(config.entities[entity].attributes[name].list for entity, name in parts)
    return "weak" if any_list else "interaction"


def _name(candidate: Candidate, taken: set[str]) -> str:
    short = [label.split(".")[1] for label in candidate.operands]
    long = [label.replace(".", "_") for label in candidate.operands]
    if candidate.is_subset or candidate.is_arrangement:
        ending = {1: "order", 2: "pairs", 3: "triples"}[len(short)]
        names = [f"{short[0]}_{ending}", f"{long[0]}_{ending}"]
    else:
        names = ["_x_".join(short)] if len(set(short)) == len(short) else []
        names.append("_x_".join(long))
    names = [name[: NAME_CHARACTERS_MAX - 4] for name in names]
    for name in itertools.chain(names, (f"{names[-1]}_{number}" for number in itertools.count(2))):
        if name not in taken:
            return name
    raise AssertionError("unreachable: one of the names is free")
