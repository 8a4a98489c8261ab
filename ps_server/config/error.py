# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a config, in words: file and line, key path, value, bound, nearest known key.

pydantic finds the faults; this module words them. The known keys of a place come from the model's JSON
schema, so any pydantic model nested in the config is covered without naming it here.
Thread safety: pure functions.
"""

import difflib
import reprlib
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ps_server.config.document import Document, Path

_LISTED_KEYS_MAX: Final = 12
"""Known names that a message lists when none is near; past this a list helps nobody."""


def nearest(name: str, known: list[str]) -> str:
    """The sentence that ends a message about an unknown `name`: the nearest of `known`, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"the nearest known one is {near[0]!r}"
    listed = ", ".join(repr(k) for k in known[:_LISTED_KEYS_MAX])
    return f"known ones are {listed}" + (", …" if len(known) > _LISTED_KEYS_MAX else "")


def describe(error: ValidationError, document: Document, model: type[BaseModel]) -> str:
    """Every fault of `error`, one line each, worded against the document it came from."""
    schema = model.model_json_schema()
    lines = [_describe_one(e, document, schema) for e in error.errors()]
    return "\n".join(dict.fromkeys(lines))


def _describe_one(error: ErrorDetails, document: Document, schema: dict[str, Any]) -> str:
    path = _real_path(error, document.value)
    name, kind = _spell(path), error["type"]
    if kind == "extra_forbidden":
        known = sorted(_properties(schema, document.value, path[:-1]))
        text = f"{name}: unknown key; {nearest(str(path[-1]), known)}"
    elif kind == "missing":
        text = f"{name} is missing; it must be given"
    elif kind == "union_tag_not_found":
        text = f"{name}.kind is missing; it must be given"
    elif kind == "union_tag_invalid":
        expected = [t.strip(" '\"") for t in str(error["ctx"]["expected_tags"]).split(",")]
        tag = str(error["ctx"]["tag"])
        path = (*path, "kind")
        text = f"{name}.kind is {tag!r}; {nearest(tag, expected)}"
    elif kind in ("model_type", "model_attributes_type"):
        text = f"{name} is {_value(error)}; it must be a mapping of keys"
    elif kind == "literal_error":
        text = f"{name} is {_value(error)}; it must be {error['ctx']['expected']}"
    else:
        message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        text = f"{name} is {_value(error)}; {message.replace('Input should be', 'it must be')}"
        if kind == "value_error" and isinstance(error["input"], dict | list):
            text = f"{name}: {message}"  # a fault between keys or entries: the message names them
    return f"{document.place(path)}: {text}"


def _value(error: ErrorDetails) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(error["input"])


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


def _spell(path: Path) -> str:
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
    return text.removeprefix(".") or "config"


def _properties(schema: dict[str, Any], value: Any, path: Path) -> set[str]:
    """Keys that the schema knows at `path` of `value`; of all members of a union where it cannot tell."""
    nodes = _members(schema, schema, value)
    for part in path:
        value = value[part]
        below = [
            n.get("items") if isinstance(part, int) else n.get("properties", {}).get(part) for n in nodes
        ]
        nodes = [m for b in below if b for m in _members(schema, b, value)]
    return {key for n in nodes for key in n.get("properties", {})}


def _members(schema: dict[str, Any], node: dict[str, Any], value: Any) -> list[dict[str, Any]]:
    """The schemas that `node` may stand for, narrowed by a discriminator where `value` has it."""
    if "$ref" in node:
        return _members(schema, schema["$defs"][node["$ref"].rsplit("/", 1)[1]], value)
    if "discriminator" in node and isinstance(value, dict):
        tag = value.get(node["discriminator"]["propertyName"])
        target = node["discriminator"].get("mapping", {}).get(tag)
        if target:
            return _members(schema, {"$ref": target}, value)
    union = [*node.get("anyOf", []), *node.get("oneOf", []), *node.get("allOf", [])]
    return [m for u in union for m in _members(schema, u, value)] or [node]
