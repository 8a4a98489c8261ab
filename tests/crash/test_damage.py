# SPDX-License-Identifier: Apache-2.0
"""A flipped byte or a cut file is named, or does no harm; a wrong value is never served."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rowhouse.error import CorruptionError, StoreError

from ps_server.disk.segment import list_segments
from tests.driver import Driver, shard_config, snapshot
from tests.workload import MEMORY

TABLES: list[dict[str, Any]] = [
    {"name": "wide", "dim": 16, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}},
    {"name": "half", "dim": 8, "dtype": "fp16", "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
]
IDS = np.random.default_rng(4).integers(0, 2**64, 2_000, np.uint64)
PUSHES = 9

Rows = dict[str, NDArray[Any]]


class Sound:
    """Undamaged directories, and what they must serve."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.copies = folder, 0
        self.config = shard_config(folder, TABLES)
        driver, rng = Driver(self.config, folder / "live"), np.random.default_rng(5)
        self.after: list[Rows] = [rows_of(driver)]  # by number of pushes
        for number in range(PUSHES):
            ids = rng.choice(IDS, 600)
            parts = {
                t["name"]: (ids, rng.standard_normal((600, t["dim"])).astype(np.float32)) for t in TABLES
            }
            driver.push(parts)
            if number % 3 == 2:
                driver.shard._log.rotate()  # type: ignore[union-attr]
            self.after.append(rows_of(driver))
        driver.push({})  # the last segment has a record too
        snapshot(driver.directory, folder / "killed")
        driver.shard.close()
        (folder / "live").rename(folder / "closed")

    def copy(self, name: str) -> Path:
        """A fresh copy to damage."""
        self.copies += 1
        copy = self.folder / f"copy-{self.copies}"
        shutil.copytree(self.folder / name, copy)
        return copy

    def serve(self, directory: Path) -> Rows:
        """Open, and pull everything."""
        driver = Driver(self.config, directory)
        try:
            return rows_of(driver)
        finally:
            driver.abandon()
            shutil.rmtree(directory)


def rows_of(driver: Driver) -> Rows:
    return {t["name"]: driver.pull(t["name"], IDS, read_only=True) for t in TABLES}


@pytest.fixture(scope="module")
def sound() -> Iterator[Sound]:
    folder = Path(tempfile.mkdtemp(prefix="damage", dir=MEMORY if MEMORY.is_dir() else None))
    yield Sound(folder)
    shutil.rmtree(folder)


def flip(path: Path, at: int, mask: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


def served_right_or_named(sound: Sound, directory: Path, names: list[str]) -> str:
    """Empty when what is served is right; else the error, which must name one of `names`."""
    try:
        found = sound.serve(directory)
    except CorruptionError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert any(name in message for name in names), message
        return message
    for name, rows in sound.after[-1].items():
        np.testing.assert_array_equal(found[name], rows, err_msg=f"wrong values of {name} were served")
    return ""


def test_the_undamaged_directories_serve_the_same(sound: Sound) -> None:
    assert served_right_or_named(sound, sound.copy("closed"), []) == ""
    assert served_right_or_named(sound, sound.copy("killed"), []) == ""
    assert len(list_segments(sound.folder / "killed" / "log")) == 4


def test_flipped_bytes_of_log_segments(sound: Sound) -> None:
    rng, named = np.random.default_rng(6), 0
    segments = [p.name for p in list_segments(sound.folder / "killed" / "log")]
    for number in range(40):
        directory = sound.copy("killed")
        path = directory / "log" / segments[number % len(segments)]
        used = len(path.read_bytes().rstrip(b"\0"))
        flip(path, int(rng.integers(0, used)), 1 << int(rng.integers(0, 8)))
        named += path.name in served_right_or_named(sound, directory, [path.name])
    assert named == 40, "every byte of a record is covered by a checksum"


def test_flipped_bytes_of_sst_files(sound: Sound) -> None:
    rng, named = np.random.default_rng(7), 0
    files = sorted(p.name for p in (sound.folder / "closed" / "store").glob("*.sst"))
    assert len(files) >= 2
    for number in range(60):
        directory = sound.copy("closed")
        path = directory / "store" / files[number % len(files)]
        flip(path, int(rng.integers(0, path.stat().st_size)), 1 << int(rng.integers(0, 8)))
        # for a file's own properties RocksDB names the store only; psctl verify tells which file
        names = ["row.wide", "row.half", path.name, f"opening {directory / 'store'}"]
        named += bool(served_right_or_named(sound, directory, names))
    assert named >= 30, "most bytes of these files are rows"


def test_cut_sst_files(sound: Sound) -> None:
    rng = np.random.default_rng(8)
    for name in sorted(p.name for p in (sound.folder / "closed" / "store").glob("*.sst")):
        for keep in (0, 0.5, 1):
            directory = sound.copy("closed")
            path = directory / "store" / name
            data = path.read_bytes()
            path.write_bytes(data[: min(int(len(data) * keep * rng.random()), len(data) - 1)])
            assert served_right_or_named(sound, directory, [name, "row.wide", "row.half"])


def test_missing_sst_files(sound: Sound) -> None:
    for name in sorted(p.name for p in (sound.folder / "closed" / "store").glob("*.sst")):
        directory = sound.copy("closed")
        (directory / "store" / name).unlink()
        assert served_right_or_named(sound, directory, [name])


def test_a_cut_segment_is_named_unless_it_is_the_last(sound: Sound) -> None:
    for number in (0, 1, 2):
        for fraction in (0.0, 0.3, 0.999):
            directory = sound.copy("killed")
            path = list_segments(directory / "log")[number]
            data = path.read_bytes()
            path.write_bytes(data[: int(len(data) * fraction)])
            assert served_right_or_named(sound, directory, [p.name for p in path.parent.iterdir()])


def test_a_missing_segment_is_named_unless_it_is_the_last(sound: Sound) -> None:
    for number in (0, 1, 2):
        directory = sound.copy("killed")
        list_segments(directory / "log")[number].unlink()
        assert "missing" in served_right_or_named(sound, directory, [".log"])


def test_a_cut_last_segment_serves_what_a_torn_write_leaves(sound: Sound) -> None:
    """Nothing tells it from a record that a kill cut off: it is the state before that record."""
    for fraction in (0.2, 0.6, 0.95):
        directory = sound.copy("killed")
        last = list_segments(directory / "log")[-1]
        last.unlink()
        path = list_segments(directory / "log")[-1]
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * fraction)])
        found = sound.serve(directory)
        states = [i for i, rows in enumerate(sound.after) if all((rows[n] == found[n]).all() for n in rows)]
        assert states == [6 + int(fraction * 3)]


@pytest.mark.parametrize("name", ["CURRENT", "MANIFEST", "OPTIONS", "IDENTITY"])
def test_damage_to_the_stores_own_files_is_an_error_or_harmless(sound: Sound, name: str) -> None:
    rng = np.random.default_rng(9)
    for number in range(8):
        directory = sound.copy("closed")
        path = sorted((directory / "store").glob(f"{name}*"))[-1]
        data = path.read_bytes()
        if number == 0:
            path.write_bytes(data[: len(data) // 2])
        else:
            flip(path, int(rng.integers(0, len(data))), 1 << int(rng.integers(0, 8)))
        try:
            found = sound.serve(directory)
        except StoreError:
            continue
        assert all((found[t] == rows).all() for t, rows in sound.after[-1].items())
