# SPDX-License-Identifier: Apache-2.0
"""Everything that `check` can find in one run: a fault hides no other that does not depend on it.

A feature or attribute that is wrong is put aside with the features that read it, and the rest is looked at
again, until what is left has no fault; that is then linted and, with data, surveyed. A column that does not
fit puts its attribute aside in the same way. Invariants: 1. every round puts something aside, so there are no
more rounds than names; 2. nothing is said twice.
Thread safety: pure functions, but for the files that they read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rowhouse.document import Document
from rowhouse.problem import Path, Problem

from feature_cross.author.check.lint import check_config
from feature_cross.author.check.survey import Survey, check_columns, survey
from feature_cross.config.config import CrossConfig, Entity
from feature_cross.config.loader import read, validate
from feature_cross.config.plan import build_plan
from feature_cross.data.source import open_dataset
from feature_cross.engine.engine import Engine
from feature_cross.error import ConfigError, DataError

__all__ = ["Findings", "find"]


@dataclass(slots=True)
class Findings:
    """What was found.

    Attributes
    ----------
    problems
        In the order of the file; those without a line last.
    whole
        The config, where it has no error of its own.
    measured
        What data said of what could be read; None without data, or where nothing could.
    """

    problems: list[Problem]
    whole: CrossConfig | None = None
    measured: Survey | None = None


@dataclass(slots=True)
class _State:
    """What is left of a config, and the names that what was put aside had read."""

    data: Any
    lines: Mapping[Path, int]
    source: str
    problems: list[Problem] = field(default_factory=list)
    aside: set[str] = field(default_factory=set)
    mentioned: set[str] = field(default_factory=set)

    def config(self) -> CrossConfig | None:
        """The largest part that was found to be right; None where nothing is left."""
        while self.data is not None:
            try:
                config = validate(Document(self.data, self.source, self.lines))
                build_plan(config)
                return config
            except ConfigError as error:
                self.put_aside(error.problems)
        return None

    def put_aside(self, problems: Iterable[Problem]) -> None:
        """Note the problems, and leave out what they are about."""
        new = list(problems)
        first = not self.aside
        # after something went, a config without any feature is our own doing
        self.problems += [one for one in new if first or one.code != "no-output"]
        names = {name for one in new for name in _names(one.path)}
        whole = [one for one in new if not _names(one.path)]
        known = names <= self.aside
        self.aside |= names or {"?"}
        if not all(self._mend(one.path) for one in whole) or (known and not whole):
            self.data = None  # invariant 1
        elif self.data is not None:
            self.data = self._without(names)

    def _mend(self, path: Path) -> bool:
        """Leave out keys that belong to no feature and no attribute; false where that cannot be."""
        data = dict(self.data) if isinstance(self.data, dict) else {}
        match path:
            case (str() as key, *_) if key in data and key not in ("entities", "features"):
                self.data = {name: value for name, value in data.items() if name != key}
            case ("entities", name, *rest) if isinstance(data["entities"][name], dict):
                entity = data["entities"][name]
                kept = {k: v for k, v in entity.items() if k in Entity.model_fields and [k] != rest[:1]}
                if len(kept) == len(entity) or not kept.get("attributes"):
                    return False
                self.data = {**data, "entities": {**data["entities"], name: kept}}
            case _:
                return False
        return True

    def _without(self, names: set[str]) -> Any:
        features = dict(self.data["features"])
        gone = set(names)
        while True:
            readers = {n for n, body in features.items() if n in gone or gone & set(_references(body))}
            if not readers:
                break
            for name in readers:
                self.mentioned |= set(_references(features.pop(name)))
            gone |= readers | {
                f"{name}.{form}" for name in readers for form in ("permutation", "single", "sorted")
            }
        entities: dict[str, Any] = {}
        for name, entity in self.data["entities"].items():
            kept = {k: v for k, v in entity["attributes"].items() if f"{name}.{k}" not in gone}
            if kept:
                rest = {k: v for k, v in entity.items() if k != "key" or f"{name}.{v}" not in gone}
                entities[name] = {**rest, "attributes": kept}
        emitted = any(not isinstance(body, dict) or body.get("emit", True) for body in features.values())
        return {**self.data, "entities": entities, "features": features} if entities and emitted else None


def _names(path: Path) -> list[str]:
    """The feature or the attribute that a path is in."""
    match path:
        case ("features", str() as name, *_):
            return [name]
        case ("entities", str() as entity, "attributes", str() as name, *_):
            return [f"{entity}.{name}"]
    return []


def _references(body: Any) -> list[str]:
    """Names that a declaration reads."""
    if not isinstance(body, dict):
        return []
    of, when = body.get("of"), body.get("when")
    named = [*(of if isinstance(of, list | tuple) else [of]), body.get("share")]
    named += list(when) if isinstance(when, Mapping) else []
    return [name for name in named if isinstance(name, str)]


def find(source: str, data: str | None) -> Findings:
    """Every problem of a config, and of its data.

    Parameters
    ----------
    source
        Path of the config.
    data
        File or folder to hold it to; None looks at the config alone.

    Raises
    ------
    ConfigError
        The config cannot be read, or is no mapping of values.
    """
    document = read(source)
    state = _State(document.value, document.lines, source)
    config = state.config()
    found = Findings(state.problems, None if state.problems else config)
    if config is not None:
        if data is not None:
            found.measured, config = _surveyed(state, config, data)
        if config is not None:
            state.problems += _lints(state, config, found.measured)
    found.problems.sort(key=lambda problem: (problem.line is None, problem.line))
    return found


def _lints(state: _State, config: CrossConfig, measured: Survey | None) -> list[Problem]:
    plan = build_plan(config)
    ratios, pairs = (measured.ratios, measured.pairs) if measured is not None else (None, None)
    problems = check_config(config, plan, ratios, pairs)
    if measured is not None and not measured.rows:
        message = "the data have no rows: types were looked at, values and counts were not"
        problems.append(Problem("no-rows", message, severity="warning"))
    if measured is not None:
        for name, feature in measured.features.items():
            if measured.rows and not feature.covered_rows:
                path = plan.node(name).path
                message = f"{name} gives no id in {measured.rows} rows"
                problems.append(Problem("empty-feature", message, path, config.line(path), "warning"))
    # what was put aside may use an attribute that nothing else does
    unused = {
        ("entities", *label.split(".", 1)[:1], "attributes", *label.split(".", 1)[1:])
        for label in state.mentioned
    }
    return [one for one in problems if one.code != "unused-attribute" or one.path not in unused]


def _surveyed(state: _State, config: CrossConfig, data: str) -> tuple[Survey | None, CrossConfig | None]:
    """The survey of all that the data fit, and the config of that; problems go into the state."""
    whole: CrossConfig | None = config
    try:
        schema = open_dataset(data, build_plan(config)).schema
    except DataError as error:
        state.problems.append(Problem("data", str(error)))
        return None, config
    misfits = check_columns(Engine(config), schema, state.mentioned)
    if misfits:
        state.put_aside(misfits)
        whole = state.config()
    while whole is not None:
        try:
            return survey(Engine(whole), data), whole
        except DataError as error:
            path = _place(whole, str(error))
            state.put_aside([Problem("data", str(error), path, whole.line(path) if path else None)])
            if not path:
                return None, whole
            whole = state.config()
    return None, None


def _place(config: CrossConfig, message: str) -> Path:
    """The attribute or feature that a DataError names, if it is one of the config."""
    plan = build_plan(config)
    for use in plan.attributes:
        if re.search(rf"\({re.escape(use.label)}[,)]", message):
            return use.path
    return next((node.path for node in plan.nodes if message.startswith(f"{node.name} ")), ())
