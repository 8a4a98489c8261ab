# SPDX-License-Identifier: Apache-2.0
"""group.py call by call: reduction, seals, restarts, refusals, lost trainers, who is heard."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from rowhouse import codec, dtype, message
from rowhouse.error import (
    BusyError,
    InvalidRequestError,
    LimitExceededError,
    RowhouseError,
    SequenceGapError,
    StalePartitionMapError,
    TableFrozenError,
    TrainerLostError,
    UnavailableError,
    UnknownTableError,
)
from rowhouse.placement import PartitionMap
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.config.cluster import load_config
from ps_server.shard import reduction
from ps_server.shard.group import GROUPS_MAX, Groups
from ps_server.shard.shard import Shard
from tests.conftest import MakeConfig

GROUP = 77


class Rig:
    """A real shard, its groups without waiting, and a clock in the hand."""

    def __init__(self, make_config: MakeConfig) -> None:
        self.config = load_config(make_config())
        self.now_s = 100.0
        self.shard = self._open()
        self.fail: Callable[[], None] = lambda: None
        self.groups = Groups(self.shard, 0, lambda: self.now_s)
        self.pushes: list[message.PushRequest] = []
        self._watch()

    def _open(self) -> Shard:
        return Shard.open(self.config, 0, self.config.data_dir / "shard-0000")

    def _watch(self) -> None:
        push = self.shard.push

        def watched(
            request: message.PushRequest, encoded: bytes | memoryview | None = None
        ) -> message.PushResponse:
            self.fail()
            self.pushes.append(request)
            return push(request, encoded)

        self.shard.push = watched  # type: ignore[method-assign]

    def restart(self) -> None:
        """As a kill would: what the groups held is gone."""
        self.shard.close()
        self.shard = self._open()
        self._watch()
        self.groups = Groups(self.shard, 0, lambda: self.now_s)

    def member(self, trainer: int, **changes: Any) -> pb.Member:
        settings = {
            "group": GROUP, "trainers": 2, "incarnation": 10 + trainer, "name": f"host:{trainer}",
            "pace": pb.PACE_BSP, "deadline_ms": 5_000, **changes,
        }  # fmt: skip
        return pb.Member(trainer=trainer, **settings)

    def join(self, trainer: int, **changes: Any) -> pb.JoinGroupResponse:
        return self.groups.join(pb.JoinGroupRequest(member=self.member(trainer, **changes)))

    def contribute(
        self,
        trainer: int,
        step: int,
        ids: list[int],
        value: float = 1.0,
        rate: float | None = None,
        **changes: Any,
    ) -> bool:
        part = message.TableGradients(
            "user", dtype.FLOAT32, np.array(ids, np.uint64), np.full((len(ids), 4), value, np.float32), rate
        )
        version = self.shard.partition_map.version
        push = message.PushRequest(version, GROUP, step, (part,) if ids else ())
        return self.groups.contribute(message.Contribution(self.member(trainer, **changes), push)).applied

    def wait(self, trainer: int, step: int, **changes: Any) -> str:
        """ "done", "resend" or "wait"."""
        answer = self.answer(trainer, step, **changes)
        return "done" if answer.done else "resend" if answer.resend else "wait"

    def answer(
        self, trainer: int, step: int, left: Sequence[pb.Leaver] = (), **changes: Any
    ) -> pb.AwaitStepResponse:
        member = self.member(trainer, **changes)
        return self.groups.await_step(pb.AwaitStepRequest(member=member, step=step, left=left))

    def leave(self, trainer: int, step: int, **changes: Any) -> None:
        self.groups.leave(pb.LeaveGroupRequest(member=self.member(trainer, **changes), step=step))


@pytest.fixture
def rig(make_config: MakeConfig) -> Any:
    one = Rig(make_config)
    yield one
    one.shard.close()


def test_a_step_is_applied_once_in_trainer_order_when_all_have_sealed(rig: Rig) -> None:
    """Invariant 1."""
    assert not rig.contribute(1, 1, [5, 6], 2.0)
    assert rig.wait(1, 1) == "wait"
    assert not rig.contribute(0, 1, [6, 7], 1.0)
    assert rig.wait(1, 1) == "wait", "the first one has not said that its part is on every shard"
    assert rig.wait(0, 1) == "done" and rig.wait(1, 1) == "done"
    (push,) = rig.pushes
    assert (push.client_id, push.sequence) == (GROUP, 1)
    assert push.tables[0].ids.tolist() == [6, 7, 5, 6]
    assert push.tables[0].gradients[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert rig.contribute(0, 1, [6, 7]), "a repeat is answered"
    assert rig.wait(0, 1) == "done"
    assert len(rig.pushes) == 1


def test_a_trainer_without_gradients_takes_part(rig: Rig) -> None:
    for step, ids in ((1, [3]), (2, [])):
        rig.contribute(0, step, [])
        rig.contribute(1, step, ids)
        assert (rig.wait(0, step), rig.wait(1, step)) == ("wait", "done")
    assert [len(p.tables) for p in rig.pushes] == [1, 0]
    assert rig.shard.last_sequence(GROUP) == 2


def test_after_a_restart_the_parts_are_asked_for_again(rig: Rig) -> None:
    rig.contribute(0, 1, [1])
    rig.contribute(1, 1, [1])
    assert rig.wait(0, 1) == "wait"
    rig.restart()
    assert rig.wait(1, 1) == "resend" and rig.wait(0, 1) == "resend"
    rig.contribute(0, 1, [1])
    rig.contribute(1, 1, [1])
    assert (rig.wait(0, 1), rig.wait(1, 1)) == ("wait", "done")
    rig.restart()
    assert rig.wait(0, 1) == "done", "the log knows the step"
    assert rig.contribute(0, 1, [1])
    assert rig.join(0).step == 1
    assert len(rig.pushes) == 1


def test_a_restarted_trainer_learns_what_is_held_and_may_replace_it(rig: Rig) -> None:
    rig.contribute(0, 1, [1], 1.0)
    found = rig.join(0, incarnation=99)
    assert (found.step, found.held) == (0, True)
    rig.contribute(0, 1, [2], 3.0, incarnation=99)
    rig.contribute(1, 1, [])
    rig.wait(1, 1)
    assert rig.wait(0, 1, incarnation=99) == "done"
    assert rig.pushes[0].tables[0].ids.tolist() == [2]
    assert not rig.join(0, incarnation=99).held


def test_of_two_processes_with_one_number_the_later_is_heard(rig: Rig) -> None:
    """Invariant 4."""
    rig.join(0)
    rig.join(0, incarnation=99)
    with pytest.raises(TrainerLostError, match=r"taken the place of trainer 0 of 2 \(host:0\)"):
        rig.contribute(0, 1, [1])
    with pytest.raises(TrainerLostError, match="taken the place"):
        rig.wait(0, 1)


def test_a_lost_trainer_stops_the_group_until_it_is_joined_anew(rig: Rig) -> None:
    """Invariant 3."""
    rig.join(1)
    rig.now_s += 1_000  # a long step of all of them is nobody's fault
    rig.contribute(0, 1, [1])
    assert rig.wait(0, 1) == "wait"
    rig.now_s += 4.9
    assert rig.wait(0, 1) == "wait"
    rig.now_s += 0.2
    text = r"trainer 1 of 2 \(host:1\) gave no sign for 5 s while trainer 0 waited for it to end step 1; the"
    with pytest.raises(TrainerLostError, match=text):
        rig.wait(0, 1)
    for call in (lambda: rig.wait(1, 1), lambda: rig.contribute(1, 1, [1])):
        with pytest.raises(TrainerLostError, match="the group stops"):
            call()
    assert rig.join(0).step == 0
    assert rig.wait(0, 1) == "resend"


def test_a_sign_of_life_puts_the_deadline_off(rig: Rig) -> None:
    rig.contribute(0, 1, [1])
    assert rig.wait(0, 1) == "wait"
    rig.now_s += 4
    rig.contribute(1, 1, [1])  # not sealed yet
    rig.now_s += 4
    assert rig.wait(0, 1) == "wait"


def test_the_group_goes_on_without_a_lost_trainer_until_it_joins_again(rig: Rig) -> None:
    on: dict[str, Any] = {"go_on": True}
    rig.contribute(0, 1, [1], **on)
    rig.contribute(1, 1, [2], **on)  # held, never sealed: on another shard it may be missing
    rig.wait(0, 1, **on)
    rig.now_s += 5.1
    answer = rig.answer(0, 1, **on)
    while not answer.done:
        answer = rig.answer(0, 1, **on)
    assert len(answer.lost) == 1 and answer.lost[0].startswith("trainer 1 of 2 (host:1) gave no sign")
    assert rig.pushes[0].tables[0].ids.tolist() == [1]
    with pytest.raises(TrainerLostError, match="the group goes on without this trainer"):
        rig.contribute(1, 2, [2], **on)
    assert rig.join(1, incarnation=99, **on).step == 1
    rig.contribute(0, 2, [1], **on)
    assert rig.wait(0, 2, **on) == "wait"
    rig.contribute(1, 2, [2], incarnation=99, **on)
    assert rig.wait(1, 2, incarnation=99, **on) == "done"


def test_a_trainer_that_never_called_is_named_by_its_number(rig: Rig) -> None:
    rig.contribute(1, 1, [1])
    rig.wait(1, 1)
    rig.now_s += 5.1
    with pytest.raises(TrainerLostError, match=r"trainer 0 of 2 \(it never joined this group here"):
        rig.wait(1, 1)


def test_who_waits_for_a_trainer_with_other_settings_is_told_which(rig: Rig) -> None:
    rig.contribute(0, 1, [1])
    with pytest.raises(InvalidRequestError, match="has pace 'ssp'"):
        rig.join(1, pace=pb.PACE_SSP)
    rig.wait(0, 1)
    rig.now_s += 5.1
    with pytest.raises(
        TrainerLostError, match=r"trainer 1 of 2 \(host:1\) .* it was refused: .*'ssp'; .*'bsp'"
    ):
        rig.wait(0, 1)


def test_a_refused_trainer_that_joins_with_the_right_settings_is_refused_no_more(rig: Rig) -> None:
    rig.contribute(0, 1, [1])
    with pytest.raises(InvalidRequestError, match="has deadline_s 1"):
        rig.join(1, deadline_ms=1000)
    rig.join(1)
    rig.wait(0, 1)
    rig.now_s += 5.1
    with pytest.raises(TrainerLostError, match=r"^(?!.*refused)"):
        rig.wait(0, 1)


def test_a_run_that_is_started_again_may_have_other_settings(rig: Rig) -> None:
    """Nobody of the old run has given a sign for its deadline; what is held stays held."""
    for trainer in (0, 1):
        rig.contribute(trainer, 1, [1 + trainer])
    rig.wait(0, 1)
    with pytest.raises(InvalidRequestError, match="has deadline_s 9"):
        rig.join(0, incarnation=99, deadline_ms=9000)
    rig.now_s += 5.1
    assert rig.join(0, incarnation=99, deadline_ms=9000).held
    assert rig.join(1, incarnation=98, deadline_ms=9000).held
    for trainer, incarnation in ((0, 99), (1, 98)):
        rig.wait(trainer, 1, incarnation=incarnation, deadline_ms=9000)
    assert rig.pushes[0].tables[0].ids.tolist() == [1, 2]


def test_a_refused_step_is_told_to_each_once_and_may_be_made_anew(rig: Rig) -> None:
    def refuse() -> None:
        raise TableFrozenError("table 'user' is frozen")

    rig.fail = refuse
    for trainer in (0, 1):
        rig.contribute(trainer, 1, [1])
    rig.wait(0, 1)
    with pytest.raises(TableFrozenError, match="step 1 of all trainers: table 'user' is frozen"):
        rig.wait(1, 1)
    rig.fail = lambda: None
    rig.contribute(1, 1, [])  # before the other one was told
    with pytest.raises(TableFrozenError):
        rig.wait(0, 1)
    assert rig.wait(1, 1) == "wait"
    rig.contribute(0, 1, [])
    assert rig.wait(0, 1) == "done"


@pytest.mark.parametrize(
    ("change", "failure", "text"),
    [
        (lambda r: r.contribute(0, 2, [1]), SequenceGapError, "step 2 came, but the last one here is 0"),
        (lambda r: r.wait(0, 2), SequenceGapError, "step 2 came"),
        (lambda r: r.wait(0, 0), SequenceGapError, "step 0 came"),
        (lambda r: r.contribute(0, 1, [1], np.nan), InvalidRequestError, "must be finite"),
        (lambda r: r.contribute(0, 1, [1], group=78), InvalidRequestError, "the group as its client id"),
        (lambda r: r.contribute(0, 1, [1], pace=pb.PACE_SSP), InvalidRequestError, "must have pace bsp"),
        (lambda r: r.join(2), InvalidRequestError, "rank is 2; it must be 0 to 1"),
        (lambda r: r.join(0, trainers=0), LimitExceededError, "world_size is 0; it must be 1 to 1024"),
        (lambda r: r.join(0, trainers=1025), LimitExceededError, "world_size is 1025"),
        (lambda r: r.join(0, pace=0), InvalidRequestError, "pace is 0"),
        (lambda r: r.join(0, deadline_ms=0), InvalidRequestError, "deadline_ms is 0"),
        (
            lambda r: (r.join(1), r.join(0, trainers=3)), InvalidRequestError,
            r"trainer 0 \(host:0\) has world_size 3; trainer 1 \(host:1\), who joined before it, has",
        ),
        (
            lambda r: (r.join(1), r.join(0, go_on=True, deadline_ms=1500, pace=pb.PACE_SSP, staleness=4)),
            InvalidRequestError,
            "has pace 'ssp' and staleness 4 and deadline_s 1.5 and on_lost 'go_on'; .* has pace 'bsp' and "
            "staleness 0 and deadline_s 5 and on_lost 'stop': all trainers of a group need the same",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    rig: Rig, change: Callable[[Rig], Any], failure: type[RowhouseError], text: str
) -> None:
    """Invariant 2."""
    with pytest.raises(failure, match=text):
        change(rig)
    assert not rig.pushes


def test_parts_that_do_not_fit_one_another_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.contribute(0, 1, [1], rate=0.5)
    with pytest.raises(InvalidRequestError, match=r"of trainer 1 of 2 .*are 1 and None; those of .* 0\.5"):
        rig.contribute(1, 1, [1])
    monkeypatch.setattr(reduction, "IDS_PER_REQUEST_MAX", 3)
    with pytest.raises(LimitExceededError, match=r"4 ids and .* of all trainers together; at most 3"):
        rig.contribute(1, 1, [1, 2, 3], rate=0.5)


def test_a_step_of_more_rows_than_fit_into_memory_is_refused_while_it_is_held(rig: Rig) -> None:
    """Refused when it is applied, it would be applied on the shards where it fits."""
    most = rig.shard._tables["user"].tier.rows_min
    half = list(range(most // 2 + 1))
    rig.contribute(0, 1, half)
    rig.contribute(1, 1, half)  # the same rows once more
    with pytest.raises(
        LimitExceededError, match=rf"a push of {2 * len(half)} distinct ids; .* holds {most} rows"
    ):
        rig.contribute(1, 1, [id_ + len(half) for id_ in half])


def test_unknown_tables_and_maps_are_refused_before_anything_is_held(rig: Rig) -> None:
    part = message.TableGradients("usr", dtype.FLOAT32, np.ones(1, np.uint64), np.ones((1, 4), np.float32))
    version = rig.shard.partition_map.version
    for push, failure in (
        (message.PushRequest(version, GROUP, 1, (part,)), UnknownTableError),
        (message.PushRequest(PartitionMap.even(3).version, GROUP, 1, ()), StalePartitionMapError),
    ):
        with pytest.raises(failure):
            rig.groups.contribute(message.Contribution(rig.member(0), push))
    assert rig.wait(0, 1) == "resend"


def test_shows_of_one_part_fill_up_the_others(rig: Rig) -> None:
    shows = np.array([3], np.float32)
    row = np.ones((1, 4), np.float32)
    for trainer, events in ((0, None), (1, shows)):
        part = message.TableGradients("user", dtype.FLOAT32, np.ones(1, np.uint64), row, None, events, None)
        push = message.PushRequest(rig.shard.partition_map.version, GROUP, 1, (part,))
        rig.groups.contribute(message.Contribution(rig.member(trainer), push))
        rig.wait(trainer, 1)
    joined = rig.pushes[0].tables[0]
    assert joined.shows is not None and joined.shows.tolist() == [1.0, 3.0]
    assert joined.clicks is not None and joined.clicks.tolist() == [0.0, 0.0]


def test_ssp_waits_for_the_slowest_within_its_staleness(rig: Rig) -> None:
    ssp = {"pace": pb.PACE_SSP, "staleness": 1}
    assert rig.wait(0, 1, **ssp) == "done"
    assert rig.wait(0, 2, **ssp) == "wait"
    assert rig.wait(1, 1, **ssp) == "done"
    assert rig.wait(0, 2, **ssp) == "done"
    assert rig.join(0, **ssp).step == 2
    rig.wait(0, 3, **ssp)
    rig.now_s += 5.1
    with pytest.raises(TrainerLostError, match=r"trainer 1 of 2 .* waited for it to end step 3"):
        rig.wait(0, 3, **ssp)


def test_groups_are_bounded(rig: Rig) -> None:
    for number in range(GROUPS_MAX + 5):
        rig.join(0, group=number + 1)
    assert len(rig.groups._groups) == GROUPS_MAX


def test_calls_wait_for_one_another(make_config: MakeConfig) -> None:
    """With threads to wait on, the last one's call lets the others go at once."""
    import threading

    rig = Rig(make_config)
    rig.groups = Groups(rig.shard, 1)
    rig.contribute(0, 1, [1])
    rig.contribute(1, 1, [1])
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(rig.wait(0, 1)))
    waiting.start()
    while not rig.groups._groups[GROUP].waiting:
        pass
    assert rig.wait(1, 1) == "done"
    waiting.join(10)
    assert found == ["done"]
    rig.shard.close()


def big(rig: Rig, group: int, trainer: int, count: int, extra: bytes = b"") -> Any:
    """Contribute `count` ids of 24 bytes each to a group, as bytes with something unknown behind them."""
    part = message.TableGradients(
        "user", dtype.FLOAT32, np.arange(count, dtype=np.uint64), np.ones((count, 4), np.float32)
    )
    push = message.PushRequest(rig.shard.partition_map.version, group, 1, (part,))
    sent = codec.encode_contribution(message.Contribution(rig.member(trainer, group=group), push))
    return rig.groups.contribute(codec.decode_contribution(sent + extra))


def test_parts_are_copies_within_a_bound_and_silent_groups_lose_theirs(rig: Rig) -> None:
    """Invariant 5."""
    ids, part_bytes = 10_000, 240_000
    largest = reduction.TABLE_HEADS_BYTES + 320_000
    rig.groups = Groups(rig.shard, 0, lambda: rig.now_s, largest)
    for group in (1, 2, 3, 4):
        rig.now_s += 1
        big(rig, group, 0, ids, b"\x7a\xd0\x0f" + bytes(2000))
    assert rig.groups._held_bytes() == 4 * part_bytes
    held = [p for g in rig.groups._groups.values() for push in g.held.values() for p in push.tables]
    assert all(array.base is None for p in held for array in (p.ids, p.gradients)), "a view of the request"
    big(rig, 4, 0, ids)  # in the place of the last one
    with pytest.raises(
        BusyError, match="hold 960000 bytes of steps that are not applied yet; at most 1164288"
    ):
        big(rig, 5, 0, ids)
    rig.now_s += 3.5  # the first two groups gave no sign for longer than their deadline
    big(rig, 5, 0, ids)
    assert rig.wait(0, 1, group=1) == "resend" and rig.wait(0, 1, group=3) == "wait"
    with pytest.raises(LimitExceededError, match=r"20000 ids and .* together; at most \d+ and 320000"):
        big(rig, 3, 1, ids)
    big(rig, 2, 0, 5_000)
    big(rig, 2, 1, 5_000)
    assert rig.wait(0, 1, group=2) == "wait" and rig.wait(1, 1, group=2) == "done"
    assert rig.groups._held_bytes() == 3 * part_bytes, "what is applied is held no longer"


def test_a_trainers_name_is_short(rig: Rig) -> None:
    with pytest.raises(LimitExceededError, match="the name of a trainer has 300 bytes; at most 256"):
        rig.join(0, name="é" * 150)


# ---------------------------------------------------------------- trainers that end
def left(*trainers: int, step: int = 1) -> list[pb.Leaver]:
    return [pb.Leaver(trainer=t, incarnation=10 + t, name=f"host:{t}", step=step) for t in trainers]


def one_step(rig: Rig, step: int, trainers: tuple[int, ...] = (0, 1), **changes: Any) -> None:
    for trainer in trainers:
        assert not rig.contribute(trainer, step, [1], **changes)
    for trainer in trainers:
        rig.wait(trainer, step, **changes)
    assert rig.wait(trainers[0], step, **changes) == "done"


UNEVEN: dict[str, Any] = {"uneven_go_on": True}


def test_a_trainer_that_ended_stops_the_others_at_once(rig: Rig) -> None:
    one_step(rig, 1)
    rig.leave(1, 1)
    assert rig.wait(0, 1) == "done", "the step that it made is as good as any"
    rig.contribute(0, 2, [1])
    text = (
        r"^trainer 1 of 2 \(host:1\) ended after step 1, and trainer 0 waits for it to end step 2: give all "
        r"trainers the same number of steps, or on_uneven='go_on'; the group stops$"
    )
    for _ in range(2):
        with pytest.raises(TrainerLostError, match=text):
            rig.wait(0, 2)
    assert rig.shard.last_sequence(GROUP) == 1, "nothing of the step was applied"
    assert rig.wait(0, 1) == "done"


def test_the_others_sum_those_that_are_left_where_that_is_wanted(rig: Rig) -> None:
    one_step(rig, 1, **UNEVEN)
    rig.leave(1, 1, **UNEVEN)
    assert not rig.contribute(0, 2, [1, 2], **UNEVEN)
    answer = rig.answer(0, 2, **UNEVEN)
    assert answer.done and list(answer.left) == left(1) and not answer.lost
    assert [part.ids.tolist() for part in rig.pushes[-1].tables] == [[1, 2]]


def test_one_who_waits_is_not_held_up_by_an_end(rig: Rig) -> None:
    one_step(rig, 1, **UNEVEN)
    rig.contribute(0, 2, [1], **UNEVEN)
    assert rig.wait(0, 2, **UNEVEN) == "wait"
    rig.leave(1, 1, **UNEVEN)
    assert rig.wait(0, 2, **UNEVEN) == "done"


def test_a_shard_that_was_restarted_learns_who_ended_from_the_others(rig: Rig) -> None:
    one_step(rig, 1, **UNEVEN)
    rig.leave(1, 1, **UNEVEN)
    rig.restart()
    assert rig.wait(0, 2, **UNEVEN) == "resend"
    rig.contribute(0, 2, [1], **UNEVEN)
    assert rig.wait(0, 2, **UNEVEN) == "wait"
    assert rig.wait(0, 2, left=left(1), **UNEVEN) == "done"


def test_what_is_told_of_an_earlier_process_does_not_count(rig: Rig) -> None:
    one_step(rig, 1)
    rig.join(1, incarnation=99)
    rig.leave(1, 1)
    rig.contribute(0, 2, [1])
    assert rig.wait(0, 2, left=left(1)) == "wait"
    rig.contribute(1, 2, [1], incarnation=99)
    assert rig.wait(1, 2, incarnation=99) == "done"


def test_one_that_ended_and_is_started_again_takes_part_again(rig: Rig) -> None:
    """Under "stop" no step can have been applied without it."""
    one_step(rig, 1)
    rig.leave(1, 1)
    assert rig.join(1, incarnation=99).step == 1
    rig.contribute(0, 2, [1])
    assert rig.wait(0, 2) == "wait"
    rig.contribute(1, 2, [1], incarnation=99)
    assert rig.wait(1, 2, incarnation=99) == "done"


def test_where_steps_went_on_without_it_it_waits_for_the_end_of_the_others(rig: Rig) -> None:
    one_step(rig, 1, **UNEVEN)
    rig.leave(1, 1, **UNEVEN)
    text = (
        r"trainer 1 of 2 \(host:1\) left this group after step 1, and trainer 0 goes on without it: it joins"
    )
    with pytest.raises(UnavailableError, match=text):
        rig.join(1, incarnation=99, **UNEVEN)
    one_step(rig, 2, (0,), **UNEVEN)
    rig.leave(0, 2, **UNEVEN)
    assert rig.join(1, incarnation=99, **UNEVEN).step == 2
    assert rig.wait(1, 3, incarnation=99, **UNEVEN) == "resend", "and it does not run ahead of trainer 0,"
    rig.contribute(1, 3, [1], incarnation=99, **UNEVEN)
    assert rig.wait(1, 3, incarnation=99, **UNEVEN) == "wait"
    rig.join(0, incarnation=98, **UNEVEN)
    rig.contribute(0, 3, [1], incarnation=98, **UNEVEN)
    assert rig.wait(0, 3, incarnation=98, **UNEVEN) == "done", "which joined again, too"


def test_so_it_does_when_the_others_were_killed(rig: Rig) -> None:
    one_step(rig, 1, **UNEVEN)
    rig.leave(1, 1, **UNEVEN)
    rig.now_s += 5.1
    assert rig.join(1, incarnation=99, **UNEVEN).step == 1


def test_a_part_of_one_that_died_before_it_was_started_again_and_ended_is_in_no_step(rig: Rig) -> None:
    one_step(rig, 1, **UNEVEN)
    rig.contribute(1, 2, [5], **UNEVEN)
    rig.join(1, incarnation=99, **UNEVEN)
    rig.leave(1, 1, incarnation=99, **UNEVEN)
    rig.contribute(0, 2, [1], **UNEVEN)
    assert rig.wait(0, 2, **UNEVEN) == "done"
    assert [part.ids.tolist() for part in rig.pushes[-1].tables] == [[1]]


@pytest.mark.parametrize("go_on", [False, True])
def test_ssp_waits_for_nobody_that_ended(rig: Rig, go_on: bool) -> None:
    ssp: dict[str, Any] = {"pace": pb.PACE_SSP, "staleness": 1, "uneven_go_on": go_on}
    rig.wait(1, 1, **ssp)
    rig.leave(1, 1, **ssp)
    assert rig.wait(0, 1, **ssp) == rig.wait(0, 2, **ssp) == "done"
    if go_on:
        assert rig.wait(0, 3, **ssp) == rig.wait(0, 9, **ssp) == "done"
    else:
        with pytest.raises(TrainerLostError, match="ended after step 1"):
            rig.wait(0, 3, **ssp)


def test_an_unequal_setting_is_named(rig: Rig) -> None:
    rig.join(0)
    with pytest.raises(InvalidRequestError, match=r"has on_uneven 'go_on'; .* has on_uneven 'stop': all"):
        rig.join(1, **UNEVEN)


def test_a_leaver_that_the_group_has_not_changes_nothing(rig: Rig) -> None:
    rig.contribute(0, 1, [1])
    assert rig.wait(0, 1, left=left(2, 1000)) == "wait"
