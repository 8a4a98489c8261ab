# SPDX-License-Identifier: Apache-2.0
"""psctl verify: what a sound shard reports, and that each kind of damage is found, named and walked past."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rowhouse.error import DirectoryInUseError, StoreError
from rowhouse.mix import mix64

from ps_server import psctl
from ps_server.disk import checkpoint
from ps_server.disk.checkpoint import Life
from ps_server.disk.directory import open_store, read_descriptor
from ps_server.disk.row import put_lsn
from ps_server.disk.segment import list_segments
from ps_server.disk.verify import Report, verify_directory
from tests.stopped import fill, flip, largest_file, make_config, open_shard, push, stopped, write_values

ROWS = 6000
RESERVED = 1 + checkpoint.LSN_RESERVE  # at the first open
KEYS = np.sort(mix64(np.arange(ROWS, dtype=np.uint64)))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return stopped(tmp_path, ROWS)


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A copy taken while the shard ran: what a kill -9 leaves. Its log has two segments of two records."""
    shard = open_shard(make_config(tmp_path / "live"))
    fill(shard)
    assert shard._log is not None
    shard._log.rotate()
    shard._note_open_segment(shard._log.open_lsn)
    push(shard, 5, "user", np.arange(10, dtype=np.uint64))
    shutil.copytree(shard.directory, tmp_path / "crashed")
    shard.close()
    return tmp_path / "crashed"


def parts(report: Report) -> list[tuple[str, str | None]]:
    return [(damage.part, damage.table) for damage in report.damage]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_sound_shard_is_read_whole_and_not_changed(directory: Path) -> None:
    before = contents(directory)
    report = verify_directory(directory)
    assert report.damage == [] and report.clean and report.checkpoint_lsn == 4
    assert [(t.name, t.rows) for t in report.tables] == [("item", ROWS), ("user", ROWS)]
    assert all(table.disk_bytes > 0 for table in report.tables)
    assert contents(directory) == before


def test_a_crashed_shard_is_sound_and_its_log_is_read(crashed: Path) -> None:
    report = verify_directory(crashed)
    assert report.damage == [] and not report.clean
    assert (report.log_segments, report.log_records, report.torn_bytes) == (2, 5, 0)


def test_a_running_shard_is_left_alone(tmp_path: Path) -> None:
    shard = open_shard(make_config(tmp_path))
    with pytest.raises(DirectoryInUseError, match="a shard of this process runs there"):
        verify_directory(shard.directory)
    shard.close()
    verify_directory(shard.directory)


def test_two_damaged_blocks_are_two_key_ranges_and_the_rest_is_read(directory: Path) -> None:
    file = largest_file(directory)
    size = file.stat().st_size
    flip(file, size // 4)
    flip(file, size // 2)
    report = verify_directory(directory)
    assert parts(report) == [("rows", "user")] * 2
    lost = np.zeros(ROWS, np.bool_)
    for damage in report.damage:
        assert "checksum mismatch" in damage.what and damage.rows is None
        assert damage.first_key is not None and damage.last_key is not None
        places = np.searchsorted(KEYS, np.array([damage.first_key, damage.last_key], np.uint64))
        inside = (np.arange(ROWS) >= places[0]) & (np.arange(ROWS) < places[1])
        assert 10 < inside.sum() < ROWS / 10
        lost |= inside
    assert [t.rows for t in report.tables] == [ROWS, ROWS - lost.sum()]


@pytest.mark.parametrize("cut", [10, 20_000, None])
def test_a_file_cut_short_or_gone_costs_one_table(directory: Path, cut: int | None) -> None:
    file = largest_file(directory)
    if cut is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-cut])
    report = verify_directory(directory)
    assert parts(report) == [("store", None), ("rows", "user")]
    assert file.name in report.damage[0].what
    assert [t.rows for t in report.tables] == [ROWS, 0]
    assert report.damage[1].first_key == 0 and report.damage[1].partitions == (0, 4095)


def _value(directory: Path, table: str) -> NDArray[np.uint8]:
    """A value of zeros at LSN 1."""
    layout = read_descriptor(directory).layouts[table]
    values = np.zeros((1, layout.value_bytes), np.uint8)
    put_lsn(values, 1)
    return values


def test_a_wrong_length_is_one_row(directory: Path) -> None:
    value = _value(directory, "user")
    write_values(directory, "row.user", KEYS[100:101], np.concatenate([value, value], axis=1))
    report = verify_directory(directory)
    assert parts(report) == [("rows", "user")]
    (damage,) = report.damage
    assert f"{int(KEYS[100]):#018x} has {2 * value.shape[1]} bytes" in damage.what
    assert damage.first_key == int(KEYS[99]) + 1 and damage.last_key == int(KEYS[100])
    assert report.tables[1].rows == ROWS - 1


def test_values_that_no_push_can_have_written(directory: Path) -> None:
    """LSNs above what was reserved are damage by key range; what a diverged training left is counted."""
    weight, state, late = (_value(directory, "user") for _ in range(3))
    weight[0, 4:8] = np.array([np.nan], "<f4").view(np.uint8)
    state[0, 16:20] = np.array([np.inf], "<f4").view(np.uint8)
    put_lsn(late, 2**40)
    half = _value(directory, "item")
    half[0, :2] = np.array([np.inf], "<f2").view(np.uint8)
    for place, value in enumerate((weight, state, late, late)):
        write_values(directory, "row.user", KEYS[place : place + 1], value)
    write_values(directory, "row.item", KEYS[7:9], np.concatenate([half, half]))
    report = verify_directory(directory)
    assert {table.name: table.not_finite for table in report.tables} == {"item": 2, "user": 2}
    found = {(d.table, d.part, d.what.split(",")[0]): d for d in report.damage}
    assert {key: damage.rows for key, damage in found.items()} == {
        ("user", "rows", f"LSN above {RESERVED}"): 2,
    }
    rows = found["user", "rows", f"LSN above {RESERVED}"]
    assert (rows.first_key, rows.last_key) == (int(KEYS[2]), int(KEYS[3]))


def test_a_row_of_another_shard(tmp_path: Path) -> None:
    config = make_config(tmp_path, shards=2)
    for index in (0, 1):
        shard = open_shard(config, index)
        fill(shard, 100)
        shard.close()
    assert verify_directory(shard.directory).damage == []
    write_values(shard.directory, "row.item", np.array([5], np.uint64), _value(shard.directory, "item"))
    (damage,) = [d for d in verify_directory(shard.directory).damage if d.part == "rows"]
    assert (damage.table, damage.what, damage.rows) == ("item", "belongs to another shard", 1)
    assert damage.partitions == (0, 0)


def test_a_row_too_many_for_the_count(directory: Path) -> None:
    write_values(directory, "row.user", np.array([5], np.uint64), _value(directory, "user"), counted=False)
    (damage,) = verify_directory(directory).damage
    assert damage.what == f"{ROWS + 1} rows are here; the store counted {ROWS}"


@pytest.mark.parametrize(
    ("key", "part"),
    [("life", "life"), ("checkpoint", "checkpoint"), ("admission.user", "admission"), ("shard", "store")],
)
def test_damaged_records_of_the_shard(directory: Path, key: str, part: str) -> None:
    store = open_store(directory, {}, read_only=False)
    store.put_meta({key: b"12345678{}"})
    store.close()
    report = verify_directory(directory)
    assert [damage.part for damage in report.damage] == [part]
    assert "checksum" in report.damage[0].what
    assert [t.rows for t in report.tables] == ([] if key == "shard" else [ROWS, ROWS])


# ---------------------------------------------------------------- the log
def test_a_torn_end_is_no_damage(crashed: Path) -> None:
    last = list_segments(crashed / "log")[-1]
    data = last.read_bytes().rstrip(b"\0")
    last.write_bytes(data[:-20])
    report = verify_directory(crashed)
    assert report.damage == [] and report.log_records == 4 and report.torn_bytes > 0


def test_a_flipped_byte_in_a_segment_does_not_hide_the_next(crashed: Path) -> None:
    first = list_segments(crashed / "log")[0]
    flip(first, first.stat().st_size // 2)
    report = verify_directory(crashed)
    assert parts(report) == [("log", None)]
    assert first.name in report.damage[0].what and "checksum" in report.damage[0].what
    assert 1 <= report.log_records < 5


def test_a_missing_segment(crashed: Path) -> None:
    list_segments(crashed / "log")[0].unlink()
    report = verify_directory(crashed)
    assert parts(report) == [("log", None)]
    assert "follows LSN 4; the records between are missing" in report.damage[0].what


def test_the_open_segment_is_missing(crashed: Path) -> None:
    list_segments(crashed / "log")[-1].unlink()
    report = verify_directory(crashed)
    assert parts(report) == [("log", None)]
    assert "the push log's open segment when the shard was killed is missing" in report.damage[0].what


def test_what_a_power_cut_took_under_os_is_no_damage(
    crashed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next start cuts the log there, and says so; verify says the same."""
    store = open_store(crashed, {}, read_only=False)
    life = checkpoint.read_life(store)
    checkpoint.write_life(store, replace(life, boot_id="another"))
    store.close()
    last = list_segments(crashed / "log")[-1]
    last.write_bytes(b"lost" * 50)
    assert psctl.main(["verify", str(crashed)]) == 0
    assert "the machine went down under os; the next start cuts the log there" in capsys.readouterr().out
    last.unlink()
    report = verify_directory(crashed)
    assert report.damage == [] and report.lost_log == []


# ---------------------------------------------------------------- psctl
def test_psctl_says_what_it_found_and_returns_it(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert psctl.main(["verify", str(directory)]) == 0
    assert "no damage" in capsys.readouterr().out
    flip(largest_file(directory), largest_file(directory).stat().st_size // 2)
    assert psctl.main(["verify", str(directory.parent)]) == 74  # a data_dir
    printed = capsys.readouterr().out
    assert "unreadable" in printed and "partitions 0x" in printed and "1 damaged things" in printed
    assert psctl.main(["verify", str(directory), "--json"]) == 74
    (facts,) = json.loads(capsys.readouterr().out)
    (damage,) = facts["damage"]
    assert damage["table"] == "user" and damage["first_key"].startswith("0x") and facts["clean"] is True
    assert int(damage["first_key"], 16) < int(damage["last_key"], 16)


def test_psctl_cannot_open_what_is_not_a_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert psctl.main(["verify", str(tmp_path)]) == 74
    assert "no shard's directory" in capsys.readouterr().err
    shard = open_shard(make_config(tmp_path))
    assert psctl.main(["verify", str(tmp_path)]) == 74
    assert "DirectoryInUseError" in capsys.readouterr().err
    shard.close()


def test_a_store_without_a_shard_is_no_shard(tmp_path: Path) -> None:
    store = open_store(tmp_path, {}, read_only=False)
    checkpoint.write_life(store, Life())
    store.close()
    with pytest.raises(StoreError, match="no shard in it"):
        verify_directory(tmp_path)
