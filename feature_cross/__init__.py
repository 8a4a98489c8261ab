# SPDX-License-Identifier: Apache-2.0
"""From raw user, item and context columns to 64-bit ids, with the crosses that a config declares.

Names are imported when they are first used: a command that only prints its help, or is interrupted at once,
loads neither Arrow nor compiled kernels.
"""

import importlib
from typing import TYPE_CHECKING, Any

from feature_cross.error import ConfigError, CrossError, DataError, LimitError

if TYPE_CHECKING:
    from feature_cross.config.builder import Builder
    from feature_cross.config.config import CrossConfig
    from feature_cross.config.loader import load
    from feature_cross.engine.batch import CrossBatch
    from feature_cross.engine.engine import Engine
    from feature_cross.engine.mapping import ArrowMap

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


def __getattr__(name: str) -> Any:
    homes = {
        "ArrowMap": "engine.mapping", "Builder": "config.builder", "CrossBatch": "engine.batch",
        "CrossConfig": "config.config", "Engine": "engine.engine", "load": "config.loader",
    }  # fmt: skip
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{homes[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
