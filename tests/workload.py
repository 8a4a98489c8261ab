# SPDX-License-Identifier: Apache-2.0
"""The tables and pushes of the property and crash tiers: small, but every kind of row, and more than fits."""

from pathlib import Path
from typing import Any, Final

import numpy as np
from rowhouse import dtype, message

from tests.driver import Gradients

MEMORY: Final = Path("/dev/shm")
"""A SIGKILL and a simulated power cut need no disk, and checkpoints cost a tenth without one."""

BUDGET: Final = "1MiB"
"""Holds some 1,400 rows of TABLES, and 64 of each table at least: every record has about 540 bytes."""

TTL_S, MAX_ROWS, MIN_NORM, RATE = 100, 400, 0.33, 0.25
TABLES: Final[list[dict[str, Any]]] = [
    {"name": "adagrad", "dim": 64, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}},
    {
        "name": "half", "dim": 249, "dtype": "fp16", "seed": 5,
        "optimizer": {"kind": "sgd", "learning_rate": 0.01},
    },
    {
        "name": "admitted", "dim": 64, "optimizer": {"kind": "adagrad", "learning_rate": 0.1},
        "admission": {"kind": "min_count", "min_count": 2, "width_bits": 10, "halve_after_ids": 3_000},
        "eviction": [{"kind": "ttl", "ttl_s": TTL_S}],
    },
    {
        "name": "sampled", "dim": 96, "dtype": "bf16", "optimizer": {"kind": "adagrad", "learning_rate": 0.1},
        "admission": {"kind": "probability", "probability": 0.5},
    },
    {
        "name": "policy", "dim": 128, "optimizer": {"kind": "sgd", "learning_rate": RATE},
        "eviction": [
            {"kind": "ttl", "ttl_s": TTL_S},
            {"kind": "least_frequent", "max_rows": MAX_ROWS},
            {"kind": "l2_norm", "min_l2_norm": MIN_NORM},
        ],
    },
]  # fmt: skip
DIMS: Final[dict[str, int]] = {t["name"]: t["dim"] for t in TABLES}
ADAGRADS: Final = [t["name"] for t in TABLES if t["optimizer"]["kind"] == "adagrad"]
EVICTING: Final = ["admitted", "policy"]
POINTS: Final = ["before log", "after log", "mid write-back", "mid checkpoint"]
SPARE: Final = "mid spare"
"""Four times for each log segment that is written again, which `fsync` never does."""

_EXTREME = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
POOL: Final = np.concatenate([_EXTREME, np.random.default_rng(8).integers(0, 2**64, 996, np.uint64)])
ROWS_MAX: Final = 60


def make_gradients(names: list[str], rng: np.random.Generator, spread: int) -> Gradients:
    """Up to ROWS_MAX ids per table from the first `spread` of the pool, some of them twice."""
    made = {}
    for name in names:
        ids = rng.choice(POOL[:spread], int(rng.integers(1, ROWS_MAX + 1)))
        made[name] = (
            ids,
            rng.standard_normal((ids.shape[0], DIMS[name])).astype(np.float32) * np.float32(0.02),
        )
    return made


def make_edits(names: list[str], rng: np.random.Generator, spread: int) -> list[message.TableEdit]:
    """Rows by hand, up to ROWS_MAX per table from the first `spread` of the pool: assigned or removed."""
    edits = []
    for name in names:
        ids = rng.choice(POOL[:spread], int(rng.integers(1, min(ROWS_MAX, spread) + 1)), replace=False)
        if rng.random() < 0.5:
            edits.append(message.TableEdit(name, 0, ids))
            continue
        weights = rng.standard_normal((ids.shape[0], DIMS[name])).astype(np.float32)
        state = np.square(weights) if name in ADAGRADS and rng.random() < 0.5 else None
        edits.append(message.TableEdit(name, dtype.FLOAT32, ids, weights, state))
    return edits
