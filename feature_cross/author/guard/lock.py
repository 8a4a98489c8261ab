# SPDX-License-Identifier: Apache-2.0
"""Slots and seeds against what they were: one that moved, or was another feature's, changes trained ids.

What they were comes from a previous config or from a lock file, which `feature-cross lock` keeps beside the
config. A lock also remembers features that are gone, so that their slots are never given out again.
Thread safety: pure functions, but for the files.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rowhouse.document import read_text
from rowhouse.problem import Problem

from feature_cross.config.config import CrossConfig
from feature_cross.config.loader import load
from feature_cross.config.node import Plan
from feature_cross.config.plan import build_plan
from feature_cross.error import ConfigError, config_errors
from feature_cross.id_format import FORMAT_VERSION

__all__ = ["Lock", "check_against", "lock_path", "make_lock", "read_previous"]

SUFFIX: Final = ".lock.json"


@dataclass(frozen=True, slots=True)
class Lock:
    """Slot (None without one) and seed by feature; `retired` are those that the config no longer has.

    `source` is the file that it is from, for messages.
    """

    source: str
    slot_bits: int | None
    features: dict[str, tuple[int | None, int]]
    retired: dict[str, tuple[int | None, int]]

    def to_json(self) -> dict[str, Any]:
        """As the lock file holds it; seeds as hexadecimal text, which every JSON reader keeps whole."""

        def shown(named: dict[str, tuple[int | None, int]]) -> dict[str, Any]:
            return {name: {"slot": slot, "seed": f"0x{seed:016x}"} for name, (slot, seed) in named.items()}

        return {
            "version": 1,
            "id_format": FORMAT_VERSION,
            "slot_bits": self.slot_bits,
            "features": shown(self.features),
            "retired": shown(self.retired),
        }


def lock_path(config: str | os.PathLike[str]) -> Path:
    """Where the lock of a config file lies: crosses.yaml has crosses.lock.json."""
    path = Path(config)
    return path.with_name(path.stem + SUFFIX)


def make_lock(plan: Plan, previous: Lock | None = None) -> Lock:
    """The lock of a plan. Features of `previous` that are gone are retired, and stay so until they return."""
    features = {n.name: (n.slot, n.seed) for n in plan.nodes if n.emit and not n.shares}
    known = {**previous.retired, **previous.features} if previous is not None else {}
    seeds = {seed for _, seed in features.values()}  # a renamed feature has kept its seed
    retired = {n: was for n, was in known.items() if n not in features and was[1] not in seeds}
    return Lock("", plan.slot_bits, features, retired)


def read_previous(path: str | os.PathLike[str]) -> Lock:
    """A lock file (`.json` with id_format) or a whole config as the state that ids were made with.

    Raises
    ------
    ConfigError
        Neither of the two, or it cannot be read.
    """
    name = os.fspath(path)
    if Path(name).suffix == ".json":
        with config_errors():
            text = read_text(name)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError([Problem("value", f"is not JSON: {error}")], name) from error
        if isinstance(value, dict) and "id_format" in value:
            return _parse(value, name)
    config = load(name)
    plan = build_plan(config)
    lock = make_lock(plan)
    return Lock(name, lock.slot_bits, lock.features, {})


def _parse(value: dict[str, Any], name: str) -> Lock:
    try:
        if (value["version"], value["id_format"]) != (1, FORMAT_VERSION):
            raise ValueError(f"version {value['version']}, id format {value['id_format']}; this is 1 and 1")
        bits = value["slot_bits"]
        parts = []
        for key in ("features", "retired"):
            named = {}
            for feature, was in value[key].items():
                slot = was["slot"]
                if not (slot is None or type(slot) is int):
                    raise ValueError(f"slot of {feature} is {slot!r}")
                named[str(feature)] = (slot, int(was["seed"], 16))
            parts.append(named)
        if not (bits is None or type(bits) is int):
            raise ValueError(f"slot_bits is {bits!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"is not a lock of feature-cross: {type(error).__name__} {error}"
        raise ConfigError([Problem("value", message)], name) from error
    return Lock(name, bits, parts[0], parts[1])


def check_against(config: CrossConfig, plan: Plan, previous: Lock) -> list[Problem]:
    """Errors: slots and seeds that are not what they were, each with its line in `config`."""
    found: list[Problem] = []

    def add(code: str, message: str, *path: str | int) -> None:
        found.append(Problem(code, message, path, config.line(path)))

    if previous.slot_bits != plan.slot_bits:
        message = f"ids.slot_bits was {previous.slot_bits} in {previous.source} and is {plan.slot_bits} now;"
        add("changed-layout", f"{message} every id changes", "ids", "slot_bits")
    known = {**previous.retired, **previous.features}
    owners = {slot: name for name, (slot, _) in known.items() if slot is not None}
    for node in plan.nodes:
        if node.shares or not node.emit:
            continue
        key = "slots" if str(node.path[-1]) != node.name else "slot"
        owner = owners.get(node.slot) if node.slot is not None else None
        was = known.get(node.name)
        if was is not None and was[0] != node.slot and plan.slot_bits is not None:
            taken = f", which was {owner}'s" if owner is not None else ""
            message = f"slot of {node.name} was {was[0]} in {previous.source} and is {node.slot} now{taken};"
            add("moved-slot", f"{message} all its ids change", *node.path, key)
        elif owner not in (None, node.name) and known[owner or ""][1] != node.seed:
            message = f"slot {node.slot} of {node.name} was {owner}'s in {previous.source}; a slot is never"
            add(
                "reused-slot",
                f"{message} used again, or its old rows are taken for new ones",
                *node.path,
                key,
            )
        if was is not None and was[1] != node.seed:
            message = f"seed of {node.name} was 0x{was[1]:016x} in {previous.source}"
            add("changed-seed", f"{message} and is 0x{node.seed:016x} now; all its ids change", *node.path)
    return found
