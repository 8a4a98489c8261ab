# SPDX-License-Identifier: Apache-2.0
"""Plain values held to a pydantic model; what pydantic finds, in words that name key path, value and bound.

The known keys of a place come from the model's JSON schema, so any model nested in a config is covered
without naming it here. Of a mapping that lacks the `kind` by which a union is told apart, pydantic checks
nothing else; its unknown keys are named here all the same. Thread safety: pure functions.
"""

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rowhouse.document import Document
from rowhouse.problem import PROBLEMS_MAX, DocumentError, Path, Problem, nearest, similar, with_article

_Model = TypeVar("_Model", bound=BaseModel)

_Schema = dict[str, Any]


def validate(model: type[_Model], document: Document) -> _Model:
    """The document as an instance of `model`; DocumentError with every fault, in the order of lines."""
    if not isinstance(document.value, Mapping):
        kind = "empty" if document.value is None else with_article(type(document.value).__name__)
        message = f"the config is {kind}; it must be a mapping of keys"
        raise DocumentError([Problem("type", message, (), document.line(()))], document.source)
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        schema = model.model_json_schema()
        details = error.errors(include_url=False)[:PROBLEMS_MAX]
        found = dict.fromkeys(problem for one in details for problem in _problems(one, document, schema))
        raise DocumentError(sorted(found, key=lambda p: p.line or 0), document.source) from None


def _problems(error: ErrorDetails, document: Document, schema: _Schema) -> Iterator[Problem]:
    path, kind, value = _real_path(error, document.value), error["type"], error["input"]
    line = document.line(path)
    if kind == "extra_forbidden":
        yield _unknown_key(document, schema, path)
    elif kind == "missing":
        yield Problem("missing-key", "is missing; it must be given", path, line)
    elif kind in ("union_tag_not_found", "union_tag_invalid"):
        known = _properties(schema, document.value, path)
        given = value if isinstance(value, Mapping) else {}
        message = _one_of(given.get("kind"), known["kind"], "kind" not in given)
        path = (*path, "kind")
        yield Problem("kind", message, path, document.line(path))
        if "kind" not in given:
            unknown = [key for key in given if key not in known]
            yield from (_unknown_key(document, schema, (*path[:-1], key)) for key in unknown)
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        yield Problem("value", f"is {_shown(value)}; it must be a mapping of keys", path, line)
    elif kind == "literal_error":
        words = [word.strip(" '\"") for word in error["ctx"]["expected"].replace(" or ", ",").split(",")]
        yield Problem("value", _one_of(value, words), path, line)
    else:
        yield Problem("value", _message(error), path, line)


def _message(error: ErrorDetails) -> str:
    text = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if error["type"] == "value_error" and isinstance(error["input"], dict | list | tuple):
        return text  # a fault between keys or entries: the message names them
    if error["type"] != "value_error":
        text = text.replace("Input should be", "it must be")
        text = text[:1].lower() + text[1:]
    return f"is {_shown(error['input'])}; {text}"


def _unknown_key(document: Document, schema: _Schema, path: Path) -> Problem:
    known = sorted(_properties(schema, document.value, path[:-1]))
    message = f"unknown key; {nearest(str(path[-1]), known)}"
    return Problem("unknown-key", message, path, document.line(path))


def _one_of(value: Any, words: list[str], missing: bool = False) -> str:
    shown = [repr(word) for word in words]
    listed = " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
    near = similar(value, words) if isinstance(value, str) else None
    hint = f"; did you mean {near!r}?" if near else ""
    return f"is {'missing' if missing else _shown(value)}; it must be {listed}{hint}"


def _shown(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)


def _real_path(error: ErrorDetails, value: Any) -> Path:
    """pydantic's location without the parts that name a member of a union instead of a key."""
    path: list[str | int] = []
    last = len(error["loc"]) - 1
    tagged = False  # the tag of `value` was passed already, so the same word again is a key
    for position, part in enumerate(error["loc"]):
        if isinstance(value, dict) and not tagged and part == value.get("kind") and position < last:
            tagged = True
            continue
        tagged = False
        absent_key = position == last and error["type"] == "missing"
        if isinstance(value, dict) and (part in value or absent_key):
            value = value.get(part)
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        path.append(part)
    return tuple(path)


def _properties(schema: _Schema, value: Any, path: Path) -> dict[str, list[str]]:
    """Keys that the schema knows at `path` of `value`, of all members of a union where it cannot tell; and
    the constants that each may be."""
    nodes = _members(schema, schema, value)
    for part in path:
        value = value[part]
        below = [one for node in nodes for one in _below(node, part)]
        nodes = [member for node in below for member in _members(schema, node, value)]
    found: dict[str, list[str]] = {}
    for node in nodes:
        for key, declared in node.get("properties", {}).items():
            found.setdefault(key, []).extend([declared["const"]] if "const" in declared else [])
    return found


def _below(node: _Schema, part: str | int) -> list[_Schema]:
    """The schemas of an entry, or of a key that a model declares or a mapping may have."""
    if isinstance(part, int):
        found = [node.get("items")]
    elif part in node.get("properties", {}):
        found = [node["properties"][part]]
    else:
        found = [node.get("additionalProperties"), *node.get("patternProperties", {}).values()]
    return [one for one in found if isinstance(one, dict)]


def _members(schema: _Schema, node: _Schema, value: Any) -> list[_Schema]:
    """The schemas that `node` may stand for, narrowed by a discriminator where `value` has it."""
    if "$ref" in node:
        return _members(schema, schema["$defs"][node["$ref"].rsplit("/", 1)[1]], value)
    if "discriminator" in node and isinstance(value, dict):
        tag = value.get(node["discriminator"]["propertyName"])
        target = node["discriminator"].get("mapping", {}).get(tag) if isinstance(tag, str) else None
        if target:
            return _members(schema, {"$ref": target}, value)
    union = [*node.get("anyOf", []), *node.get("oneOf", []), *node.get("allOf", [])]
    return [m for u in union for m in _members(schema, u, value)] or [node]
