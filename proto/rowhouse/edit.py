# SPDX-License-Identifier: Apache-2.0
"""A YAML or JSON text with other values, in which only what differs is written anew.

Comments, order, quotes, line ends and spacing of everything else stay byte for byte. The marks of
ruamel.yaml's events say where an entry stands; its own round trip is not used, because it loses comments
within `{…}` and `[…]`, joins their lines and indents lists its own way. What cannot be done in place (keys
in another order) is written anew as `{…}`, and whatever the outcome, it reads back as the wanted values.
Thread safety: pure functions.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, MappingStartEvent, ScalarEvent

from rowhouse.document import dump, parse_document
from rowhouse.problem import DocumentError, Path

_WIDE: Final = 1 << 30
"""No line of an entry is folded."""


def edit(text: str, source: str, wanted: Any, comments: Mapping[Path, str] | None = None) -> str:
    """The text, changed so that `parse_document` reads `wanted` from it.

    Parameters
    ----------
    text, source
        A file's text and name, as `parse_document` takes them.
    wanted
        The values that it is to have. A new key is written after the key that it follows here.
    comments
        A line to stand over a new key, by its path; only where keys have lines of their own.

    Raises
    ------
    DocumentError
        The text as it is cannot be read.
    """
    old = parse_document(text, source).value
    editor = _Editor(text, comments or {})
    if old is not None:
        editor.visit(_tree(text), old, wanted, (), _flow)
    made = editor.made()
    try:
        whole = repr(parse_document(made, source).value) == repr(wanted)
    except DocumentError:
        whole = False
    return made if whole else dump(wanted)


def _flow(value: Any) -> str:
    return dump([value], flow=True, width=_WIDE).strip()[1:-1]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_Write = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class _Node:
    """Where a value stands, as offsets into the text; `parts` are the entries or items of a collection."""

    start: int
    end: int
    column: int
    flow: bool = True
    anchor: str | None = None
    is_alias: bool = False
    parts: tuple["_Node | _Entry", ...] = ()


@dataclass(frozen=True, slots=True)
class _Entry:
    key: _Node
    value: _Node


def _tree(text: str) -> _Node:
    events = YAML(typ="safe", pure=True).parse(text)
    next(events), next(events)  # the starts of stream and document
    return _node(next(events), events, text)


def _node(event: Any, events: Iterator[Any], text: str) -> _Node:
    start, column = event.start_mark.index, event.start_mark.column
    if isinstance(event, AliasEvent | ScalarEvent):
        end = event.end_mark.index
        while end > start and text[end - 1].isspace():  # a block scalar ends where the next token begins
            end -= 1
        return _Node(start, end, column, anchor=event.anchor, is_alias=isinstance(event, AliasEvent))
    parts: list[_Node | _Entry] = []
    while not isinstance(after := next(events), CollectionEndEvent):
        part = _node(after, events, text)
        if isinstance(event, MappingStartEvent):
            parts.append(_Entry(part, _node(next(events), events, text)))
        else:
            parts.append(part)
    end = after.end_mark.index
    if not event.flow_style and parts:  # a block ends where the next token begins, past comments
        last = parts[-1]
        end = last.value.end if isinstance(last, _Entry) else last.end
    return _Node(start, end, column, bool(event.flow_style), event.anchor, parts=tuple(parts))


class _Editor:
    """Walks the tree in the order of the text and notes what takes the place of what."""

    def __init__(self, text: str, comments: Mapping[Path, str]) -> None:
        self.text, self.comments = text, comments
        self.line_end = "\r\n" if "\r\n" in text else "\n"
        self.changes: list[tuple[int, int, str]] = []
        self.anchored: dict[str | None, str] = {}  # what the anchors that stay mean in the new text

    def made(self) -> str:
        """The new text."""
        pieces, at = [], 0
        for start, end, new in sorted(self.changes, key=lambda change: change[0]):
            pieces += [self.text[at:start], new]
            at = end
        made = "".join([*pieces, self.text[at:]])
        return made if self.text.startswith(("\n", "\r")) else made.removeprefix(self.line_end)

    def visit(self, node: _Node, old: Any, new: Any, path: Path, write: _Write) -> None:
        """Change a node into `new`; `write` is how its surroundings are written."""
        if node.is_alias:
            if self.anchored.get(node.anchor) != repr(new):
                self._replace(node, new, write)
            return
        if isinstance(old, dict) and isinstance(new, dict) and self._fits(node, old, new):
            self._visit_mapping(node, old, new, path)
        elif repr(old) != repr(new):
            self._replace(node, new, write)
            return
        elif isinstance(old, list):
            for index, part in enumerate(node.parts):
                assert isinstance(part, _Node)
                self.visit(part, old[index], new[index], (*path, index), write)
        if node.anchor:
            self.anchored[node.anchor] = repr(new)

    def _replace(self, node: _Node, new: Any, write: _Write) -> None:
        before = "" if node.end > node.start else " " if self.text[node.start - 1] == ":" else ": "
        self.changes.append((node.start, node.end, before + write(new)))

    def _fits(self, node: _Node, old: dict[str, Any], new: dict[str, Any]) -> bool:
        """Whether the keys that stay keep their order, and each stands where entries can go and come."""
        if list(old) == list(new):
            return True
        kept = [key for key in old if key in new]
        lines = node.flow or all(
            not self.text[self._line_start(part.key.start) : part.key.start].strip(" ")
            for part in node.parts
            if isinstance(part, _Entry)
        )
        return bool(kept) and kept == [key for key in new if key in old] and lines

    def _visit_mapping(self, node: _Node, old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
        entries = [part for part in node.parts if isinstance(part, _Entry)]
        write = _json if entries and self.text[entries[0].key.start] == '"' else _flow
        added: dict[str | None, dict[str, Any]] = {}  # by the key that stays before them
        before: str | None = None
        for key, value in new.items():
            if key in old:
                before = key
            else:
                added.setdefault(before, {})[key] = value
        stays, gone, stayed = None, [], None
        for key, entry in zip(old, entries, strict=True):
            if key not in new:
                gone.append(entry)
                continue
            self._gap(node, stayed, gone, entry, added.get(stays, {}), path, write)
            self.visit(entry.value, old[key], new[key], (*path, key), write)
            stays, gone, stayed = key, [], entry
        self._gap(node, stayed, gone, None, added.get(stays, {}), path, write)

    def _gap(
        self, node: _Node, before: _Entry | None, gone: list[_Entry], after: _Entry | None,
        added: dict[str, Any], path: Path, write: _Write,
    ) -> None:  # fmt: skip
        """Between two entries that stay: take some out, put others in their place or after the first one."""
        if node.flow:
            texts = [write({key: value})[1:-1] for key, value in added.items()]
            if after is not None:
                start = gone[0].key.start if gone else after.key.start
                self.changes.append((start, after.key.start, "".join(text + ", " for text in texts)))
            elif before is not None:
                end = gone[-1].value.end if gone else before.value.end
                self.changes.append((before.value.end, end, "".join(", " + text for text in texts)))
            return
        indent, rows = " " * (before or after or gone[0]).key.column, []
        for key, value in added.items():
            rows += [f"# {comment}"] if (comment := self.comments.get((*path, key))) else []
            rows.append(write({key: value})[1:-1])
        lines = "".join(f"{self.line_end}{indent}{row}" for row in rows)
        for entry in gone:
            start = self._line_start(entry.key.start)
            end = self._line_stop(max(entry.key.end, entry.value.end))
            self.changes.append((self._line_stop(start - 1) if start else 0, end, lines))
            lines = ""
        if lines and before is not None:
            at = self._line_stop(max(before.key.end, before.value.end))
            self.changes.append((at, at, lines))
        elif lines and after is not None:
            at = self._line_start(after.key.start)
            self.changes.append((at, at, lines.removeprefix(self.line_end) + self.line_end))

    def _line_start(self, at: int) -> int:
        return self.text.rfind("\n", 0, at) + 1

    def _line_stop(self, at: int) -> int:
        """Offset of the end of the line that `at` is in, before its line end."""
        end = self.text.find("\n", at)
        end = len(self.text) if end < 0 else end
        return end - 1 if end and self.text[end - 1] == "\r" else end
