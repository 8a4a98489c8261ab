# SPDX-License-Identifier: Apache-2.0
"""The contract between trainers and shards: messages, codec, placement, errors, limits.

It imports neither side. `ps_client` and `ps_server` import it and never each other; see
docs/ARCHITECTURE.md, "One way through the house".
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("rowhouse")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
