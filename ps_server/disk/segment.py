# SPDX-License-Identifier: Apache-2.0
"""Segment files of the push log: their format (docs/log_format.md), reading them, and cutting their end.

Only the end of the last segment may be torn; everything else that is wrong is CorruptionError, but for `os`
after the machine itself went down (`cut_lost_end`). Thread safety: none is needed; the log is read before
anyone appends to it, or by `verify` on a stopped shard.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import xxhash
from numpy.typing import NDArray
from rowhouse.error import CorruptionError
from rowhouse.file import sync_directory

MAGIC: Final = b"RWHSLOG2"
"""Name and format version of a segment file."""

SEGMENT_HEADER: Final = struct.Struct("<8sQQ16sIIQ")
"""Magic, first LSN, last LSN of the segment before, cluster id, shard, 0, xxh3 of these."""

MAGIC_1: Final = b"RWHSLOG1"
SEGMENT_HEADER_1: Final = struct.Struct("<8sQQQ")
"""Version 1, which is still read, did not say whose log it is."""

RECORD_HEADER: Final = struct.Struct("<IBBHQQQQ")
"""Payload bytes, kind, version, 0, LSN, time ms, xxh3 of the payload, xxh3 of the header before it."""

TRAILER_BYTES: Final = 8
"""A record ends with its header's checksum again: where it stands, the record was written whole."""

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
    payload: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose log it is.

    Attributes
    ----------
    cluster_id
        32 hexadecimal digits; empty where it is not known.
    shard
        Index of the shard; None where it is not known.
    """

    cluster_id: str
    shard: int | None


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """First LSN of a segment, last LSN of the one before, whose it is, and the bytes of the header."""

    first_lsn: int
    previous_lsn: int
    owner: Owner
    size: int

    def complaint(self, wanted: Owner) -> str | None:
        """Why this is not a segment of `wanted`; None where it may be."""
        of_cluster, of_shard = self.owner.cluster_id, self.owner.shard
        other_cluster = of_cluster and wanted.cluster_id and of_cluster != wanted.cluster_id
        if other_cluster or (of_shard is not None and of_shard != wanted.shard):
            return (
                f"is of the push log of shard {of_shard} of cluster {of_cluster or 'unknown'}; this is shard "
                f"{wanted.shard} of cluster {wanted.cluster_id or 'unknown'}"
            )
        return None


def encode_header(first_lsn: int, previous_lsn: int, owner: Owner) -> bytes:
    """The header of a new segment."""
    name = bytes.fromhex(owner.cluster_id) or bytes(16)
    head = SEGMENT_HEADER.pack(MAGIC, first_lsn, previous_lsn, name, owner.shard or 0, 0, 0)[:-8]
    return head + xxhash.xxh3_64_intdigest(head).to_bytes(8, "little")


def segment_path(directory: Path, first_lsn: int) -> Path:
    """Path of the segment that begins at `first_lsn`."""
    return directory / f"{first_lsn:020d}.log"


def list_segments(directory: Path) -> list[Path]:
    """Segment files by first LSN."""
    return sorted(directory.glob("*.log"))


def encode_record(record: Record) -> tuple[bytes, bytes | memoryview, bytes]:
    """Header, payload and trailer of a record, ready to be written one after the other."""
    fields = (len(record.payload), record.kind, RECORD_VERSION, 0, record.lsn, record.time_ms)
    head = RECORD_HEADER.pack(*fields, xxhash.xxh3_64_intdigest(record.payload), 0)[:-8]
    check = xxhash.xxh3_64_intdigest(head).to_bytes(8, "little")
    return head + check, record.payload, check


def read_header(file: BinaryIO, path: Path) -> SegmentHeader | None:
    """The header of a segment, or None when it is cut short or all zeros, as a power cut before its sync may
    leave it; CorruptionError when it is wrong."""
    magic = file.read(len(MAGIC))
    layout = SEGMENT_HEADER_1 if magic == MAGIC_1 else SEGMENT_HEADER
    head = magic + file.read(layout.size - len(magic))
    if len(head) < layout.size or not any(head):
        return None
    if magic not in (MAGIC, MAGIC_1):
        raise CorruptionError(f"{path}: starts with {magic!r}; this version reads {MAGIC_1!r} and {MAGIC!r}")
    if int.from_bytes(head[-8:], "little") != xxhash.xxh3_64_intdigest(head[:-8]):
        raise CorruptionError(f"{path}: the segment's header fails its checksum")
    if magic == MAGIC_1:
        _, first, before, _ = SEGMENT_HEADER_1.unpack(head)
        return SegmentHeader(int(first), int(before), Owner("", None), layout.size)
    _, first, before, name, shard, _, _ = SEGMENT_HEADER.unpack(head)
    owner = Owner(name.hex() if any(name) else "", int(shard))
    return SegmentHeader(int(first), int(before), owner, layout.size)


def header_of(path: Path) -> SegmentHeader | None:
    """`read_header` of a file."""
    with path.open("rb") as file:
        return read_header(file, path)


def lost_open_segment(directory: Path, open_lsn: int) -> str | None:
    """What is wrong with the segment that was open when a shard was killed; None when it is there.

    Parameters
    ----------
    directory
        Of the segments.
    open_lsn
        Its first LSN; 0 where that is not known.
    """
    path = segment_path(directory, open_lsn)
    if not open_lsn:
        return None
    text = f"{path}: the push log's open segment when the shard was killed"
    if not path.exists():
        return f"{text} is missing"
    if header_of(path) is None:
        return f"{text} has {path.stat().st_size} bytes; its header alone has {SEGMENT_HEADER.size}"
    return None


def complaints(directory: Path, owner: Owner, open_lsn: int) -> Iterator[str]:
    """Each segment that is another shard's, and the open one where it is lost (`lost_open_segment`).

    A segment whose header is damaged is left to whoever reads it.
    """
    for path in list_segments(directory):
        with suppress(CorruptionError):
            header = header_of(path)
            if header and (complaint := header.complaint(owner)):
                yield f"{path}: {complaint}"
    with suppress(CorruptionError):
        if lost := lost_open_segment(directory, open_lsn):
            yield lost


def check_segments(directory: Path, owner: Owner, open_lsn: int) -> None:
    """CorruptionError with the first of `complaints`."""
    for complaint in complaints(directory, owner, open_lsn):
        raise CorruptionError(complaint)


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
        expected = header.first_lsn if header else None
        offset = header.size if header else 0
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


def _walk(directory: Path, after_lsn: int) -> Iterator[tuple[Path, int, Record]]:
    """(segment, end offset, record) of every record, in order; CorruptionError as `read_records`."""
    segments = list_segments(directory)
    newest: int | None = None  # last LSN read so far
    for i, path in enumerate(segments):
        header = header_of(path)
        known = after_lsn if newest is None else newest
        before = header.previous_lsn if header else known
        if before > known if newest is None else before != known:
            raise CorruptionError(f"{path}: follows LSN {before}; the records after {known} are missing")
        newest = before
        for end, record in read_segment(path, last=i == len(segments) - 1):
            newest = record.lsn
            yield path, end, record


def read_records(directory: Path, after_lsn: int) -> Iterator[Record]:
    """Records above `after_lsn`, in order; CorruptionError names what is damaged or missing."""
    return (record for _, _, record in _walk(directory, after_lsn) if record.lsn > after_lsn)


def find_end(path: Path) -> tuple[int, int]:
    """(end of the last whole record, bytes of a torn record after it) of the last segment; an end of 0:
    not even the segment's header was written. CorruptionError as `read_segment`."""
    end = 0
    for end, _ in read_segment(path, last=True):  # noqa: B007 (the last value is what is wanted)
        pass
    with path.open("rb") as file:
        if end == 0 and (header := read_header(file, path)):
            end = header.size
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
        sync_directory(directory)
    else:
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    if torn:
        _logger.warning("%s: cut %d bytes of a torn record at its end", path, torn)
    return torn


def cut_lost_end(directory: Path, after_lsn: int) -> None:
    """Cut the log of `durability: os` after the machine went down: at the first record that is not whole.

    What the kernel had not written by then is gone, in any order; `os` promises no more. A warning says what
    was cut. Afterwards the log is as after a clean end.
    """
    segments = list_segments(directory)
    path, end, lsn = segments[0] if segments else directory, 0, after_lsn
    try:
        for path, end, record in _walk(directory, after_lsn):  # noqa: B007 (the last ones are what is wanted)
            lsn = record.lsn
    except CorruptionError as error:
        _logger.warning(
            "the machine went down, and durability was os: the push log goes up to LSN %d (%s)", lsn, error
        )
        if end:
            with path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())  # the next segment's header names what is left
        for later in segments[segments.index(path) + (1 if end else 0) :]:
            later.unlink()
        sync_directory(directory)


def encode_eviction(table: str, ids: NDArray[np.uint64]) -> bytes:
    """Payload of an evict record (docs/log_format.md)."""
    name = table.encode()
    return len(name).to_bytes(2, "little") + name + ids.astype("<u8").tobytes()


def decode_eviction(payload: bytes | memoryview) -> tuple[str, NDArray[np.uint64]]:
    """Table name and ids of an evict record."""
    size = int.from_bytes(payload[:2], "little")
    return str(payload[2 : 2 + size], "utf-8"), np.frombuffer(payload[2 + size :], "<u8").astype(np.uint64)
