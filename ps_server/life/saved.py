# SPDX-License-Identifier: Apache-2.0
"""Named copies of a shard's tables, and their way back.

    <shard>/saved/<name>/store      a store as of one LSN; its SST files are hard links
    <shard>/saved/<name>/mark.json  which save that is: checksum, then name, token and LSN in JSON
    <shard>/mark.json               this shard's saves, newest first; a restore goes back to those of then
    <shard>/restore.json            a restore is under way: nobody may open the shard

A copy is what a checkpoint leaves when nobody pushes meanwhile; if somebody does, it is made again, and then
refused. The copy becomes visible by one rename.

Invariants: 1. a copy under its name is whole and of one LSN; 2. a shard whose LSN is that of a save in its
mark holds what was saved then; 3. a restore that was interrupted leaves either the old tables, or a shard
that refuses to open until the restore is run again. Thread safety: as the shard's.
"""

import json
import os
import re
import shutil
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import xxhash
from rowhouse.error import CorruptionError, InvalidRequestError, PreconditionError, StoreError
from rowhouse.file import sync_directory, sync_file, write_synced
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.disk import checkpoint
from ps_server.disk.directory import held, open_store
from ps_server.disk.store import Store

FOLDER: Final = "saved"
MARK: Final = "mark.json"
RESTORING: Final = "restore.json"

SAVES_KEPT: Final = 16
"""Saves that a mark remembers: more than anybody makes at one LSN."""

ATTEMPTS: Final = 3
"""Copies tried while somebody pushes (an eviction policy may have run in between); then it is refused."""

Save = dict[str, Any]
"""name, token and lsn of one save."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"name of saved tables is {name!r}; it must have 1 to 64 letters, digits, dots, dashes or "
            "underscores, and not begin with a dot"
        )


class SavedShard(Protocol):
    """What saved tables need of their shard."""

    index: int
    directory: Path
    store: Store

    def checkpoint(self) -> tuple[int, int]:
        """Write every dirty row to the store; (LSN, rows written)."""

    def upkeep(self, *, writing: bool = False) -> AbstractContextManager[None]:
        """One upkeep of the shard at a time."""

    def settled_lsn(self) -> int:
        """The LSN up to which everything is applied, once no push is under way."""


class SavedTables:
    """The saved copies of one shard's tables.

    Parameters
    ----------
    shard
        Whose tables they are.
    """

    def __init__(self, shard: SavedShard) -> None:
        self._shard = shard
        self._turn = threading.Lock()  # so that a drop waits for a save that its client gave up

    def save(self, request: pb.SaveTablesRequest) -> pb.SavedTables:
        """Keep a copy of every table as it is now.

        Raises InvalidRequestError for a wrong name; PreconditionError when the name is taken, or somebody
        pushes meanwhile; StoreError.
        """
        _check_name(request.name)
        with self._turn:
            return self._save(request)

    def _save(self, request: pb.SaveTablesRequest) -> pb.SavedTables:
        final = self._shard.directory / FOLDER / request.name
        if final.exists():
            newest = _read_mark(final / MARK)[0]
            if (newest["token"], newest["lsn"]) == (request.token, self._shard.settled_lsn()):
                return self._saved(newest)  # the answer of an earlier try was lost
            raise PreconditionError(
                f"shard {self._shard.index}: {request.name!r} is saved already; drop it or take another name"
            )
        for _ in range(ATTEMPTS):
            lsn, _ = self._shard.checkpoint()
            with self._shard.upkeep(writing=True):
                save = {"name": request.name, "token": request.token, "lsn": lsn}
                saves = [save, *self._saves()][:SAVES_KEPT]
                fresh = final.with_name(f".{request.name}.new")
                _remove(fresh)
                fresh.mkdir(parents=True)
                self._shard.store.link_to(fresh / "store")
                _end_life(fresh)
                write_synced(fresh / MARK, _sealed(saves))
                if self._shard.settled_lsn() == lsn:  # a push under way counts as one that came meanwhile
                    write_synced(self._shard.directory / MARK, _sealed(saves))
                    os.rename(fresh, final)
                    sync_directory(final.parent)
                    return self._saved(save)
                _remove(fresh)
        raise PreconditionError(
            f"shard {self._shard.index}: pushes came while its tables were saved (LSN {lsn}, now "
            f"{self._shard.settled_lsn()}); save when no trainer pushes"
        )

    def get(self, request: pb.GetSavedTablesRequest) -> pb.SavedTables:
        """The save asked about, or else the newest; all zero when there is none."""
        saves = self._saves() or [{"name": "", "token": 0, "lsn": 0}]
        return self._saved(next((save for save in saves if save["token"] == request.token), saves[0]))

    def _saves(self) -> list[Save]:
        path = self._shard.directory / MARK
        return _read_mark(path) if path.exists() else []

    def drop(self, request: pb.DropSavedTablesRequest) -> pb.DropSavedTablesResponse:
        """Forget a copy; with a token only if it is that save's."""
        _check_name(request.name)
        final = self._shard.directory / FOLDER / request.name
        with self._turn, self._shard.upkeep():
            if not final.exists() or (
                request.token and _read_mark(final / MARK)[0]["token"] != request.token
            ):
                return pb.DropSavedTablesResponse()
            gone = final.with_name(f".{request.name}.old")
            _remove(gone)
            os.rename(final, gone)
            sync_directory(final.parent)
            _remove(gone)
        return pb.DropSavedTablesResponse(dropped=True)

    def _saved(self, save: Save) -> pb.SavedTables:
        return pb.SavedTables(**save, applied_lsn=self._shard.settled_lsn())


def copy_of(directory: Path, name: str) -> Path:
    """The folder of a shard's saved copy, itself a shard's directory; StoreError names those there are."""
    _check_name(name)
    copy = directory / FOLDER / name
    if not copy.is_dir():
        found = sorted(p.name for p in (directory / FOLDER).glob("[!.]*"))
        raise StoreError(f"{directory}: no tables are saved as {name!r}; there are {found}")
    return copy


def check_no_restore(directory: Path) -> None:
    """StoreError when a restore of this shard was interrupted (invariant 3)."""
    note = directory / RESTORING
    if note.exists():
        name = _read_mark(note)[0]["name"]
        raise StoreError(f"{directory}: the restore of {name!r} was interrupted; run ps-server restore again")


def restore_tables(directories: Sequence[Path], name: str) -> list[int]:
    """Put saved tables in the place of stopped shards' own, whose later pushes are gone then.

    Parameters
    ----------
    directories
        Those of all shards of a cluster.
    name
        What the tables were saved as; the copy stays.

    Returns
    -------
    list
        The LSN of each shard.

    Raises
    ------
    StoreError
        A shard runs, or has no such copy, or the copies are not of one save; nothing was changed then.
    """
    _check_name(name)
    marks = []
    for directory in directories:
        marks.append(_read_mark(copy_of(directory, name) / MARK))
    if len({mark[0]["token"] for mark in marks}) > 1:
        raise StoreError(f"saved tables {name!r}: the copies of the shards come from different saves")
    with ExitStack() as stack:
        for directory in directories:
            if (directory / "store" / "LOCK").exists():
                stack.enter_context(held(directory))
        for directory, mark in zip(directories, marks, strict=True):
            write_synced(directory / RESTORING, _sealed(mark))
        for directory, mark in zip(directories, marks, strict=True):
            _restore_one(directory, directory / FOLDER / name, mark)
        for directory in directories:  # only now: until all of them are done no shard may be opened
            (directory / RESTORING).unlink()
            sync_directory(directory)
    return [mark[0]["lsn"] for mark in marks]


def _restore_one(directory: Path, source: Path, mark: list[Save]) -> None:
    """May be run any number of times: the copy is not touched."""
    fresh, old = directory / "store.new", directory / "store.old"
    _remove(fresh)
    fresh.mkdir()
    for path in (source / "store").iterdir():
        if path.suffix == ".sst":  # never written again; everything else RocksDB appends to
            os.link(path, fresh / path.name)
        elif path.is_file():
            shutil.copyfile(path, fresh / path.name)
            sync_file(fresh / path.name)
    (fresh / "LOCK").touch()  # what verify and export hold, as if a shard had been stopped here
    sync_directory(fresh)
    if (directory / "store").exists():
        _remove(old)
        os.rename(directory / "store", old)
    _remove(directory / "log")  # pushes after the save
    os.rename(fresh, directory / "store")
    write_synced(directory / MARK, _sealed(mark))
    _remove(old)


def _end_life(copy: Path) -> None:
    """A copy is as after a clean stop: it has no push log, and needs none."""
    store = open_store(copy, {}, read_only=False)
    try:
        checkpoint.write_life(store, replace(checkpoint.read_life(store), clean=True, open_lsn=0))
    finally:
        store.close()


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sealed(saves: list[Save]) -> str:
    body = json.dumps({"version": 1, "saves": saves}, sort_keys=True)
    return f"{xxhash.xxh3_64_hexdigest(body.encode())} {body}\n"


def _read_mark(path: Path) -> list[Save]:
    try:
        digest, _, body = path.read_text(encoding="utf-8").rstrip("\n").partition(" ")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: {error}") from None
    if xxhash.xxh3_64_hexdigest(body.encode()) != digest:
        raise CorruptionError(f"{path}: fails its checksum")
    document = json.loads(body)
    if document["version"] != 1:
        raise CorruptionError(f"{path}: has version {document['version']}; this version reads 1")
    saves: list[Save] = document["saves"]
    return saves
