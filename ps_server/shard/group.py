# SPDX-License-Identifier: Apache-2.0
"""Trainers that keep pace, as one shard sees them: bsp reduces a step, ssp bounds who runs ahead.

    contribute ──▶ held ── await_step (sealed: it is on every shard) ──▶ all sealed ──▶ one push ──▶ applied

A bsp step is applied as one ordinary push, named by (group, step): the trainers' gradients one after the
other in trainer order, duplicates summed in that order. So it is logged, replayed and recognised as a repeat
like any push, and only what is held is lost with the process; the trainers keep it until the step is applied
and contribute it again. A step is sealed by a trainer when its part is on every shard. So no shard applies a
step that a trainer who dies could leave incomplete elsewhere.

A trainer that ends tells every shard (leave). That is held in memory only, too: trainers pass on what they
heard of others, so a shard that was restarted, or was not reached, learns it from them.

Invariants: 1. a step is applied once, with one part of each trainer that is not lost; 2. a part is checked
whole before it is held; 3. a trainer is lost only when another one waits for it and it gave no sign for the
whole deadline meanwhile; 4. of two processes with one number only the later one is heard; 5. the parts of
all groups have at most PARTS_MAX times the largest message, and are copies: no request is kept for them. What
more is brought gets BusyError; before that, groups that fell silent lose their parts, and their trainers, if
they come back, are told to bring them again; 6. a trainer that left takes part again only when the others
have ended too, if steps may have been applied without it.
Thread safety: every method may be called from any thread.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from rowhouse import message
from rowhouse.error import (
    BusyError,
    InvalidRequestError,
    LimitExceededError,
    RowhouseError,
    SequenceGapError,
    TrainerLostError,
    UnavailableError,
)
from rowhouse.limit import MESSAGE_BYTES_MAX, TRAINERS_MAX
from rowhouse.placement import PartitionMap
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.shard.reduction import check_fits, check_rows, check_share, joined
from ps_server.shard.request import check_map, check_owned, checked_gradients
from ps_server.table.table import Table

GROUPS_MAX: Final = 64
"""Groups that a shard remembers; past it the one idle longest is forgotten, and starts anew when it calls."""

PACES: Final = {pb.PACE_BSP: "bsp", pb.PACE_SSP: "ssp"}
"""Paces that a shard has a part in, as trainers write them."""

PARTS_MAX: Final = 2
"""Largest messages that the parts of all groups take: one step that is whole, and one that begins."""

SILENT_S: Final = 60.0
"""A group that gives no sign for so long (or for its deadline, if that is less) loses its parts, where others
need the room."""

NAME_BYTES_MAX: Final = 256
"""Name of a trainer: a host's and a number."""

REFUSED_MAX: Final = 64
"""Trainers of a group of whom it is remembered why they were refused."""

LONG_POLL_S: Final = 0.5
"""How long a call waits for other trainers. It holds a thread, and a stop waits for it."""


class GroupShard(Protocol):
    """What a group needs of its shard."""

    index: int
    partition_map: PartitionMap

    def push(self, request: message.PushRequest) -> message.PushResponse:
        """Apply gradients once."""

    def last_sequence(self, client_id: int) -> int:
        """Number of the client's last applied push."""

    def table_at_lsn(self, name: str) -> tuple[Table, int]:
        """A table by name."""


@dataclass
class _Group:
    """One group; everything is guarded by `changed`."""

    settings: pb.Member
    changed: threading.Condition = field(default_factory=threading.Condition)
    incarnations: dict[int, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    seen_s: dict[int, float] = field(default_factory=dict)
    waiting: dict[int, tuple[int, float]] = field(default_factory=dict)  # step, since when
    held: dict[int, message.PushRequest] = field(default_factory=dict)
    sealed: set[int] = field(default_factory=set)
    clocks: dict[int, int] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    left: dict[int, pb.Leaver] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)  # whose settings were others, until they are right
    stopped: str | None = None
    failed: dict[int, RowhouseError] = field(default_factory=dict)  # refused steps, until each was told

    @property
    def held_bytes(self) -> int:
        """Bytes of the parts."""
        return sum(part.nbytes for push in list(self.held.values()) for part in push.tables)

    def drop_parts(self) -> None:
        """Hold nothing, as after a restart of the shard: the trainers bring their parts again."""
        self.held.clear()
        self.sealed.clear()

    def name(self, trainer: int) -> str:
        """Number and name of a trainer, for messages."""
        known = self.names.get(trainer)
        never = "it never joined this group here: is it started, with this group's name and pace?"
        return f"trainer {trainer} of {self.settings.trainers} ({known or never})"

    def alive(self) -> list[int]:
        """Numbers of the trainers without which no step is applied."""
        gone = {*self.lost, *(self.left if self.settings.uneven_go_on else ())}
        return [t for t in range(self.settings.trainers) if t not in gone]


class Groups:
    """The groups of one shard.

    Parameters
    ----------
    shard
        Applies the steps.
    waits_max
        Calls that may wait at once; another one is answered at once, and comes back.
    clock
        Seconds, never going back.
    message_bytes_max
        Largest push of the shard, encoded: a whole step becomes one.
    """

    def __init__(
        self,
        shard: GroupShard,
        waits_max: int,
        clock: Callable[[], float] = time.monotonic,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
    ) -> None:
        self._shard, self._clock = shard, clock
        self._message_bytes_max = message_bytes_max
        self._holding = threading.Lock()
        self._applying = threading.Lock()
        self._waits = threading.BoundedSemaphore(waits_max)
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, _Group] = OrderedDict()

    # ------------------------------------------------------------ calls
    def join(self, request: pb.JoinGroupRequest) -> pb.JoinGroupResponse:
        """Take part; a group that had stopped starts anew, a lost trainer is one of them again."""
        member = request.member
        _check_member(member)
        group = self._group(member, joining=True)
        with group.changed:
            self._take_back(group, member)
            group.lost.pop(member.trainer, None)
            group.incarnations[member.trainer] = member.incarnation
            group.waiting.pop(member.trainer, None)
            group.failed.pop(member.trainer, None)
            self._note(group, member)
            if member.pace == pb.PACE_SSP:
                return pb.JoinGroupResponse(step=group.clocks.get(member.trainer, 0))
            last = self._shard.last_sequence(member.group)
            return pb.JoinGroupResponse(step=last, held=self._holds(group, member.trainer, last + 1))

    def contribute(self, request: message.Contribution) -> pb.ContributeResponse:
        """Hold one trainer's part of the next step; a later one takes its place until it is applied."""
        member, push = request.member, request.push
        _check_member(member)
        if member.pace != pb.PACE_BSP or push.client_id != member.group:
            raise InvalidRequestError(
                f"group {member.group:#x}: a contribution must have pace bsp and the group as its client id"
            )
        if push.edits:
            raise InvalidRequestError("rows by hand are no part of a step: a client assigns and removes them")
        tables: dict[str, Table] = {}
        if push.sequence > self._shard.last_sequence(member.group):
            check_map(push.map_version, self._shard.partition_map, self._shard.index)
            check_owned(push.tables, self._shard.partition_map, self._shard.index)
            tables = {part.table: self._shard.table_at_lsn(part.table)[0] for part in push.tables}
            check_share(push.sequence, checked_gradients(push, tables), member.trainers)
        group = self._group(member)
        self._drop_silent(sum(part.nbytes for part in push.tables))
        with group.changed:
            self._enter(group, member)
            if self._is_applied(member, push.sequence):
                return pb.ContributeResponse(applied=True)
            others = {t: p for t, p in group.held.items() if t != member.trainer}
            check_fits(member.trainer, push, others, group.name, self._message_bytes_max)
            check_rows(push, others, tables)
            self._hold(group, member.trainer, push)
            group.failed.pop(member.trainer, None)
            group.sealed.discard(member.trainer)
            return pb.ContributeResponse(applied=False)

    def await_step(self, request: pb.AwaitStepRequest) -> pb.AwaitStepResponse:
        """Seal this trainer's part (bsp) or tell its clock (ssp); wait up to LONG_POLL_S for the others."""
        member, step = request.member, request.step
        _check_member(member)
        group = self._group(member)
        until_s = self._clock() + LONG_POLL_S
        with group.changed:
            for leaver in request.left:
                self._note_leaver(group, leaver)
            while True:
                applied = member.pace == pb.PACE_BSP and step <= self._shard.last_sequence(member.group)
                self._enter(group, member, ended=applied)
                answer = self._advance(group, member, step)
                if answer is not None:
                    group.waiting.pop(member.trainer, None)
                    answer.lost.extend(group.lost.values())
                    answer.left.extend(group.left.values())
                    return answer
                self._look_for_left(group, member.trainer, step)
                self._look_for_lost(group, member.trainer, step)
                left_s = until_s - self._clock()
                if left_s <= 0 or not self._waits.acquire(blocking=False):
                    return pb.AwaitStepResponse(left=group.left.values())
                try:
                    group.changed.wait(min(left_s, member.deadline_ms / 1000 / 4))
                finally:
                    self._waits.release()

    def leave(self, request: pb.LeaveGroupRequest) -> pb.LeaveGroupResponse:
        """Note that a trainer ended after `request.step`; the others are told when they wait for it."""
        member = request.member
        _check_member(member)
        group = self._group(member)
        with group.changed:
            self._note_leaver(
                group,
                pb.Leaver(
                    trainer=member.trainer,
                    incarnation=member.incarnation,
                    name=member.name,
                    step=request.step,
                ),
            )
        return pb.LeaveGroupResponse()

    # ------------------------------------------------------------ parts
    def _held_bytes(self) -> int:
        with self._lock:
            groups = list(self._groups.values())
        return sum(group.held_bytes for group in groups)

    def _hold(self, group: _Group, trainer: int, push: message.PushRequest) -> None:
        """Keep a part, copied, in the place of the trainer's last one; BusyError past the bound."""
        size, bound = sum(part.nbytes for part in push.tables), PARTS_MAX * self._message_bytes_max
        with self._holding:  # looked at and taken in one step
            last = group.held.pop(trainer, None)
            held = self._held_bytes()
            if held + size > bound:
                if last is not None:
                    group.held[trainer] = last
                raise BusyError(
                    f"a part of {size} bytes: the groups of this shard hold {held} bytes of steps that are "
                    f"not applied yet; at most {bound}: back off and retry, or raise memory_budget"
                )
            group.held[trainer] = replace(push, tables=tuple(part.copied() for part in push.tables))

    def _drop_silent(self, wanted: int) -> None:
        """Make room for a part of `wanted` bytes: groups that fell silent lose theirs."""
        if self._held_bytes() + wanted <= PARTS_MAX * self._message_bytes_max:
            return
        with self._lock:
            groups = list(self._groups.values())
        for group in groups:
            silent_s = min(group.settings.deadline_ms / 1000, SILENT_S)
            with group.changed:
                if group.held and self._clock() - max(group.seen_s.values(), default=0.0) > silent_s:
                    group.drop_parts()

    # ------------------------------------------------------------ steps
    def _advance(self, group: _Group, member: pb.Member, step: int) -> pb.AwaitStepResponse | None:
        """The answer to a trainer that waits for `step`, or None: it has to wait."""
        trainer = member.trainer
        if group.waiting.get(trainer, (0, 0.0))[0] != step:
            group.waiting[trainer] = (step, self._clock())
        if member.pace == pb.PACE_SSP:
            if step != group.clocks.get(trainer):
                group.clocks[trainer] = step
                group.changed.notify_all()
            return None if self._missing(group, trainer, step) else pb.AwaitStepResponse(done=True)
        if self._is_applied(member, step):
            return pb.AwaitStepResponse(done=True)
        if trainer in group.failed:
            raise group.failed.pop(trainer)
        if not self._holds(group, trainer, step):
            return pb.AwaitStepResponse(resend=True)
        group.sealed.add(trainer)
        if self._missing(group, trainer, step):
            return None
        self._apply(group, step)
        return self._advance(group, member, step)

    def _apply(self, group: _Group, step: int) -> None:
        """Apply the step, or note why it was refused: then every trainer is told, and may contribute anew."""
        parts = [group.held[trainer] for trainer in group.alive()]
        try:
            with self._applying:  # a step joined, and its bytes for the log: of one group at a time
                self._shard.push(joined(parts))
        except RowhouseError as error:
            text = f"step {step} of all trainers: {error}"
            group.failed = {trainer: type(error)(text) for trainer in group.alive()}
        group.drop_parts()
        group.changed.notify_all()

    def _is_applied(self, member: pb.Member, step: int) -> bool:
        last = self._shard.last_sequence(member.group)
        if step > last + 1 or step < 1:
            raise SequenceGapError(
                f"group {member.group:#x}: step {step} came, but the last one here is {last}: the steps "
                "between were never made, or were lost by a crash (durability none)"
            )
        return step <= last

    def _holds(self, group: _Group, trainer: int, step: int) -> bool:
        return trainer in group.held and group.held[trainer].sequence == step

    def _missing(self, group: _Group, trainer: int, step: int) -> list[int]:
        """The trainers that `trainer` waits for."""
        others = [t for t in group.alive() if t != trainer]
        if group.settings.pace == pb.PACE_SSP:
            return [t for t in others if group.clocks.get(t, 0) < step - group.settings.staleness]
        return [t for t in others if t not in group.sealed]

    # ------------------------------------------------------------ who ended
    def _note_leaver(self, group: _Group, leaver: pb.Leaver) -> None:
        """Note that a trainer ended, unless another process has its number by now."""
        trainer = leaver.trainer
        other = group.incarnations.get(trainer, leaver.incarnation) != leaver.incarnation
        if other or len(leaver.name.encode()) > NAME_BYTES_MAX:
            return
        if trainer < group.settings.trainers and trainer not in group.lost and trainer not in group.left:
            group.left[trainer] = leaver
            group.names[trainer] = leaver.name
            group.clocks[trainer] = max(group.clocks.get(trainer, 0), leaver.step)
            group.waiting.pop(trainer, None)
            group.held.pop(trainer, None)  # of a process before it, which did not bring it to every shard
            group.sealed.discard(trainer)
            group.changed.notify_all()

    def _take_back(self, group: _Group, member: pb.Member) -> None:
        """Let a trainer that left join again, or say what it waits for (invariant 6)."""
        if member.trainer not in group.left:
            return
        deadline_s = group.settings.deadline_ms / 1000
        others = {
            trainer
            for trainer, seen_s in group.seen_s.items()
            if trainer != member.trainer and trainer not in group.lost and trainer not in group.left
            and self._clock() - seen_s <= deadline_s
        }  # fmt: skip
        if not others:
            group.left.clear()  # a new run of all of them
        elif group.settings.uneven_go_on:
            raise UnavailableError(
                f"{group.name(member.trainer)} left this group after step {group.left[member.trainer].step}, "
                f"and trainer {min(others)} goes on without it: it joins again when the others have ended too"
            )
        else:
            del group.left[member.trainer]

    def _look_for_left(self, group: _Group, waiting: int, step: int) -> None:
        """Stop a group in which `waiting` needs one that ended, where it does not go on without it."""
        gone = [t for t in self._missing(group, waiting, step) if t in group.left]
        if gone:
            last = group.left[gone[0]].step
            group.stopped = (
                f"{group.name(gone[0])} ended after step {last}, and trainer {waiting} waits for it to end "
                f"step {step}: give all trainers the same number of steps, or on_uneven='go_on'; "
                "the group stops"
            )
            group.changed.notify_all()
            raise TrainerLostError(group.stopped)

    # ------------------------------------------------------------ who is there
    def _group(self, member: pb.Member, *, joining: bool = False) -> _Group:
        """The member's group; InvalidRequestError when its settings differ from the others'."""
        with self._lock:
            group = self._groups.get(member.group)
            if group is None or (joining and group.stopped is not None):
                group = self._groups[member.group] = _Group(member)
            self._groups.move_to_end(member.group)
            if len(self._groups) > GROUPS_MAX:
                self._groups.popitem(last=False)
        with group.changed:
            self._agree(group, member, joining)
        return group

    def _agree(self, group: _Group, member: pb.Member, joining: bool) -> None:
        """All trainers of a group have the same settings; a run that is started again may bring others."""
        ours, theirs = _settings(group.settings), _settings(member)
        if ours == theirs:
            return
        deadline_s = group.settings.deadline_ms / 1000
        others = [seen_s for trainer, seen_s in group.seen_s.items() if trainer != member.trainer]
        if joining and all(self._clock() - seen_s > deadline_s for seen_s in others):
            group.settings = member
            group.lost.clear()
            group.left.clear()
            return
        first = group.settings
        differing = " and ".join(f"{name} {theirs[name]}" for name in ours if ours[name] != theirs[name])
        theirs_are = " and ".join(f"{name} {ours[name]}" for name in ours if ours[name] != theirs[name])
        text = (
            f"trainer {member.trainer} ({member.name}) has {differing}; trainer {first.trainer} "
            f"({first.name}), who joined before it, has {theirs_are}: all trainers of a group need the same"
        )
        if len(group.refused) < REFUSED_MAX:
            group.refused[member.trainer] = text
        group.names.setdefault(member.trainer, member.name)
        raise InvalidRequestError(text)

    def _enter(self, group: _Group, member: pb.Member, *, ended: bool = False) -> None:
        """Note a sign of life; TrainerLostError when the group stopped (unless the step that it asks for has
        `ended`) or goes on without this one."""
        if group.stopped is not None and not ended:
            raise TrainerLostError(group.stopped)
        if group.incarnations.setdefault(member.trainer, member.incarnation) != member.incarnation:
            raise TrainerLostError(f"another process has taken the place of {group.name(member.trainer)}")
        leaver = group.left.get(member.trainer)
        if leaver is not None and leaver.incarnation == member.incarnation:
            raise TrainerLostError(f"{group.name(member.trainer)} left this group after step {leaver.step}")
        group.left.pop(member.trainer, None)  # that was an earlier process
        if member.trainer in group.lost:
            raise TrainerLostError(f"the group goes on without this trainer: {group.lost[member.trainer]}")
        self._note(group, member)

    def _note(self, group: _Group, member: pb.Member) -> None:
        group.names[member.trainer] = member.name
        group.refused.pop(member.trainer, None)
        group.seen_s[member.trainer] = self._clock()

    def _look_for_lost(self, group: _Group, waiting: int, step: int) -> None:
        """Invariant 3; with `go_on` the lost are left out, without it the group stops."""
        deadline_s, since_s = group.settings.deadline_ms / 1000, group.waiting[waiting][1]
        for trainer in self._missing(group, waiting, step):
            if self._clock() - max(since_s, group.seen_s.get(trainer, since_s)) <= deadline_s:
                continue
            why = (
                f"{group.name(trainer)} gave no sign for {deadline_s:g} s while trainer {waiting} waited for "
                f"it to end step {step}"
            )
            if trainer in group.refused:
                why += f"; it was refused: {group.refused[trainer]}"
            group.changed.notify_all()
            if not group.settings.go_on:
                group.stopped = f"{why}; the group stops"
                raise TrainerLostError(group.stopped)
            group.lost[trainer] = why
            group.held.pop(trainer, None)
            group.sealed.discard(trainer)


def _settings(member: pb.Member) -> dict[str, str]:
    """What the trainers of a group must agree on, as their programs write it (ps_client.Trainer)."""
    return {
        "world_size": str(member.trainers),
        "pace": repr(PACES.get(member.pace, "?")),
        "staleness": str(member.staleness),
        "deadline_s": f"{member.deadline_ms / 1000:g}",
        "on_lost": "'go_on'" if member.go_on else "'stop'",
        "on_uneven": "'go_on'" if member.uneven_go_on else "'stop'",
    }


def _check_member(member: pb.Member) -> None:
    if not 1 <= member.trainers <= TRAINERS_MAX:
        raise LimitExceededError(f"world_size is {member.trainers}; it must be 1 to {TRAINERS_MAX}")
    if member.trainer >= member.trainers:
        raise InvalidRequestError(f"rank is {member.trainer}; it must be 0 to {member.trainers - 1}")
    if member.pace not in PACES:
        known = " or ".join(f"{number} ({name})" for number, name in PACES.items())
        raise InvalidRequestError(f"pace is {member.pace}; it must be {known}")
    if len(member.name.encode()) > NAME_BYTES_MAX:
        size = len(member.name.encode())
        raise LimitExceededError(f"the name of a trainer has {size} bytes; at most {NAME_BYTES_MAX}")
    if member.deadline_ms < 1:
        raise InvalidRequestError(f"deadline_ms is {member.deadline_ms}; it must be 1 or more")
