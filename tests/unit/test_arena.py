# SPDX-License-Identifier: Apache-2.0
"""The arena and its index against a dict, through growth, eviction, deletion and wrap-around."""

import numpy as np
import pytest
from rowhouse.mix import unmix64

from ps_server.disk.row import INDEX_BYTES_PER_ROW, RowLayout
from ps_server.kernel import index
from ps_server.table.arena import Arena

LAYOUT = RowLayout(dim=2, dtype=1, state_size=0, push_time=False, push_count=False)


def _arena(rows_max: int, budget_rows: int | None = None) -> Arena:
    left = [(budget_rows if budget_rows is not None else rows_max) * LAYOUT.cost_bytes]

    def grant(wanted: int) -> bool:
        if wanted > left[0]:
            return False
        left[0] -= wanted
        return True

    return Arena(LAYOUT, rows_max, grant)


def _ids(count: int, seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)
    return np.unique(ids)


def test_finds_what_was_inserted_through_many_growths() -> None:
    arena = _arena(300_000)
    ids = _ids(200_000)
    np.random.default_rng(1).shuffle(ids)
    for part in np.array_split(ids, 37):
        places = arena.free_places(part.shape[0])
        assert places.shape == part.shape
        arena.insert(part, places, index.DIRTY)
    assert len(arena) == ids.shape[0]
    places, missing = arena.find(ids)
    assert missing == 0
    np.testing.assert_array_equal(arena.ids_of(places), ids)
    assert np.unique(places).shape == ids.shape
    _, missing = arena.find(ids + np.uint64(1))
    assert missing == ids.shape[0]
    assert 0.55 < len(arena) * 8 / arena.index_bytes <= 0.76


@pytest.mark.parametrize("name", ["all", "low", "one partition"])
def test_extreme_and_clustered_ids(name: str) -> None:
    low = np.arange(20_000, dtype=np.uint64)
    ids = {"all": np.array([0, 1, 2**63, 2**64 - 1], np.uint64), "low": low, "one partition": unmix64(low)}[
        name
    ]
    arena = _arena(100_000)
    arena.insert(ids, arena.free_places(ids.shape[0]), 0)
    places, missing = arena.find(ids)
    assert missing == 0
    np.testing.assert_array_equal(arena.ids_of(places), ids)


def test_random_operations_equal_a_dict() -> None:
    rng = np.random.default_rng(3)
    arena = _arena(4_000)
    oracle: dict[int, bool] = {}
    pool = _ids(6_000, 4)
    for step in range(300):
        batch = rng.choice(pool, 200, replace=False)
        places, _ = arena.find(batch, 0)
        known = np.array([int(i) in oracle for i in batch])
        np.testing.assert_array_equal(places >= 0, known)
        if step % 3 == 2:
            taken, flags = arena.remove(batch)
            assert taken.shape[0] == known.sum() and (flags == index.STORED).all()
            for ident in batch:
                oracle.pop(int(ident), None)
            arena.give_back(taken)
        else:
            new = batch[~known]
            free = arena.free_places(new.shape[0])
            new = new[: free.shape[0]]
            arena.insert(new, free, index.STORED)
            oracle.update(dict.fromkeys(new.tolist(), True))
        assert len(arena) == len(oracle)
    places, missing = arena.find(np.array(sorted(oracle), np.uint64))
    assert missing == 0


def test_the_budget_bounds_rows_and_eviction_prefers_what_was_not_used() -> None:
    arena = _arena(10_000, budget_rows=1_000)
    ids = _ids(1_000)
    arena.insert(ids, arena.free_places(ids.shape[0]), 0)
    assert arena.free_places(10).shape[0] == 0
    used = ids[:700]
    arena.find(used, index.REFERENCED)
    places, flags = arena.sweep(100)
    assert 100 <= places.shape[0] <= 300
    evicted = arena.ids_of(places)
    assert not np.isin(evicted, used).any()
    assert (flags & index.REFERENCED == 0).all()
    arena.give_back(places)
    assert arena.free_places(10_000).shape[0] == places.shape[0]
    _, missing = arena.find(np.setdiff1d(ids, evicted))
    assert missing == 0


@pytest.mark.parametrize("mark", [0, index.REFERENCED], ids=["read once", "pushed"])
def test_sectors_stay_even_while_rows_pass_through(mark: int) -> None:
    arena = _arena(150_000)
    caps = arena.index_bytes
    ids = _ids(1_500_000)
    for start in range(0, ids.shape[0], 25_000):
        chunk = ids[start : start + 25_000]
        free = arena.free_places(chunk.shape[0])
        while free.shape[0] < chunk.shape[0]:
            arena.give_back(arena.sweep(chunk.shape[0] - free.shape[0])[0])
            free = np.concatenate([free, arena.free_places(chunk.shape[0] - free.shape[0])])
        arena.insert(chunk, free, mark)
    assert arena.sectors == 16 and len(arena) <= 150_000
    assert caps < arena.index_bytes <= 150_000 * INDEX_BYTES_PER_ROW * 1.05  # what the budget is charged


def test_pinned_rows_are_never_victims() -> None:
    arena = _arena(1_000)
    ids = _ids(1_000)
    arena.insert(ids, arena.free_places(ids.shape[0]), 0)
    arena.find(ids[:990], index.PINNED)
    places, _ = arena.sweep(500)
    assert set(arena.ids_of(places).tolist()) == set(ids[990:].tolist())
    arena.clear_flags(ids[:990], index.PINNED)
    places, _ = arena.sweep(500)
    assert places.shape[0] == 500


def test_dirty_rows_are_taken_once() -> None:
    arena = _arena(50_000)
    ids = _ids(40_000)
    arena.insert(ids, arena.free_places(ids.shape[0]), 0)
    dirty = ids[::3]
    arena.find(dirty, index.DIRTY)
    assert arena.count(index.DIRTY) == dirty.shape[0]
    taken, sector = [], 0
    while sector < arena.sectors:
        places, _, sector = arena.take_dirty(sector, 100)
        taken.append(places)
    assert len(taken) > 1, "some at a time"
    np.testing.assert_array_equal(np.sort(arena.ids_of(np.concatenate(taken))), dirty)
    assert arena.count(index.DIRTY) == 0 and arena.count(index.STORED) == dirty.shape[0]
    assert (arena.flags_of(dirty) == index.STORED).all()
