# SPDX-License-Identifier: Apache-2.0
"""A push log that was lost or exchanged after a kill is named; no older rows are served for newer ones."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse.error import ConfigError, CorruptionError

from ps_client import connect
from ps_server import psctl
from ps_server.config.cluster import ClusterConfig, load_config
from ps_server.disk.segment import SEGMENT_HEADER, list_segments
from ps_server.shard.shard import Shard
from tests.driver import Driver, shard_config, snapshot
from tests.process import ServerProcess, kill

IDS = np.arange(200, dtype=np.uint64)
TABLE: dict[str, Any] = {"name": "user", "dim": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.5}}
OTHER: dict[str, Any] = {**TABLE, "name": "item"}


class Killed:
    """The data_dir of two shards that were killed, with records before and after their last checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.copies = folder, 0
        self.keys: dict[str, Any] = {
            "data_dir": str(folder / "data"), "tables": [TABLE], "shards": 2, "base_port": 0,
            "memory_budget": "16MiB",
        }  # fmt: skip
        with ServerProcess("up", self.keys) as server:
            with connect(server.endpoints()) as client:
                for _ in range(3):
                    client.push("user", IDS, np.ones((200, 4), np.float32))
                client.checkpoint()
                client.push("user", IDS, np.ones((200, 4), np.float32))
                self.rows = client.pull("user", IDS)
            os.kill(server.process.pid, signal.SIGSTOP)  # it would start them again, or stop them cleanly
            for pid in server.facts()["pids"]:
                kill(pid)
            kill(server.process.pid)

    def copy(self) -> Path:
        self.copies += 1
        return Path(shutil.copytree(self.folder / "data", self.folder / f"copy-{self.copies}"))

    def config(self, data_dir: Path) -> ClusterConfig:
        return load_config({**self.keys, "data_dir": str(data_dir)})


@pytest.fixture(scope="module")
def killed() -> Iterator[Killed]:
    folder = Path(tempfile.mkdtemp(prefix="lost-log"))
    yield Killed(folder)
    shutil.rmtree(folder)


def open_segment(shard: Path) -> Path:
    return list_segments(shard / "log")[-1]


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: SEGMENT_HEADER.size - 1])


def delete_the_log(path: Path) -> None:
    shutil.rmtree(path.parent)


def test_the_killed_shards_serve_everything(killed: Killed) -> None:
    data_dir = killed.copy()
    assert psctl.main(["verify", str(data_dir)]) == 0
    config = killed.config(data_dir)
    for index in range(2):
        shard = Shard.open(config, index, data_dir / f"shard-{index:04d}")
        assert shard.replayed_records == 1
        shard.close()


@pytest.mark.parametrize("lose", [delete, empty, cut_in_the_header, delete_the_log])
def test_a_lost_open_segment_is_named_and_nothing_is_served(
    killed: Killed, lose: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = killed.copy()
    path = open_segment(data_dir / "shard-0001")
    lose(path)
    for _ in range(2):  # a refused start must not make the loss look sound
        with pytest.raises(CorruptionError, match=f"{path.name}: the push log's open segment when"):
            Shard.open(killed.config(data_dir), 1, data_dir / "shard-0001")
        assert psctl.main(["verify", "--json", str(data_dir)]) == 74
        assert f"{path.name}: the push log's open segment when" in capsys.readouterr().out


def test_the_process_ends_with_the_exit_code_of_damage(killed: Killed) -> None:
    keys = {
        **killed.keys,
        "data_dir": str(killed.copy()),
    }
    path = open_segment(Path(keys["data_dir"]) / "shard-0000")
    path.unlink()
    keys["shards"] = ["127.0.0.1:0", "127.0.0.1:1"]  # 1: of a shard that is not there
    with ServerProcess("serve", keys, "--shard", "0") as server:
        assert server.finish() == 74
        assert path.name in server.text()


def test_logs_of_two_shards_that_were_exchanged_are_refused(
    killed: Killed, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = killed.copy()
    one, two = data_dir / "shard-0000", data_dir / "shard-0001"
    (one / "log").rename(data_dir / "log")
    (two / "log").rename(one / "log")
    (data_dir / "log").rename(two / "log")
    before = {path: path.read_bytes() for path in list_segments(one / "log")}
    with pytest.raises(
        CorruptionError, match=r"is of the push log of shard 1 of cluster .*; this is shard 0 of"
    ):
        Shard.open(killed.config(data_dir), 0, one)
    assert {path: path.read_bytes() for path in list_segments(one / "log")} == before
    assert psctl.main(["verify", "--json", str(data_dir)]) == 74
    assert "is of the push log of shard 1 of cluster" in capsys.readouterr().out


def test_a_log_or_a_store_of_another_cluster_is_refused(killed: Killed, tmp_path: Path) -> None:
    config = load_config({**killed.keys, "data_dir": str(tmp_path / "data")})
    for index in range(2):
        Shard.open(config, index, tmp_path / "data" / f"shard-{index:04d}").close()
    data_dir = killed.copy()
    shutil.rmtree(data_dir / "shard-0000" / "log")
    shutil.copytree(tmp_path / "data" / "shard-0000" / "log", data_dir / "shard-0000" / "log")
    with pytest.raises(CorruptionError, match="is of the push log of shard 0 of cluster"):
        Shard.open(killed.config(data_dir), 0, data_dir / "shard-0000")
    shutil.rmtree(data_dir / "shard-0001")
    shutil.copytree(tmp_path / "data" / "shard-0001", data_dir / "shard-0001")
    with pytest.raises(ConfigError, match="this shard's data belongs to cluster"):
        Shard.open(killed.config(data_dir), 1, data_dir / "shard-0001")


def test_a_clean_stop_needs_no_log(tmp_path: Path) -> None:
    driver = Driver(shard_config(tmp_path, [TABLE]), tmp_path / "shard-0000")
    driver.push({"user": (IDS, np.ones((200, 4), np.float32))})
    rows = driver.pull("user", IDS)
    driver.shard.close()
    shutil.rmtree(driver.directory / "log")
    driver.shard = driver._open()
    np.testing.assert_array_equal(driver.pull("user", IDS), rows)
    driver.shard.close()


@pytest.mark.parametrize("point", ["after rotate", "mid segment", "mid spare", "mid checkpoint", "mid start"])
def test_a_kill_around_the_note_loses_nothing_and_is_no_damage(tmp_path: Path, point: str) -> None:
    """At every step of a segment's opening, and of the note of it, the next start finds the log."""
    driver = Driver(shard_config(tmp_path, [TABLE]), tmp_path / "s")
    copies: list[tuple[Path, int]] = []

    def copied(name: str) -> None:
        if name == point:
            copies.append((tmp_path / f"copy{len(copies)}", driver.shard._applied_lsn))
            snapshot(tmp_path / "s", copies[-1][0])

    driver.failpoint = copied
    for _ in range(2):
        for _ in range(3):
            driver.push({"user": (IDS, np.ones((200, 4), np.float32))})
            driver.shard.checkpoint()
        driver.reopen()
    driver.shard.close()
    assert len(copies) >= 2
    first = np.float32(0.5)
    for copy, lsn in copies:
        again = Driver(driver.config, copy)
        initial = again.shard._tables["user"].initial_rows(IDS)
        np.testing.assert_allclose(again.pull("user", IDS), initial - lsn * first, rtol=1e-5, atol=1e-5)
        again.shard.close()


def test_a_life_without_a_log_keeps_that_of_the_life_before(tmp_path: Path) -> None:
    """Killed under `os`, started under `none` and killed again: the first life's pushes are still needed."""
    driver = Driver(shard_config(tmp_path, [TABLE]), tmp_path / "s")
    driver.push({"user": (IDS, np.ones((200, 4), np.float32))})
    rows = driver.pull("user", IDS)
    without = shard_config(tmp_path, [TABLE], durability="none")
    driver.config = without
    driver.crash(tmp_path / "one")
    driver.crash(tmp_path / "two")
    np.testing.assert_array_equal(driver.pull("user", IDS), rows)
    snapshot(driver.directory, tmp_path / "three")
    shutil.rmtree(tmp_path / "three" / "log")
    with pytest.raises(CorruptionError, match="open segment when the shard was killed is missing"):
        Driver(without, tmp_path / "three")
    driver.shard.checkpoint()
    driver.crash(tmp_path / "four")
    assert not list_segments(tmp_path / "four" / "log")
    np.testing.assert_array_equal(driver.pull("user", IDS), rows)
    driver.shard.close()


@pytest.mark.parametrize("change", ["push", "evict"])
def test_a_table_with_logged_changes_cannot_leave_the_config(tmp_path: Path, change: str) -> None:
    """A checkpoint would drop what the log has of it, and it would come back without."""
    other = {**OTHER, "eviction": [{"kind": "ttl", "ttl_s": 1}]}
    both, one = shard_config(tmp_path, [TABLE, other]), shard_config(tmp_path, [TABLE])
    driver = Driver(both, tmp_path / "s")
    driver.push({"item": (IDS, np.ones((200, 4), np.float32))})
    if change == "evict":
        driver.shard.checkpoint()
        driver.now_s += 10
        assert driver.evict("item") == 200
    rows = driver.pull("item", IDS)
    snapshot(driver.directory, tmp_path / "copy")
    driver.abandon()
    with pytest.raises(ConfigError, match="table 'item' is not in the config, but the push log has changes"):
        Driver(one, tmp_path / "copy")
    again = Driver(both, tmp_path / "copy")
    np.testing.assert_array_equal(again.pull("item", IDS), rows)
    again.shard.close()
    for config in (one, both):
        again = Driver(config, tmp_path / "copy")
        again.reopen()
        again.shard.close()
    again = Driver(both, tmp_path / "copy")
    np.testing.assert_array_equal(again.pull("item", IDS), rows)
    again.shard.close()


def test_the_supervisor_leaves_shards_that_were_killed_as_they_are(killed: Killed) -> None:
    """Nobody's SIGTERM, and a start again: every row is there (the sound side of the tests above)."""
    keys = {**killed.keys, "data_dir": str(killed.copy())}
    with ServerProcess("up", keys) as server, connect(server.endpoints()) as client:
        np.testing.assert_array_equal(client.pull("user", IDS), killed.rows)
        client.close()
        assert server.stop(signal.SIGTERM) == 0
