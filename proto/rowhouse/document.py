# SPDX-License-Identifier: Apache-2.0
"""YAML files as plain values with the line of each, and plain values as YAML text.

Scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2, section 10.3.2), to the letter:
`off` and `NO` are words, `1e-3` is a number, `1:30`, `1_000` and `2026-01-01` are text. JSON is a part of
it. Stricter than YAML: a key given twice, a key that is not text, and tags beyond the core schema are
errors. ruamel.yaml scans and writes; what scalars mean is decided here. What values mean is decided by
whoever reads them.

Invariants: 1. every path of the value has a line; 2. a fault is a DocumentError that names the line, and as
many faults as can be told are told at once; 3. no more is built than BYTES_MAX, VALUES_MAX and DEPTH_MAX
allow, also where aliases repeat it. Thread safety: pure functions, but for reading the file; a Document is
immutable by convention.
"""

import io
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    MappingStartEvent,
    ScalarEvent,
    StreamEndEvent,
)
from ruamel.yaml.representer import SafeRepresenter

from rowhouse.problem import PROBLEMS_MAX, DocumentError, Path, Problem, line_of

BYTES_MAX: Final = 4 * 1024 * 1024
"""One file. The resolved config of 1,024 tables has 1 MB, a thousand crosses 0.2 MB."""

VALUES_MAX: Final = 100_000
"""Values in a file, aliases followed: 1,024 tables have 60,000, a thousand crosses 10,000; bombs more."""

DEPTH_MAX: Final = 32
"""Nesting. Our configs need 6 levels; the bound keeps recursion away from the stack's end."""

_TAG: Final = "tag:yaml.org,2002:"
_OTHER_BREAKS: Final = "\x85\u2028\u2029"
"""Line breaks of YAML 1.1, which ruamel.yaml folds to spaces where they are not escaped."""


_SCALAR: Final = re.compile(
    r"(?P<null>null|Null|NULL|~|)|(?P<bool>true|True|TRUE|false|False|FALSE)"
    r"|(?P<int>[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)"
    r"|(?P<float>[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))"
)
"""The core schema: a bare scalar that is none of these is text."""

_READ: Final[dict[str, Callable[[str], Any]]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10),
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}

_BARE: Final = re.compile(r"[\w./](?:[\w./@+ -]|:(?=[\w./]))*")
"""Texts that may be written without quotes."""


@dataclass(frozen=True)
class Document:
    """Values of a file and where they stand.

    Attributes
    ----------
    value
        The root: dict, list, str, int, float, bool or None (also of an empty file).
    source
        Name of the file, for messages.
    lines
        Line (counted from 1) of each path.
    """

    value: Any
    source: str
    lines: Mapping[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int | None:
        """The line of a path, or of its nearest parent that has one."""
        return line_of(path, self.lines)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file, line ends as they stand; DocumentError where it cannot be read."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = file.read(BYTES_MAX + 1)
        return data.decode("utf-8") if len(data) <= BYTES_MAX else _too_large(os.stat(name).st_size, name)
    except OSError as error:
        _fail("config-file", f"cannot be read: {error.strerror}", None, name)
    except UnicodeDecodeError as error:
        _fail("yaml", f"not UTF-8: {error.reason} at byte {error.start}", None, name)


def read_document(path: str | os.PathLike[str]) -> Document:
    """Read and parse a file; DocumentError with its problems."""
    return parse_document(read_text(path), os.fspath(path))


def parse_document(text: str, source: str) -> Document:
    """Parse a text.

    Parameters
    ----------
    text
        YAML or JSON; one document.
    source
        Name of the file, for messages.

    Raises
    ------
    DocumentError
        Not YAML, past a limit, a key twice, a key that is not text, or a tag beyond the core schema.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > BYTES_MAX:
        _too_large(size, source)
    parser = _Parser(text, source)
    try:
        value = parser.document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "cannot be read"
        _fail("yaml", f"not valid YAML: {reason}", None if mark is None else mark.line + 1, source)
    except YAMLError as error:  # a character that YAML does not allow, told without a mark
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        reason = getattr(error, "reason", None) or str(error).splitlines()[0]
        _fail("yaml", f"not valid YAML: {reason}", line, source)
    if parser.problems:
        raise DocumentError(parser.problems, source)
    return Document(value, source, parser.lines)


def dump(value: Any, flow: bool | None = False, width: int = 80) -> str:
    """Plain values as YAML text that `parse_document` reads back.

    Parameters
    ----------
    value
        dict, list, tuple, str, int, float, bool or None; keys keep their order.
    flow
        False for blocks, True for `{…}` in one line, None for blocks whose innermost collections are `{…}`.
    width
        Columns past which a long line is folded.
    """
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = flow
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.brace_single_entry_mapping_in_flow_sequence = True
    writer.width = width
    writer.Representer = _Representer
    out = io.StringIO()
    writer.dump(value, out)
    return out.getvalue()


def _kind(text: str) -> str:
    """What a bare scalar is: null, bool, int, float or str."""
    found = _SCALAR.fullmatch(text)
    return str(found.lastgroup) if found else "str"


class _Representer(SafeRepresenter):
    """Quotes every text that may not stand bare; ruamel.yaml writes `{:a: 1}`, which it cannot read."""

    def represent_str(self, data: str) -> Any:
        """A text, bare where it is words and no other scalar."""
        bare = _BARE.fullmatch(data) and _kind(data) == "str"
        style = None if bare else '"' if any(one in data for one in _OTHER_BREAKS) else "'"
        return self.represent_scalar(_TAG + "str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def _fail(code: str, message: str, line: int | None, source: str) -> NoReturn:
    raise DocumentError([Problem(code, message, (), line)], source)


def _too_large(size: int, source: str) -> NoReturn:
    _fail("config-size", f"the file has {size} bytes; the most is {BYTES_MAX}", None, source)


class _Parser:
    """Turns events into values, in one pass; `problems` are the faults that it could pass by."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self._events: Iterator[Any] = YAML(typ="safe", pure=True).parse(text)
        self._anchors: dict[str, tuple[Any, Path] | None] = {}  # None while its value is being read
        self._count = 0

    def document(self) -> Any:
        """The value of the one document; None of an empty text."""
        next(self._events)  # the stream's start
        if isinstance(next(self._events), StreamEndEvent):
            return None
        value = self._value(next(self._events), ())
        next(self._events)  # the document's end
        after = next(self._events)
        if isinstance(after, DocumentStartEvent):
            self._fail("yaml", "not valid YAML: a second document begins; a file holds one", after)
        return value

    def _value(self, event: Any, path: Path) -> Any:
        self.lines.setdefault(path, event.start_mark.line + 1)  # a mapping's value keeps the line of its key
        if isinstance(event, AliasEvent):
            return self._repeated(*self._anchored(event), path, event)
        self._counted(path, event)
        if event.anchor:
            self._anchors[event.anchor] = None
        if isinstance(event, ScalarEvent):
            value = self._scalar(event, path)
        else:
            is_mapping = isinstance(event, MappingStartEvent)
            if event.tag not in (None, "!", _TAG + ("map" if is_mapping else "seq")):
                self._tag(event, path)
            value = self._mapping(path) if is_mapping else self._sequence(path)
        if event.anchor:
            self._anchors[event.anchor] = (value, path)
        return value

    def _sequence(self, path: Path) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), CollectionEndEvent):
            found.append(self._value(event, (*path, len(found))))
        return found

    def _mapping(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), CollectionEndEvent):
            line = event.start_mark.line + 1
            bare = isinstance(event, ScalarEvent) and not event.anchor
            key = self._scalar(event, path) if bare else self._value(event, (*path, "a key"))
            if not isinstance(key, str):
                self._add("key-type", f"a key is {key!r}; it must be text, in quotes if need be", path, event)
                self._value(next(self._events), (*path, repr(key)))
            elif key in found:
                first = self.lines[(*path, key)]
                reason = f"key {key!r} is there twice; the first is on line {first}"
                self._add("duplicate-key", reason, path, event)
                self._value(next(self._events), (*path, key))
            else:
                self.lines[(*path, key)] = line
                found[key] = self._value(next(self._events), (*path, key))
        return found

    def _anchored(self, event: Any) -> tuple[Any, Path]:
        if event.anchor not in self._anchors:
            self._fail("yaml", f"not valid YAML: no anchor is called {event.anchor!r}", event)
        found = self._anchors[event.anchor]
        if found is None:
            self._fail("yaml", f"the anchor {event.anchor!r} refers to itself", event)
        return found

    def _repeated(self, value: Any, old: Path, new: Path, event: Any) -> Any:
        """A copy of an anchor's value, counted, with lines of its own: those of the anchor."""
        self._counted(new, event)
        self.lines.setdefault(new, self.lines[old])
        if isinstance(value, dict):
            return {k: self._repeated(v, (*old, k), (*new, k), event) for k, v in value.items()}
        if isinstance(value, list):
            return [self._repeated(v, (*old, i), (*new, i), event) for i, v in enumerate(value)]
        return value

    def _scalar(self, event: Any, path: Path) -> Any:
        text, tag = str(event.value), event.tag
        plain = _kind(text)
        if tag is None or tag == "!":
            kind = plain if event.implicit[0] and tag is None else "str"
        else:
            kind = tag.removeprefix(_TAG)
        if kind not in _READ:
            self._tag(event, path)
            return None
        try:
            if kind not in (plain, "str") and (kind, plain) != ("float", "int"):
                raise ValueError
            return _READ[kind](text)
        except ValueError:  # not what the tag says, or more digits than Python reads
            self._add("yaml", f"value {reprlib.repr(text)} cannot be read as {kind}", path, event)
            return None

    def _counted(self, path: Path, event: Any) -> None:
        self._count += 1
        if self._count > VALUES_MAX:
            self._fail("config-size", f"more than {VALUES_MAX} values, aliases followed", event)
        if len(path) > DEPTH_MAX:
            self._fail("config-depth", f"nested deeper than {DEPTH_MAX} levels", event)

    def _tag(self, event: Any, path: Path) -> None:
        reason = f"tag {event.tag!r} is not allowed; a config holds the types of YAML 1.2's core schema"
        self._add("yaml-tag", reason, path, event)

    def _add(self, code: str, message: str, path: Path, event: Any) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(code, message, path, event.start_mark.line + 1))

    def _fail(self, code: str, message: str, event: Any) -> NoReturn:
        _fail(code, message, event.start_mark.line + 1, self.source)
