# SPDX-License-Identifier: Apache-2.0
"""Messages for the fuzzer: right ones of every call, and what random, forged and cut bytes make of them.

The same for frames of the data port. A message is a pure function of (seed, number), so a failure is found
again by its number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from rowhouse import frame
from rowhouse.limit import DIM_MAX, IDS_PER_REQUEST_MAX, MESSAGE_BYTES_MAX
from rowhouse.v1 import rowhouse_pb2 as pb

POOL: Final = np.arange(64, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
DIM: Final = 4
VARINTS: Final = (0, 1, 127, 128, 2**31, 2**32 - 1, 2**63, 2**64 - 1, IDS_PER_REQUEST_MAX + 1, DIM_MAX + 1)


@dataclass(frozen=True)
class Fuzzed:
    """One call: its method and bytes; `right` when nothing was done to them."""

    method: str
    data: bytes
    right: bool


def varint(value: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _ids(rng: np.random.Generator) -> Any:
    return rng.choice(POOL, int(rng.integers(0, 6)))


def pull(rng: np.random.Generator, map_version: int) -> pb.PullRequest:
    """A right pull."""
    ids = _ids(rng)
    table = pb.TableIds(table="user", dim=DIM, count=len(ids), ids=ids.tobytes())
    dtype = (pb.DTYPE_FLOAT32, pb.DTYPE_FLOAT16, pb.DTYPE_BFLOAT16)[int(rng.integers(0, 3))]
    read_only = bool(rng.integers(2))
    return pb.PullRequest(map_version=map_version, dtype=dtype, read_only=read_only, tables=[table])


def push(rng: np.random.Generator, map_version: int, sequence: int) -> pb.PushRequest:
    """A right push, when `sequence` is."""
    ids = _ids(rng)
    table = pb.TableGradients(
        table="user", dim=DIM, count=len(ids), dtype=pb.DTYPE_FLOAT32, ids=ids.tobytes()
    )
    table.gradients = rng.normal(size=(len(ids), DIM)).astype("<f4").tobytes()
    if rng.integers(2):
        table.learning_rate = float(rng.uniform(0, 1))
    return pb.PushRequest(map_version=map_version, client_id=9, sequence=sequence, tables=[table])


def _member(rng: np.random.Generator, pace: Any) -> pb.Member:
    # The parts of bsp groups are never sealed here and ssp groups have one trainer: nothing is applied and
    # nobody waits.
    trainers = 2 if pace == pb.PACE_BSP else 1
    return pb.Member(
        group=int(rng.integers(1, 5)) + 100 * pace, trainer=0, trainers=trainers, incarnation=1, name="fuzz",
        pace=pace, deadline_ms=1000,
    )  # fmt: skip


def _right(rng: np.random.Generator, map_version: int, sequence: int) -> tuple[str, Any]:
    kind = int(rng.integers(0, 20))
    if kind < 8:
        return "Push", push(rng, map_version, sequence)
    if kind < 12:
        return "Pull", pull(rng, map_version)
    if kind < 14:
        member = _member(rng, pb.PACE_BSP)
        part = push(rng, map_version, 1)
        part.client_id = member.group
        return "Contribute", pb.ContributeRequest(member=member, push=part)
    if kind == 14:
        return "JoinGroup", pb.JoinGroupRequest(member=_member(rng, int(rng.integers(1, 3))))
    if kind == 15:
        return "AwaitStep", pb.AwaitStepRequest(
            member=_member(rng, pb.PACE_SSP), step=int(rng.integers(1, 9))
        )
    others: list[tuple[str, Any]] = [
        ("GetCluster", pb.GetClusterRequest()),
        ("GetStats", pb.GetStatsRequest()),
        ("EvictRows", pb.EvictRowsRequest(table="user")),  # it has no policy
        ("SetTableFreeze", pb.SetTableFreezeRequest(table="nobody", mode=pb.FREEZE_MODE_REFUSE)),
        ("GetSavedTables", pb.GetSavedTablesRequest(token=3)),
        ("DropSavedTables", pb.DropSavedTablesRequest(name="nobody", token=1)),
        ("SaveTables", pb.SaveTablesRequest(name="no/body", token=1)),
    ]
    return others[int(rng.integers(0, len(others)))]


def _flip(rng: np.random.Generator, data: bytearray) -> None:
    for _ in range(int(rng.integers(1, 5))):
        if data:
            data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))


def _cut(rng: np.random.Generator, data: bytearray) -> None:
    del data[int(rng.integers(0, len(data) + 1)) :]


def _insert(rng: np.random.Generator, data: bytearray) -> None:
    place = int(rng.integers(0, len(data) + 1))
    data[place:place] = rng.bytes(int(rng.integers(1, 20)))


def _forge(rng: np.random.Generator, data: bytearray) -> None:
    """A varint of a dangerous size in the place of a byte: a count, a dim, a length, a field number."""
    place = int(rng.integers(0, len(data) + 1))
    data[place : place + 1] = varint(VARINTS[int(rng.integers(0, len(VARINTS)))])


def _repeat(rng: np.random.Generator, data: bytearray) -> None:
    start = int(rng.integers(0, len(data) + 1))
    data += data[start:] * int(rng.integers(1, 40))


def _random(rng: np.random.Generator, data: bytearray) -> None:
    data[:] = rng.bytes(int(rng.integers(0, 400)))


def _extreme(rng: np.random.Generator, data: bytearray) -> None:
    """Four bytes of a NaN, an infinity or the largest float."""
    if len(data) >= 4:
        place = int(rng.integers(0, len(data) - 3))
        value = (np.nan, np.inf, -np.inf, 3.4e38)[int(rng.integers(0, 4))]
        data[place : place + 4] = np.float32(value).tobytes()


def _bend(rng: np.random.Generator, message: Any) -> None:
    """Another dim, count, dtype, name, number or length in a message that stays well-formed."""
    push = message.push if isinstance(message, pb.ContributeRequest) else message
    big = VARINTS[int(rng.integers(0, len(VARINTS)))]
    if not isinstance(push, pb.PullRequest | pb.PushRequest):
        return
    table = push.tables[0]
    field = int(rng.integers(0, 9))
    if field == 0:
        table.dim = min(big, 2**32 - 1)
    elif field == 1:
        table.count = big
    elif field == 2:
        table.dim, table.count = DIM * 2, table.count // 2
    elif field == 3:
        table.table = ("usr", "", "x" * 200, "user\0", "üser")[int(rng.integers(0, 5))]
    elif field == 4:
        table.ids = table.ids[:-1] if rng.integers(2) else table.ids + bytes(8)
    elif field == 5:
        push.map_version = big
    elif field == 6:
        push.tables.append(table)  # type: ignore[arg-type]  # of the same message
    elif isinstance(push, pb.PushRequest):
        if field == 7:
            push.sequence = big
        else:
            push.tables[0].gradients += bytes(int(rng.integers(1, 20)))


CHANGES: Final[tuple[Callable[[np.random.Generator, bytearray], None], ...]] = (
    _flip, _flip, _cut, _insert, _forge, _forge, _repeat, _random, _extreme,
)  # fmt: skip


def fuzzed(seed: int, number: int, map_version: int, sequence: int) -> Fuzzed:
    """Message `number`; every eighth is right."""
    rng = np.random.default_rng([seed, number])
    method, message = _right(rng, map_version, sequence)
    if number % 8 == 0:
        return Fuzzed(method, message.SerializeToString(), True)
    if number % 8 < 4:
        _bend(rng, message)
        return Fuzzed(method, message.SerializeToString(), False)
    wild = bytearray(message.SerializeToString())
    for _ in range(int(rng.integers(1, 4))):
        CHANGES[int(rng.integers(0, len(CHANGES)))](rng, wild)
    return Fuzzed(method, bytes(wild), False)


KINDS: Final = {"Pull": frame.PULL, "Push": frame.PUSH, "Contribute": frame.CONTRIBUTE}
"""The calls that a data port takes."""

SIZES: Final = (0, 19, 2**16, MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX + 1, 2**31, 2**32 - 1)


def wild_stream(seed: int, number: int, method: str, body: bytes, token: int) -> bytes:
    """What a connection sends whose frames are not right: flipped, cut, forged, glued, random, foreign."""
    rng = np.random.default_rng([seed, number, 1])
    kind = KINDS[method]
    right = frame.encode_head(kind, len(body), token) + body
    wild = bytearray(right)
    change = int(rng.integers(0, 9))
    if change == 0:  # a bit of the head
        wild[int(rng.integers(0, frame.HEAD.size))] ^= 1 << int(rng.integers(0, 8))
    elif change == 1:
        _cut(rng, wild)
    elif change == 2:
        size = SIZES[int(rng.integers(0, len(SIZES)))] if rng.integers(2) else int(rng.integers(0, 300))
        wild[8:12] = size.to_bytes(4, "little")
    elif change == 3:
        wild[12:20] = rng.bytes(8)
    elif change == 4:
        _random(rng, wild)
    elif change == 5:  # a message that goes on where its length says that it ends
        wild += rng.bytes(int(rng.integers(1, 60)))
    elif change == 6:
        wild += right
        _flip(rng, wild)
    elif change == 7:
        wild[4] = int(rng.integers(0, 20))
    else:
        hello = frame.encode_head(frame.HELLO, 0, token)
        wild[:] = hello + right + hello + right[: int(rng.integers(0, len(right)))]
    return bytes(wild)


def whole_frames(stream: bytes, token: int) -> list[tuple[int, bytes]]:
    """(kind, body) of each frame that a data port must answer before it hangs up; slow and obvious."""
    found = []
    while len(stream) >= 20:
        kind, size = stream[4], int.from_bytes(stream[8:12], "little")
        right = stream[:4] == b"rhd1" and stream[12:20] == token.to_bytes(8, "little")
        if not right or kind not in (0, 1, 2, 3) or (kind == 0 and size) or len(stream) < 20 + size:
            break
        found.append((kind, stream[20 : 20 + size]))
        stream = stream[20 + size :]
    return found
