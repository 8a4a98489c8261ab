# SPDX-License-Identifier: Apache-2.0
"""kernel/index.py through the arena, against a dict and rows looked at one by one."""

import numpy as np
import pytest
from numpy.typing import NDArray
from rowhouse import dtype
from rowhouse.mix import unmix64

from ps_server.disk.row import RowLayout
from ps_server.kernel import index
from ps_server.table.arena import Arena

_SPREAD_INVERSE = np.uint64(pow(0xD6E8FEB86659FD93, -1, 1 << 64))


def _arena(dim: int, code: int, rows_max: int = 10_000) -> Arena:
    layout = RowLayout(dim=dim, dtype=code, state_size=3, push_time=True, push_count=False)
    return Arena(layout, rows_max, lambda _bytes: True)


def _fill(arena: Arena, ids: NDArray[np.uint64], seed: int) -> dict[int, NDArray[np.uint8]]:
    """Enter the ids with random weights; the bytes of each id's weights."""
    layout = arena.layout
    places = arena.free_places(ids.shape[0])
    arena.insert(ids, places, index.DIRTY)
    weights = np.random.default_rng(seed).integers(0, 256, (ids.shape[0], 4 * layout.dim), np.uint8)
    weights = weights[:, : layout.dim * dtype.STORAGE[layout.dtype].itemsize]
    for slot, row in zip(places, weights, strict=True):
        first = slot * layout.stride + layout.weights_at
        arena.records8[first : first + row.shape[0]] = row
    return {int(i): row for i, row in zip(ids, weights, strict=True)}


def _colliding(count: int, tag: int, sector: int) -> NDArray[np.uint64]:
    """Ids of one tag and sector: their hashes differ below bit 20 only."""
    hashed = (np.uint64(sector) << np.uint64(60)) | (np.uint64(tag) << np.uint64(20))
    return unmix64((hashed | np.arange(count, dtype=np.uint64)) * _SPREAD_INVERSE)


@pytest.mark.parametrize("code", sorted(dtype.NAMES))
@pytest.mark.parametrize("dim", [1, 2, 5, 8, 16, 17, 40, 700])
def test_gathered_rows_are_the_records(dim: int, code: int) -> None:
    arena = _arena(dim, code)
    ids = np.unique(np.random.default_rng(dim).integers(0, 2**64, 300, dtype=np.uint64))
    oracle = _fill(arena, ids[::2], seed=dim)
    wanted = np.random.default_rng(1).choice(ids, 1000)
    known = np.array([int(i) in oracle for i in wanted])
    storage = dtype.STORAGE[code]
    rows = np.array([oracle.get(int(i), np.zeros(dim * storage.itemsize, np.uint8)) for i in wanted])
    stored = rows.view(storage)
    for expected in (stored, dtype.widen(stored, code)):
        out = np.full(expected.shape, 3, expected.dtype)
        missing = arena.gather(wanted, 0, out)
        np.testing.assert_array_equal(missing, np.flatnonzero(~known))
        np.testing.assert_array_equal(out[known], expected[known])  # equal to NumPy: NaN too
        assert (out[~known] == 3).all(), "the row of an id that is not here was written"


def test_ids_of_one_tag_are_told_apart_through_full_lines_and_round_the_end() -> None:
    arena = _arena(2, dtype.FLOAT32, rows_max=200_000)
    assert arena.sectors == 16
    last = (1 << 28) - 1  # its home is the last line of any sector
    here = np.concatenate([_colliding(20, last, 3), _colliding(1, last - 1, 3), _colliding(3, 0, 3)])
    absent = np.concatenate([_colliding(40, last, 3)[20:], _colliding(9, 0, 3)[3:], _colliding(5, last, 4)])
    places = arena.free_places(here.shape[0])
    arena.insert(here, places, 0)
    found, missing = arena.find(np.concatenate([here, absent]), index.PINNED)
    np.testing.assert_array_equal(found[: here.shape[0]], places)
    assert (found[here.shape[0] :] == -1).all() and missing == absent.shape[0]
    assert (arena.flags_of(here) == index.PINNED).all() and not arena.flags_of(absent).any()
    taken, _ = arena.remove(here[::2])
    np.testing.assert_array_equal(taken, places[::2])
    np.testing.assert_array_equal(arena.find(here, 0)[0][1::2], places[1::2])
    assert (arena.find(here, 0)[0][::2] == -1).all()


def test_flags_are_set_where_rows_are_read_and_nowhere_else() -> None:
    arena = _arena(4, dtype.FLOAT32)
    ids = np.arange(500, dtype=np.uint64)
    _fill(arena, ids, seed=1)
    out = np.empty((100, 4), np.float32)
    arena.gather(ids[:100], index.REFERENCED, out)
    arena.gather(ids[100:200], 0, out)
    np.testing.assert_array_equal(arena.flags_of(ids[:100]), index.REFERENCED | index.DIRTY)
    np.testing.assert_array_equal(arena.flags_of(ids[100:]), index.DIRTY)


def test_caps_stay_whole_lines_while_sectors_grow() -> None:
    arena = _arena(2, dtype.FLOAT32, rows_max=50_000)
    ids = np.unique(np.random.default_rng(9).integers(0, 2**64, 50_000, dtype=np.uint64))
    for part in np.array_split(ids, 100):
        arena.insert(part, arena.free_places(part.shape[0]), 0)
        assert arena.index_bytes % (8 * index.LINE) == 0
        assert (arena.find(part)[0] >= 0).all()
    assert 0.55 < len(arena) * 8 / arena.index_bytes <= 0.76
