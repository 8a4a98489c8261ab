# SPDX-License-Identifier: Apache-2.0
"""What is wrong in a file that people write: one fault, all faults of a file, and the name that was meant.

It knows neither YAML nor pydantic, so that whoever only asks for `nearest` loads neither.
Thread safety: immutable values and pure functions.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

Path = tuple[str | int, ...]
"""Keys and indices from the root of a file to a value: ("tables", 0, "dim")."""

PROBLEMS_MAX: Final = 50
"""Problems that one error lists. Past it the file is something else, not a config with faults."""

_NAMES_LISTED_MAX: Final = 12
"""Known names that a message lists when none is near; a longer list helps nobody."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, or that its author should know.

    Attributes
    ----------
    code
        Stable name of the rule, for scripts: `duplicate-slot`, `unknown-key`.
    message
        The value and the bound. One that begins with `is ` goes on from the path as a sentence.
    path
        Where in the file.
    line
        Line of the file, from 1; None when there was a mapping and no file.
    severity
        `error` or `warning`.
    """

    code: str
    message: str
    path: Path = ()
    line: int | None = None
    severity: str = "error"

    def text(self, source: str) -> str:
        """`source:line: path: message`, as editors expect it."""
        place = source if self.line is None else f"{source}:{self.line}"
        if not self.path:
            return f"{place}: {self.message}"
        joined = " " if self.message.startswith("is ") else ": "
        return f"{place}: {spelled(self.path)}{joined}{self.message}"


class DocumentError(ValueError):
    """A file or a mapping is wrong. `problems` holds each fault; the message is one line for each.

    Packages turn it into the ConfigError of their own error tree.
    """

    def __init__(self, problems: Iterable[Problem], source: str = "config") -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__("\n".join(problem.text(source) for problem in self.problems))


def spelled(path: Path) -> str:
    """A path as people write it: `tables[0].dim`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")


def line_of(path: Path, lines: Mapping[Path, int]) -> int | None:
    """The line of a path, or of its nearest parent that has one."""
    return next((lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in lines), None)


def similar(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`; None where none is."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `name`: the known one that was meant, or what is known."""
    names = list(known)
    near = similar(name, names)
    if near is not None:
        return f"did you mean {near!r}?"
    listed = ", ".join(repr(one) for one in names[:_NAMES_LISTED_MAX])
    more = ", …" if len(names) > _NAMES_LISTED_MAX else ""
    return f"known ones are {listed}{more}" if names else "there is none"


def with_article(noun: str) -> str:
    """`noun` with its article: "a float", "an int"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def counted(count: int, noun: str) -> str:
    """How many there are: "1 shard", "2 shards"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def id_in(word: str) -> int | None:
    """The id that a word of decimal digits is; None for any other word."""
    return int(word) if word.isdecimal() and word.isascii() and int(word) < 1 << 64 else None
