# SPDX-License-Identifier: Apache-2.0
"""Retries, lost answers, gaps, changed maps: each push is applied once (lane.py, exchange.py, retry.py).

Each test runs without a wire, and over data ports, where a call to several shards is begun on all of them.
"""

import os
import signal
import threading
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from rowhouse.error import (
    BusyError,
    DeadlineExceededError,
    InternalError,
    RowhouseError,
    SequenceGapError,
    StalePartitionMapError,
    StoreError,
    TableFrozenError,
    UnavailableError,
)
from rowhouse.message import PushRequest
from rowhouse.placement import PartitionMap

from ps_client import Client
from ps_client.retry import Retry
from ps_client.transport.embedded import EmbeddedTransport

from . import fake_shard
from .fake_shard import FakeShard, Row, first_row, make_shards, raising
from .linked_shard import LinkedTransport

MakeClient = Callable[..., Client]

IDS = np.arange(40)
ONES = np.ones((40, 4), np.float32)
AFTER_ONE = np.array([first_row(i, 4) for i in range(40)]) - np.float32(0.5)


@pytest.fixture(params=[EmbeddedTransport, LinkedTransport])
def local_client(request: pytest.FixtureRequest) -> MakeClient:
    """fake_shard.local_client, with either transport."""
    return partial(fake_shard.local_client, transport=request.param)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s: list[float] = []

    def sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        self.now_s += delay_s

    def retry(self, timeout_s: float = 5.0) -> Retry:
        # The longest delay each time: the bounds of the back-off become visible.
        return Retry(
            timeout_s=timeout_s, clock=lambda: self.now_s, sleep=self.sleep, uniform=lambda low, high: high
        )


def held(shards: list[FakeShard]) -> Row:
    """Rows 0 to 39 of table "user", each from the shard that owns it by the newest map."""
    owners = shards[0].map.shards_of(IDS.astype(np.uint64))
    return np.array([shards[owner].row("user", i) for i, owner in enumerate(owners)])


@pytest.mark.parametrize("failure", [UnavailableError, DeadlineExceededError, BusyError])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("shard_count", [1, 3])
def test_a_push_whose_answers_are_lost_is_applied_once(
    failure: type[RowhouseError], when: str, shard_count: int, local_client: MakeClient
) -> None:
    shards = make_shards(shard_count)
    for shard in shards:
        getattr(shard, when)["push"] = [raising(failure)] * 1
    with local_client(shards) as client:
        client.push("user", IDS, ONES)
    np.testing.assert_array_equal(held(shards), AFTER_ONE)
    assert all([r.sequence for r in shard.pushes] == [1, 1] for shard in shards)


def test_a_pull_is_retried_with_growing_delays(local_client: MakeClient) -> None:
    time, shards = Time(), make_shards(1)
    shards[0].before["pull"] = [raising(UnavailableError)] * 8
    with local_client(shards, retry=time.retry(timeout_s=60)) as client:
        client.pull("user", IDS)
    assert time.slept_s == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0])


def test_a_pull_gives_up_at_its_deadline_and_says_how_often_it_tried(local_client: MakeClient) -> None:
    time, shards = Time(), make_shards(1)
    shards[0].before["pull"] = [raising(UnavailableError, "down")] * 100
    says = r"down; gave up after 8 attempts in 2.3 s"
    with (
        local_client(shards, retry=time.retry(timeout_s=3)) as client,
        pytest.raises(UnavailableError, match=says),
    ):
        client.pull("user", IDS)
    assert len(shards[0].pulls) == 8


@pytest.mark.parametrize("failure", [InternalError, StoreError, UnavailableError])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_push_of_unknown_fate_is_sent_before_the_next_one(
    failure: type[RowhouseError], when: str, local_client: MakeClient
) -> None:
    """Invariants 1 to 3 of lane.py."""
    shards = make_shards(1)
    getattr(shards[0], when)["push"] = [raising(failure)]
    shards[0].before["push"] = shards[0].before["push"] or [None]
    shards[0].before["push"] += [raising(UnavailableError)] * 50
    gradients = ONES.copy()
    with local_client(shards, retry=Time().retry(timeout_s=3)) as client:
        with pytest.raises(failure, match=r"push 1 was applied is not known: it is kept and sent again"):
            client.push("user", IDS, gradients)
        gradients[:] = 1e6  # the kept push has its own copy
        shards[0].before["push"].clear()
        client.push("user", IDS, 2 * ONES)
    np.testing.assert_array_equal(held(shards), AFTER_ONE - np.float32(1.0))
    assert shards[0].pushes[-1].sequence == 2


def test_flush_settles_a_kept_push_and_fails_while_the_shard_is_away(local_client: MakeClient) -> None:
    shards = make_shards(2)
    shards[1].after["push"] = [raising(UnavailableError)]
    shards[1].before["push"] = [None] + [raising(UnavailableError)] * 50
    with local_client(shards, retry=Time().retry(timeout_s=3)) as client:
        with pytest.raises(UnavailableError):
            client.push("user", IDS, ONES)
        with pytest.raises(UnavailableError, match="push 1 was applied is not known"):
            client.flush()
        shards[1].before["push"].clear()
        client.flush()
        client.flush()
    np.testing.assert_array_equal(held(shards), AFTER_ONE)
    assert len(shards[0].pushes) == 1, "the other shard's part was answered and is not sent again"


def test_a_refused_push_gives_its_number_back(local_client: MakeClient) -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        client.freeze("user", "refuse")
        with pytest.raises(TableFrozenError):
            client.push("user", IDS, ONES)
        client.freeze("user", "off")
        client.push("user", IDS, ONES)
        client.push("item", IDS, np.ones((40, 3)))
    assert [request.sequence for request in shards[0].pushes] == [1, 1, 2]
    np.testing.assert_array_equal(held(shards), AFTER_ONE)


def test_a_busy_shard_gives_the_number_back_at_the_deadline(local_client: MakeClient) -> None:
    shards = make_shards(1)
    shards[0].before["push"] = [raising(BusyError, "full")] * 8
    with local_client(shards, retry=Time().retry(timeout_s=3)) as client:
        with pytest.raises(BusyError, match=r"full; gave up after 8 attempts in 2.3 s$"):
            client.push("user", IDS, ONES)
        client.push("user", IDS, ONES)
    np.testing.assert_array_equal(held(shards), AFTER_ONE)
    assert shards[0].pushes[-1].sequence == 1


def test_a_number_that_the_shard_had_before_is_not_taken_for_an_answer(local_client: MakeClient) -> None:
    """A shard refuses a repeat that it had applied: the next push must not pass for that repeat."""
    shards = make_shards(1)
    shards[0].after["push"] = [raising(TableFrozenError)]
    with local_client(shards) as client:
        with pytest.raises(TableFrozenError):
            client.push("user", IDS, ONES)
        client.push("user", IDS, 2 * ONES)
    assert [request.sequence for request in shards[0].pushes] == [1, 1, 2]
    np.testing.assert_array_equal(held(shards), AFTER_ONE - np.float32(1.0))


def refuse_the_second_attempt(client: Client, shard: FakeShard) -> PushRequest:
    """A push whose first attempt is on its way when the second one is refused; the table is open again."""
    client.freeze("user", "refuse")
    shard.before["push"] = [raising(DeadlineExceededError)]
    with pytest.raises(TableFrozenError):
        client.push("user", IDS, ONES)
    client.freeze("user", "off")
    return shard.pushes[0]


def test_a_late_copy_of_a_refused_push_does_not_take_the_next_ones_number(local_client: MakeClient) -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        late = refuse_the_second_attempt(client, shards[0])
        shards[0].before["push"] = [raising(UnavailableError)] * 2
        client.push("user", IDS, 2 * ONES)
        assert shards[0].push(late).duplicate
        np.testing.assert_array_equal(held(shards), AFTER_ONE - np.float32(0.5))
        client.push("user", IDS, ONES)
    np.testing.assert_array_equal(held(shards), AFTER_ONE - np.float32(1.0))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_late_copy_that_comes_first_is_not_taken_for_the_next_push(
    local_client: MakeClient, lost: int
) -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        shards[0].push(refuse_the_second_attempt(client, shards[0]))
        shards[0].before["push"] = [raising(UnavailableError)] * lost
        client.push("user", IDS, 2 * ONES)
    np.testing.assert_array_equal(held(shards), AFTER_ONE - np.float32(1.0))


def test_a_gap_is_an_error_and_stays_one(local_client: MakeClient) -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        client.push("user", IDS, ONES)
        shards[0].sequences.clear()  # what a shard under `durability: none` forgets when it is killed
        for _ in range(2):
            with pytest.raises(SequenceGapError, match="sequence is 2; expected 1"):
                client.push("user", IDS, ONES)
    np.testing.assert_array_equal(held(shards), AFTER_ONE)


def grow(shards: list[FakeShard], endpoints: list[str]) -> None:
    """Move the cluster of one shard to two, rows and sequence numbers included."""
    shards[0].map = PartitionMap.even(2)
    shards.append(FakeShard(shards[0].tables, 1, 2))
    for key in list(shards[0].rows):
        if shards[0].map.shards_of(np.array([key[1]], np.uint64))[0] == 1:
            shards[1].rows[key] = shards[0].rows.pop(key)
    for shard in shards:
        shard.endpoints = endpoints


def test_a_changed_map_is_reloaded_and_only_the_refused_part_is_sent_again(local_client: MakeClient) -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        client.push("user", IDS, ONES)
        grow(shards, ["0", "1"])
        np.testing.assert_array_equal(client.pull("user", IDS), AFTER_ONE)
        client.push("user", IDS, ONES)
        assert client.shard_count == 2
    np.testing.assert_array_equal(held(shards), AFTER_ONE - np.float32(0.5))
    assert [request.sequence for request in shards[1].pushes] == [1]


def test_a_part_that_was_applied_is_not_split_again(local_client: MakeClient) -> None:
    """Invariant 1 of exchange.py: shard 0 takes its part, shard 1 refuses its own; roles then change."""
    shards = make_shards(2)
    swapped = PartitionMap.from_bytes((1 - shards[0].map.shards).astype("<u2").tobytes())

    def swap() -> None:
        shards[1].map = swapped
        shards[1].rows, shards[0].rows = {}, dict(shards[0].rows)
        raise StalePartitionMapError("moved")

    shards[1].before["push"] = [swap]
    with local_client(shards) as client:
        owners = shards[0].map.shards_of(IDS.astype(np.uint64))
        # Shard 0 learns of the new map once it has taken its part.
        shards[0].after["push"] = [lambda: setattr(shards[0], "map", swapped)]
        client.push("user", IDS, ONES)
    applied = [shards[0].rows[("user", i)] for i in IDS.tolist()]
    np.testing.assert_array_equal(applied, AFTER_ONE)
    assert [len(r.tables[0].ids) for r in shards[0].pushes] == [
        int((owners == 0).sum()),
        int((owners == 1).sum()),
    ]


def test_a_kept_push_follows_its_rows_to_another_shard(local_client: MakeClient) -> None:
    shards = make_shards(1)
    shards[0].before["push"] = [raising(UnavailableError)] * 50
    with local_client(shards, retry=Time().retry(timeout_s=3)) as client:
        with pytest.raises(UnavailableError):
            client.push("user", IDS, ONES)
        shards[0].before["push"].clear()
        grow(shards, ["0", "1"])
        client.flush()
        client.push("user", IDS, ONES)
    np.testing.assert_array_equal(held(shards), AFTER_ONE - np.float32(0.5))


def test_a_shard_that_refuses_the_map_it_gives_is_waited_for_and_named(local_client: MakeClient) -> None:
    shards = make_shards(1)
    with local_client(shards, retry=Time().retry(timeout_s=3)) as client:
        shards[0].before["pull"] = [raising(StalePartitionMapError, "not mine")] * 3
        np.testing.assert_array_equal(client.pull("user", IDS), held(shards))
        shards[0].before["pull"] = [raising(StalePartitionMapError, "not mine")] * 99
        with pytest.raises(StalePartitionMapError, match="not mine; gave up after 8 attempts"):
            client.pull("user", IDS)
        shards[0].before["push"] = [raising(StalePartitionMapError, "not mine")] * 99
        with pytest.raises(StalePartitionMapError, match="not mine; gave up"):
            client.push("user", IDS, ONES)
        shards[0].before["push"].clear()
        client.push("user", IDS, ONES)
    np.testing.assert_array_equal(held(shards), AFTER_ONE)


def test_failures_of_several_shards_are_all_named(local_client: MakeClient) -> None:
    shards = make_shards(3)
    shards[0].before["push"] = [raising(TableFrozenError, "zero")]
    shards[2].before["push"] = [raising(TableFrozenError, "two")]
    with local_client(shards) as client, pytest.raises(TableFrozenError, match="zero") as caught:
        client.push("user", IDS, ONES)
    (note,) = caught.value.__notes__
    assert note.startswith("and on another shard: TableFrozenError: ") and note.endswith("two")
    assert shards[1].applied == 1


def test_an_interrupt_keeps_the_push(local_client: MakeClient) -> None:
    interrupted(make_shards(1), local_client)


def interrupted(shards: list[FakeShard], connect: MakeClient) -> None:
    """Ctrl-C while a push waits for its answers; the next push brings the first one along."""
    main = threading.main_thread().ident
    assert main is not None
    shards[-1].after["push"] = [lambda: signal.pthread_kill(main, signal.SIGINT)]
    with connect(shards) as client:
        with pytest.raises(KeyboardInterrupt):
            client.push("user", IDS, ONES)
        client.push("user", IDS, ONES)
    np.testing.assert_array_equal(held(shards), AFTER_ONE - np.float32(0.5))
    assert [shard.applied for shard in shards] == [2] * len(shards)


def test_a_fork_is_refused_in_the_child(local_client: MakeClient) -> None:
    shards = make_shards(2)
    client = local_client(shards)
    client.pull("user", IDS)
    child = os.fork()
    if child == 0:
        try:
            client.pull("user", IDS)
            os._exit(1)
        except RowhouseError as failure:
            client.close()
            told = type(failure).__name__ == "PreconditionError" and "fork" in str(failure)
            os._exit(0 if told and not shards[0].closed else 2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.pull("user", IDS)
    client.close()


def test_a_push_that_waits_too_long_for_another_thread_is_not_sent() -> None:
    shards = make_shards(1)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        leave.wait(20)

    shards[0].before["push"] = [hold]
    with fake_shard.local_client(shards, retry=Retry(timeout_s=0.3)) as client:
        slow = threading.Thread(target=client.push, args=("user", IDS, ONES))
        slow.start()
        entered.wait(20)
        with pytest.raises(DeadlineExceededError, match=r"another thread's push took .* was not sent"):
            client.push("user", IDS, ONES)
        leave.set()
        slow.join()
    np.testing.assert_array_equal(held(shards), AFTER_ONE)
    assert [request.sequence for request in shards[0].pushes] == [1]


def test_threads_that_meet_a_changed_map_together_reload_it_once(local_client: MakeClient) -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        grow(shards, ["0", "1"])
        rows: list[Row] = []
        workers = [threading.Thread(target=lambda: rows.append(client.pull("user", IDS))) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert client.shard_count == 2
    assert len(rows) == 8
    for answer in rows:
        np.testing.assert_array_equal(answer, held(shards))
