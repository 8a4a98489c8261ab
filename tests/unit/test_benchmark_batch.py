# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' batches are the same everywhere, and are what they claim to be."""

from pathlib import Path

import numpy as np
import pytest
import xxhash
from rowhouse.mix import mix64

from benchmarks.batch import BATCH_IDS, DIM, draw_ranks, ids_of, load_batches


def naive_zipf_share(ids: int, alpha: float, rank: int) -> float:
    return float((rank + 1) ** -alpha / sum(k**-alpha for k in range(1, ids + 1)))


@pytest.mark.parametrize(
    ("distribution", "digest"), [("zipf", "bb5bc29f0fee7492"), ("uniform", "5da892abd6553308")]
)
def test_the_draw_is_pinned(distribution: str, digest: str) -> None:
    assert xxhash.xxh64(draw_ranks(distribution, 1000, 2).tobytes()).hexdigest() == digest


def test_ids_are_the_mixed_ranks_and_distinct() -> None:
    ids = ids_of(10, 5010)
    np.testing.assert_array_equal(ids, mix64(np.arange(10, 5010, dtype=np.uint64)))
    assert np.unique(ids).shape[0] == 5000


@pytest.mark.parametrize("distribution", ["zipf", "uniform"])
def test_a_batch_is_consistent(distribution: str, tmp_path: Path) -> None:
    for batch in load_batches(distribution, tmp_path, ids=3000, batches=3):
        assert batch.requested.shape == (BATCH_IDS,)
        assert (np.diff(batch.distinct) > 0).all()
        np.testing.assert_array_equal(batch.distinct[batch.inverse], batch.requested)
        np.testing.assert_array_equal(mix64(batch.requested_rank.astype(np.uint64)), batch.requested)
        np.testing.assert_array_equal(mix64(batch.distinct_rank.astype(np.uint64)), batch.distinct)
        assert batch.gradients.shape == (batch.distinct.shape[0], DIM)
        assert batch.gradients.dtype == np.float32


def test_zipf_follows_its_law() -> None:
    ranks = draw_ranks("zipf", 1000, 20)
    for rank in (0, 1, 10):
        share = float((ranks == rank).mean())
        assert share == pytest.approx(naive_zipf_share(1000, 1.05, rank), rel=0.05)


def test_the_second_load_reads_what_the_first_drew(tmp_path: Path) -> None:
    first = load_batches("uniform", tmp_path, ids=100, batches=2)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    second = load_batches("uniform", tmp_path, ids=100, batches=2)
    assert file.stat().st_mtime_ns == before
    np.testing.assert_array_equal(first[1].requested, second[1].requested)
    np.testing.assert_array_equal(first[1].gradients, second[1].gradients)
