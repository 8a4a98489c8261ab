# SPDX-License-Identifier: Apache-2.0
"""Push and pull ten times the rows that fit, and print what memory that took, as JSON.

Run as `python -m tests.property.shard_memory FOLDER BUDGET_BYTES`, in a process of its own, as
test_shard_memory.py does.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.driver import Driver, shard_config

DIM = 64
BATCH = 5_000
TABLE = {"name": "wide", "dim": DIM, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}}


def resident_bytes(key: str) -> int:
    """VmRSS, or VmHWM (the most so far), of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def run(folder: Path, budget_bytes: int, factor: float) -> dict[str, int]:
    """One shard's life: `factor` times the rows of its budget pass through, by pushes and by pulls."""
    config = shard_config(folder, [TABLE], memory_budget=budget_bytes, checkpoint_log_bytes="32MiB")
    driver = Driver(config, folder / f"shard-{budget_bytes}")
    tier = driver.shard._tables["wide"].tier
    fits = driver.shard._opened.budget.total_bytes // tier.layout.cost_bytes
    rng, most = np.random.default_rng(0), 0
    batches = int(fits * factor) // BATCH + 1
    for number in range(batches):
        ids = np.arange(number * BATCH, (number + 1) * BATCH, dtype=np.uint64)
        driver.push({"wide": (ids, rng.standard_normal((BATCH, DIM)).astype(np.float32))})
        driver.pull("wide", rng.integers(0, (number + 1) * BATCH, BATCH, np.uint64))
        most = max(most, driver.shard._opened.budget.granted_bytes)
    counted = driver.stats("wide").rows
    spilled = driver.stats("wide").spilled_rows
    driver.shard.close()
    return {"fits": fits, "rows": counted, "pushed": batches * BATCH, "spilled": spilled, "granted": most}


def main() -> None:
    """Warm up with a small shard, then measure."""
    folder = Path(sys.argv[1])
    run(folder, 16 << 20, 2.0)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    found = run(folder, int(sys.argv[2]), 10.0)
    print(json.dumps({**found, "growth": resident_bytes("VmHWM") - before}))


if __name__ == "__main__":
    main()
