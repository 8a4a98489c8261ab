# SPDX-License-Identifier: Apache-2.0
"""A table's pull in each element type: hot, stored and unknown rows alike."""

from pathlib import Path

import numpy as np
import pytest
from rowhouse import dtype
from rowhouse.error import InvalidRequestError

from ps_server.table import table as table_module
from ps_server.table.table import Table
from tests.driver import Driver, shard_config

DIM = 20
IDS = np.arange(1, 400, dtype=np.uint64)


def _table(driver: Driver) -> Table:
    return driver.shard._tables["t"]


def _driver(folder: Path, name: str) -> Driver:
    table = {"name": "t", "dim": DIM, "dtype": name, "optimizer": {"kind": "sgd", "learning_rate": 1.0}}
    return Driver(shard_config(folder, [table], memory_budget="1MiB"), folder / "s")


@pytest.mark.parametrize("wire", sorted(dtype.NAMES))
@pytest.mark.parametrize("name", sorted(dtype.CODES))
def test_a_pull_in_any_type_is_the_wide_pull_narrowed(tmp_path: Path, name: str, wire: int) -> None:
    driver = _driver(tmp_path, name)
    generator = np.random.default_rng(3)
    for start in range(0, 20_000, 500):  # most rows leave memory again
        ids = np.arange(start, start + 500, dtype=np.uint64)
        driver.push({"t": (ids, generator.standard_normal((500, DIM)).astype(np.float32))})
    ids = generator.permutation(np.arange(19_000, 21_000, dtype=np.uint64))  # hot, stored and unknown
    ids = np.concatenate([ids, generator.integers(0, 19_000, 2000).astype(np.uint64), ids[:9]])
    table = _table(driver)
    hits = table.counters.hot_hits
    wide = table.pull(ids, promote=False)
    assert 0 < table.counters.hot_hits - hits < 3000, "the batch has rows of each kind"
    got = table.pull(ids, promote=False, code=wire)
    assert got.dtype == dtype.STORAGE[wire] and wide.dtype == np.float32
    np.testing.assert_array_equal(got, dtype.narrow(wide, wire))
    np.testing.assert_array_equal(driver.pull("t", ids), wide)


def test_a_pull_in_parts_is_the_pull_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = _driver(tmp_path, "bf16")
    for start in range(0, 20_000, 500):
        ids = np.arange(start, start + 500, dtype=np.uint64)
        driver.push({"t": (ids, np.full((500, DIM), start, np.float32))})
    ids = np.random.default_rng(4).integers(0, 22_000, 5_000).astype(np.uint64)
    for wire in sorted(dtype.NAMES):
        whole = _table(driver).pull(ids, promote=False, code=wire)
        with monkeypatch.context() as parts:
            parts.setattr(table_module, "PULL_BYTES", 1_000)
            for promote in (False, True):
                np.testing.assert_array_equal(_table(driver).pull(ids, promote=promote, code=wire), whole)
    assert _table(driver).pull(ids[:0], promote=True).shape == (0, DIM)


def test_an_element_too_large_for_the_wire_is_refused_by_name(tmp_path: Path) -> None:
    driver = _driver(tmp_path, "fp32")
    driver.push({"t": (IDS, np.full((IDS.shape[0], DIM), 1e6, np.float32))})
    with pytest.raises(
        InvalidRequestError, match=r"table 't': the rows: an element is 1e\+06, too large for fp16"
    ):
        _table(driver).pull(IDS, promote=False, code=dtype.FLOAT16)
