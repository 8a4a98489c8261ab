# SPDX-License-Identifier: Apache-2.0
"""Replay reads ahead: rows of many records at once, as many as memory holds, to the same bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ps_server.disk.store import RowFamily
from ps_server.life.read_ahead import read_files
from tests.driver import Driver, shard_config, snapshot

TABLES: list[dict[str, Any]] = [
    {"name": name, "dim": 16, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}} for name in ("a", "b")
]
ROWS, RECORDS, BATCH = 12_000, 60, 400


def _train(driver: Driver, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(RECORDS):
        gradients = {}
        for name in ("a", "b"):
            ids = rng.choice(ROWS, BATCH, replace=False).astype(np.uint64)
            gradients[name] = (ids, rng.standard_normal((BATCH, 16)).astype(np.float32))
        driver.push(gradients)


@pytest.mark.parametrize(("budget", "gets_max"), [("64MiB", 2), ("2MiB", 40)])
def test_replay_reads_the_rows_of_many_records_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str, gets_max: int
) -> None:
    """Two tables of cold rows: one read each where memory holds them, some windows where it does not."""
    driver = Driver(shard_config(tmp_path, TABLES, memory_budget=budget), tmp_path / "s")
    _train(driver, 1)
    driver.shard.close()
    sequences, driver = driver.sequences, Driver(driver.config, tmp_path / "s")
    driver.sequences = sequences
    _train(driver, 2)
    ids = np.arange(ROWS, dtype=np.uint64)
    snapshot(tmp_path / "s", tmp_path / "copy")
    expected = [driver.pull(name, ids, read_only=True) for name in ("a", "b")]
    driver.shard.close()
    sizes: list[int] = []
    get = RowFamily.get

    def counted(self: RowFamily, keys: NDArray[np.uint64]) -> Any:
        if self.name.startswith("row.") and keys.shape[0] > BATCH:
            sizes.append(keys.shape[0])
        return get(self, keys)

    monkeypatch.setattr(RowFamily, "get", counted)
    driver = Driver(driver.config, tmp_path / "copy")
    assert driver.shard.replayed_records == RECORDS
    assert 2 <= len(sizes) <= gets_max
    for name, rows in zip(("a", "b"), expected, strict=True):
        np.testing.assert_array_equal(driver.pull(name, ids, read_only=True), rows)
    driver.shard.close()


@pytest.mark.parametrize(("available", "read"), [(1 << 30, True), (1 << 10, False)])
def test_files_are_read_through_where_they_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int, read: bool
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.sst").write_bytes(bytes(10_000))
    opened: list[str] = []
    real = Path.open

    def watched(self: Path, *arguments: Any, **keys: Any) -> Any:
        opened.append(self.name)
        return real(self, *arguments, **keys)

    monkeypatch.setattr("ps_server.life.read_ahead.available_bytes", lambda: available)
    monkeypatch.setattr(Path, "open", watched)
    read_files(tmp_path, 100)
    assert opened == (["0.sst", "1.sst", "2.sst"] if read else [])
    opened.clear()
    read_files(tmp_path, 1)  # too few rows to be worth it
    assert opened == []


def test_a_rate_of_a_push_gives_the_same_bits_in_a_replay(tmp_path: Path) -> None:
    """The log keeps a push's rate as float32, and a caller in this process may give any float64."""
    tables = [{"name": kind, "dim": 4, "optimizer": {"kind": kind}} for kind in ("adam", "sgd")]
    driver = Driver(shard_config(tmp_path, tables), tmp_path / "s")
    ids, rng = np.arange(200, dtype=np.uint64), np.random.default_rng(3)
    for rate in (0.1, 0.0123, 1e-30, 3e38):
        gradients = rng.standard_normal((200, 4)).astype(np.float32)
        driver.push({"adam": (ids, gradients), "sgd": (ids, gradients)}, rate=rate)
        if rate == 1e-30:
            before = {name: driver.pull(name, ids) for name in ("adam", "sgd")}
            driver.crash(tmp_path / "copy")
            for name, rows in before.items():
                np.testing.assert_array_equal(driver.pull(name, ids), rows)
    driver.crash(tmp_path / "again")
