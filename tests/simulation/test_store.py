# SPDX-License-Identifier: Apache-2.0
"""The simulated store is held to the real one: the same random operations, the same answers, also after a
kill."""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ps_server.disk.store import Store
from tests.driver import snapshot
from tests.simulation.store import Media, SimulatedStore

WIDTHS = {"row.a": 12, "row.c": 6, "row.b": 5}
KEYS = np.random.default_rng(3).integers(0, 2**64, 60, np.uint64)


class Nothing(random.Random):
    """A chance that keeps nothing."""

    def randint(self, a: int, b: int) -> int:
        return a


class Pair:
    """A real store and a simulated one."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance, self.copies = folder, chance, 0
        self.real_at, self.other_at = folder / "real", folder / "other"
        self.make: Any = partial(SimulatedStore, media=Media())
        self.open()

    def open(self) -> None:
        self.real = Store(self.real_at, WIDTHS, cache_bytes=1 << 20, memtable_bytes=1 << 20)
        self.other = self.make(self.other_at, WIDTHS)

    def keys(self) -> Any:
        return np.array(self.chance.sample(KEYS.tolist(), self.chance.randint(1, 9)), np.uint64)

    def kill(self) -> None:
        """A megabyte of memtable is never full here: RocksDB has flushed nothing that it was not told to."""
        self.copies += 1
        copy = self.folder / f"copy-{self.copies}"
        snapshot(self.real_at, copy)
        self.real.close()
        self.real_at = copy
        self.other.crash(Nothing(), power_cut=False)
        self.open()

    def link(self) -> None:
        """Go on in a copy."""
        self.copies += 1
        for name in ("real", "other"):
            store, copy = getattr(self, name), self.folder / f"{name}-{self.copies}"
            store.link_to(copy)
            store.close()
            setattr(self, f"{name}_at", copy)
        self.open()

    def same(self) -> None:
        for name in WIDTHS:
            real, other = self.real.families[name], self.other.families[name]
            assert real.is_empty() == other.is_empty()
            assert real.count == other.count == sum(k.shape[0] for k, _ in real.scan(7))
            for ours, theirs in zip(real.get(KEYS), other.get(KEYS), strict=True):
                np.testing.assert_array_equal(ours, theirs, err_msg=name)
            start, end = sorted(self.chance.sample(KEYS.tolist(), 2))
            for bounds in ({}, {"start": start, "end": end, "with_values": False}):
                rows = [
                    [k.tolist() + v.tolist() for k, v in family.scan(7, **bounds)] for family in (real, other)
                ]
                assert rows[0] == rows[1]
        for key in ("one", "two"):
            assert self.real.get_meta(key) == self.other.get_meta(key)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, random.Random(5))
    yield made
    made.real.close()


def test_the_simulated_store_is_what_the_real_one_is(pair: Pair) -> None:
    chance = pair.chance
    for _ in range(300):
        name, keys = chance.choice(list(WIDTHS)), pair.keys()
        values = np.frombuffer(chance.randbytes(keys.shape[0] * WIDTHS[name]), np.uint8)
        kind = chance.choices(["put", "delete", "flush", "meta", "kill", "link"], [40, 20, 10, 10, 5, 2])[0]
        for store in (pair.real, pair.other):
            family = store.families[name]
            if kind == "put":
                family.put(keys, values.reshape(keys.shape[0], -1), ~family.get(keys)[0])
            elif kind == "delete":
                family.delete(keys[family.get(keys)[0]])
            elif kind == "flush":
                family.flush()
            elif kind == "meta":
                store.put_meta({"one": bytes(values[:4]), "two": b"2"})
        if kind == "kill":
            pair.kill()
        elif kind == "link":
            pair.link()
        pair.same()


def test_a_crash_leaves_what_was_flushed_and_a_beginning_of_what_came_after(tmp_path: Path) -> None:
    left = set()
    for seed in range(40):
        make = partial(SimulatedStore, media=Media())
        store = make(tmp_path / str(seed), WIDTHS)
        family = store.families["row.b"]
        for number, key in enumerate(KEYS[:6]):
            family.put(np.array([key]), np.full((1, 5), number, np.uint8), True)
            if number == 2:
                family.flush()
        store.crash(random.Random(seed), power_cut=True)
        present, _ = make(tmp_path / str(seed), WIDTHS).families["row.b"].get(KEYS[:6])
        left.add(tuple(present.tolist()))
    assert left == {tuple([True] * kept + [False] * (6 - kept)) for kept in (3, 4, 5, 6)}
