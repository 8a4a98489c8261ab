# SPDX-License-Identifier: Apache-2.0
"""From a file or a mapping to a CrossConfig whose every part is known to be right.

Turns each complaint of pydantic into a Problem with a line, and names the nearest key for an unknown one.
Thread safety: pure functions, but for reading the file.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel, ValidationError

from feature_cross.config.config import (
    Age,
    Attribute,
    AttributeFeature,
    Buckets,
    CategoricalFeature,
    CombinationFeature,
    Condition,
    CrossConfig,
    Entity,
    Ids,
    InteractionFeature,
    LogBuckets,
    Recency,
    Slots,
    WeakFeature,
)
from feature_cross.config.document import parse
from feature_cross.config.plan import build_plan
from feature_cross.error import ConfigError, Path, Problem
from feature_cross.limit import CONFIG_BYTES_MAX, PROBLEMS_MAX

__all__ = ["load", "load_text", "nearest", "read_text", "validate"]

_KINDS: Mapping[str, type[BaseModel]] = {
    "attribute": AttributeFeature,
    "categorical": CategoricalFeature,
    "interaction": InteractionFeature,
    "combination": CombinationFeature,
    "weak": WeakFeature,
}


def load(source: str | os.PathLike[str] | Mapping[str, Any]) -> CrossConfig:
    """Read a config and check it whole.

    Parameters
    ----------
    source
        Path of a YAML (or JSON) file, or the same as a mapping.

    Returns
    -------
    CrossConfig

    Raises
    ------
    ConfigError
        With every problem found, each with its line if it came from a file.
    """
    if isinstance(source, Mapping):
        return _checked(validate(dict(source), {}, "config"))
    name = os.fspath(source)
    return load_text(read_text(name), name)


def load_text(text: str, name: str = "config") -> CrossConfig:
    """As `load`, from the text of a file; `name` is used in messages."""
    data, lines = parse(text, name)
    return _checked(validate(data, lines, name))


def _checked(config: CrossConfig) -> CrossConfig:
    build_plan(config)
    return config


def read_text(name: str) -> str:
    """The text of a config file; ConfigError where it cannot be read, is too large or not UTF-8."""
    try:
        path = FilePath(name)
        size = path.stat().st_size
        if size > CONFIG_BYTES_MAX:
            message = f"the config has {size} bytes; the most is {CONFIG_BYTES_MAX}"
            raise ConfigError([Problem("config-size", message)], name)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([Problem("config-file", f"cannot be read: {error.strerror}")], name) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            [Problem("yaml", f"not UTF-8: {error.reason} at byte {error.start}")], name
        ) from error


def validate(data: Any, lines: dict[Path, int], source: str) -> CrossConfig:
    """A config of which each value is right; what they mean together is not looked at (`load` does)."""
    if not isinstance(data, dict):
        message = f"a config is a mapping with entities and features, not a {type(data).__name__}"
        raise ConfigError([Problem("type", message, (), lines.get(()))], source)
    try:
        config = CrossConfig.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)[:PROBLEMS_MAX]
        problems = [_problem(detail, data, lines) for detail in details]
        raise ConfigError(sorted(problems, key=lambda p: p.line or 0), source) from None
    config._source = source
    config._lines = lines
    return config


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean 'x'?` for the known name nearest to `name`, or the empty string."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""


def _problem(detail: Any, data: Any, lines: dict[Path, int]) -> Problem:
    path = _data_path(detail["loc"], data)
    code = detail["type"]
    value = detail.get("input")
    if code == "extra_forbidden":
        known = _keys_at(path[:-1], data)
        key = str(path[-1])
        message = f"unknown key {key!r}{nearest(key, known)} (known: {', '.join(known)})"
        return Problem("unknown-key", message, path[:-1], _line(path, lines))
    if code == "missing":
        return Problem(
            "missing-key", f"key {str(path[-1])!r} is required", path[:-1], _line(path[:-1], lines)
        )
    if code in ("union_tag_invalid", "union_tag_not_found"):
        unknown = _unknown_beside_kind(value) if isinstance(value, dict) else None
        if unknown is not None:
            key, known = unknown
            message = f"unknown key {key!r}{nearest(key, known)} (known: {', '.join(known)})"
            message += f"; kind is required, one of {', '.join(_KINDS)}"
            return Problem("unknown-key", message, path, _line((*path, key), lines))
        kind = value.get("kind") if isinstance(value, dict) else None
        hint = nearest(str(kind), list(_KINDS)) if kind is not None else ""
        message = f"kind is {kind!r}; it must be one of {', '.join(_KINDS)}{hint}"
        return Problem("kind", message, path, _line((*path, "kind"), lines))
    message = detail["msg"].removeprefix("Value error, ")
    if code != "value_error":
        message = f"{message[:1].lower()}{message[1:]}, but it is {_shown(value)}"
    if code == "literal_error" and isinstance(value, str):
        expected = detail["ctx"]["expected"].replace(" or ", ", ").split(", ")
        message += nearest(value, [part.strip("'") for part in expected])
    return Problem("value", message, path, _line(path, lines))


def _unknown_beside_kind(feature: dict[Any, Any]) -> tuple[str, list[str]] | None:
    """Of a feature without a kind: the key of no kind that is most like `kind`, and the keys of all kinds."""
    known = list(dict.fromkeys(key for model in _KINDS.values() for key in model.model_fields))
    unknown = [str(key) for key in feature if key not in known]
    if "kind" in feature or not unknown:
        return None
    return difflib.get_close_matches("kind", unknown, n=1, cutoff=0.0)[0], known


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(path: Path, lines: dict[Path, int]) -> int | None:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _data_path(loc: tuple[str | int, ...], data: Any) -> Path:
    """The part of pydantic's location that the data has too: without union tags and validator names."""
    path: list[str | int] = []
    here = data
    for index, part in enumerate(loc):
        if isinstance(here, dict):
            last = index == len(loc) - 1
            if part in here:
                here = here[part]
            elif not last or not isinstance(part, str) or part in _KINDS or "[" in part:
                continue
            path.append(part)
        elif isinstance(here, list | tuple) and isinstance(part, int) and part < len(here):
            path.append(part)
            here = here[part]
    return tuple(path)


def _keys_at(path: Path, data: Any) -> list[str]:
    """Keys that the language knows at a path."""
    model: type[BaseModel] = CrossConfig
    match path:
        case ("ids",):
            model = Ids
        case ("entities", _):
            model = Entity
        case ("entities", _, "attributes", _):
            model = Attribute
        case ("entities", _, "attributes", _, "buckets"):
            model = Buckets
        case ("entities", _, "attributes", _, "buckets", "log"):
            model = LogBuckets
        case ("entities", _, "attributes", _, "age"):
            model = Age
        case ("entities", _, "attributes", _, "recency"):
            model = Recency
        case ("features", _, "when", _):
            model = Condition
        case ("features", name):
            model = _KINDS[data["features"][name]["kind"]]
        case ("features", _, "slots"):
            model = Slots
    return list(model.model_fields)
