# SPDX-License-Identifier: Apache-2.0
"""From raw user, item and context columns to 64-bit ids, with the crosses that a config declares."""

from feature_cross.batch import CrossBatch
from feature_cross.builder import Builder
from feature_cross.config import CrossConfig
from feature_cross.engine import Engine
from feature_cross.error import ConfigError, CrossError, DataError, LimitError
from feature_cross.loader import load
from feature_cross.mapping import ArrowMap

__all__ = [
    "ArrowMap",
    "Builder",
    "ConfigError",
    "CrossBatch",
    "CrossConfig",
    "CrossError",
    "DataError",
    "Engine",
    "LimitError",
    "load",
]
