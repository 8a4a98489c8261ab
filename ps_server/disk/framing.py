# SPDX-License-Identifier: Apache-2.0
"""The framing of RocksDB's own logs, looked at before RocksDB reads them.

Its reader never returns, and holds Python's lock, where a record's type is one of those of logs whose files
are used again (5 to 8 and 11; `log::Reader::ReadRecord`). Ours are not, so such a type is damage. What else
may be wrong in these files RocksDB tells by itself: lengths, checksums, contents.

    log    = block*                                  blocks of 32 KiB
    block  = record* slack                           a slack of less than 7 bytes, or zeros
    record = crc:u32 length:u16 type:u8 payload      type 1 whole, 2 first, 3 middle, 4 last

Thread safety: pure functions over files that nobody writes.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rowhouse.error import CorruptionError

BLOCK_BYTES: Final = 32 << 10
HEADER: Final = struct.Struct("<IHB")
TYPE_MAX: Final = 4


def check_framing(directory: Path) -> None:
    """CorruptionError when RocksDB would not come back from reading a store's MANIFEST or one of its logs."""
    for path in _logs(directory):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = _wrong_record(data, len(data))
        if at is not None:
            raise CorruptionError(
                f"{path}: the record at byte {at} has a type that RocksDB never writes here"
            )


def _logs(directory: Path) -> Iterator[Path]:
    """The store's MANIFEST and write-ahead logs, those that are not empty."""
    current = directory / "CURRENT"
    name = current.read_bytes().decode("utf-8", "replace").strip() if current.is_file() else ""
    manifest = [directory / name] if name.startswith("MANIFEST-") and "/" not in name else []
    for path in (*manifest, *sorted(directory.glob("*.log"))):
        if path.is_file() and path.stat().st_size:
            yield path


def _wrong_record(data: mmap.mmap, size: int) -> int | None:
    """Where the first record of a wrong type begins; what cannot be a record ends its block."""
    for block in range(0, size, BLOCK_BYTES):
        at, end = block, min(block + BLOCK_BYTES, size)
        while at + HEADER.size <= end:
            _, length, kind = HEADER.unpack_from(data, at)
            if kind > TYPE_MAX:
                return at
            if not kind or at + HEADER.size + length > end:
                break
            at += HEADER.size + length
    return None
