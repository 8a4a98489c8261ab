# SPDX-License-Identifier: Apache-2.0
"""The batches that every workload and every peer gets: drawn once, from fixed seeds, kept on disk.

Ids are mix64(rank), rank 0..count-1: a bijection, so they are as random as hashed ids, all distinct, and
need no table. A batch is 26,624 = 1,024 samples × 26 features of them, Zipf (α 1.05) or uniform.

Invariants: 1. the same arguments give the same batches on any machine; 2. `distinct` ascends and
`requested == distinct[inverse]`; 3. no array of a batch is written after it was made.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.mix import mix64

DIM: Final = 16
SAMPLES: Final = 1024
FEATURES: Final = 26
BATCH_IDS: Final = SAMPLES * FEATURES
ALPHA: Final = 1.05
BATCHES: Final = 128
IDS: Final = 2_000_000
SEEDS: Final = {"zipf": 11, "uniform": 12}
DISTRIBUTIONS: Final = tuple(SEEDS)
GRADIENT_SEED: Final = 7


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One trainer step's ids.

    Attributes
    ----------
    requested
        (26624,) uint64, with repeats.
    distinct, inverse
        (u,) uint64 ascending, and (26624,) int64.
    requested_rank, distinct_rank
        int64 ranks of both, for peers that take dense ids only.
    gradients
        (u, DIM) float32, one per distinct id.
    """

    requested: NDArray[np.uint64]
    distinct: NDArray[np.uint64]
    inverse: NDArray[np.int64]
    requested_rank: NDArray[np.int64]
    distinct_rank: NDArray[np.int64]
    gradients: NDArray[np.float32]


def ids_of(start: int, stop: int) -> NDArray[np.uint64]:
    """Ids of ranks start..stop-1; a new (stop - start,) uint64."""
    return mix64(np.arange(start, stop, dtype=np.uint64))


def draw_ranks(distribution: str, ids: int, batches: int) -> NDArray[np.int64]:
    """(batches, BATCH_IDS) int64 ranks below `ids`; rank 0 is the most frequent under "zipf"."""
    generator = np.random.default_rng(SEEDS[distribution] + ids)
    count = batches * BATCH_IDS
    if distribution == "uniform":
        return generator.integers(0, ids, count, dtype=np.int64).reshape(batches, BATCH_IDS)
    cumulative = np.cumsum(np.arange(1, ids + 1, dtype=np.float64) ** -ALPHA)
    drawn = np.searchsorted(cumulative, generator.random(count) * cumulative[-1])
    ranks: NDArray[np.int64] = np.minimum(drawn, ids - 1).astype(np.int64)
    return ranks.reshape(batches, BATCH_IDS)


def load_batches(distribution: str, cache: Path, ids: int = IDS, batches: int = BATCHES) -> list[Batch]:
    """The batches of one distribution over `ids` ids.

    Parameters
    ----------
    distribution
        "zipf" or "uniform".
    cache
        Folder that keeps the drawn ranks; a file there is trusted by its name.
    ids
        Ids to draw from.
    batches
        How many batches; a workload cycles through them.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"rank-{distribution}-{ids}-{batches}x{BATCH_IDS}.npy"
    if not path.exists():
        temporary = path.with_name(f"{path.stem}.{os.getpid()}.npy")
        np.save(temporary, draw_ranks(distribution, ids, batches))
        os.replace(temporary, path)
    pool = np.random.default_rng(GRADIENT_SEED).standard_normal((BATCH_IDS, DIM)).astype(np.float32)
    pool *= np.float32(0.01)
    return [make_batch(ranks, pool) for ranks in np.load(path)]


def make_batch(ranks: NDArray[np.int64], gradients: NDArray[np.float32]) -> Batch:
    """A batch of (n,) ranks, its gradients the first rows of (at least n, DIM) `gradients`."""
    requested = mix64(ranks.astype(np.uint64))
    distinct, first, inverse = np.unique(requested, return_index=True, return_inverse=True)
    return Batch(
        requested, distinct, inverse.astype(np.int64), np.ascontiguousarray(ranks), ranks[first],
        gradients[: distinct.shape[0]].copy(),
    )  # fmt: skip
