# SPDX-License-Identifier: Apache-2.0
"""What a config means: references resolved, features in an order that derived ones follow their parts.

Invariants: 1. a node comes after every node that it uses; 2. seeds and slots come from names and explicit
numbers, never from order; 3. no two nodes have one slot unless one says `share`; 4. `outputs` is the order
of declaration.
Thread safety: a plan is immutable.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rowhouse.problem import Path, Problem, nearest

from feature_cross.config.condition import unfit
from feature_cross.config.config import AttributeFeature, CombinationFeature, CrossConfig, Feature
from feature_cross.config.family import family_faults, meaning, weight_faults
from feature_cross.config.node import AttributeUse, ConditionUse, Node, NodeUse, Plan, declared
from feature_cross.error import ConfigError
from feature_cross.id_format import OPERATION_ARRANGEMENT, OPERATION_SUBSET, OPERATION_TUPLE, name_seed
from feature_cross.limit import IDS_PER_ROW_MAX

__all__ = ["FORMS", "build_plan"]

FORMS = ("permutation", "single", "sorted")
_OPERATIONS = {"permutation": OPERATION_ARRANGEMENT, "single": OPERATION_TUPLE, "sorted": OPERATION_SUBSET}


@dataclass(frozen=True, slots=True)
class _Draft:
    """A feature before its references are resolved; one per form of a combination."""

    name: str
    path: Path
    feature: Feature
    form: str
    slot: int | None
    references: tuple[str, ...]

    @property
    def all_forms(self) -> bool:
        """One of the three features of a combination with form: all."""
        return isinstance(self.feature, CombinationFeature) and self.feature.form == "all"


def build_plan(config: CrossConfig) -> Plan:
    """Resolve a config; ConfigError with every problem found."""
    return _Resolver(config).plan()


def _drafts(config: CrossConfig) -> Iterator[_Draft]:
    for name, feature in config.features.items():
        path: Path = ("features", name)
        if isinstance(feature, CombinationFeature):
            for form in FORMS if feature.form == "all" else (feature.form,):
                slot = getattr(feature.slots, form) if feature.slots is not None else feature.slot
                full = f"{name}.{form}" if feature.form == "all" else name
                yield _Draft(full, path, feature, form, slot, (feature.of,))
        else:
            references = (feature.of,) if isinstance(feature, AttributeFeature) else feature.of
            yield _Draft(name, path, feature, "", feature.slot, references)


class _Resolver:
    def __init__(self, config: CrossConfig) -> None:
        self.config = config
        self.problems: list[Problem] = []
        self.drafts = {draft.name: draft for draft in _drafts(config)}
        self.attributes = {use.label: use for use in declared(config)}

    def plan(self) -> Plan:
        self._check_entities()
        self._check_slots()
        order = self._order()
        nodes: dict[str, Node] = {}
        for draft in order:
            node = self._node(draft, nodes)
            if node is not None:
                nodes[draft.name] = node
        self._check_shares(nodes)
        if self.problems:
            raise ConfigError(sorted(self.problems, key=lambda p: p.line or 0), self.config.source)
        outputs = tuple(name for name, draft in self.drafts.items() if draft.feature.emit)
        return Plan(tuple(nodes.values()), outputs, self.config.ids.slot_bits)

    def _add(self, code: str, message: str, path: Path) -> None:
        self.problems.append(Problem(code, message, path, self.config.line(path)))

    def _check_entities(self) -> None:
        for name, entity in self.config.entities.items():
            if entity.key is not None and entity.key not in entity.attributes:
                hint = nearest(entity.key, entity.attributes)
                message = f"key {entity.key!r} is not an attribute of {name}; {hint}"
                self._add("unknown-attribute", message, ("entities", name, "key"))
        for name in self.attributes.keys() & self.drafts.keys():
            message = f"{name!r} is both an attribute and a feature; rename one"
            self._add("ambiguous-name", message, self.drafts[name].path)
        if not any(draft.feature.emit for draft in self.drafts.values()):
            self._add("no-output", "every feature has emit: false; nothing would come out", ("features",))

    def _check_slots(self) -> None:
        bits = self.config.ids.slot_bits
        owners: dict[int, str] = {}
        for draft in self.drafts.values():
            key = "slots" if draft.all_forms else "slot"
            path = (*draft.path, key)
            if draft.feature.share is not None:
                continue
            if draft.slot is None:
                if bits is not None and draft.feature.emit:
                    wanted = "slots: {permutation:, single:, sorted:}" if key == "slots" else "a slot"
                    message = (
                        f"{draft.name} needs {wanted}: ids.slot_bits is {bits}, and no slot comes from order"
                    )
                    if not any(p.path == draft.path and p.code == "missing-slot" for p in self.problems):
                        self._add("missing-slot", message, draft.path)
                continue
            if not draft.feature.emit:
                self._add("useless-slot", f"{draft.name} has emit: false, so its {key} does nothing", path)
            if bits is not None and draft.slot >= 1 << bits:
                most = (1 << bits) - 1
                message = f"slot {draft.slot} of {draft.name} is past {most} (slot_bits {bits})"
                self._add("slot-range", message, path)
            owner = owners.setdefault(draft.slot, draft.name)
            if owner != draft.name:
                message = f"slot {draft.slot} of {draft.name} is already {owner}'s"
                self._add("duplicate-slot", message, path)

    def _order(self) -> list[_Draft]:
        """Depth-first, without recursion; drafts on a cycle are reported and left out."""
        done: dict[str, bool] = {}
        order: list[_Draft] = []
        for root in self.drafts:
            stack: list[tuple[str, Iterator[str]]] = []
            if root not in done:
                done[root] = False
                stack.append((root, iter(self.drafts[root].references)))
            while stack:
                name, rest = stack[-1]
                target = next((r for r in rest if self._is_feature(r) and done.get(r) is not True), None)
                if target is None:
                    stack.pop()
                    done[name] = True
                    order.append(self.drafts[name])
                elif target in done:
                    names = [n for n, _ in stack]
                    cycle = " -> ".join([*names[names.index(target) :], target])
                    self._add(
                        "cycle", f"features use each other in a circle: {cycle}", self.drafts[target].path
                    )
                else:
                    done[target] = False
                    stack.append((target, iter(self.drafts[target].references)))
        return order

    def _is_feature(self, reference: str) -> bool:
        return reference in self.drafts and reference not in self.attributes

    def _operand(self, draft: _Draft, position: int, nodes: dict[str, Node]) -> AttributeUse | NodeUse | None:
        reference = draft.references[position]
        if reference in self.attributes:
            use = self.attributes[reference]
            self._check_hashable(use)
            return replace(use, missing=draft.feature.missing or use.missing)
        if reference in self.drafts:
            return NodeUse(reference) if reference in nodes else None
        path: Path = (*draft.path, "of", position) if len(draft.references) > 1 else (*draft.path, "of")
        known = [*self.attributes, *self.drafts]
        message = f"{reference!r} is neither entity.attribute nor a feature; {nearest(reference, known)}"
        if not any(p.path == path for p in self.problems):
            self._add("unknown-reference", message, path)
        return None

    def _check_hashable(self, use: AttributeUse) -> None:
        """Ids come from exact values: a float must be cut, and a cut must have its edges."""
        attribute = use.attribute
        if attribute.type == "float" and attribute.buckets is None:
            message = f"{use.label} is a raw float, which makes one id per last bit; give it buckets (edges,"
            self._add_once("raw-float", f"{message} log or quantiles)", use.path)
        elif attribute.buckets is not None and not attribute.buckets.fitted:
            count = attribute.buckets.quantiles
            message = f"{use.label} has {count} quantiles without edges, and ids never depend on data;"
            message += " `feature-cross fit` writes the edges into the config"
            self._add_once("unfitted-quantiles", message, (*use.path, "buckets"))

    def _add_once(self, code: str, message: str, path: Path) -> None:
        if not any(p.path == path and p.code == code for p in self.problems):
            self._add(code, message, path)

    def _conditions(self, draft: _Draft) -> tuple[ConditionUse, ...]:
        found = []
        for reference, condition in (draft.feature.when or {}).items():
            path: Path = (*draft.path, "when", reference)
            if reference not in self.attributes:
                hint = nearest(reference, self.attributes)
                self._add_once("unknown-reference", f"{reference!r} is no entity.attribute; {hint}", path)
                continue
            use = self.attributes[reference]
            fault = unfit(condition, use.attribute)
            if fault is not None:
                self._add_once("condition", f"{reference}: {fault}", path)
            found.append(ConditionUse(replace(use, missing="drop"), condition))
        return tuple(found)

    def _node(self, draft: _Draft, nodes: dict[str, Node]) -> Node | None:
        found = [self._operand(draft, position, nodes) for position in range(len(draft.references))]
        operands = tuple(operand for operand in found if operand is not None)
        if len(operands) != len(draft.references):
            return None
        lists = [_is_list(operand, nodes) for operand in operands]
        entities = frozenset().union(*(_entities(operand, nodes) for operand in operands))
        feature = draft.feature
        weighted = any(_is_weighted(operand, nodes) for operand in operands)
        faults = list(family_faults(feature, operands, any(lists), entities))
        for code, message in [*faults, *weight_faults(draft.name, draft.form, weighted)]:
            self._add_once(code, message, (*draft.path, "of"))
        origin = self.drafts.get(feature.share or "", draft)
        given = origin.feature.seed
        seed = given if isinstance(given, int) else name_seed(given or origin.name)
        sizes: tuple[int, ...] = ()
        multiset = False
        if isinstance(feature, CombinationFeature) and draft.form == "sorted":
            sizes, multiset = feature.sizes, feature.multiset
        gives_list = any(lists) if not draft.form else draft.form == "single" or bool(sizes)
        if feature.limit is not None and not (gives_list or draft.all_forms):
            message = f"limit does nothing: {draft.name} gives at most one id per row"
            self._add("useless-limit", message, (*draft.path, "limit"))
        return Node(
            name=draft.name, path=draft.path, kind=draft.form or feature.kind,
            operation=_OPERATIONS.get(draft.form, OPERATION_TUPLE), seed=seed, slot=origin.slot,
            shares=origin is not draft,
            emit=feature.emit, operands=operands, sizes=sizes, multiset=multiset,
            limit=feature.limit or IDS_PER_ROW_MAX,
            limited=feature.limit is not None, cut=feature.past_limit == "cut",
            gives_list=gives_list, entities=entities, conditions=self._conditions(draft), weighted=weighted,
        )  # fmt: skip

    def _check_shares(self, nodes: dict[str, Node]) -> None:
        for draft in self.drafts.values():
            share, path = draft.feature.share, (*draft.path, "share")
            if share is None:
                continue
            target = self.drafts.get(share)
            if target is None:
                self._add(
                    "unknown-reference", f"{share!r} is not a feature; {nearest(share, self.drafts)}", path
                )
            elif target.feature.share is not None:
                message = f"{share} itself shares the ids of {target.feature.share}; name that one"
                self._add("share", message, path)
            elif not target.feature.emit:
                self._add("share", f"{share} has emit: false and so no ids to share", path)
            elif draft.name in nodes and share in nodes:
                mine, other = meaning(nodes[draft.name]), meaning(nodes[share])
                if mine != other:
                    message = f"{draft.name} and {share} have no ids in common: {mine} against {other}"
                    self._add("share", message, path)


def _is_list(operand: AttributeUse | NodeUse, nodes: dict[str, Node]) -> bool:
    return nodes[operand.name].gives_list if isinstance(operand, NodeUse) else operand.attribute.list


def _is_weighted(operand: AttributeUse | NodeUse, nodes: dict[str, Node]) -> bool:
    return nodes[operand.name].weighted if isinstance(operand, NodeUse) else bool(operand.attribute.weights)


def _entities(operand: AttributeUse | NodeUse, nodes: dict[str, Node]) -> frozenset[str]:
    return nodes[operand.name].entities if isinstance(operand, NodeUse) else frozenset([operand.entity])
