# SPDX-License-Identifier: Apache-2.0
"""The contract between trainers and shards: messages, codec, placement, errors, limits.

It imports neither side. `ps_client` and `ps_server` import it and never each other; see
docs/ARCHITECTURE.md, "The floors".
"""

from pathlib import Path as _Path

from rowhouse import cache as _cache

_cache.settle(_Path(__file__).parent)  # before any kernel is declared


def __getattr__(name: str) -> str:
    """`__version__`, read when it is asked for: importlib.metadata is slow to import."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    from rowhouse.distribution import DISTRIBUTION  # noqa: PLC0415

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"
