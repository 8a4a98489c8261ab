# SPDX-License-Identifier: Apache-2.0
"""The store: whole families in, whole families out, and every error named as ours."""

import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse.error import CorruptionError, DirectoryInUseError, StoreError

from ps_server.disk.store import DISK_THREADS, PARALLEL_KEYS_MIN, READ_THREADS, Store
from tests.conftest import ROOT

WIDTHS = {"row.a": 8, "row.b": 3}


def make(directory: Path, **changes: Any) -> Store:
    return Store(
        directory, **{"value_bytes": WIDTHS, "cache_bytes": 1 << 20, "memtable_bytes": 1 << 20, **changes}
    )


def rows(count: int, width: int = 8, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    keys = np.unique(rng.integers(0, 2**64, count, np.uint64))
    rng.shuffle(keys)
    return keys, rng.integers(0, 256, (keys.shape[0], width), np.uint8)


def test_gets_what_was_put_in_any_order_and_size(tmp_path: Path) -> None:
    store = make(tmp_path)
    keys, values = rows(6_000)
    store.families["row.a"].put(keys, values, new=True)
    asked = np.concatenate([keys[::-1], np.array([0, 1, 2**64 - 1], np.uint64)])  # in two threads
    present, found = store.families["row.a"].get(asked)
    assert present.tolist() == [True] * keys.shape[0] + [False] * 3
    np.testing.assert_array_equal(found, values[::-1])
    present, found = store.families["row.a"].get(keys[:0])
    assert present.shape == (0,) and found.shape == (0, 8)
    assert not store.families["row.b"].get(keys[:10])[0].any(), "families are apart"
    store.families["row.a"].delete(keys[:3])
    assert store.families["row.a"].get(keys[:5])[0].tolist() == [False] * 3 + [True] * 2
    store.close()


def test_more_threads_read_where_the_last_read_waited_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path)
    family = store.families["row.a"]
    keys, values = rows(PARALLEL_KEYS_MIN)
    family.put(keys, values, new=True)
    used: list[int] = []
    read_in_parts = store._readers.map

    def counting(fetch: Any, parts: list[Any]) -> Any:
        used.append(len(parts))
        return read_in_parts(fetch, parts)

    monkeypatch.setattr(store._readers, "map", counting)
    for blocks in (0, keys.shape[0], keys.shape[0], 0, 0):
        counter = count(step=blocks)  # one part alone has read as many as there are keys
        monkeypatch.setattr("ps_server.disk.store._disk_reads", lambda c=counter: next(c))
        present, found = family.get(keys)
        assert present.all()
        np.testing.assert_array_equal(found, values)
    assert used == [READ_THREADS, READ_THREADS, DISK_THREADS, DISK_THREADS, READ_THREADS]
    store.close()


def test_reads_of_rows_leave_nothing_in_the_store_s_cache(tmp_path: Path) -> None:
    store = make(tmp_path)
    family = store.families["row.a"]
    keys, values = rows(20_000)
    family.put(keys, values, new=True)
    family.flush()
    family.get(keys[:1])
    before = store._cache.get_usage()
    family.get(keys)
    assert sum(chunk.shape[0] for chunk, _ in family.scan(1000)) == keys.shape[0]
    assert store._cache.get_usage() == before
    store.close()


def test_scans_ranges_in_key_order_from_a_snapshot(tmp_path: Path) -> None:
    store = make(tmp_path)
    family = store.families["row.a"]
    assert family.is_empty() and list(family.scan(10)) == []
    keys, values = rows(1_000)
    keys[0], keys[1] = 0, 2**64 - 1
    family.put(keys, values, new=True)
    order = np.argsort(keys)
    keys, values = keys[order], values[order]
    for chunk_rows in (1, 7, 1_000, 5_000):
        chunks = list(family.scan(chunk_rows))
        assert all(0 < k.shape[0] <= chunk_rows for k, _ in chunks)
        np.testing.assert_array_equal(np.concatenate([k for k, _ in chunks]), keys)
        np.testing.assert_array_equal(np.concatenate([v for _, v in chunks]), values)
    for first, last in ((0, 1_000), (1, 999), (200, 201), (300, 300)):
        end = int(keys[last]) if last < 1_000 else None
        found = [k for k, _ in family.scan(64, start=int(keys[first]), end=end, with_values=False)]
        np.testing.assert_array_equal(np.concatenate([*found, keys[:0]]), keys[first:last])
    scan = family.scan(10)
    next(scan)
    family.delete(keys)
    assert sum(k.shape[0] for k, _ in scan) == 990, "a scan sees what was there when it began"
    assert family.is_empty()
    store.close()


def test_unflushed_rows_are_gone_after_a_kill_and_meta_is_not(tmp_path: Path) -> None:
    script = f"""
import numpy as np, os, sys
from tests.unit.test_store import make, rows
from pathlib import Path
store = make(Path({str(tmp_path / "s")!r}))
store.families["row.a"].put(*rows(100), new=True); store.families["row.a"].flush()
store.families["row.b"].put(*rows(100, 3), new=True); store.put_meta({{"key": b"value", "other": b""}})
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, timeout=1_200)
    store = make(tmp_path / "s")
    np.testing.assert_array_equal(store.families["row.a"].get(rows(100)[0])[1], rows(100)[1])
    assert store.families["row.b"].is_empty(), "rows have no write-ahead log: the push log covers them"
    assert (store.get_meta("key"), store.get_meta("other"), store.get_meta("none")) == (b"value", b"", None)
    store.close()


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    store = make(tmp_path)
    with pytest.raises(DirectoryInUseError, match=str(tmp_path)):
        make(tmp_path)
    script = f"""
from tests.unit.test_store import make
from rowhouse.error import DirectoryInUseError
from pathlib import Path
try:
    make(Path({str(tmp_path)!r}))
except DirectoryInUseError as error:
    print("in use:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("in use:") and str(tmp_path) in done.stdout, done.stderr
    store.close()
    make(tmp_path).close()


def test_a_value_of_another_length_is_named_and_not_served(tmp_path: Path) -> None:
    store = make(tmp_path)
    keys = np.array([5, 6, 7], np.uint64)
    store.families["row.a"].put(keys, np.ones((3, 8), np.uint8), new=True)
    store.close()
    store = make(tmp_path, value_bytes={"row.a": 9, "row.b": 3})
    family = store.families["row.a"]
    with pytest.raises(
        CorruptionError, match=r"row\.a: the value of key 0x0000000000000006 has 8 bytes; .* 9"
    ):
        family.get(keys[1:])
    with pytest.raises(CorruptionError, match=r"row\.a: the value of key 0x0000000000000005 has 8 bytes"):
        list(family.scan(10))
    store.close()


@pytest.mark.parametrize("values", [True, False])
def test_a_flipped_byte_in_an_sst_file_is_named_by_gets_and_scans(tmp_path: Path, values: bool) -> None:
    store = make(tmp_path)
    keys, stored = rows(20_000)
    store.families["row.a"].put(keys, stored, new=True)
    store.families["row.b"].put(*rows(10, 3), new=True)
    for family in store.families.values():
        family.flush()
    store.close()
    path = max(tmp_path.glob("*.sst"), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    store = make(tmp_path)
    seen: list[int] = []

    def scan() -> None:
        for found, _ in store.families["row.a"].scan(100, with_values=values):
            seen.append(found.shape[0])

    with pytest.raises(CorruptionError, match=r"row\.a"):
        scan()
    assert 0 < sum(seen) < keys.shape[0], "what is before the damage was given"
    with pytest.raises(CorruptionError, match=r"row\.a"):
        store.families["row.a"].get(keys)
    assert store.families["row.b"].get(rows(10, 3)[0])[0].all(), "the other family is whole"
    store.close()


def test_a_read_only_store_needs_one_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=str(tmp_path / "none")):
        make(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none" / "CURRENT").exists()
    store = make(tmp_path / "s")
    store.families["row.a"].put(*rows(10), new=True)
    store.close()
    reader, second = make(tmp_path / "s", read_only=True), make(tmp_path / "s", read_only=True)
    np.testing.assert_array_equal(reader.families["row.a"].get(rows(10)[0])[1], rows(10)[1])
    with pytest.raises(StoreError, match=r"row\.a"):
        reader.families["row.a"].put(*rows(1), new=True)
    reader.close()
    second.close()


@pytest.mark.parametrize("part", ["_meta", "_family", "_database"])
def test_what_rocksdb_raises_at_the_close_is_an_error_of_ours(tmp_path: Path, part: str) -> None:
    class Full:
        """The real one, whose close fails as on a full disk."""

        def __init__(self, real: Any) -> None:
            self.real = real

        def close(self) -> None:
            self.real.close()
            raise Exception("IO error: No space left on device")  # as rocksdict does

    store: Any = make(tmp_path)
    holder = store.families["row.a"] if part == "_family" else store
    setattr(holder, part, Full(getattr(holder, part)))
    with pytest.raises(StoreError, match=r"closing .*No space left"):
        store.close()
