# SPDX-License-Identifier: Apache-2.0
"""Show/click and zero-row eviction through a whole shard: pushes, decay, restart, eviction."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse import dtype, message
from rowhouse.error import ConfigError, InvalidRequestError
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client import connect
from ps_server.config.cluster import load_config
from ps_server.shard.shard import Shard

DAY_S = 86_400
IDS = np.array([10, 20, 30], np.uint64)


def _open(directory: Path, table: dict[str, Any], now: list[float]) -> Shard:
    config = load_config({"data_dir": str(directory), "memory_budget": "16MiB", "tables": [table]})
    return Shard.open(config, 0, directory, clock=lambda: now[0])


def _push(shard: Shard, sequence: int, ids: np.ndarray, gradient: float, **events: np.ndarray) -> None:
    gradients = np.full((ids.shape[0], 2), gradient, np.float32)
    part = message.TableGradients("t", dtype.FLOAT32, ids, gradients, None, **events)
    shard.push(message.PushRequest(shard.partition_map.version, 7, sequence, (part,)))


def _evict(shard: Shard) -> int:
    return shard.evict_rows(pb.EvictRowsRequest(table="t")).rows_evicted


def _rows(shard: Shard) -> int:
    return shard.get_stats(pb.GetStatsRequest()).tables[0].rows


def test_scores_decay_and_survive_a_restart(tmp_path: Path) -> None:
    policy = {"kind": "show_click", "decay_rate": 0.5, "min_score": 1.0}
    table = {"name": "t", "dim": 2, "optimizer": {"kind": "sgd", "learning_rate": 0.1}, "eviction": [policy]}
    now = [1000.0 * DAY_S]
    shard = _open(tmp_path, table, now)
    ids = np.array([10, 20, 20, 30], np.uint64)  # scores 2.0, 1.1 + 0.1 and 0.1
    clicks = np.array([2, 1, 0, 0], np.float32)
    _push(shard, 1, ids, 1.0, shows=np.array([2, 2, 1, 1], np.float32), clicks=clicks)
    assert _evict(shard) == 1 and _rows(shard) == 2  # 30 scores 0.1
    shard.close()
    now[0] += DAY_S
    shard = _open(tmp_path, table, now)
    assert _evict(shard) == 1 and _rows(shard) == 1  # 20 decayed to 0.6
    _push(shard, 2, IDS[:1], 1.0)  # one more show, no click: 1 + 0.1
    now[0] += DAY_S
    assert _evict(shard) == 1 and _rows(shard) == 0
    shard.close()


def test_wrong_events_change_nothing(tmp_path: Path) -> None:
    table = {"name": "t", "dim": 2, "eviction": [{"kind": "show_click"}]}
    shard = _open(tmp_path, table, [0.0])
    with pytest.raises(InvalidRequestError, match="clicks of id 20 is -1"):
        _push(shard, 1, IDS, 1.0, clicks=np.array([0, -1, 0], np.float32))
    assert _rows(shard) == 0
    shard.close()


def test_zero_rows_are_dropped_and_come_back_as_zeros(tmp_path: Path) -> None:
    optimizer = {"kind": "ftrl", "learning_rate": 0.1, "l1": 5.0}
    table = {
        "name": "t", "dim": 2, "optimizer": optimizer, "initializer": {"kind": "zeros"},
        "eviction": [{"kind": "zero"}],
    }  # fmt: skip
    shard = _open(tmp_path, table, [0.0])
    _push(shard, 1, IDS[:2], 1.0)  # |z| stays below l1: exact zeros
    _push(shard, 2, IDS[2:], 50.0)
    assert _rows(shard) == 3 and _evict(shard) == 2 and _rows(shard) == 1
    request = message.PullRequest(
        shard.partition_map.version, dtype.FLOAT32, False, (message.TableIds("t", 2, IDS),)
    )
    rows = shard.pull(request).tables[0].rows
    assert not rows[:2].any() and rows[2].all()
    shard.close()
    with pytest.raises(ConfigError, match="zeros"):
        _open(tmp_path / "other", {**table, "initializer": {"kind": "uniform"}}, [0.0])


def test_a_client_sums_the_events_of_duplicates(tmp_path: Path) -> None:
    policy = {"kind": "show_click", "nonclick_weight": 1.0, "click_weight": 10.0, "min_score": 12.5}
    with connect(
        f"embedded:{tmp_path}", config={"tables": [{"name": "t", "dim": 1, "eviction": [policy]}]}
    ) as c:
        ids, gradients = np.array([1, 2, 1, 3]), np.ones((4, 1), np.float32)
        c.push("t", ids, gradients, clicks=[1, 1, 1, 0])  # scores 20, 10 and 1
        assert c.evict("t") == 2 and c.stats()[0].tables[0].rows == 1
        c.push("t", ids, gradients)  # without events each occurrence is one show: 1 has 22, 2 has 1
        assert c.evict("t") == 2
        with pytest.raises(InvalidRequestError, match=r"shows\[1\] is nan for id 2"):
            c.push("t", ids, gradients, shows=[1, np.nan, 1, 1])
        with pytest.raises(InvalidRequestError, match="clicks have shape"):
            c.push("t", ids, gradients, clicks=[1])
