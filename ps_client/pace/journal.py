# SPDX-License-Identifier: Apache-2.0
"""A trainer's part of the step that it is ending, in a file, so that a restarted trainer can finish it.

A step may be applied on one shard when another shard, which held this trainer's part, and the trainer
itself are killed. The gradients cannot be computed again: the rows have moved on. With the file they need
not be.

    journal := header "\\n" push*          header is JSON: version, group, trainer, step, sizes, checksum
    push    := the PushRequest of one shard, in protobuf (rowhouse.proto); sizes are their lengths, by shard

Example of a header: {"version": 1, "group": 7, "trainer": 0, "step": 3, "sizes": [41], "xxh3": "0f…"}

The file is replaced by a rename and not synced: it outlives the process, which is what it is for.
Thread safety: one trainer has one file.
"""

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import xxhash
from rowhouse.codec import decode_push_request, encode_push_request
from rowhouse.error import CorruptionError, StoreError
from rowhouse.file import replacing
from rowhouse.message import PushRequest

VERSION = 1


def write_journal(path: Path, group: int, trainer: int, step: int, pushes: Sequence[PushRequest]) -> None:
    """Replace the file; StoreError when the system refuses.

    Parameters
    ----------
    path
        The file.
    group, trainer, step
        Whose part of which step it is.
    pushes
        The part of each shard.
    """
    encoded = [encode_push_request(push) for push in pushes]
    body = b"".join(encoded)
    header = {
        "version": VERSION, "group": group, "trainer": trainer, "step": step,
        "sizes": [len(data) for data in encoded], "xxh3": xxhash.xxh3_64_hexdigest(body),
    }  # fmt: skip
    with replacing(path, synced=False) as temporary:
        temporary.write_bytes(json.dumps(header).encode() + b"\n" + body)


def read_journal(path: Path, group: int, trainer: int, step: int) -> list[PushRequest] | None:
    """The part of each shard, or None when the file is not there or is of something else.

    Parameters
    ----------
    path
        The file.
    group, trainer, step
        Whose part of which step is wanted.

    Raises
    ------
    CorruptionError
        The file is damaged; StoreError when it cannot be read.
    """
    try:
        head, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"journal {str(path)!r} cannot be read: {error.strerror}") from None
    try:
        header = json.loads(head)
        sound = header["version"] == VERSION and header["xxh3"] == xxhash.xxh3_64_hexdigest(body)
        known = (header["group"], header["trainer"], header["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise CorruptionError(f"journal {str(path)!r} is damaged, or of another version; remove it")
    if known != (group, trainer, step):
        return None
    ends = list(accumulate(header["sizes"]))
    return [
        decode_push_request(body[end - size : end]) for end, size in zip(ends, header["sizes"], strict=True)
    ]
