# SPDX-License-Identifier: Apache-2.0
"""The note of a data_dir, `cluster.json`: what the shards in it belong to.

    {"shard_count": 2, "map_version": 1234, "cluster_id": "0f…", "made": [0, 1]}

`cluster_id` is 128 random bits in hex. Whoever claims the data_dir first makes it, and it stays for the life
of the data. `made` has the shards that have a store here: where such a folder is gone, its rows are. A note
of an earlier version has neither, and gets both at the next start.

Thread safety: any number of processes may claim one data_dir at once; a lock file lets one of them write.
"""

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rowhouse.error import ConfigError, CorruptionError, StoreError
from rowhouse.file import remove_left_over, write_synced
from rowhouse.limit import CLUSTER_ID_PATTERN
from rowhouse.placement import PartitionMap

NOTE_NAME: Final = "cluster.json"
LOCK_NAME: Final = "cluster.lock"


@dataclass(frozen=True, kw_only=True)
class Note:
    """What `cluster.json` says; `made` None and `cluster_id` empty: it is of an earlier version."""

    shard_count: int
    map_version: int
    cluster_id: str = ""
    made: tuple[int, ...] | None = None


def is_made(directory: Path) -> bool:
    """Whether a shard was ever opened in `directory`."""
    return (directory / "store" / "CURRENT").exists()


def has_cluster_id(data_dir: Path) -> bool:
    """Whether the data in `data_dir` belongs to a cluster already; errors as `claim_data_dir`."""
    note = _read(data_dir)
    return note is not None and bool(note.cluster_id)


def claim_data_dir(data_dir: Path, shard_count: int, cluster_id: str | None = None) -> str:
    """Note whose data is in `data_dir`, or compare with the note.

    Parameters
    ----------
    data_dir
        The folder; made when it is not there.
    shard_count
        The number of shards that the data is split over.
    cluster_id
        The cluster's id as its config gives it; None: that of the note, or a new one.

    Returns
    -------
    str
        The cluster's id.

    Raises
    ------
    ConfigError
        The data was made with another number of shards (a shard more would own ids whose rows lie
        elsewhere), or belongs to another cluster. Nothing was made or changed then.
    CorruptionError, StoreError
        The note is damaged; it cannot be read or written.
    """
    note = _read(data_dir)
    with suppress(OSError):
        remove_left_over(data_dir / NOTE_NAME)
    if note is None or not note.cluster_id or note.made is None:
        with _locked(data_dir):
            note = _claimed(data_dir, shard_count, cluster_id)
    if (note.shard_count, note.map_version) != (shard_count, PartitionMap.even(shard_count).version):
        raise ConfigError(
            f"shards is {shard_count}; the data in {str(data_dir)!r} is split over "
            f"{note.shard_count}: psctl export and load move it to another number"
        )
    if cluster_id is not None and cluster_id != note.cluster_id:
        raise ConfigError(
            f"cluster_id is {cluster_id!r}; the data in {str(data_dir)!r} belongs to cluster "
            f"{note.cluster_id!r}"
        )
    return note.cluster_id


def _claimed(data_dir: Path, shard_count: int, cluster_id: str | None) -> Note:
    """The note, with an id, and written if it was not; the caller holds the lock."""
    known = _read(data_dir)
    note = known or Note(shard_count=shard_count, map_version=PartitionMap.even(shard_count).version, made=())
    if note.shard_count == shard_count and not note.cluster_id:
        note = replace(note, cluster_id=cluster_id or secrets.token_hex(16))
    if note.shard_count == shard_count and note.made is None:
        # where one shard is here, an earlier version took all of them to have been here
        any_made = any(is_made(_shard(data_dir, index)) for index in range(shard_count))
        note = replace(note, made=tuple(range(shard_count)) if any_made else ())
    if note != known:
        _write(data_dir, note)
    return note


def check_shard_is_here(data_dir: Path, index: int) -> None:
    """StoreError when the note says that shard `index` had a store here, and it is gone: a new one would
    serve initial rows in the place of what was trained."""
    note = _read(data_dir)
    name = _shard(data_dir, index).name
    if note and note.made and index in note.made and not is_made(_shard(data_dir, index)):
        raise StoreError(
            f"{data_dir}: {name} is missing or empty, and {NOTE_NAME} says that it had data. Put the folder "
            f"back. To start this shard anew with initial rows, remove what is left of the folder, and take "
            f"{index} out of the list 'made' in {data_dir / NOTE_NAME}"
        )


def note_made(data_dir: Path, index: int) -> None:
    """Note that shard `index` has a store in `data_dir`, which was claimed before."""
    note = _read(data_dir)
    if note is None or index in (note.made or ()):
        return
    with _locked(data_dir):
        note = _read(data_dir) or note
        _write(data_dir, replace(note, made=tuple(sorted({*(note.made or ()), index}))))


def missing_shards(data_dir: Path) -> list[str]:
    """Names of the shards that had a store in `data_dir` by its note, and have none now."""
    note = _read(data_dir)
    if note is None:
        return []
    made = range(note.shard_count) if note.made is None else note.made
    missing = [_shard(data_dir, index).name for index in made if not is_made(_shard(data_dir, index))]
    return missing if note.made is not None or len(missing) < note.shard_count else []


def _shard(data_dir: Path, index: int) -> Path:
    return data_dir / f"shard-{index:04d}"


def _read(data_dir: Path) -> Note | None:
    """The note, None where there is none; StoreError when it cannot be read, CorruptionError when it is
    none."""
    path = data_dir / NOTE_NAME
    if not path.is_file():
        return None
    known: Any = None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{str(path)!r}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        pass
    if not _is_note(known):
        raise CorruptionError(
            f"{str(path)!r} is damaged: it must say the shard_count and map_version of the data"
        )
    made = known.get("made")
    return Note(
        shard_count=known["shard_count"], map_version=known["map_version"],
        cluster_id=known.get("cluster_id", ""), made=None if made is None else tuple(made),
    )  # fmt: skip


def _is_note(known: Any) -> bool:
    if not isinstance(known, dict):
        return False
    numbers = [known.get("shard_count"), known.get("map_version")]
    made, cluster_id = known.get("made", []), known.get("cluster_id")
    whole = isinstance(made, list) and all(isinstance(n, int) for n in [*numbers, *made])
    named = cluster_id is None or (
        isinstance(cluster_id, str) and re.fullmatch(CLUSTER_ID_PATTERN, cluster_id)
    )
    return whole and bool(named)


def _write(data_dir: Path, note: Note) -> None:
    write_synced(data_dir / NOTE_NAME, json.dumps(asdict(note)) + "\n")


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """One process at a time reads the note and writes it."""
    path = data_dir / LOCK_NAME
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        note = str(data_dir / NOTE_NAME)
        raise StoreError(f"{note!r} cannot be written: {error.strerror or error}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
