# SPDX-License-Identifier: Apache-2.0
"""A YAML file as plain values, with the line on which each key stands.

Why not `yaml.safe_load`: it keeps no line marks, lets a repeated key win in silence, and reads YAML 1.1,
where `off` is False, `1e-3` a string and `1:30` the number 90. Here scalars follow the core schema of
YAML 1.2 (https://yaml.org/spec/1.2.2, section 10.3.2). What the values mean is config.py's business.

Invariants: 1. every key path of `value` has a line; 2. a repeated key, a tag that is not of the core
schema, a key that is not a string, and a file that holds itself are ConfigErrors that name the line.
Thread safety: pure functions; a Document is immutable by convention.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from rowhouse.error import ConfigError

Path = tuple[str | int, ...]
"""Keys and indices from the root to a value."""

_TAG: Final = "tag:yaml.org,2002:"


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's parser with the scalar rules of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[Any, Any] = {  # noqa: RUF012  # PyYAML declares it as an instance's
        None: [
            (_TAG + "null", re.compile(r"^(?:null|Null|NULL|~|)$")),
            (_TAG + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")),
            (_TAG + "int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")),
            (
                _TAG + "float",
                re.compile(
                    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
                    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
                ),
            ),
        ]
    }


@dataclass(frozen=True)
class Document:
    """Values of a YAML file and where they stand.

    Attributes
    ----------
    value
        The root: dict, list, str, int, float, bool or None.
    source
        Name of the file, for messages.
    lines
        Line (counted from 1) of each key path.
    """

    value: Any
    source: str
    lines: Mapping[Path, int] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """`file:line` of `path`, or of its nearest parent that has a line; `file` alone without one."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return f"{self.source}:{self.lines[path[:end]]}"
        return self.source


def parse_document(text: str, source: str) -> Document:
    """Parse YAML `text`; ConfigError names `source` and the line of whatever is wrong."""
    try:
        loader = _CoreLoader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        place = f"{source}:{error.problem_mark.line + 1}" if error.problem_mark else source
        raise ConfigError(f"{place}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{source}:{line}: not valid YAML: {error.reason}") from None
    except RecursionError:
        raise ConfigError(f"{source}: not a config: it is nested hundreds of levels deep") from None
    lines: dict[Path, int] = {}
    value = _build(root, (), source, lines, ()) if root is not None else None
    return Document(value, source, lines)


def _build(node: yaml.Node, path: Path, source: str, lines: dict[Path, int], above: tuple[int, ...]) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)  # a mapping's value keeps the line of its key, which stands first
    if id(node) in above:
        raise ConfigError(f"{source}:{line}: an anchor refers to itself")
    above = (*above, id(node))
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, f"{source}:{line}")
    if node.tag not in (_TAG + "seq", _TAG + "map"):
        raise ConfigError(_unknown_tag(node, f"{source}:{line}"))
    if isinstance(node, yaml.SequenceNode):
        return [_build(n, (*path, i), source, lines, above) for i, n in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key_line = key_node.start_mark.line + 1
        key = _scalar(key_node, f"{source}:{key_line}") if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise ConfigError(f"{source}:{key_line}: a key is {key!r}; it must be a string")
        if key in found:
            first = lines[(*path, key)]
            raise ConfigError(
                f"{source}:{key_line}: key {key!r} is there twice; the first is on line {first}"
            )
        lines[(*path, key)] = key_line
        found[key] = _build(value_node, (*path, key), source, lines, above)
    return found


def _scalar(node: yaml.ScalarNode, place: str) -> Any:
    text = str(node.value)
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case _:
            raise ConfigError(_unknown_tag(node, place))


def _unknown_tag(node: yaml.Node, place: str) -> str:
    return f"{place}: tag {node.tag!r}; only the types of YAML 1.2's core schema are known"
