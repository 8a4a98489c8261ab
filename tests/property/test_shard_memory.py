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

ALLOWANCE_BYTES, ALLOWANCE_FRACTION = 20 << 20, 1 / 8
"""Not counted by the budget: copies of one request, parts of rows on their way to the store
(tier.COPY_BYTES), RocksDB's flush and compaction buffers, which grow with its memtables, and what
malloc cannot give back. Measured above budgets of 32, 64 and 256 MiB: 20, 22 and 47 MiB."""


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
    assert budget_bytes // 2 < found["growth"] <= budget_bytes * (1 + ALLOWANCE_FRACTION) + ALLOWANCE_BYTES
