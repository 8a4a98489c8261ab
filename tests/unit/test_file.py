# SPDX-License-Identifier: Apache-2.0
"""Small files are whole or absent (rowhouse/file.py), and a damaged note of a data_dir is named."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rowhouse.error import ConfigError, CorruptionError, StoreError
from rowhouse.file import replacing, write_synced

from ps_server.disk.data_dir import claim_data_dir, missing_shards


def test_the_content_is_synced_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "note"
    calls: list[Path | str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def noted_replace(source: Any, target: Any) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_synced(path, "text\n")
    assert path.read_text() == "text\n" and list(tmp_path.iterdir()) == [path]
    content, *others = calls
    assert isinstance(content, Path) and content.parent == tmp_path and content != path
    assert others == ["rename", tmp_path]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_is_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "note"
    write_synced(path, "old")

    def refused(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, name, refused)
    with pytest.raises(StoreError, match="note' cannot be written: No space left on device"):
        write_synced(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_removed_and_what_others_write_now_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path = tmp_path / "note"
    for name in (f"note.{gone.pid}.new", f"note.{os.getpid()}.new", f"note2.{gone.pid}.new", "note.x.new"):
        (tmp_path / name).write_text("half")
    write_synced(path, "whole")
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"note", f"note.{os.getpid()}.new", f"note2.{gone.pid}.new", "note.x.new"} - {
        f"note.{threading.get_native_id()}.new"
    }


def test_an_error_of_the_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "note"
    write_synced(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_threads_that_write_one_file_leave_one_of_their_texts(tmp_path: Path) -> None:
    path, texts = tmp_path / "note", [str(number) * 1000 for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write_synced(path, texts[number % 4]), range(200)))
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cluster.json' cannot be written: "):
        claim_data_dir(tmp_path / "file" / "data", 1)


def test_the_note_of_a_data_dir_is_written_once_and_compared(tmp_path: Path) -> None:
    claim_data_dir(tmp_path / "data", 2)
    claim_data_dir(tmp_path / "data", 2)
    with pytest.raises(ConfigError, match=r"shards is 3; the data in .* is split over 2"):
        claim_data_dir(tmp_path / "data", 3)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "7", "{", '{"map_version": 1}', '{"shard_count": "2"}', "\xff"]
)
def test_a_damaged_note_is_named_and_nothing_is_changed(text: str, tmp_path: Path) -> None:
    note = tmp_path / "cluster.json"
    note.write_bytes(text.encode("latin-1"))
    for reader in (lambda: claim_data_dir(tmp_path, 2), lambda: missing_shards(tmp_path)):
        with pytest.raises(CorruptionError, match=r"cluster.json' is damaged: it must say the shard_count"):
            reader()
    assert note.read_bytes() == text.encode("latin-1")
