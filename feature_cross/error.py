# SPDX-License-Identifier: Apache-2.0
"""The errors of feature_cross; of rowhouse the package imports only the reader of files and its problems.

    CrossError
    ├── ConfigError      the config is wrong: every problem with its path and line; exit code 2
    ├── FlagError        a flag of the command asks for what cannot be; exit code 2
    ├── DataError        a column or a value does not fit the config; exit code 1
    │   └── LimitError   past a named limit of feature_cross/limit.py, or a feature's own `limit`
    └── InternalError    a fault of ours

Thread safety: nothing here has state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from rowhouse.problem import DocumentError

__all__ = [
    "ConfigError", "CrossError", "DataError", "FlagError", "InternalError", "LimitError", "config_errors",
    "shortened",
]  # fmt: skip


def shortened(text: str, most: int = 60) -> str:
    """At most so many characters of a text, for a message; where some are left out it ends in dots."""
    return text if len(text) <= most else text[: most - 3] + "..."


class CrossError(Exception):
    """Base of every error that feature_cross raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(CrossError, DocumentError):
    """The config is wrong. `problems` holds each fault; the message is one line per fault."""

    exit_code = 2


class FlagError(CrossError, ValueError):
    """A flag of the command is wrong; the message names it and its value."""

    exit_code = 2


class DataError(CrossError, ValueError):
    """A column is missing or of another type, or a value is invalid; the message names it."""


class LimitError(DataError):
    """A row, list or batch is past a limit; nothing of its batch was given out."""


class InternalError(CrossError):
    """A fault of feature_cross itself."""


@contextmanager
def config_errors() -> Iterator[None]:
    """Inside, a file or mapping that is wrong is a ConfigError; also a decorator."""
    try:
        yield
    except DocumentError as error:
        raise ConfigError(error.problems, error.source) from None
