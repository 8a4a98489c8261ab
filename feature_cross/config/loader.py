# SPDX-License-Identifier: Apache-2.0
"""From a file or a mapping to a CrossConfig whose every part is known to be right.

rowhouse/document.py reads, rowhouse/validation.py words what is wrong.
Thread safety: pure functions, but for reading the file.
"""

import os
from collections.abc import Mapping
from typing import Any

from rowhouse.document import Document, parse_document, read_document
from rowhouse.validation import validate as validate_model

from feature_cross.config.config import CrossConfig
from feature_cross.config.plan import build_plan
from feature_cross.error import config_errors

__all__ = ["load", "load_text", "read", "validate"]


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
    return _checked(Document(dict(source), "config") if isinstance(source, Mapping) else read(source))


@config_errors()
def load_text(text: str, name: str = "config") -> CrossConfig:
    """As `load`, from the text of a file; `name` is used in messages."""
    return _checked(parse_document(text, name))


@config_errors()
def read(source: str | os.PathLike[str]) -> Document:
    """The values of a config file; ConfigError where it cannot be read, is too large or not YAML."""
    return read_document(source)


@config_errors()
def validate(document: Document) -> CrossConfig:
    """A config of which each value is right; what they mean together is not looked at (`load` does)."""
    config = validate_model(CrossConfig, document)
    config._source, config._lines = document.source, document.lines
    return config


def _checked(document: Document) -> CrossConfig:
    config = validate(document)
    build_plan(config)
    return config
