# SPDX-License-Identifier: Apache-2.0
"""Ten times the rows that fit pass through a shard, and its process stays inside the budget."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.workload import MEMORY

SMALL_BYTES, SMALL_ALLOWANCE_BYTES, SMALL_ALLOWANCE_SHARE = 192 << 20, 24 << 20, 1 / 8
"""A budget below this keeps less free than is needed beside the rows (budget.split), and may be passed;
16 to 21 MiB and an eighth were seen, as the allocator had it."""


def allowance(budget_bytes: int) -> int:
    """What a small budget may be passed by; a larger one may not be."""
    small = budget_bytes < SMALL_BYTES
    return SMALL_ALLOWANCE_BYTES + int(budget_bytes * SMALL_ALLOWANCE_SHARE) if small else 0


@pytest.mark.parametrize(
    "budget_bytes",
    [
        32 << 20,
        pytest.param(64 << 20, marks=pytest.mark.soak),
        pytest.param(256 << 20, marks=pytest.mark.soak),
    ],
)
def test_resident_memory_stays_inside_the_budget(budget_bytes: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="memory", dir=MEMORY if MEMORY.is_dir() else None))
    command = [sys.executable, "-m", "tests.property.shard_memory", str(folder), str(budget_bytes)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1_800)
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["rows"] == found["pushed"] >= 10 * found["fits"]
    assert found["spilled"] >= 9 * found["fits"]
    assert found["granted"] <= budget_bytes * 3 // 4
    assert budget_bytes // 2 < found["growth"] <= budget_bytes + allowance(budget_bytes)
