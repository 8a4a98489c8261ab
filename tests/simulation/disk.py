# SPDX-License-Identifier: Apache-2.0
"""The disks of a simulation: real files in a folder, and what a kill or a power cut leaves of them.

While `Disk` is entered, the functions of `os` that change files below its folder come here first. Each call
is a step at which the machine may end (`Killed`), or the file system refuse (OSError); a write that is the
last may be torn. What was not synced is written down, so that a power cut can take it back: of each file any
of the writes since its last sync, of each folder the newest names since its last sync.

What is left out: files that Python's own `open` writes (the small ones; they are written whole before they
are synced and renamed) and renamed folders are there at once.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self
from unittest import mock

SHORT = 0.01
"""How often a write takes less than it is given."""

UNSYNCED_MAX = 40
"""Changes of one file or folder that a power cut may take: the kernel writes older ones by itself."""


class Killed(BaseException):
    """The machine ended here. Code that runs on while this is raised can change nothing any more."""


@dataclass
class Machine:
    """One shard's machine, from one start to its end."""

    folder: Path
    chance: Random
    boot: str
    steps_left: int | None = None
    """Steps until it ends; None: it goes on."""
    refusals_left: int | None = None
    """Steps until the file system or the store refuses one."""
    dead: bool = False
    torn: int = 0
    steps: int = 0

    def tick(self, what: str, refused: Callable[[str], Exception] = OSError) -> None:
        """A step that may be the last, or be refused."""
        if self.dead:
            raise Killed
        self.steps += 1
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left <= 0:
                self.dead = True
                raise Killed
        if self.refusals_left is not None:
            self.refusals_left -= 1
            if self.refusals_left <= 0:
                self.refusals_left = None
                raise refused(f"{what}: refused by the simulation")


@dataclass(frozen=True)
class _Change:
    """A change that is not synced: how to take it back, and the file that is kept for that."""

    undo: Callable[[], object]
    kept: Path | None = None


class _Unsynced:
    """What a power cut may take from one machine, oldest first: by inode of a file, and by folder."""

    def __init__(self) -> None:
        self.writes: dict[int, list[_Change]] = {}
        self.names: dict[str, list[_Change]] = {}

    def note(self, changes: list[_Change], change: _Change) -> None:
        """One more; one that is too old is on the disk."""
        changes.append(change)
        if len(changes) > UNSYNCED_MAX:
            _let_go([changes.pop(0)])


def _let_go(changes: list[_Change]) -> None:
    for change in changes:
        if change.kept:
            change.kept.unlink(missing_ok=True)


class Disk:
    """The files below one folder, each machine's in a folder of its own.

    Parameters
    ----------
    folder
        In memory, best.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._trash = folder / "trash"
        self._trash.mkdir()
        self._root = str(folder) + os.sep
        self._machines: dict[str, Machine] = {}
        self._handles: dict[int, Path] = {}
        self._unsynced: dict[str, _Unsynced] = {}
        self._kept = 0
        self._real = {name: getattr(os, name) for name in _CHANGES}
        self._patch = mock.patch.multiple(os, **{name: getattr(self, f"_{name}") for name in _CHANGES})

    def __enter__(self) -> Self:
        self._patch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.stop()
        for handle in list(self._handles):
            self._close(handle)

    # ------------------------------------------------------------ machines
    def start(self, machine: Machine) -> None:
        """From here on the files below the machine's folder are its own."""
        self._machines[machine.folder.name] = machine
        self._unsynced.setdefault(machine.folder.name, _Unsynced())

    def end(self, machine: Machine, *, power_cut: bool) -> None:
        """Close what a dead machine had open; a power cut takes some of what was not synced."""
        machine.dead = True
        name, chance = machine.folder.name, machine.chance
        for handle, path in list(self._handles.items()):
            if self._owner(path) == name:
                self._close(handle)
        if not power_cut:
            return
        unsynced, self._unsynced[name] = self._unsynced[name], _Unsynced()
        del self._machines[name]  # what follows is no step of its own
        for writes in unsynced.writes.values():
            lost = chance.choice([0.0, 0.5, 1.0])
            for change in reversed(writes):
                if chance.random() < lost:
                    change.undo()
        for changes in unsynced.names.values():
            for change in reversed(changes[chance.randint(0, len(changes)) :]):
                change.undo()
            _let_go(changes)
        self._machines[name] = machine

    def _owner(self, path: Path | str) -> str:
        text = str(path)
        return text[len(self._root) :].split(os.sep, 1)[0] if text.startswith(self._root) else ""

    def _step(self, path: Path | str, what: str) -> _Unsynced | None:
        """A step on a file: what its machine has not synced, or None where it is no file of a machine."""
        name = self._owner(path)
        if name not in self._machines:
            return None
        self._machines[name].tick(f"{what} {path}")
        return self._unsynced[name]

    # ------------------------------------------------------------ files
    def _open(self, path: Any, flags: int, mode: int = 0o777, **keys: Any) -> int:
        if keys or self._owner(path) not in self._machines:
            return int(self._real["open"](path, flags, mode, **keys))
        unsynced = self._step(path, "open")
        assert unsynced is not None
        path, new = Path(path), flags & os.O_CREAT and not os.path.exists(path)
        handle = int(self._real["open"](path, flags, mode))
        self._handles[handle] = path
        if new:
            self._note_name(unsynced, path, _Change(lambda: path.unlink(missing_ok=True)))
        return handle

    def _close(self, handle: int) -> None:
        self._handles.pop(handle, None)
        self._real["close"](handle)

    def _note_name(self, unsynced: _Unsynced, path: Path, change: _Change) -> None:
        unsynced.note(unsynced.names.setdefault(str(path.parent), []), change)

    def _note_write(self, unsynced: _Unsynced, handle: int, offset: int, size: int) -> None:
        """Keep what lies where a write is about to go."""
        path, inode = self._handles[handle], os.fstat(handle).st_ino
        mine = self._real["open"](path, os.O_RDONLY)
        old = os.pread(mine, size, offset).ljust(size, b"\0")
        self._real["close"](mine)

        def undo() -> None:
            for found in path.parent.iterdir():  # it may have another name now
                if found.stat().st_ino == inode:
                    with found.open("r+b") as file:
                        file.seek(offset)
                        file.write(old)

        unsynced.note(unsynced.writes.setdefault(inode, []), _Change(undo))

    def _pwritev(self, handle: int, parts: Any, offset: int) -> int:
        if handle not in self._handles:
            return int(self._real["pwritev"](handle, parts, offset))
        return self._written(handle, b"".join(parts), offset)

    def _pwrite(self, handle: int, data: Any, offset: int) -> int:
        if handle not in self._handles:
            return int(self._real["pwrite"](handle, data, offset))
        return self._written(handle, bytes(data), offset)

    def _write(self, handle: int, data: Any) -> int:
        if handle not in self._handles:
            return int(self._real["write"](handle, data))
        offset = os.lseek(handle, 0, os.SEEK_CUR)
        count = self._written(handle, bytes(data), offset)
        os.lseek(handle, offset + count, os.SEEK_SET)
        return count

    def _written(self, handle: int, data: bytes, offset: int) -> int:
        path = self._handles[handle]
        name = self._owner(path)
        machine, unsynced = self._machines[name], self._unsynced[name]
        if machine.dead:
            raise Killed
        self._note_write(unsynced, handle, offset, len(data))
        try:
            self._step(path, "write")
        except (Killed, OSError):  # a part of it may be there
            machine.torn += 1
            self._real["pwrite"](handle, data[: machine.chance.randint(0, len(data))], offset)
            raise
        if machine.chance.random() < SHORT:  # the kernel may take less than it is given
            data = data[: machine.chance.randint(1, len(data))]
        return int(self._real["pwrite"](handle, data, offset))

    def _ftruncate(self, handle: int, length: int) -> None:
        if handle in self._handles:
            self._step(self._handles[handle], "truncate")
        self._real["ftruncate"](handle, length)

    def _truncate(self, path: Any, length: int) -> None:
        self._step(path, "truncate")
        self._real["truncate"](path, length)

    def _posix_fallocate(self, handle: int, offset: int, length: int) -> None:
        if handle in self._handles:
            self._step(self._handles[handle], "allocate")
        self._real["posix_fallocate"](handle, offset, length)

    def _fsync(self, handle: int) -> None:
        path = self._handles.get(handle) or Path(os.readlink(f"/proc/self/fd/{handle}"))
        unsynced = self._step(path, "sync")
        if unsynced is None:
            self._real["fsync"](handle)
            return
        facts = os.fstat(handle)
        if stat.S_ISDIR(facts.st_mode):
            _let_go(unsynced.names.pop(str(path), []))
        else:
            unsynced.writes.pop(facts.st_ino, None)

    _fdatasync = _fsync

    # ------------------------------------------------------------ names
    def _keep(self, path: Path) -> Path | None:
        """A second name of a file that is about to lose its own; None for what is no file."""
        if not path.is_file():
            return None
        self._kept += 1
        kept = self._trash / str(self._kept)
        os.link(path, kept)
        return kept

    def _unlink(self, path: Any, **keys: Any) -> None:
        unsynced = None if keys.get("dir_fd") is not None else self._step(path, "unlink")
        if unsynced is not None and (kept := self._keep(Path(path))):
            old = Path(path)
            self._note_name(unsynced, old, _Change(lambda: _put_back(kept, old), kept))
        self._real["unlink"](path, **keys)

    def _rmdir(self, path: Any, **keys: Any) -> None:
        """What a folder that is gone had is no part of the next one of its name."""
        self._real["rmdir"](path, **keys)
        unsynced = None if keys.get("dir_fd") is not None else self._unsynced.get(self._owner(path))
        if unsynced is not None:
            _let_go(unsynced.names.pop(str(path), []))

    def _rename(self, source: Any, target: Any, **keys: Any) -> None:
        unsynced = self._step(source, "rename")
        old, new = Path(source), Path(target)
        if unsynced is not None and old.is_file():
            kept = self._keep(new)

            def undo() -> None:
                if new.is_file():
                    self._real["rename"](new, old)
                if kept:
                    _put_back(kept, new)

            self._note_name(unsynced, old, _Change(undo, kept))
        self._real["rename"](source, target, **keys)
        for handle, path in self._handles.items():
            if path == old:
                self._handles[handle] = new

    def _replace(self, source: Any, target: Any, **keys: Any) -> None:
        self._rename(source, target, **keys)


def _put_back(kept: Path, path: Path) -> None:
    if not path.exists() and path.parent.is_dir():
        os.link(kept, path)


_CHANGES = (
    "open", "close", "write", "pwrite", "pwritev", "ftruncate", "truncate", "posix_fallocate", "fsync",
    "fdatasync", "unlink", "rename", "replace", "rmdir",
)  # fmt: skip
