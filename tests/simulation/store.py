# SPDX-License-Identifier: Apache-2.0
"""A store in memory with the seam of ps_server/disk/store.py, and what RocksDB promises when it ends badly.

Rows are written without a write-ahead log, so a crash takes of each family, on its own, the newest writes
that no flush has reached: what is left is everything up to some write, at the last flush or later (RocksDB
flushes by itself when memory is short). `meta` has a log, is synced, and each write of it is whole or absent.
`test_store.py` holds this store to the real one.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from rowhouse.error import CorruptionError, StoreError

from ps_server.disk.store import COUNT_BYTES, WRITE_ROWS

Keys = NDArray[np.uint64]
Values = NDArray[np.uint8]
Write = dict[int, bytes | None]
"""One write of a family, whole or absent: values by key; None deletes."""

COUNT = 1 << 64
"""Key of the number of rows: behind the last row's, as in the real store."""

MARK = "CURRENT"
"""The file of RocksDB by which a folder is known to be a store; here it names the medium."""


@dataclass
class Medium:
    """What lies on the disk of one store."""

    families: dict[str, dict[int, bytes]] = field(default_factory=dict)
    meta: dict[str, bytes] = field(default_factory=dict)


class Media:
    """Every store of a simulation, by the name in its folder."""

    def __init__(self) -> None:
        self._media: list[Medium] = []

    def at(self, directory: Path) -> Medium:
        """The medium of a folder, made when it is new. A folder that was copied gets one of its own, because
        two stores may name one medium then."""
        mark = directory / MARK
        if not mark.exists():
            return self.put(directory, Medium())
        number, place = mark.read_text().split(maxsplit=1)
        medium = self._media[int(number)]
        return medium if place == str(directory) else self.put(directory, deepcopy(medium))

    def put(self, directory: Path, medium: Medium) -> Medium:
        """Make a folder the store of `medium`."""
        directory.mkdir(parents=True, exist_ok=True)
        self._media.append(medium)
        (directory / MARK).write_text(f"{len(self._media) - 1} {directory}")
        return medium


class SimulatedFamily:
    """See ps_server.disk.store.RowFamily."""

    def __init__(self, name: str, value_bytes: int, durable: dict[int, bytes], tick: Callable[[str], None]):
        self.name, self.value_bytes = name, value_bytes
        self._durable, self._tick = durable, tick
        self._rows = dict(durable)
        self._unflushed: list[Write] = []

    def get(self, keys: Keys) -> tuple[NDArray[np.bool_], Values]:
        found = [self._rows.get(key) for key in keys.tolist()]
        here = np.array([value is not None for value in found], np.bool_)
        return here, self._stack([value for value in found if value is not None])

    def _stack(self, values: list[bytes]) -> Values:
        if set(map(len, values)) - {self.value_bytes}:
            raise CorruptionError(f"{self.name}: a value has a wrong length")
        return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), self.value_bytes)

    @cached_property
    def count(self) -> int | None:
        recorded = self.recorded_count()
        return 0 if recorded is None and self.is_empty() else recorded

    def recorded_count(self) -> int | None:
        data = self._rows.get(COUNT)
        return None if data is None else int.from_bytes(data, "little")

    def put(self, keys: Keys, values: Values, new: NDArray[np.bool_] | bool) -> None:
        order, added = np.argsort(keys), np.broadcast_to(new, keys.shape)
        for first in range(0, order.shape[0], WRITE_ROWS):
            chosen = order[first : first + WRITE_ROWS]
            rows = zip(keys[chosen].tolist(), map(bytes, values[chosen]), strict=True)
            self._write("store put", dict(rows), int(added[chosen].sum()))

    def delete(self, keys: Keys) -> None:
        for first in range(0, keys.shape[0], WRITE_ROWS):
            chosen = keys[first : first + WRITE_ROWS]
            self._write("store delete", dict.fromkeys(chosen.tolist()), -chosen.shape[0])

    def _write(self, what: str, write: Write, added: int) -> None:
        self._tick(what)
        count = None if self.count is None else self.count + added
        write = {**write, COUNT: None if count is None else count.to_bytes(COUNT_BYTES, "little")}
        _apply(self._rows, write)
        self._unflushed.append(write)
        self.count = count

    def scan(
        self, chunk_rows: int, start: int = 0, end: int | None = None, with_values: bool = True
    ) -> Iterator[tuple[Keys, Values]]:
        keys = sorted(k for k in self._rows if start <= k < COUNT and (end is None or k < end))
        values = [self._rows[key] if with_values else b"" for key in keys]  # as they were when it began
        for first in range(0, len(keys), chunk_rows):
            part = slice(first, first + chunk_rows)
            stacked = self._stack(values[part]) if with_values else np.empty((len(keys[part]), 0), np.uint8)
            yield np.array(keys[part], np.uint64), stacked

    def is_empty(self) -> bool:
        return not self._rows.keys() - {COUNT}

    def flush(self) -> None:
        self._tick("store flush")
        if self.count != self.recorded_count() and self.count:
            self._write("store put", {}, 0)
        self._keep(len(self._unflushed))
        self._tick("store flush")

    def _keep(self, writes: int) -> None:
        for write in self._unflushed[:writes]:
            _apply(self._durable, write)
        self._unflushed = []

    def crash(self, chance: Random) -> None:
        """End without a flush: RocksDB may have flushed up to any write."""
        self._keep(chance.randint(0, len(self._unflushed)))

    def disk_bytes(self) -> int:
        return 0

    def memory_bytes(self) -> int:
        return 0


def _apply(rows: dict[int, bytes], write: Write) -> None:
    for key, value in write.items():
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value


class SimulatedStore:
    """See ps_server.disk.store.Store.

    Parameters
    ----------
    directory, value_bytes
        As the store's.
    media
        What lies on the disks.
    tick
        Called with the name of each step that may fail, and be the last; it raises then.
    """

    def __init__(
        self,
        directory: Path,
        value_bytes: dict[str, int],
        *,
        media: Media,
        tick: Callable[[str], None] = lambda _what: None,
    ) -> None:
        tick("store open")
        self._media, self._tick = media, tick
        self._medium = media.at(directory)
        self._unsynced: list[dict[str, bytes]] = []  # what `meta` was before each write that is not synced
        for name in value_bytes:
            self._medium.families.setdefault(name, {})
        self.families = {
            name: SimulatedFamily(name, width, self._medium.families[name], tick)
            for name, width in value_bytes.items()
        }

    def get_meta(self, key: str) -> bytes | None:
        return self._medium.meta.get(key)

    def put_meta(self, entries: dict[str, bytes], *, synced: bool = True) -> None:
        self._tick("store meta")
        self._unsynced = [] if synced else [*self._unsynced, dict(self._medium.meta)]
        self._medium.meta |= entries
        self._tick("store meta")

    def memory_bytes(self) -> int:
        return 0

    def link_to(self, folder: Path) -> None:
        """RocksDB flushes every family for it, and the folder appears by a rename."""
        if folder.exists():
            raise StoreError(f"copying the store to {folder}: it exists")
        for family in self.families.values():
            family.flush()
        self._media.put(folder, deepcopy(self._medium))

    def crash(self, chance: Random, *, power_cut: bool) -> None:
        """End as a kill or a power cut ends it; the latter may take what of `meta` is not synced."""
        for family in self.families.values():
            family.crash(chance)
        kept = chance.randint(0, len(self._unsynced)) if power_cut else len(self._unsynced)
        if kept < len(self._unsynced):
            self._medium.meta = self._unsynced[kept]

    def close(self) -> None:
        """What was not flushed is gone, or RocksDB has flushed it on its way out; both are allowed."""
