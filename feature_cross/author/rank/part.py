# SPDX-License-Identifier: Apache-2.0
"""Which parts a cross has, and the config under which all of them are read at once.

A part is what a cross is judged against: each plain column under it (a list as its elements alone) and each
feature that it derives from. The probe config emits every feature and every part, without slots: only
which ids are equal counts here. Thread safety: pure functions.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from feature_cross.config.attribute import Attribute
from feature_cross.config.config import AttributeFeature, CombinationFeature, CrossConfig, Feature, Ids
from feature_cross.config.node import AttributeUse, Node, Plan, declared
from feature_cross.id_format import OPERATION_TUPLE

__all__ = ["Probe", "is_cross", "make_probe"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A config to read, and what its outputs stand for.

    Attributes
    ----------
    config
        Emits the features of the original under their own names, and the plain columns under others.
    columns
        Output name of each plain column, by (entity.attribute, missing policy).
    parts
        Output names of the parts of each feature of the original.
    labels
        What people call each output: a feature's name, or entity.attribute.
    """

    config: CrossConfig
    columns: dict[tuple[str, str], str]
    parts: dict[str, tuple[str, ...]]
    labels: dict[str, str]


def is_cross(node: Node) -> bool:
    """True unless the feature is one value, or each element alone, of one column or feature."""
    return node.operation != OPERATION_TUPLE or len(node.operands) > 1


def make_probe(config: CrossConfig, plan: Plan, available: Collection[str] = ()) -> Probe:
    """The config to read `config`'s features and their parts with.

    Parameters
    ----------
    config, plan
        A config and its plan.
    available
        Columns of the data: of these, the plain columns that no feature uses are read too, each attribute
        with its own missing policy.
    """
    operands = [operand for node in plan.nodes for operand in node.operands]
    uses = [(o.label, o.missing, o.attribute.list) for o in operands if isinstance(o, AttributeUse)]
    for use in declared(config):
        if _has_ids(use.attribute) and set(use.columns) <= set(available):
            uses.append((use.label, use.missing, use.attribute.list))
    prefix = "part"
    while any(name.startswith(prefix) for name in config.features):
        prefix += "_"
    columns = _declared_columns(config, plan)
    seeds = {node.name: node.seed for node in plan.nodes if node.shares}
    features: dict[str, Feature] = {
        name: _plain(feature, seeds.get(name)) for name, feature in config.features.items()
    }
    for label, missing, is_list in dict.fromkeys(uses):
        if (label, missing) not in columns:
            name = f"{prefix}{len(columns)}"
            columns[label, missing] = name
            features[name] = _column(label, missing, is_list)
    parts = {node.name: _parts(plan, node, columns) for node in plan.nodes}
    labels = {name: label for (label, _), name in columns.items()} | {n.name: n.name for n in plan.nodes}
    probe = CrossConfig(ids=Ids(), entities=config.entities, features=features)
    probe._source, probe._lines = config._source, config._lines  # its attributes stand where they stood
    return Probe(probe, columns, parts, labels)


def _has_ids(attribute: Attribute) -> bool:
    """A raw float, or quantiles without edges, may stand in conditions, but gives no ids."""
    return attribute.type != "float" if attribute.buckets is None else attribute.buckets.fitted


_COLUMN_KEYS = frozenset(
    ("kind", "of", "form", "slot", "slots", "seed", "share", "missing", "emit", "limit", "past_limit")
)
"""Keys with which a feature of one column still is that column; any other key may change what it gives."""


def _declared_columns(config: CrossConfig, plan: Plan) -> dict[tuple[str, str], str]:
    """The features that are a plain column: it need not be read twice."""
    found: dict[tuple[str, str], str] = {}
    for node in plan.nodes:
        feature = config.features[str(node.path[1])]
        operand = node.operands[0]
        if is_cross(node) or not isinstance(operand, AttributeUse) or feature.model_fields_set - _COLUMN_KEYS:
            continue
        found.setdefault((operand.label, operand.missing), node.name)
    return found


def _plain(feature: Feature, shared_seed: int | None) -> Feature:
    """Without its slot; what it shares it shares still, by the seed."""
    update: dict[str, Any] = {"slot": None, "share": None, "emit": True}
    if shared_seed is not None:
        update["seed"] = shared_seed
    if isinstance(feature, CombinationFeature):
        update["slots"] = None
    return feature.model_copy(update=update)


def _column(label: str, missing: Any, is_list: bool) -> Feature:
    if is_list:
        return CombinationFeature(kind="combination", form="single", of=label, missing=missing)
    return AttributeFeature(kind="attribute", of=label, missing=missing)


def _parts(plan: Plan, node: Node, columns: dict[tuple[str, str], str]) -> tuple[str, ...]:
    found: list[str] = []
    for operand in node.operands:
        if isinstance(operand, AttributeUse):
            found.append(columns[operand.label, operand.missing])
        else:
            found += [*_parts(plan, plan.node(operand.name), columns), operand.name]
    return tuple(unique(found))


def unique(names: Iterable[str]) -> list[str]:
    """The names, each once, in order."""
    return list(dict.fromkeys(names))
