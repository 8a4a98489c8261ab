# SPDX-License-Identifier: Apache-2.0
"""What a changed config does to ids that a model was trained on: which change, why, and what is lost.

It compares what two configs mean, not their text: order, comments and a family that leaves ids alone are no
change. Each difference names the key that makes it and has one of four effects, from harmless to fatal.
What data says is feature_cross/author/guard/measure.py. Thread safety: pure functions.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from rowhouse.problem import Path

from feature_cross.config.attribute import Attribute
from feature_cross.config.config import CrossConfig
from feature_cross.config.node import AttributeUse, Node, NodeUse
from feature_cross.config.plan import build_plan
from feature_cross.id_format import OPERATION_ARRANGEMENT, OPERATION_SUBSET

__all__ = ["EFFECTS", "Change", "ConfigDiff", "FeatureDiff", "diff_configs"]

EFFECTS: Final = ("none", "coverage", "some", "all")
"""No id changes; ids keep their meaning but other rows have them; some ids change; every id changes."""

_ATTRIBUTE_EFFECTS: Final = {
    "type": "all", "part": "all", "list": "coverage", "cast": "coverage", "max_length": "coverage",
    "keep": "coverage", "recency": "coverage", "weights": "none",
}  # fmt: skip
"""Of a changed key of an attribute. `buckets` and `missing` are told apart below; any other: some."""

_HANDLED: Final = frozenset(
    ("kind", "of", "slot", "slots", "seed", "share", "missing", "emit", "limit", "past_limit", "form", "size",
     "multiset")
)  # fmt: skip
"""Keys of a feature that are compared as what they mean in the plan."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference that a feature sees.

    Attributes
    ----------
    path
        Of the key, in the new config (in the old one where it is gone).
    old, new
        Its values, or what they mean.
    effect
        One of EFFECTS.
    old_line, new_line
        Lines of the two files; None for a config that is no file.
    """

    path: Path
    old: Any
    new: Any
    effect: str
    old_line: int | None = None
    new_line: int | None = None

    @property
    def key(self) -> str:
        """The path with dots."""
        return ".".join(str(part) for part in self.path)


@dataclass(frozen=True, slots=True)
class FeatureDiff:
    """One feature in two configs.

    Attributes
    ----------
    name, old_name
        In the new and in the old config; None where it is not.
    status
        unchanged, changed, moved (the slot alone), renamed, added or removed.
    changes
        Why.
    slot
        Of the new config, or of the old one if removed.
    """

    name: str | None
    old_name: str | None
    status: str
    changes: tuple[Change, ...]
    slot: int | None

    @property
    def effect(self) -> str:
        """The worst of its changes; `all` if removed."""
        if self.status == "removed":
            return "all"
        return max((change.effect for change in self.changes), key=EFFECTS.index, default="none")

    @property
    def rows_lost(self) -> bool:
        """Trained rows are left behind that no id leads to any more."""
        return self.effect in ("some", "all")

    @property
    def label(self) -> str:
        """What to call it."""
        if self.name and self.old_name and self.name != self.old_name:
            return f"{self.old_name} -> {self.name}"
        return self.name or self.old_name or ""


@dataclass(frozen=True, slots=True)
class ConfigDiff:
    """All features of two configs; `warnings` are what no feature alone shows."""

    features: tuple[FeatureDiff, ...]
    warnings: tuple[str, ...]


def diff_configs(old: CrossConfig, new: CrossConfig) -> ConfigDiff:
    """Compare two configs, feature by feature: those of the new in its order, then those that are gone."""
    return _Differ(old, new).diff()


class _Differ:
    def __init__(self, old: CrossConfig, new: CrossConfig) -> None:
        self.old, self.new = old, new
        self.old_plan, self.new_plan = build_plan(old), build_plan(new)

    def diff(self) -> ConfigDiff:
        old_names, new_names = self.old_plan.outputs, self.new_plan.outputs
        gone = [name for name in old_names if name not in new_names]
        found = []
        for name in new_names:
            node = self.new_plan.node(name)
            if name in old_names:
                found.append(self._pair(name, name))
                continue
            before = next((other for other in gone if self._is_same(other, name)), None)
            if before is None:
                found.append(FeatureDiff(name, None, "added", (), node.slot))
            else:
                gone.remove(before)
                found.append(replace(self._pair(before, name), status="renamed"))
        for name in gone:
            found.append(FeatureDiff(None, name, "removed", (), self.old_plan.node(name).slot))
        return ConfigDiff(tuple(found), (*self._renamed_without_seed(found), *self._reused_slots(found)))

    def _is_same(self, old_name: str, new_name: str) -> bool:
        return all(change.effect == "none" for change in self._pair(old_name, new_name).changes)

    def _pair(self, old_name: str, new_name: str) -> FeatureDiff:
        old, new = self.old_plan.node(old_name), self.new_plan.node(new_name)
        changes = [*self._slots(old, new), *self._nodes(old, new)]
        unique = {(change.path, repr(change.old), repr(change.new)): change for change in changes}
        placed = tuple(
            replace(change, old_line=self.old.line(change.path), new_line=self.new.line(change.path))
            for change in unique.values()
        )
        harmful = [change for change in placed if change.effect != "none"]
        moved = bool(harmful) and all(change.path[-1] in ("slot", "slots", "slot_bits") for change in harmful)
        status = "unchanged" if not harmful else "moved" if moved else "changed"
        return FeatureDiff(new_name, old_name, status, placed, new.slot)

    def _slots(self, old: Node, new: Node) -> Iterator[Change]:
        before, after = self.old_plan.slot_bits, self.new_plan.slot_bits
        if before != after:
            yield Change(("ids", "slot_bits"), before, after, "all")
        if old.slot != new.slot:
            effect = "all" if after is not None and before is not None else "none"
            key = "slots" if _declared(self.new, new).get("slots") else "slot"
            yield Change((*new.path, key), old.slot, new.slot, effect)

    def _nodes(self, old: Node, new: Node) -> Iterator[Change]:
        if old.seed != new.seed:
            named = old.name != new.name and "seed" not in _declared(self.new, new)
            path = new.path if named else (*new.path, "seed")
            yield Change(path, f"seed 0x{old.seed:016x}", f"seed 0x{new.seed:016x}", "all")
        if old.kind != new.kind:
            effect = "none" if old.operation == new.operation else "all"
            key = "form" if effect == "all" else "kind"
            yield Change((*new.path, key), old.kind, new.kind, effect)
        if old.operation == new.operation:
            yield from _subsets(old, new)
        if (old.limit, old.cut) != (new.limit, new.cut):
            effect = "coverage" if old.gives_list or new.gives_list else "none"
            yield Change((*new.path, "limit"), old.limit, new.limit, effect)
        yield from self._other_keys(old, new)
        labels = [[operand.label for operand in node.operands] for node in (old, new)]
        if len(labels[0]) != len(labels[1]):
            yield Change((*new.path, "of"), labels[0], labels[1], "all")
            return
        whole = new.operation in (OPERATION_ARRANGEMENT, OPERATION_SUBSET) and not new.sizes
        for before, after in zip(old.operands, new.operands, strict=True):
            for change in self._operands(before, after, new, labels):
                # where the whole list makes the id, another list makes another id
                yield replace(change, effect="some") if whole and change.effect == "coverage" else change

    def _other_keys(self, old: Node, new: Node) -> Iterator[Change]:
        before, after = _declared(self.old, old), _declared(self.new, new)
        for key in dict.fromkeys([*before, *after]):
            if key not in _HANDLED and before.get(key) != after.get(key):
                effect = "coverage" if key == "when" else "some"  # a condition chooses rows
                yield Change((*new.path, key), before.get(key), after.get(key), effect)

    def _operands(
        self, old: AttributeUse | NodeUse, new: AttributeUse | NodeUse, node: Node, labels: list[list[str]]
    ) -> Iterator[Change]:
        if isinstance(old, NodeUse) and isinstance(new, NodeUse):
            yield from self._nodes(self.old_plan.node(old.name), self.new_plan.node(new.name))
            return
        if isinstance(old, AttributeUse) and isinstance(new, AttributeUse):
            if old.label != new.label and old.column != new.column:
                yield Change((*node.path, "of"), labels[0], labels[1], "all")
                return
            yield from _attributes(old, new, node)
            return
        yield Change((*node.path, "of"), labels[0], labels[1], "all")

    def _renamed_without_seed(self, found: list[FeatureDiff]) -> Iterator[str]:
        added = [one.name for one in found if one.status == "added" and one.name is not None]
        gone = [one.old_name for one in found if one.status == "removed" and one.old_name is not None]
        for name, other in itertools.product(added, gone):
            seed = (*self.new_plan.node(name).path,)
            harmful = [c for c in self._pair(other, name).changes if c.effect != "none"]
            if harmful and all(change.path == seed for change in harmful):
                yield f"{name} is {other} but for its name; `seed: {other}` would keep its ids"

    def _reused_slots(self, found: list[FeatureDiff]) -> Iterator[str]:
        if self.new_plan.slot_bits is None or self.old_plan.slot_bits is None:
            return
        owners = {self.old_plan.node(name).slot: name for name in self.old_plan.outputs}
        for one in found:
            node = self.new_plan.node(one.name) if one.name else None
            owner = owners.get(node.slot) if node is not None and not node.shares else None
            if node is not None and owner is not None and owner != one.old_name:
                line = self.new.line((*node.path, "slot"))
                place = f" (line {line} of {self.new.source})" if line else ""
                yield (
                    f"slot {node.slot} of {one.name}{place} was {owner}'s: rows of both are under one slot;"
                    " take a number that was never used"
                )


def _declared(config: CrossConfig, node: Node) -> dict[str, Any]:
    feature = config.features[str(node.path[1])]
    return {key: value for key, value in feature.model_dump(mode="json").items() if value is not None}


def _subsets(old: Node, new: Node) -> Iterator[Change]:
    if old.sizes != new.sizes:
        kept = bool(old.sizes) and set(old.sizes) <= set(new.sizes)
        before, after = (list(node.sizes) or "all" for node in (old, new))
        yield Change((*new.path, "size"), before, after, "coverage" if kept else "some")
    if old.multiset != new.multiset:
        # sets of different elements are multisets too, and keep their ids
        effect = "coverage" if new.multiset and new.sizes else "some"
        yield Change((*new.path, "multiset"), old.multiset, new.multiset, effect)


def _attributes(old: AttributeUse, new: AttributeUse, node: Node) -> Iterator[Change]:
    path: Path = ("entities", new.entity, "attributes", new.name)
    if old.label != new.label:  # the same column under another name
        yield Change((*node.path, "of"), old.label, new.label, "none")
    if old.column != new.column:
        yield Change((*path, "column"), old.column, new.column, "some")
    if old.missing != new.missing:
        # a null's id of its own is lost; under every other change only other rows have an id
        effect = "some" if old.missing == "own_id" else "coverage"
        in_feature = old.attribute.missing == new.attribute.missing
        place = (*(node.path if in_feature else path), "missing")
        yield Change(place, old.missing, new.missing, effect)
    for key in Attribute.model_fields:
        before, after = getattr(old.attribute, key), getattr(new.attribute, key)
        if key in ("missing", "column") or before == after:
            continue
        effect = _ATTRIBUTE_EFFECTS.get(key, "some")
        if key == "keep" and {before, after} == {None, "last"}:
            effect = "none"
        if key == "buckets":
            effect, before, after = _buckets(old.attribute, new.attribute)
        yield Change((*path, key), _shown(before), _shown(after), effect)


def _buckets(old: Attribute, new: Attribute) -> tuple[str, Any, Any]:
    """An id names a bucket by its lower edge: a new edge cuts a bucket, and a removed one loses its row."""
    if old.buckets is None or new.buckets is None:
        return "all", _edges(old), _edges(new)
    before, after = old.buckets.lower_edges, new.buckets.lower_edges
    if before == after:
        return "none", _edges(old), _edges(new)
    return "coverage" if set(before) <= set(after) else "some", _edges(old), _edges(new)


def _edges(attribute: Attribute) -> Any:
    return None if attribute.buckets is None else list(attribute.buckets.lower_edges[1:])


def _shown(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value
