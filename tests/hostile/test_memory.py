# SPDX-License-Identifier: Apache-2.0
"""What strangers can make a shard's process take, seen from outside: never more than its memory_budget and
`beyond_budget_bytes`, and afterwards nearly nothing of it.

Each scenario runs over gRPC and over the data port. What they send is refused, held, or legal and large.
"""

import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rowhouse import codec, frame, message
from rowhouse.error import ERROR_METADATA_KEY, from_status
from rowhouse.limit import KEPT_BYTES, beyond_budget_bytes
from rowhouse.v1 import rowhouse_pb2 as pb

from tests.hostile.victim import BUDGET, Victim
from tests.process import wait_until
from tests.workload import MEMORY

KINDS = {"Pull": frame.PULL, "Push": frame.PUSH, "Contribute": frame.CONTRIBUTE}

Seen = Counter[str]


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    folder = Path(tempfile.mkdtemp(prefix="victim", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        with Victim(folder) as one:
            for number in range(1, 4):  # kernels are compiled, and every thread has worked
                assert ask(one, "data", "Push", one.push("user", 20_000, 7, number)) == ""
                assert ask(one, "grpc", "Pull", one.pull("user", range(20_000))) == ""
            yield one
            assert one.stop() == 0
    finally:
        shutil.rmtree(folder)


def ask(victim: Victim, way: str, method: str, body: bytes | memoryview, channel: Any = None) -> str:
    """The class name of the error that a call gets; "" when it succeeds."""
    if way == "data":
        try:
            with victim.frames() as frames:
                return frames.call(KINDS[method], body)
        except (ConnectionError, EOFError):
            return "given up"  # it was slow while others found no room
    own = None
    if channel is None:
        channel = own = victim.dial()
    try:
        channel.unary_unary(f"/rowhouse.v1.ParameterService/{method}")(bytes(body), timeout=120)
    except grpc.RpcError as failure:
        trailing = failure.trailing_metadata() or ()
        names = [str(m.value) for m in trailing if m.key == ERROR_METADATA_KEY]
        return type(from_status(failure.code().value[0], "", names[0] if names else None)).__name__
    finally:
        if own is not None:
            own.close()
    return ""


def at_once(count: int, work: Callable[[int], str]) -> Seen:
    """What so many calls at once get."""
    seen, lock = Seen(), threading.Lock()

    def one(number: int) -> None:
        found = work(number)
        with lock:
            seen[found] += 1

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def member(group: int, trainer: int = 0, name: str = "host:1") -> pb.Member:
    return pb.Member(
        group=group, trainer=trainer, trainers=1024, incarnation=1, name=name, pace=pb.PACE_BSP,
        deadline_ms=600_000,
    )  # fmt: skip


# ------------------------------------------------------------ scenarios
def too_large(v: Victim, way: str, scale: int) -> Seen:
    body = memoryview(bytearray((250 if scale > 1 else 64) << 20))
    return at_once(3 * scale, lambda _: ask(v, way, "Push", body))


def refused_at_once(v: Victim, way: str, scale: int) -> Seen:
    nan = v.push("user", (v.message_bytes_max - 4096) // 72, 9, 1, float("nan"))
    return at_once(12 * scale, lambda _: ask(v, way, "Push", nan))


def refused_one_by_one(v: Victim, way: str, scale: int) -> Seen:
    nan = v.push("user", (v.message_bytes_max - 4096) // 72, 9, 1, float("nan"))
    with v.dial() as channel:
        return Seen(ask(v, way, "Push", nan, channel) for _ in range(10 * scale))


def unknown_fields(v: Victim, way: str, scale: int) -> Seen:
    """Groups contribute next to nothing, in large messages."""

    def one(number: int) -> str:
        push = codec.encode_push_request(message.PushRequest(v.cluster.map_version, 1000 + number, 1, ()))
        push += codec._head(15, v.message_bytes_max - 4096) + bytes(v.message_bytes_max - 4096)
        who = member(1000 + number).SerializeToString()
        body = codec._head(1, len(who)) + who + codec._head(2, len(push)) + push
        return ask(v, way, "Contribute", body)

    return at_once(15 * scale, one)


def whole_steps(v: Victim, way: str, scale: int) -> Seen:
    """Groups contribute all that they may, and never end the step."""
    count = (v.message_bytes_max // 4) // 72

    def one(number: int) -> str:
        push = codec.decode_push_request(v.push("user", count, 2000 + number % 8, 1))
        sent = message.Contribution(member(2000 + number % 8, number // 8), push)
        return ask(v, way, "Contribute", codec.encode_contribution(sent))

    return at_once(24 * scale, one)


def repeated_fields(v: Victim, way: str, scale: int) -> Seen:
    half = (v.message_bytes_max - 4096) // 2
    wrong = [b"\x08\x01" * half, b"\x22\x00" * half, b"\x78\x01" * half, b"\x7a\x00" * half]
    wrong += [codec._head(4, 2 * half) + one for one in (b"\x10\x01" * half, b"\x78\x01" * half)]
    wrong.append(b"\x0b\x0c" * half)
    return Seen(ask(v, way, method, one) for one in wrong for method in KINDS)


def large_pulls(v: Victim, way: str, scale: int) -> Seen:
    seen = Seen()
    for table, id_bytes in (("narrow", 12), ("user", 72)):
        count = (v.message_bytes_max - 4096) // id_bytes
        rng = np.random.default_rng(count)
        bodies = [v.pull(table, rng.integers(0, 2**63, count, np.uint64)) for _ in range(6)]
        seen += at_once(6 * scale, lambda n, bodies=bodies: ask(v, way, "Pull", bodies[n % 6]))  # type: ignore[misc]
    return seen


def duplicates(v: Victim, way: str, scale: int) -> Seen:
    """Legal pushes of one id, many times over: their sums are work. Each client's first is applied."""
    count = (v.message_bytes_max - 4096) // 12
    part = codec.decode_push_request(v.push("narrow", 2, 1, 1)).tables[0]
    ids, gradients = np.arange(count, dtype=np.uint64) % np.uint64(1000), np.full((count, 1), 0.1, np.float32)
    several = message.TableGradients("narrow", part.dtype, ids, gradients)
    first = int.from_bytes(os.urandom(4), "little") << 8

    def one(number: int) -> str:
        push = message.PushRequest(v.cluster.map_version, first + number, 1, (several,))
        return ask(v, way, "Push", codec.encode_push_request(push))

    return at_once(8 * scale, one)


def unfinished(v: Victim, way: str, scale: int) -> Seen:
    """Frames that stop before their end, and answers that nobody reads."""
    if way == "grpc":
        return Seen()
    body = bytes(v.message_bytes_max - 4096)
    pull = v.pull("user", np.arange((v.message_bytes_max - 4096) // 72, dtype=np.uint64))
    with ExitStack() as stack:
        for number in range(20 * scale):
            peer = stack.enter_context(v.frames())
            peer.socket.settimeout(2)
            try:
                if number % 2:
                    peer.send(frame.PULL, pull)
                else:
                    peer.head(frame.PUSH, len(body))
                    peer.socket.sendall(body[:-1])
            except OSError:
                pass  # it was given up, for others
    return Seen()


def many_words(v: Victim, way: str, scale: int) -> Seen:
    """What a shard might remember or repeat: names of trainers, groups and copies, metadata."""
    if way == "data":
        return Seen()
    seen = Seen()
    long = "n" * (15 << 10)
    with v.dial() as channel:
        for number in range(200 * scale):
            who = member(3000 + number % 70, number % 1024, "n" * 250)
            seen[ask(v, way, "JoinGroup", pb.JoinGroupRequest(member=who).SerializeToString(), channel)] += 1
        for name in (long, 9 * long):
            body = pb.JoinGroupRequest(member=member(1, 0, name)).SerializeToString()
            seen[ask(v, way, "JoinGroup", body, channel)] += 1
        for method, request in (
            ("SaveTables", pb.SaveTablesRequest(name=long)), ("EvictRows", pb.EvictRowsRequest(table=long)),
            ("SetTableFreeze", pb.SetTableFreezeRequest(table=long)),
            ("DropSavedTables", pb.DropSavedTablesRequest(name=long)),
        ):  # fmt: skip
            for _ in range(5 * scale):
                seen[ask(v, way, method, request.SerializeToString(), channel)] += 1
        large = bytes(v.message_bytes_max - 4096)
        for method in ("GetCluster", "GetStats", "SaveTables", "AwaitStep"):
            for _ in range(4 * scale):
                seen[ask(v, way, method, large, channel)] += 1
        get_cluster: Any = channel.unary_unary("/rowhouse.v1.ParameterService/GetCluster")
        calls = [get_cluster.future(b"", timeout=120) for _ in range(500 * scale)]
        seen.update("" if call.exception() is None else "lost" for call in calls)
    return seen


SCENARIOS = [
    too_large, refused_at_once, refused_one_by_one, unknown_fields, whole_steps, repeated_fields, large_pulls,
    duplicates, unfinished, many_words,
]  # fmt: skip


def hold(victim: Victim, way: str, scenario: Callable[[Victim, str, int], Seen], scale: int) -> None:
    """Run one scenario: the peak stays inside the bound, and memory goes back."""
    start, counted = victim.memory("VmRSS"), victim.counted()
    victim.forget_peak()
    seen = scenario(victim, way, scale)
    peak = victim.memory("VmHWM")
    # Rows that became hot are in the budget; else the budget is nearly empty here.
    beyond = peak - victim.counted()
    most = beyond_budget_bytes(BUDGET)
    mib = [size >> 20 for size in (start, peak, beyond, most)]
    print(f"{way} {scenario.__name__}: from {mib[0]} to {mib[1]} MiB, {mib[2]} of {mib[3]}: {dict(seen)}")
    assert beyond <= most
    assert not seen["InternalError"] and not seen["RowhouseError"]
    wait_until(lambda: victim.memory("VmRSS") - start - (victim.counted() - counted) < KEPT_BYTES)
    assert ask(victim, way, "Pull", victim.pull("user", range(1000))) == ""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("way", ["data", "grpc"])
def test_the_process_stays_inside_its_bound(
    victim: Victim, way: str, scenario: Callable[[Victim, str, int], Seen]
) -> None:
    hold(victim, way, scenario, 1)


@pytest.mark.soak
def test_the_process_stays_inside_its_bound_round_after_round(victim: Victim) -> None:
    for _ in range(3):
        for scenario in SCENARIOS:
            for way in ("data", "grpc"):
                hold(victim, way, scenario, 4)
