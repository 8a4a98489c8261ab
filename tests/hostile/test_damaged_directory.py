# SPDX-License-Identifier: Apache-2.0
"""Damage, and what a kill leaves: a start ends with the right exit code, and nothing is served for it."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse.error import CorruptionError, StoreError

from ps_server import psctl
from ps_server.disk.data_dir import NOTE_NAME
from ps_server.disk.framing import HEADER
from ps_server.disk.store import Store
from ps_server.shard.shard import Shard
from tests.conftest import MakeConfig
from tests.driver import Driver, shard_config, snapshot
from tests.process import READY_S, ServerProcess, wait_until
from tests.stopped import fill, open_shard, pull, stopped
from tests.stopped import make_config as stopped_config

TABLE: dict[str, Any] = {"name": "user", "dim": 4, "optimizer": {"kind": "sgd", "learning_rate": 0.5}}
IDS = np.arange(50, dtype=np.uint64)


# ------------------------------------------------------------ RocksDB's own logs
def manifest(store: Path) -> Path:
    return store / (store / "CURRENT").read_text().strip()


def with_type(path: Path, number: int, kind: int) -> None:
    """Give one record of a RocksDB log another type, as an exchange of two blocks may."""
    data, at = bytearray(path.read_bytes()), 0
    for _ in range(number):
        at += HEADER.size + HEADER.unpack_from(data, at)[1]
    data[at + HEADER.size - 1] = kind
    path.write_bytes(data)


def test_a_manifest_that_rocksdb_would_read_for_ever_is_named(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """RocksDB spins on such a record, with Python's lock: nothing but SIGKILL would end it. So: processes."""
    directory = stopped(tmp_path / "data", 10)
    with_type(manifest(directory / "store"), 3, 6)
    command = [sys.executable, "-m", "ps_server.psctl", "verify", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=READY_S, check=False)
    assert done.returncode == 74
    assert "MANIFEST-" in done.stdout + done.stderr
    with ServerProcess("serve", make_config(), "--shard", "0") as server:
        assert server.finish() == 74
        assert "MANIFEST-" in server.text()


@pytest.mark.parametrize("kind", [5, 6, 7, 8, 11])
def test_a_log_of_the_store_that_rocksdb_would_read_for_ever_is_named(tmp_path: Path, kind: int) -> None:
    """Each type whose record RocksDB would not come back from."""
    shard = open_shard(stopped_config(tmp_path / "data"))
    fill(shard, 10)
    snapshot(shard.directory, tmp_path / "copy" / "shard-0000")
    shard.close()
    logs = (tmp_path / "copy" / "shard-0000" / "store").glob("*.log")
    log = max(logs, key=lambda path: path.stat().st_size)
    with_type(log, 1, kind)
    with pytest.raises(CorruptionError, match=f"{log.name}: the record at byte"):
        open_shard(stopped_config(tmp_path / "copy"))


def test_two_exchanged_pieces_of_a_manifest_are_named_or_do_no_harm(tmp_path: Path) -> None:
    rng, config = np.random.default_rng(3), stopped_config(tmp_path / "data")
    shard = open_shard(config)
    ids = fill(shard, 500)
    expected = pull(shard, "user", ids)
    shard.close()
    path = manifest(shard.directory / "store")
    data = path.read_bytes()
    for number in range(40):
        size = int(rng.choice([7, 16, 64, 200]))
        one, other = sorted(int(n) for n in rng.choice(len(data) // size, 2, replace=False) * size)
        changed = bytearray(data)
        changed[one : one + size] = data[other : other + size]
        changed[other : other + size] = data[one : one + size]
        copy = shutil.copytree(shard.directory, tmp_path / f"copy{number}")
        (copy / "store" / path.name).write_bytes(changed)
        with suppress(StoreError):
            again = Shard.open(config, 0, copy)
            np.testing.assert_array_equal(pull(again, "user", ids), expected)
            again.close()


def test_sigterm_ends_a_start_that_is_stuck_in_rocksdb(make_config: MakeConfig, tmp_path: Path) -> None:
    """A pipe in the place of a file: RocksDB waits in its own code, where no handler of Python's runs."""
    directory = stopped(tmp_path / "data", 10)
    pipe = directory / "store" / "IDENTITY"
    pipe.unlink()
    os.mkfifo(pipe)
    tables = [{"name": "user", "dim": 4, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}}]
    with ServerProcess("serve", make_config(tables=tables), "--shard", "0") as server:
        writers: list[int] = []

        def is_waiting() -> bool:
            assert server.process.poll() is None, server.text()
            with suppress(OSError):  # nobody reads yet
                writers.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            return bool(writers)

        wait_until(is_waiting)
        assert server.stop(signal.SIGTERM) == -signal.SIGTERM
        os.close(writers[0])


# ------------------------------------------------------------ the end of a store
class Failing:
    """A part of the store that RocksDB cannot let go of."""

    def close(self) -> None:
        raise Exception("Corruption: block checksum mismatch in 000012.sst")


def test_damage_that_is_told_at_the_end_is_an_error_of_ours(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", {"row.t": 8}, cache_bytes=1 << 20, memtable_bytes=1 << 20)
    meta, store._meta = store._meta, Failing()  # type: ignore[assignment]
    with pytest.raises(CorruptionError, match="closing the store: Corruption: block checksum mismatch"):
        store.close()
    meta.close()
    Store(tmp_path / "store", {}, cache_bytes=1 << 20, memtable_bytes=1 << 20).close()  # it was let go of


def test_what_made_a_start_fail_is_told_not_what_failed_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = stopped(tmp_path / "data", 10)
    for segment in (directory / "log").glob("*.log"):
        segment.write_bytes(b"x" * 100)
    close = Store.close

    def failing(self: Store) -> None:
        close(self)
        raise StoreError("closing the store: no")

    monkeypatch.setattr(Store, "close", failing)
    with pytest.raises(CorruptionError, match="starts with b'xxxxxxxx'"):
        open_shard(stopped_config(tmp_path / "data"))


# ------------------------------------------------------------ folders that are gone, or left over
def test_a_shard_whose_folder_is_gone_does_not_serve_initial_rows(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    shutil.rmtree(stopped(tmp_path / "data", 10))
    with ServerProcess("serve", make_config(), "--shard", "0") as server:
        assert server.finish() == 74
        assert "shard-0000 is missing or empty, and cluster.json says that it had data" in server.text()
        assert "take 0 out of the list 'made'" in server.text()
    assert not (tmp_path / "data" / "shard-0000" / "store").exists()


def test_a_shard_whose_store_is_gone_starts_anew_once_the_note_allows_it(tmp_path: Path) -> None:
    config, directory = stopped_config(tmp_path / "data"), stopped(tmp_path / "data", 10)
    shutil.rmtree(directory / "store")
    with pytest.raises(StoreError, match="shard-0000 is missing or empty"):
        open_shard(config)
    shutil.rmtree(directory)
    note = tmp_path / "data" / NOTE_NAME
    note.write_text(note.read_text().replace('"made": [0]', '"made": []'))
    open_shard(config).close()
    assert '"made": [0]' in note.read_text()


def test_what_a_kill_left_of_a_save_a_drop_and_a_load_goes_at_the_next_start(tmp_path: Path) -> None:
    driver = Driver(shard_config(tmp_path, [TABLE]), tmp_path / "shard-0000")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in ("saved/.a.new/store", "saved/.b.old/store", "saved/kept/store", "load/tmp1"):
        (driver.directory / name).mkdir(parents=True)
    left = driver.directory / f"mark.json.{gone.pid}.new"
    left.write_text("half")
    driver.reopen()
    assert [p.name for p in (driver.directory / "saved").iterdir()] == ["kept"]
    assert not left.exists() and not (driver.directory / "load").exists()
    driver.shard.close()


# ------------------------------------------------------------ configs and clocks
def test_a_config_that_is_not_utf_8_is_a_wrong_config(tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_bytes(b'name: "caf\xe9"\n')
    arguments = [sys.executable, "-m", "ps_server.cli", "up", "--config", str(config)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=READY_S, check=False)
    assert done.returncode == 2, done.stderr
    assert "not UTF-8" in done.stderr


def test_an_alias_bomb_takes_no_memory(tmp_path: Path) -> None:
    """Ten aliases of ten aliases of …: refused after the values that a config may have."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    config = tmp_path / "cluster.yaml"
    config.write_text("\n".join(lines))
    program = (
        "import re, sys; from ps_server.config.cluster import load_config\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        "try: load_config(sys.argv[1])\n"
        "except Exception as error: print(error)\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(config)],
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=True,
    )
    told, grown_kib = done.stdout.splitlines()
    assert "more than 100000 values, aliases followed" in told
    assert int(grown_kib) < 150 << 10


@pytest.mark.parametrize("seconds", [-5.0, -1e12, 0.0, 2.0**40])
def test_a_clock_that_is_wrong_does_not_poison(tmp_path: Path, seconds: float) -> None:
    """Before 1970, at 1970, and far past 2106: rows and log take the nearest moment that they can hold."""
    table = {**TABLE, "eviction": [{"kind": "ttl", "ttl_s": 100}]}
    driver = Driver(shard_config(tmp_path, [table]), tmp_path / "s")
    driver.now_s = seconds
    driver.push({"user": (IDS, np.ones((50, 4), np.float32))})
    rows = driver.pull("user", IDS)
    assert driver.evict("user") == 0
    driver.crash(tmp_path / "copy")
    np.testing.assert_array_equal(driver.pull("user", IDS), rows)
    assert driver.shard.poison is None
    driver.shard.close()


def test_psctl_verify_ends_where_the_note_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(tmp_path / "data", 10)
    (tmp_path / "data" / NOTE_NAME).write_text("[]")
    assert psctl.main(["verify", str(tmp_path / "data")]) == 74
    assert "cluster.json' is damaged" in capsys.readouterr().err
