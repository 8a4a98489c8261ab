# SPDX-License-Identifier: Apache-2.0
"""The push log: segment files of checksummed records (docs/log_format.md).

Why files of our own and not RocksDB's write-ahead log: one push of 780 KB costs 0.2 ms here and 2.6 to
5 ms as a RocksDB write, which also inserts it into a memtable and flushes it to an SST file later
(docs/ARCHITECTURE.md, "The push log").

A segment that a checkpoint dropped is filled with zeros and written again (not under `fsync`). The kernel
slows down a writer whose pages are newly dirty to what the disk takes once much is dirty on the machine:
780 KB then cost 2.1 ms, over pages that are dirty already 0.1 ms, whoever else writes meanwhile.

Invariants: 1. records have consecutive LSNs, also from one segment to the next; 2. a record is written
whole before its push is applied, and a failed write leaves the file as it was or raises; 3. only the
end of the last segment may be torn, everything else wrong is CorruptionError, but for `os` after the
machine itself went down (`cut_lost_end`). Thread safety: `append` under the shard's push lock, `rotate`
under that and the checkpoint's, `drop_before` under the checkpoint's; `sync` from any thread.
"""

import os
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

from rowhouse.error import StoreError
from rowhouse.file import sync_directory

from ps_server.disk.segment import (
    Owner,
    Record,
    encode_header,
    encode_record,
    list_segments,
    segment_path,
)

PREALLOCATE_MIN_BYTES: Final = 1 << 20
PREALLOCATE_MAX_BYTES: Final = 64 << 20
"""Space is allocated ahead, twice as much each time, between these: appending 1.9 MB takes 0.23 ms to
allocated space and 0.5 ms else (ext4, before the kernel throttles to the disk's own speed), and a full disk
is found before a record is begun."""

SPARE_NAME: Final = "spare"
"""A dropped segment on its way to be the next one; worth nothing after a kill."""

SPARE_MAX_BYTES: Final = 1 << 30
"""More zeros than this would themselves be what makes the kernel slow writers down."""

ZEROS: Final = bytes(1 << 20)


class PushLog:
    """The open end of the log, to append to.

    Parameters
    ----------
    directory
        Folder of the segments; made when it is not there.
    last_lsn
        LSN of the newest record in the log (or of the checkpoint, when it is empty).
    next_lsn
        LSN of the next record; more than one above `last_lsn` where LSNs were skipped on purpose.
    owner
        Whose log it is.
    durable
        Whether what is acknowledged must outlive the machine: the caller syncs each record, and what else is
        relied on then is synced here.
    failpoint
        Called with "mid spare" at each step of a dropped segment on its way to be the next one, and with
        "mid segment" at each step of one that is made new.

    Attributes
    ----------
    open_lsn
        First LSN of the open segment.
    """

    def __init__(
        self,
        directory: Path,
        last_lsn: int,
        next_lsn: int,
        *,
        owner: Owner,
        durable: bool,
        failpoint: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self.directory, self._owner, self._durable, self._failpoint = directory, owner, durable, failpoint
        directory.mkdir(parents=True, exist_ok=True)
        sync_directory(directory.parent)  # a power cut must not take the folder with all its segments
        self._sync_lock = threading.Lock()
        self.written_lsn = self.synced_lsn = last_lsn
        self._next_lsn = next_lsn
        self._spare_bytes = 0
        (directory / SPARE_NAME).unlink(missing_ok=True)
        self._sizes = {path: path.stat().st_size for path in list_segments(directory)}
        self.records = 0
        if durable:
            self._sync_segments()  # an earlier run may have left them in the page cache
        self._open_segment()

    def _sync_segments(self) -> None:
        for path in self._sizes:
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def _open_segment(self) -> None:
        """Begin a segment, under the spare's name until its header is there: so a segment always has one."""
        path, spare = segment_path(self.directory, self._next_lsn), self.directory / SPARE_NAME
        head = encode_header(self._next_lsn, self.written_lsn, self._owner)
        step = "mid spare" if self._spare_bytes else "mid segment"
        try:
            handle = os.open(spare, os.O_CREAT | os.O_WRONLY, 0o644)
            if not self._spare_bytes:
                os.ftruncate(handle, 0)
            _write_whole(handle, head, 0)
            if self._durable:
                os.fsync(handle)
            self._failpoint(step)
            os.rename(spare, path)
            self._failpoint(step)
            if self._durable:
                sync_directory(self.directory)
        except OSError as error:
            raise StoreError(f"push log {path}: {error.strerror or error}") from error
        self._path, self._file, self._sizes[path] = path, handle, len(head)
        self.open_lsn = self._next_lsn
        self._allocated, self._spare_bytes = max(self._spare_bytes, len(head)), 0

    @property
    def bytes(self) -> int:
        """Bytes of all segments."""
        return sum(self._sizes.values())

    def append(self, record: Record) -> None:
        """Write one record; StoreError when the file system refuses (the file is then as before)."""
        parts = encode_record(record)
        wanted = sum(len(part) for part in parts)
        before = self._sizes[self._path]
        try:
            self._allocate(before + wanted)
            written = os.pwritev(self._file, parts, before)
            if written < wanted:
                _write_whole(self._file, b"".join(parts)[written:], before + written)
        except OSError as error:
            os.ftruncate(self._file, before)
            self._allocated = before
            raise StoreError(f"push log {self._path}: {error.strerror or error}") from error
        self._sizes[self._path] = before + wanted
        self.written_lsn, self._next_lsn = record.lsn, record.lsn + 1
        self.records += 1

    def _allocate(self, end: int) -> None:
        """Make sure that the file has space up to byte `end`."""
        if end <= self._allocated:
            return
        step = min(max(self._allocated, PREALLOCATE_MIN_BYTES), PREALLOCATE_MAX_BYTES)
        try:
            os.posix_fallocate(self._file, self._allocated, max(end - self._allocated, step))
            self._allocated = max(end, self._allocated + step)
        except OSError:  # less space than we would like ahead: take what this record needs, or fail
            os.posix_fallocate(self._file, self._allocated, end - self._allocated)
            self._allocated = end

    def _close_segment(self) -> None:
        """Give back what was allocated ahead; a segment that is not the last one has no slack."""
        handle, self._file = self._file, -1  # another file may have this number at once
        try:
            os.ftruncate(handle, self._sizes[self._path])
            if self._durable:
                os.fsync(handle)
        finally:
            os.close(handle)

    def sync(self, lsn: int) -> None:
        """Return when the record `lsn` is on the disk. Those who wait meanwhile share one sync."""
        if self.synced_lsn >= lsn:
            return
        with self._sync_lock:
            if self.synced_lsn >= lsn:
                return
            target = self.written_lsn
            try:
                os.fdatasync(self._file)
            except OSError as error:
                raise StoreError(f"push log {self._path}: sync: {error.strerror or error}") from error
            self.synced_lsn = target

    def sync_whole(self) -> None:
        """Return when every record is on the disk, in whatever segment: `os` syncs none of them by itself.
        Until the next rotation `sync` then holds for every record. No rotation may run meanwhile."""
        if self._durable:
            self.sync(self.written_lsn)
            return
        target = self.written_lsn
        try:
            self._sync_segments()
            sync_directory(self.directory)
        except OSError as error:
            raise StoreError(f"push log {self.directory}: sync: {error.strerror or error}") from error
        self.synced_lsn = target

    def rotate(self) -> None:
        """Close the segment (synced, where records are) and go on in a new one."""
        if self._durable:
            self.sync(self.written_lsn)
        with self._sync_lock:
            self._close_segment()
            self._open_segment()

    def drop_before(self, lsn: int) -> None:
        """Drop the segments whose records are all at or below `lsn` (a checkpoint); one becomes the spare."""
        segments = list_segments(self.directory)
        for path, following in pairwise(segments):
            if int(following.stem) <= lsn + 1:
                size = self._sizes.pop(path, 0)
                if self._durable or self._spare_bytes or not size:
                    path.unlink()
                else:
                    self._make_spare(path, min(size, SPARE_MAX_BYTES))
        # Below 0: numbers were skipped, and none has come since.
        self.records = max(self.written_lsn - lsn, 0)

    def _make_spare(self, path: Path, size: int) -> None:
        """Fill a dropped segment with zeros; it counts as a segment no more from the first moment on."""
        spare = self.directory / SPARE_NAME
        try:
            os.rename(path, spare)
            self._failpoint("mid spare")
            handle = os.open(spare, os.O_WRONLY)
            try:
                os.ftruncate(handle, size)
                for start in range(0, size, len(ZEROS)):
                    _write_whole(handle, ZEROS[: size - start], start)
            finally:
                os.close(handle)
        except OSError as error:
            raise StoreError(f"push log {spare}: {error.strerror or error}") from error
        self._spare_bytes = size
        self._failpoint("mid spare")

    def close(self) -> None:
        """Sync and close; nothing is open after a rotation that failed."""
        if self._file >= 0:
            self.sync(self.written_lsn)
            self._close_segment()
        (self.directory / SPARE_NAME).unlink(missing_ok=True)


def _write_whole(handle: int, data: bytes, offset: int) -> None:
    """Write all of `data`: the kernel may take less than it is given, as just before a disk is full."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(handle, rest, offset)
        rest, offset = rest[count:], offset + count
