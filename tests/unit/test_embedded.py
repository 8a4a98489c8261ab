# SPDX-License-Identifier: Apache-2.0
"""Opening a shard in the caller's process: configs given, kept, and refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from rowhouse.error import ConfigError, DirectoryInUseError, StoreError

from ps_server.config.cluster import load_config
from ps_server.serve.embedded import CONFIG_NAME, open_embedded

TABLES = {"tables": [{"name": "user", "dim": 4}], "memory_budget": "16MiB"}


def test_tables_are_enough_and_the_directory_keeps_the_config(tmp_path: Path) -> None:
    open_embedded(tmp_path / "model", TABLES).close()
    kept = load_config(tmp_path / "model" / CONFIG_NAME)
    assert kept.tables[0].name == "user" and kept.data_dir == tmp_path / "model"
    assert kept.memory_budget == 16 << 20
    shard = open_embedded(tmp_path / "model")
    assert shard.config == kept
    shard.close()


def test_a_directory_that_moved_opens_where_it_is(tmp_path: Path) -> None:
    open_embedded(tmp_path / "model", TABLES).close()
    (tmp_path / "model").rename(tmp_path / "moved")
    shard = open_embedded(tmp_path / "moved")
    assert shard.config.data_dir == tmp_path / "moved"
    shard.close()


def test_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text("tables:\n  - {name: item, dim: 2}\n", encoding="utf-8")
    open_embedded(tmp_path / "model", path).close()
    assert load_config(tmp_path / "model" / CONFIG_NAME).tables[0].name == "item"


def test_no_config_for_a_new_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no cluster\.yaml of an earlier open; give a config"):
        open_embedded(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_data_dir_of_a_cluster_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "shard-0000").mkdir()
    (tmp_path / "resolved.yaml").write_text("tables: []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data_dir of a cluster .*resolved\.yaml.*`ps-server up`"):
        open_embedded(tmp_path)


def test_more_than_one_shard(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shards is 2; embedded mode has exactly 1"):
        open_embedded(tmp_path / "model", {**TABLES, "shards": 2})


def test_a_config_that_does_not_fit_the_rows_changes_nothing(tmp_path: Path) -> None:
    """Invariants 1 and 2."""
    open_embedded(tmp_path / "model", TABLES).close()
    kept = (tmp_path / "model" / CONFIG_NAME).read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="user"):
        open_embedded(tmp_path / "model", {"tables": [{"name": "user", "dim": 5}]})
    assert (tmp_path / "model" / CONFIG_NAME).read_text(encoding="utf-8") == kept
    open_embedded(tmp_path / "model").close()


def test_a_directory_that_another_process_holds(tmp_path: Path) -> None:
    shard = open_embedded(tmp_path / "model", TABLES)
    script = f"from ps_server.serve.embedded import open_embedded\nopen_embedded({str(tmp_path / 'model')!r})"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1_200, check=False)
    assert done.returncode != 0
    assert DirectoryInUseError.__name__ in done.stderr.strip().splitlines()[-1]
    shard.close()
    open_embedded(tmp_path / "model").close()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        open_embedded(tmp_path / "file" / "model", TABLES)
