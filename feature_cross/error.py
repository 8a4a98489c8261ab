# SPDX-License-Identifier: Apache-2.0
"""The errors of feature_cross; the package has no dependency on the rest of rowhouse, errors included.

    CrossError
    ├── ConfigError      the config is wrong: every problem with its path and line; exit code 2
    ├── FlagError        a flag of the command asks for what cannot be; exit code 2
    ├── DataError        a column or a value does not fit the config; exit code 1
    │   └── LimitError   past a named limit of feature_cross/limit.py, or a feature's own `limit`
    └── InternalError    a fault of ours

Thread safety: nothing here has state.
"""

from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "ConfigError",
    "CrossError",
    "DataError",
    "FlagError",
    "InternalError",
    "LimitError",
    "Problem",
    "shortened",
]

Path = tuple[str | int, ...]
"""Where in a config: ("features", "city_x_age", "of", 1)."""


def shortened(text: str, most: int = 60) -> str:
    """At most so many characters of a text, for a message; where some are left out it ends in dots."""
    return text if len(text) <= most else text[: most - 3] + "..."


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, or that its author should know.

    Attributes
    ----------
    code
        Stable name of the rule, for scripts: `duplicate-slot`, `unknown-key`.
    message
        The thing, its value and the bound.
    path
        Where in the config.
    line
        Line of the config file, from 1; None when the config was a mapping.
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
        where = ".".join(str(part) for part in self.path)
        return f"{place}: {where}: {self.message}" if where else f"{place}: {self.message}"


class CrossError(Exception):
    """Base of every error that feature_cross raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(CrossError, ValueError):
    """The config is wrong. `problems` holds each fault; the message is one line per fault."""

    exit_code = 2

    def __init__(self, problems: list[Problem], source: str = "config") -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__("\n".join(problem.text(source) for problem in problems))


class FlagError(CrossError, ValueError):
    """A flag of the command is wrong; the message names it and its value."""

    exit_code = 2


class DataError(CrossError, ValueError):
    """A column is missing or of another type, or a value is invalid; the message names it."""


class LimitError(DataError):
    """A row, list or batch is past a limit; nothing of its batch was given out."""


class InternalError(CrossError):
    """A fault of feature_cross itself."""
