# SPDX-License-Identifier: Apache-2.0
"""Takes features out of a config's text, or adds some, and leaves every other line as its author wrote it.

A feature that others derive from is kept with `emit: false`, a slot that others share goes to the first of
them, and of a combination's three forms some may go: no id of what remains changes. That is checked with
author/guard/diff.py before the text is given out. rowhouse/edit.py changes the text.
Thread safety: pure functions.
"""

from collections.abc import Collection, Mapping
from typing import Any

from rowhouse.document import dump, parse_document
from rowhouse.edit import edit
from rowhouse.problem import Path

from feature_cross.author.guard.diff import diff_configs
from feature_cross.config.config import CombinationFeature, CrossConfig
from feature_cross.config.loader import load_text
from feature_cross.config.node import NodeUse, Plan
from feature_cross.config.plan import FORMS, build_plan
from feature_cross.error import InternalError

__all__ = ["add_features", "declaration", "remove_features"]

_Entries = dict[str, dict[str, Any]]


def declaration(name: str, body: Mapping[str, Any]) -> str:
    """One feature as a line of YAML, without indent."""
    return f"{name}: {dump(dict(body), flow=True, width=1 << 30).strip()}"


def add_features(
    text: str,
    source: str,
    features: Mapping[str, Mapping[str, Any]],
    comments: Mapping[str, str] | None = None,
) -> str:
    """The text with more features after its last one.

    Parameters
    ----------
    text, source
        A valid config, and its name for messages.
    features
        Declarations by name; names and slots are new.
    comments
        A line to stand over a feature, by its name; not where the features are `{…}`.
    """
    data = parse_document(text, source).value
    added = {name: dict(body) for name, body in features.items()}
    over: dict[Path, str] = {("features", name): comment for name, comment in (comments or {}).items()}
    made = edit(text, source, {**data, "features": {**data["features"], **added}}, over)
    return _checked(text, made, source, frozenset())


def remove_features(text: str, source: str, dropped: Collection[str]) -> tuple[str, dict[str, str]]:
    """The text without some features.

    Parameters
    ----------
    text, source
        A valid config, and its name for messages.
    dropped
        Names of outputs; not all of them.

    Returns
    -------
    The new text, and the new name of each form that had to become a feature of its own.
    """
    config = load_text(text, source)
    data = parse_document(text, source).value
    change = _Edit(config, build_plan(config), data["features"], set(dropped))
    whole = {name: body for group in change.entries().values() for name, body in group.items()}
    made = edit(text, source, {**data, "features": whole})
    return _checked(text, made, source, frozenset(dropped)), change.renamed


class _Edit:
    """Works out what each declaration of the old config becomes: itself, another, several, or nothing."""

    def __init__(self, config: CrossConfig, plan: Plan, raw: _Entries, dropped: set[str]) -> None:
        self.config, self.plan, self.raw, self.dropped = config, plan, raw, dropped
        self.renamed: dict[str, str] = {}
        self.needed = self._needed()

    def _needed(self) -> set[str]:
        """What the remaining features derive from, however deep."""
        needed: set[str] = set()
        for node in reversed(self.plan.nodes):  # a node comes after all that it uses
            if node.name in needed or (node.emit and node.name not in self.dropped):
                needed |= {operand.name for operand in node.operands if isinstance(operand, NodeUse)}
        return needed

    def entries(self) -> dict[str, _Entries]:
        """By old name, the declarations that take its place."""
        made: dict[str, _Entries] = {}
        for name, body in self.raw.items():
            feature = self.config.features[name]
            forms = isinstance(feature, CombinationFeature) and feature.form == "all"
            names = [f"{name}.{form}" for form in FORMS] if forms else [name]
            if not any(one in self.dropped for one in names):
                made[name] = {name: dict(body)}
            elif forms:
                made[name] = self._forms(name, body)
            else:
                made[name] = {name: self._hidden(body, name)} if name in self.needed else {}
        self._hand_over_shares(made)
        for group in made.values():
            for body in group.values():
                self._rename(body)
        return made

    def _forms(self, name: str, body: dict[str, Any]) -> _Entries:
        made: _Entries = {}
        for form in FORMS:
            old = f"{name}.{form}"
            if old in self.dropped and old not in self.needed:
                continue
            new = f"{name}_{form}"
            while new in self.raw or new in made:
                new += "_"
            self.renamed[old] = new
            left_out = {"slots", "form"} if form == "sorted" else {"slots", "form", "size", "multiset"}
            if not self.plan.node(old).gives_list:
                left_out |= {"limit", "past_limit"}
            one = {key: value for key, value in body.items() if key not in left_out}
            one = {"kind": one.pop("kind"), "form": form, "seed": old, **one}
            slot = (body.get("slots") or {}).get(form)
            if slot is not None:
                one["slot"] = slot
            made[new] = self._hidden(one, old) if old in self.dropped else one
        return made

    def _hand_over_shares(self, made: dict[str, _Entries]) -> None:
        """A dropped feature's slot and seed go to the first that shares them; the others share that one."""
        heirs: dict[str, str] = {}
        for group in made.values():
            for name, body in list(group.items()):
                owner = body.get("share")
                if owner not in self.dropped:
                    continue
                if owner in heirs:
                    group[name] = {**body, "share": heirs[owner]}
                    continue
                heirs[owner] = name
                node = self.plan.node(owner)
                given: dict[str, Any] = {} if node.slot is None else {"slot": node.slot}
                heir = {key: value for key, value in body.items() if key != "share"}
                group[name] = {**heir, **given, "seed": node.seed}

    def _hidden(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        """The same, for other features only; with the seed that it shared."""
        seed = {"seed": self.plan.node(name).seed} if "share" in body else {}
        kept = {key: value for key, value in body.items() if key not in ("slot", "slots", "share")}
        return {**kept, **seed, "emit": False}

    def _rename(self, body: dict[str, Any]) -> None:
        of = body.get("of")
        if isinstance(of, str):
            body["of"] = self.renamed.get(of, of)
        elif of is not None:
            body["of"] = [self.renamed.get(one, one) for one in of]
        if "share" in body:
            body["share"] = self.renamed.get(body["share"], body["share"])


def _checked(old: str, new: str, source: str, dropped: Collection[str]) -> str:
    """The new text, if every feature that was not dropped has the ids that it had."""
    for one in diff_configs(load_text(old, source), load_text(new, source)).features:
        if one.status == "removed" and one.old_name in dropped:
            continue
        if one.effect != "none" and one.old_name is not None:
            raise InternalError(
                f"{one.label}: the new config would change its ids; please report this config"
            )
    return new
