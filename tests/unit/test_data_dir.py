# SPDX-License-Identifier: Apache-2.0
"""The note of a data_dir: one id for all who claim it at once, old notes, and the shards that had data."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rowhouse.error import ConfigError, StoreError
from rowhouse.limit import CLUSTER_ID_PATTERN
from rowhouse.placement import PartitionMap

from ps_server.disk.data_dir import (
    NOTE_NAME,
    check_shard_is_here,
    claim_data_dir,
    missing_shards,
    note_made,
)

ID = "0f" * 16


def note(data_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data_dir / NOTE_NAME).read_text())
    return found


def write_old_note(data_dir: Path, shard_count: int) -> None:
    """As versions wrote it before clusters had ids."""
    facts = {"shard_count": shard_count, "map_version": PartitionMap.even(shard_count).version}
    (data_dir / NOTE_NAME).write_text(json.dumps(facts) + "\n")


def make(data_dir: Path, index: int) -> None:
    store = data_dir / f"shard-{index:04d}" / "store"
    store.mkdir(parents=True)
    (store / "CURRENT").touch()


def test_all_who_claim_at_once_get_one_id(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: claim_data_dir(tmp_path / "data", 2), range(40)))
    assert len(ids) == 1 and re.fullmatch(CLUSTER_ID_PATTERN, ids.pop())
    assert {p.name for p in (tmp_path / "data").iterdir()} == {NOTE_NAME, "cluster.lock"}


def test_two_data_dirs_are_two_clusters_unless_the_config_says_else(tmp_path: Path) -> None:
    assert claim_data_dir(tmp_path / "a", 1) != claim_data_dir(tmp_path / "b", 1)
    assert claim_data_dir(tmp_path / "c", 1, ID) == claim_data_dir(tmp_path / "d", 1, ID) == ID
    assert claim_data_dir(tmp_path / "c", 1) == ID
    with pytest.raises(ConfigError, match=rf"cluster_id is '{'1f' * 16}'; the data in .* belongs to .*{ID}"):
        claim_data_dir(tmp_path / "c", 1, "1f" * 16)


@pytest.mark.parametrize(("present", "made"), [((), []), ((0, 1), [0, 1]), ((1,), [0, 1])])
def test_an_old_note_gets_an_id_at_the_next_start(
    tmp_path: Path, present: tuple[int, ...], made: list[int]
) -> None:
    """Where one shard was there, an earlier version took all of them to have been."""
    write_old_note(tmp_path, 2)
    for index in present:
        make(tmp_path, index)
    with pytest.raises(ConfigError, match="split over 2"):
        claim_data_dir(tmp_path, 3)
    assert "cluster_id" not in note(tmp_path), "a refused start changes nothing"
    cluster_id = claim_data_dir(tmp_path, 2)
    assert note(tmp_path)["cluster_id"] == cluster_id and note(tmp_path)["made"] == made
    assert claim_data_dir(tmp_path, 2) == cluster_id


def test_a_shard_that_had_data_is_missed_and_one_that_never_had_is_not(tmp_path: Path) -> None:
    claim_data_dir(tmp_path, 3)
    for index in (0, 1):
        make(tmp_path, index)
        note_made(tmp_path, index)
        note_made(tmp_path, index)
    assert note(tmp_path)["made"] == [0, 1] and missing_shards(tmp_path) == []
    (tmp_path / "shard-0001").rename(tmp_path / "gone")
    assert missing_shards(tmp_path) == ["shard-0001"]
    for index in (0, 2):
        check_shard_is_here(tmp_path, index)
    with pytest.raises(StoreError, match="shard-0001 is missing or empty"):
        check_shard_is_here(tmp_path, 1)


def test_nothing_is_missed_where_there_is_no_note(tmp_path: Path) -> None:
    check_shard_is_here(tmp_path, 0)
    note_made(tmp_path, 0)
    assert missing_shards(tmp_path) == [] and not list(tmp_path.iterdir())
