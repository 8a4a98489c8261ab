# SPDX-License-Identifier: Apache-2.0
"""Reads a YAML or JSON text into plain values, and remembers the line of each.

It leaves the meaning of the values to config/config.py. Stricter than YAML: a key given twice, a
key that is not text, and custom tags are errors. Bounded: bytes, values (aliases followed) and depth.
Invariants: 1. no value is built before the text's size, depth and count have been checked; 2. every path
of the result has a line. Thread safety: pure functions.
"""

from typing import Any

import yaml

from feature_cross.error import ConfigError, Path, Problem
from feature_cross.limit import CONFIG_BYTES_MAX, CONFIG_DEPTH_MAX, CONFIG_NODES_MAX, PROBLEMS_MAX

__all__ = ["parse"]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml where PyYAML was built with it: ten times as fast."""

_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))

_COLLECTION_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("map", "seq"))


def parse(text: str, source: str) -> tuple[Any, dict[Path, int]]:
    """Read one document.

    Parameters
    ----------
    text
        YAML; JSON is a part of it.
    source
        Name of the file, for messages.

    Returns
    -------
    The value, and the line (from 1) of each path in it.

    Raises
    ------
    ConfigError
        Not YAML, past a limit, a key twice, or a tag that is not plain data.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > CONFIG_BYTES_MAX:
        _fail("config-size", f"the config has {size} bytes; the most is {CONFIG_BYTES_MAX}", None, source)
    try:
        _check_events(text, source)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "cannot be read"
        _fail("yaml", f"not valid YAML: {reason}", None if mark is None else mark.line + 1, source)
    except yaml.YAMLError as error:  # an unprintable character, reported without a mark
        _fail("yaml", f"not valid YAML: {str(error).splitlines()[0]}", None, source)
    if node is None:
        return {}, {(): 1}
    lines: dict[Path, int] = {}
    builder = _Builder(lines, source)
    value = builder.value(node, ())
    if builder.problems:
        raise ConfigError(builder.problems, source)
    return value, lines


def _fail(code: str, message: str, line: int | None, source: str) -> None:
    raise ConfigError([Problem(code, message, (), line)], source)


def _check_events(text: str, source: str) -> None:
    """Walk the parser's events, which needs no recursion, before anything recursive sees the text."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if count > 2 * CONFIG_NODES_MAX:  # a collection is two events
            _fail("config-size", f"more than {CONFIG_NODES_MAX} values", None, source)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > CONFIG_DEPTH_MAX:
                line = event.start_mark.line + 1 if event.start_mark else None
                _fail("config-depth", f"nested deeper than {CONFIG_DEPTH_MAX} levels", line, source)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Builder:
    """Turns YAML nodes into values, counting each one, also those reached again by an alias."""

    def __init__(self, lines: dict[Path, int], source: str) -> None:
        self.lines = lines
        self.source = source
        self.count = 0
        self.problems: list[Problem] = []
        self.scalar = yaml.constructor.SafeConstructor()

    def value(self, node: Any, path: Path) -> Any:
        self.count += 1
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        if self.count > CONFIG_NODES_MAX:
            _fail("config-size", f"more than {CONFIG_NODES_MAX} values (aliases followed)", line, self.source)
        if len(path) > CONFIG_DEPTH_MAX:
            _fail("config-depth", f"nested deeper than {CONFIG_DEPTH_MAX} levels", line, self.source)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTION_TAGS:
            self._tag(node, path)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: Any, path: Path) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                shown = getattr(key_node, "value", "a collection")
                reason = f"key {shown!r} is not text; quote it (YAML reads on, off, yes, no as bools)"
                self._add("key-type", reason, path, line)
                continue
            if key in out:
                first = self.lines[(*path, key)]
                reason = f"key {key!r} is given twice (first on line {first})"
                self._add("duplicate-key", reason, path, line)
                continue
            self.lines[(*path, key)] = line
            out[key] = self.value(value_node, (*path, key))
        return out

    def _scalar(self, node: Any, path: Path) -> Any:
        if node.tag == "tag:yaml.org,2002:timestamp":  # an unquoted date is its own text here
            return node.value
        if node.tag not in _PLAIN_TAGS:
            self._tag(node, path)
            return None
        try:
            return self.scalar.construct_object(node)
        except (ValueError, yaml.YAMLError):
            reason = f"value {node.value!r} cannot be read as {node.tag.rsplit(':', 1)[1]}"
            self._add("yaml", reason, path, node.start_mark.line + 1)
            return None

    def _tag(self, node: Any, path: Path) -> None:
        reason = f"tag {node.tag} is not allowed; a config holds plain values"
        self._add("yaml-tag", reason, path, node.start_mark.line + 1)

    def _add(self, code: str, message: str, path: Path, line: int) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(code, message, path, line))
