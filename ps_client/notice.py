# SPDX-License-Identifier: Apache-2.0
"""A call that waits says so: for whom, why and until when, as a warning in the log.

Where logging is not configured, Python writes a warning to stderr, so a person at a notebook sees it.
Thread safety: a function without state.
"""

import logging
import time
from typing import Final

NOTICE_S: Final = 2.0
"""A person who waits so long wants to know for whom; a shard that is only slow answers sooner."""

_log = logging.getLogger(__name__)


def tell_waiting(what: str, left_s: float) -> None:
    """Log that a call waits.

    Parameters
    ----------
    what
        For whom, and why.
    left_s
        How long it waits at most from now on, in seconds.
    """
    until = time.strftime("%H:%M:%S", time.localtime(time.time() + left_s))
    _log.warning("waiting for %s; until %s at the latest (%.0f s more)", what, until, left_s)
