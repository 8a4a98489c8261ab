# SPDX-License-Identifier: Apache-2.0
"""The push log: segment files of checksummed records (docs/log_format.md).

Why files of our own and not RocksDB's write-ahead log: one push of 780 KB costs 0.2 ms here and 2.6 to
5 ms as a RocksDB write, which also inserts it into a memtable and flushes it to an SST file later
(docs/ARCHITECTURE.md, "The push log").

Invariants: 1. records have consecutive LSNs, also from one segment to the next; 2. a record is written
whole before its push is applied, and a failed write leaves the file as it was or raises; 3. only the
end of the last segment may be torn, everything else wrong is CorruptionError. Thread safety: `append`,
`rotate` and `drop` under the shard's push lock; `sync` from any thread.
"""

import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from logging import getLogger
from pathlib import Path
from typing import BinaryIO, Final

import xxhash
from rowhouse.error import CorruptionError, StoreError

MAGIC: Final = b"RWHSLOG1"
"""Name and format version of a segment file."""

SEGMENT_HEADER: Final = struct.Struct("<8sQQQ")
"""Magic, first LSN, last LSN of the segment before, xxh3 of these."""

RECORD_HEADER: Final = struct.Struct("<IBBHQQQQ")
"""Payload bytes, kind, version, 0, LSN, time ms, xxh3 of the payload, xxh3 of the header before it."""

TRAILER_BYTES: Final = 8
"""A record ends with its header's checksum again: where it stands, the record was written whole."""

PREALLOCATE_MIN_BYTES: Final = 1 << 20
PREALLOCATE_MAX_BYTES: Final = 64 << 20
"""Space is allocated ahead, twice as much each time, between these: appending 1.9 MB takes 0.23 ms to
allocated space and 0.5 ms else (ext4, before the kernel throttles to the disk's own speed), and a full disk
is found before a record is begun."""

RECORD_VERSION: Final = 1
KIND_PUSH: Final = 1
"""Payload: an encoded rowhouse.v1.PushRequest."""

KIND_EVICT: Final = 2
"""Payload: table name (u16 length, UTF-8), then the evicted ids (uint64 each)."""

_logger = getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log; `time_ms` is the shard's clock when it was written."""

    lsn: int
    kind: int
    time_ms: int
    payload: bytes


def segment_path(directory: Path, first_lsn: int) -> Path:
    """Path of the segment that begins at `first_lsn`."""
    return directory / f"{first_lsn:020d}.log"


def list_segments(directory: Path) -> list[Path]:
    """Segment files by first LSN."""
    return sorted(directory.glob("*.log"))


def encode_record(record: Record) -> tuple[bytes, bytes, bytes]:
    """Header, payload and trailer of a record, ready to be written one after the other."""
    fields = (len(record.payload), record.kind, RECORD_VERSION, 0, record.lsn, record.time_ms)
    head = RECORD_HEADER.pack(*fields, xxhash.xxh3_64_intdigest(record.payload), 0)[:-8]
    check = xxhash.xxh3_64_intdigest(head).to_bytes(8, "little")
    return head + check, record.payload, check


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_header(file: BinaryIO, path: Path) -> tuple[int, int] | None:
    """(first LSN, last LSN before it) of a segment, or None when its header is cut short."""
    head = file.read(SEGMENT_HEADER.size)
    if len(head) < SEGMENT_HEADER.size:
        return None
    magic, first, before, checksum = SEGMENT_HEADER.unpack(head)
    if magic != MAGIC:
        raise CorruptionError(f"{path}: starts with {magic!r}; this version reads {MAGIC!r}")
    if checksum != xxhash.xxh3_64_intdigest(head[:-8]):
        raise CorruptionError(f"{path}: the segment's header fails its checksum")
    return int(first), int(before)


def _is_beginning(found: bytes, checksum: int) -> bool:
    """Whether `found` is the checksum as a write that broke off leaves it: its first bytes, then zeros."""
    written = found.rstrip(b"\0")
    return checksum.to_bytes(8, "little").startswith(written)


def _read_record(file: BinaryIO, where: str) -> Record | None:
    """The next record, or None at a torn end: bytes missing, or never written (zeros to the end of the
    file, which is allocated ahead). Anything else wrong is CorruptionError."""
    head = file.read(RECORD_HEADER.size)
    if len(head) < RECORD_HEADER.size:
        return None
    length, kind, version, _, lsn, time_ms, payload_sum, head_sum = RECORD_HEADER.unpack(head)
    if head_sum != xxhash.xxh3_64_intdigest(head[:-8]):
        if _is_beginning(head[-8:], xxhash.xxh3_64_intdigest(head[:-8])) and not any(file.read()):
            return None
        raise CorruptionError(f"{where}: the record's header fails its checksum")
    payload, trailer = file.read(length), file.read(TRAILER_BYTES)
    if len(trailer) < TRAILER_BYTES:
        return None
    whole = payload_sum == xxhash.xxh3_64_intdigest(payload)
    if not whole and trailer == head[-8:]:
        raise CorruptionError(f"{where} (LSN {lsn}): the record fails its checksum")
    if not _is_beginning(trailer, head_sum):
        raise CorruptionError(f"{where} (LSN {lsn}): the record's trailer is wrong")
    if not whole:
        if not any(file.read()):
            return None
        raise CorruptionError(f"{where} (LSN {lsn}): the record fails its checksum")
    if version != RECORD_VERSION:
        raise CorruptionError(f"{where}: record version {version}; this version reads {RECORD_VERSION}")
    return Record(lsn, kind, time_ms, payload)


def read_segment(path: Path, last: bool) -> Iterator[tuple[int, Record]]:
    """(end offset, record) of one segment.

    A torn end of the last segment ends the iteration (it was never acknowledged); in any other segment,
    and for anything else that is wrong, CorruptionError names the file and the offset.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = read_header(file, path)
        expected = header[0] if header else None
        offset = SEGMENT_HEADER.size
        while expected is not None and offset < size:
            where = f"{path} at byte {offset}"
            record = _read_record(file, where)
            if record is None:
                break
            if record.lsn != expected:
                raise CorruptionError(f"{where}: LSN {record.lsn}; expected {expected}")
            offset = file.tell()
            expected += 1
            yield offset, record
    if not last and (expected is None or offset < size):
        raise CorruptionError(f"{path}: cut short at byte {offset} of {size}")


def read_records(directory: Path, after_lsn: int) -> Iterator[Record]:
    """Records above `after_lsn`, in order; CorruptionError names what is damaged or missing."""
    segments = list_segments(directory)
    newest: int | None = None  # last LSN read so far
    for i, path in enumerate(segments):
        with path.open("rb") as file:
            header = read_header(file, path)
        known = after_lsn if newest is None else newest
        if header and (header[1] > known if newest is None else header[1] != known):
            raise CorruptionError(f"{path}: follows LSN {header[1]}; the records after {known} are missing")
        newest = header[1] if header else known
        for _, record in read_segment(path, last=i == len(segments) - 1):
            newest = record.lsn
            if record.lsn > after_lsn:
                yield record


def find_end(path: Path) -> tuple[int, int]:
    """(end of the last whole record, bytes of a torn record after it) of the last segment; an end of 0:
    not even the segment's header was written. CorruptionError as `read_segment`."""
    end = 0
    for end, _ in read_segment(path, last=True):  # noqa: B007 (the last value is what is wanted)
        pass
    if end == 0 and path.stat().st_size >= SEGMENT_HEADER.size:
        end = SEGMENT_HEADER.size
    with path.open("rb") as file:
        file.seek(end)
        return end, len(file.read().rstrip(b"\0"))  # the zeros were allocated ahead


def cut_torn_end(directory: Path) -> int:
    """Cut a torn end off the last segment (a record that was never acknowledged); returns its bytes.

    What is left is synced: a kill may have left it in the page cache only, and from here on rows that reach
    the store, and the next segment's header, rely on it.
    """
    segments = list_segments(directory)
    if not segments:
        return 0
    path = segments[-1]
    end, torn = find_end(path)
    if end == 0:
        path.unlink()
        _sync_directory(directory)
    else:
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    if torn:
        _logger.warning("%s: cut %d bytes of a torn record at its end", path, torn)
    return torn


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
    """

    def __init__(self, directory: Path, last_lsn: int, next_lsn: int) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        _sync_directory(directory.parent)  # a power cut must not take the folder with all its segments
        self._sync_lock = threading.Lock()
        self.written_lsn = self.synced_lsn = last_lsn
        self._sizes = {path: path.stat().st_size for path in list_segments(directory)}
        self.records = 0
        self._open_segment(next_lsn)

    def _open_segment(self, first_lsn: int) -> None:
        path = segment_path(self.directory, first_lsn)
        head = SEGMENT_HEADER.pack(MAGIC, first_lsn, self.written_lsn, 0)[:-8]
        head += xxhash.xxh3_64_intdigest(head).to_bytes(8, "little")
        try:
            handle = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
            os.write(handle, head)
            os.fsync(handle)
            _sync_directory(self.directory)
        except OSError as error:
            raise StoreError(f"push log {path}: {error.strerror or error}") from error
        self._path, self._file, self._sizes[path] = path, handle, len(head)
        self._allocated = len(head)

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
            rest = memoryview(b"".join(parts))[written:] if written < wanted else memoryview(b"")
            while rest:
                rest = rest[os.pwrite(self._file, rest, before + wanted - len(rest)) :]
        except OSError as error:
            os.ftruncate(self._file, before)
            raise StoreError(f"push log {self._path}: {error.strerror or error}") from error
        self._sizes[self._path] = before + wanted
        self.written_lsn = record.lsn
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
        os.ftruncate(self._file, self._sizes[self._path])
        os.fsync(self._file)
        os.close(self._file)

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

    def rotate(self) -> None:
        """Sync and close the segment, and go on in a new one."""
        self.sync(self.written_lsn)
        with self._sync_lock:
            self._close_segment()
            self._open_segment(self.written_lsn + 1)

    def drop_before(self, lsn: int) -> None:
        """Delete the segments whose records are all at or below `lsn` (a checkpoint's)."""
        segments = list_segments(self.directory)
        for path, following in pairwise(segments):
            if int(following.stem) <= lsn + 1:
                path.unlink()
                self._sizes.pop(path, None)
        self.records = self.written_lsn - lsn

    def close(self) -> None:
        """Sync and close."""
        self.sync(self.written_lsn)
        self._close_segment()
