# SPDX-License-Identifier: Apache-2.0
"""verify and export where nobody can write: a snapshot that is mounted read-only, a saved copy."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rowhouse.document import dump
from rowhouse.error import CorruptionError, StoreError
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server import psctl
from ps_server.bulk.export import export_table
from ps_server.shard.shard import Shard
from tests.driver import snapshot
from tests.stopped import TABLES, fill, flip, largest_file, make_config, open_shard, pull, push, stopped

Mount = Callable[[], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """A folder on a file system of its own, and how to mount it read-only from then on."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("to mount a file system takes root and mkfs.ext4")
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=False).returncode:
        pytest.skip("no loop device can be mounted here")
    try:
        yield folder, lambda: _run("mount", "-o", "remount,ro", str(folder))
    finally:
        _run("umount", str(folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def exported(*arguments: Any, out: Path) -> Any:
    """Exit code of psctl export of `user`, and ids and weights by id."""
    command = ["export", str(arguments[0]), "user", "--out", str(out), "--overwrite", *arguments[1:]]
    assert psctl.main(command) == 0
    table = pq.read_table(out).sort_by("id")
    return table.column("id").to_numpy(), np.array(table.column("weights").to_pylist(), np.float32)


def rows_of(shard: Shard, rows: int) -> Any:
    return pull(shard, "user", np.arange(rows, dtype=np.uint64))


def save(shard: Shard, name: str) -> None:
    shard.saved.save(pb.SaveTablesRequest(name=name, token=7))


# ---------------------------------------------------------------- a mounted snapshot
def test_a_stopped_shard_on_a_read_only_mount(disk: tuple[Path, Mount], tmp_path: Path) -> None:
    folder, mount_read_only = disk
    stopped(folder, 500)
    mount_read_only()
    with pytest.raises(OSError, match="Read-only"):
        (folder / "x").touch()
    assert psctl.main(["verify", str(folder)]) == 0
    ids, weights = exported(folder, out=tmp_path / "user.parquet")
    assert np.array_equal(ids, np.arange(500)) and np.abs(weights).max() > 0


def test_a_snapshot_of_a_running_shard_on_a_read_only_mount(
    disk: tuple[Path, Mount], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it acknowledged last is in its log: that is replayed elsewhere."""
    folder, mount_read_only = disk
    shard = open_shard(make_config(tmp_path / "live"))
    fill(shard, 500)
    shard.checkpoint()
    push(shard, 5, "user", np.arange(600, dtype=np.uint64))
    snapshot_to = folder / "shard-0000"
    shutil.copytree(shard.directory, snapshot_to)
    expected = rows_of(shard, 600)
    shard.close()
    mount_read_only()
    assert psctl.main(["verify", str(folder)]) == 0
    out = tmp_path / "user.parquet"
    assert psctl.main(["export", str(folder), "user", "--out", str(out)]) == 74
    assert "or export with --config, which replays its log beside it" in capsys.readouterr().err
    config = tmp_path / "cluster.yaml"
    config.write_text(dump({"data_dir": "x", "tables": TABLES, "memory_budget": "16MiB"}))
    ids, weights = exported(folder, "--config", str(config), out=out)
    assert np.array_equal(ids, np.arange(600)) and np.array_equal(weights, expected)


# ---------------------------------------------------------------- nothing is written
def _state(directory: Path) -> dict[str, tuple[int, int]]:
    stats = {str(path): path.stat() for path in [directory, *directory.rglob("*")]}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def test_verify_and_export_write_nothing(tmp_path: Path) -> None:
    """Also where they could: not even the binding's notes."""
    directory = stopped(tmp_path, 200)
    before = _state(directory)
    assert psctl.main(["verify", str(directory)]) == 0
    exported(directory, out=tmp_path / "user.parquet")
    assert _state(directory) == before


def test_damage_is_named_where_it_lies(tmp_path: Path) -> None:
    """Not where the links are."""
    directory = stopped(tmp_path)
    file = largest_file(directory)
    flip(file, 3000)
    with pytest.raises(CorruptionError) as caught:
        list(export_table(directory, "user"))
    assert "rowhouse-read" not in str(caught.value)
    file.unlink()
    with pytest.raises(CorruptionError) as caught:
        list(export_table(directory, "user"))
    assert "rowhouse-read" not in str(caught.value) and str(file) in str(caught.value)


def test_no_room_for_links_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = stopped(tmp_path, 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"TMPDIR names another place\): No such file"):
        list(export_table(directory, "user"))


# ---------------------------------------------------------------- saved copies
def test_a_saved_copy_is_exported_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While its shard runs on, and after it was pushed to."""
    shard = open_shard(make_config(tmp_path))
    fill(shard, 300)
    save(shard, "monday")
    (
        shard.directory / "saved" / "monday" / "store" / "LOCK"
    ).unlink()  # a copy of an earlier version has none
    then = rows_of(shard, 300)
    push(shard, 5, "user", np.arange(300, dtype=np.uint64))
    assert not np.array_equal(rows_of(shard, 300), then)
    for arguments in ((tmp_path, "--saved", "monday"), (shard.directory / "saved" / "monday",)):
        ids, weights = exported(*arguments, out=tmp_path / "user.parquet")
        assert np.array_equal(ids, np.arange(300)) and np.array_equal(weights, then)
        assert psctl.main(["verify", *map(str, arguments)]) == 0
    assert psctl.main(["export", str(tmp_path), "user", "--out", str(tmp_path / "x"), "--saved", "may"]) == 74
    assert "no tables are saved as 'may'; there are ['monday']" in capsys.readouterr().err
    shard.close()


# ---------------------------------------------------------------- a shard that was killed
def test_a_killed_shard_is_recovered_beside_its_directory(tmp_path: Path) -> None:
    shard = open_shard(make_config(tmp_path / "live"))
    fill(shard, 400)
    snapshot(shard.directory, tmp_path / "dead" / "shard-0000")
    expected = rows_of(shard, 400)
    shard.close()
    before = _state(tmp_path / "dead")
    config = tmp_path / "cluster.yaml"
    config.write_text(dump({"data_dir": "x", "tables": TABLES, "memory_budget": "16MiB"}))
    ids, weights = exported(tmp_path / "dead", "--config", str(config), out=tmp_path / "user.parquet")
    assert np.array_equal(ids, np.arange(400)) and np.array_equal(weights, expected)
    assert _state(tmp_path / "dead") == before
