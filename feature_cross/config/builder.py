# SPDX-License-Identifier: Apache-2.0
"""A config written in Python: the same keys as in YAML, and the same YAML out of it.

It holds no rule of its own: `build` hands everything to `feature_cross.load`, whose errors name the place.
Thread safety: a Builder belongs to one thread.
"""

from collections.abc import Mapping
from typing import Any

from rowhouse.document import dump
from rowhouse.problem import Problem

from feature_cross.config.config import CrossConfig
from feature_cross.config.loader import load
from feature_cross.error import ConfigError

__all__ = ["Builder", "EntityBuilder"]


class EntityBuilder:
    """One entity of a Builder; each attribute gives the reference that features take."""

    def __init__(self, name: str, declared: dict[str, Any]) -> None:
        self._name = name
        self._declared = declared

    def attribute(self, name: str, type: str, **keys: Any) -> str:
        """Declare an attribute and give its reference, "entity.name".

        Parameters
        ----------
        name, type
            Its name, and int, string, float, bool or date.
        keys
            Any other key of an attribute (docs/feature_cross.md), as in YAML.

        Raises
        ------
        ConfigError
            The entity has an attribute of that name.
        """
        _put(self._declared["attributes"], name, {"type": type, **keys}, f"attribute of {self._name}")
        return f"{self._name}.{name}"


class Builder:
    """Collects entities and features.

    Parameters
    ----------
    slot_bits
        `ids.slot_bits`; None: pure 64-bit hash.

    Example
    -------
    >>> crosses = Builder(slot_bits=8)
    >>> user = crosses.entity("user")
    >>> city = user.attribute("city", "string", normalise=["strip"])
    >>> age = user.attribute("age", "int")
    >>> crosses.categorical("city_x_age", of=[city, age], slot=1)
    'city_x_age'
    >>> config = crosses.build()
    """

    def __init__(self, slot_bits: int | None = None) -> None:
        ids = {} if slot_bits is None else {"slot_bits": slot_bits}
        self._config: dict[str, Any] = {"version": 1, "ids": ids, "entities": {}, "features": {}}

    def entity(self, name: str, key: str | None = None) -> EntityBuilder:
        """Declare an entity; `key` names the attribute that identifies it."""
        declared: dict[str, Any] = {} if key is None else {"key": key}
        declared["attributes"] = {}
        _put(self._config["entities"], name, declared, "entity")
        return EntityBuilder(name, declared)

    def attribute(self, name: str, of: str, **keys: Any) -> str:
        """A feature of one attribute; `keys` are those of a feature, as in YAML. Gives `name`."""
        return self._feature("attribute", name, of, keys)

    def categorical(self, name: str, of: list[str], **keys: Any) -> str:
        """A cross of attributes of one entity. Gives `name`, for features that derive from it."""
        return self._feature("categorical", name, of, keys)

    def interaction(self, name: str, of: list[str], **keys: Any) -> str:
        """A cross of attributes of different entities. Gives `name`."""
        return self._feature("interaction", name, of, keys)

    def weak(self, name: str, of: list[str], **keys: Any) -> str:
        """A cross of attributes that need not co-occur. Gives `name`."""
        return self._feature("weak", name, of, keys)

    def combination(self, name: str, of: str, **keys: Any) -> str:
        """Features of one list. Gives `name`; without `form` they are name.permutation, .single, .sorted."""
        return self._feature("combination", name, of, keys)

    def _feature(self, kind: str, name: str, of: Any, keys: Mapping[str, Any]) -> str:
        _put(self._config["features"], name, {"kind": kind, "of": of, **keys}, "feature")
        return name

    def to_mapping(self) -> dict[str, Any]:
        """What `load` takes: plain dicts, lists and scalars; a copy."""
        plain: dict[str, Any] = _plain(self._config)
        return plain

    def to_yaml(self) -> str:
        """The config file, keys in the order in which they were declared."""
        return dump(self.to_mapping(), None)

    def build(self) -> CrossConfig:
        """The config, checked whole; ConfigError with every problem."""
        return load(self.to_mapping())


def _put(into: dict[str, Any], name: str, value: Any, what: str) -> None:
    if name in into:
        raise ConfigError([Problem("duplicate-key", f"{what} {name!r} is declared twice")])
    into[name] = value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return value
