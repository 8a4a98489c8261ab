# SPDX-License-Identifier: Apache-2.0
"""A shard refuses what is wrong before anything changes, and keeps its promises over every kind of end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rowhouse import dtype, message
from rowhouse.error import (
    InvalidRequestError,
    LimitExceededError,
    SequenceGapError,
    StalePartitionMapError,
    UnknownTableError,
)

from tests.driver import Driver, shard_config

TABLES: list[dict[str, Any]] = [
    {"name": "user", "dim": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.5}},
    {"name": "item", "dim": 2, "optimizer": {"kind": "ftrl", "learning_rate": 0.5}},
]
IDS = np.array([1, 2, 3], np.uint64)


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(shard_config(tmp_path, TABLES), tmp_path / "s")


def ones(rows: int, dim: int = 4) -> NDArray[np.float32]:
    return np.ones((rows, dim), np.float32)


def part(table: str, ids: NDArray[np.uint64], gradients: NDArray[Any], rate: float | None = None) -> Any:
    return message.TableGradients(table, dtype.FLOAT32, ids, gradients, rate)


def refused(driver: Driver, error: type[Exception], match: str, *parts: Any, **changes: int) -> None:
    """The push gets `error`, and neither rows nor sequence nor LSN have moved; the shard goes on."""
    before = driver.pull("user", IDS), driver.shard._applied_lsn
    version = changes.get("version", driver.shard.partition_map.version)
    with pytest.raises(error, match=match):
        driver.shard.push(message.PushRequest(version, 5, changes.get("sequence", 1), parts))
    assert driver.shard._applied_lsn == before[1] and driver.shard.poison is None
    np.testing.assert_array_equal(driver.pull("user", IDS), before[0])
    with pytest.raises(SequenceGapError):  # the client's number is not taken
        driver.shard.push(message.PushRequest(driver.shard.partition_map.version, 5, 2, (good(),)))


def good() -> Any:
    return part("user", IDS, ones(3))


# ------------------------------------------------------------ refused
def test_a_push_is_checked_whole_before_anything_changes(driver: Driver) -> None:
    late = ones(3)
    late[2, 1] = np.nan
    refused(driver, UnknownTableError, "table 'usr' is unknown.*'user'", good(), part("usr", IDS, ones(3)))
    refused(
        driver,
        InvalidRequestError,
        "table 'item': dim is 4; it must be 2",
        good(),
        part("item", IDS, ones(3)),
    )
    refused(driver, InvalidRequestError, "table 'user' is in the push twice", good(), good())
    refused(
        driver, InvalidRequestError, r"gradient of id 3 \(row 2, column 1\) is nan", part("user", IDS, late)
    )
    refused(driver, InvalidRequestError, "is inf; it must be finite", part("user", IDS, ones(3) * np.inf))
    refused(driver, InvalidRequestError, "sequence is 0", good(), sequence=0)
    refused(driver, SequenceGapError, "client 5: push 3 came", good(), sequence=3)
    refused(driver, StalePartitionMapError, "partition map 7; shard 0 has", good(), version=7)
    many = np.arange(2**18, dtype=np.uint64)
    refused(driver, LimitExceededError, "push of 262144 distinct ids", part("user", many, ones(2**18)))


@pytest.mark.parametrize(
    ("table", "rate"),
    [("user", float("nan")), ("user", -1.0), ("user", 3.3e38), ("item", 0.0), ("item", 1e-38)],
)
def test_a_rate_that_the_optimizer_refuses_never_reaches_the_log(
    driver: Driver, table: str, rate: float
) -> None:
    dim = {"user": 4, "item": 2}[table]
    refused(
        driver,
        InvalidRequestError,
        f"table '{table}': learning rate is",
        part(table, IDS, ones(3, dim), rate),
    )
    driver.reopen()


def test_a_rate_of_zero_is_a_warm_up_where_the_optimizer_allows_it(driver: Driver) -> None:
    before = driver.pull("user", IDS)
    driver.push({"user": (IDS, ones(3))}, rate=0.0)
    np.testing.assert_array_equal(driver.pull("user", IDS), before)
    assert driver.stats("user").rows == 3
