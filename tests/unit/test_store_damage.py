# SPDX-License-Identifier: Apache-2.0
"""Scans of damaged stores: every row before the damage, then an error, never a quiet end."""

from pathlib import Path

import numpy as np
import pytest
from rowhouse.error import CorruptionError

from ps_server.disk.store import RowFamily, Store

KEYS = np.arange(1, 20_001, dtype=np.uint64) << np.uint64(49)


def open_store(path: Path, width: int = 30) -> Store:
    return Store(path, {"row.user": width}, cache_bytes=1 << 20, memtable_bytes=1 << 20)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    store = open_store(tmp_path)
    values = np.random.default_rng(1).integers(0, 256, (KEYS.shape[0], 30), dtype=np.uint8)
    family = store.families["row.user"]
    family.put(KEYS, values, new=True)
    family.flush()
    store.close()
    return tmp_path


def read(family: RowFamily, start: int = 0, end: int | None = None) -> tuple[np.ndarray, str]:
    """Keys that a scan gives, and the error that ends it."""
    found = [np.empty(0, np.uint64)]
    try:
        for keys, values in family.scan(1000, start, end):
            assert values.shape == (keys.shape[0], 30)
            found.append(keys)
    except CorruptionError as error:
        return np.concatenate(found), str(error)
    return np.concatenate(found), ""


def flip_middle(directory: Path) -> None:
    file = max(directory.glob("*.sst"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_flipped_byte_ends_a_scan_with_an_error(filled: Path) -> None:
    flip_middle(filled)
    store = open_store(filled)
    keys, error = read(store.families["row.user"])
    assert "block checksum mismatch" in error and 0 < keys.shape[0] < KEYS.shape[0]
    assert np.array_equal(keys, KEYS[: keys.shape[0]])
    with pytest.raises(CorruptionError, match="checksum"):
        list(store.families["row.user"].scan(1000, with_values=False))
    with pytest.raises(CorruptionError, match="checksum"):
        store.families["row.user"].get(KEYS)
    store.close()


def test_a_scan_that_ends_before_the_damage_is_no_error(filled: Path) -> None:
    flip_middle(filled)
    store = open_store(filled)
    keys, error = read(store.families["row.user"], end=int(KEYS[2000]))
    assert not error and np.array_equal(keys, KEYS[:2000])
    store.close()


def test_a_value_of_another_length_is_named_after_the_rows_before_it(filled: Path) -> None:
    store = open_store(filled, width=31)
    store.families["row.user"].put(KEYS[1500:1501], np.zeros((1, 31), np.uint8), new=False)
    store.families["row.user"].flush()
    store.close()
    store = open_store(filled)
    family = store.families["row.user"]
    keys, error = read(family)
    assert np.array_equal(keys, KEYS[:1500])
    assert f"key {int(KEYS[1500]):#018x} has 31 bytes; it must have 30" in error
    keys, error = read(family, end=int(KEYS[1500]))
    assert not error and np.array_equal(keys, KEYS[:1500])
    keys, error = read(family, start=int(KEYS[1501]))
    assert not error and np.array_equal(keys, KEYS[1501:])
    store.close()


def test_a_scan_of_keys_has_no_values(filled: Path) -> None:
    store = open_store(filled)
    chunks = list(store.families["row.user"].scan(7000, with_values=False))
    assert [(k.shape, v.shape) for k, v in chunks] == [((n,), (n, 0)) for n in (7000, 7000, 6000)]
    store.close()
