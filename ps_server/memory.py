# SPDX-License-Identifier: Apache-2.0
"""How much memory the machine has left, for those who size buffers by it."""

from pathlib import Path
from typing import Final

MEMINFO: Final = Path("/proc/meminfo")


def available_bytes() -> int:
    """Memory that can be had without swapping, by the kernel's estimate (Linux); 0 where it does not tell."""
    lines = MEMINFO.read_text().splitlines() if MEMINFO.exists() else []
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
