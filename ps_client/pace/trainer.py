# SPDX-License-Identifier: Apache-2.0
"""One of W trainers that keep pace: bsp, ssp or async, over one client.

    pull ── model ── push, push, … (kept here) ── step() ── everybody's gradients of the step are applied

bsp: every shard gets this trainer's part of the step (contribute), then is told that all of them have it
(await_step), and applies the parts of all trainers as one push, in trainer order. ssp: the step is pushed at
once, and `step` returns when nobody is more than `staleness` steps behind. async: it is pushed at once.

Invariants: 1. under bsp a row that is read holds every trainer's steps before this one and nothing of this
one; 2. a part is kept until its step is applied everywhere, so a shard that restarts gets it again; 3. a step
that failed midway is finished, as it was, before anything newer is sent.
Thread safety: a Trainer belongs to one training loop; its pulls may come from any thread.
"""

import logging
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Final, NoReturn, cast

import xxhash
from numpy.typing import ArrayLike
from rowhouse.error import (
    ConfigError,
    InvalidRequestError,
    PreconditionError,
    RowhouseError,
    SequenceGapError,
    StalePartitionMapError,
    TrainerLostError,
)
from rowhouse.limit import RESEND_S, TRAINERS_MAX
from rowhouse.message import Contribution, PushRequest, TableGradients, joined_by_table
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.cluster import Cluster
from ps_client.exchange import Exchange
from ps_client.interrupt import whole
from ps_client.lane import REFUSALS
from ps_client.pace.ahead import Ahead, EarlyPuller
from ps_client.pace.journal import read_journal, write_journal
from ps_client.split import split_push
from ps_client.step import Asked, StepClient, UniqueRows
from ps_client.table import Table
from ps_client.transport.transport import Transport

PACES: Final = {"bsp": pb.PACE_BSP, "ssp": pb.PACE_SSP, "async": None}
GO_ON: Final = {"stop": False, "go_on": True}
"""What `on_lost` and `on_uneven` may be."""

LEAVE_S: Final = 5.0
"""How long an end tries to tell a shard that is away; the others can tell that shard later."""

LEAVERS_MAX: Final = 128
"""Trainers that ended, of which one question tells a shard: it is small whatever the group is."""

_log = logging.getLogger(__name__)

_POLL_FIRST_S, _POLL_MAX_S = 0.001, 0.05
"""Between two questions to a shard that had no thread to wait on."""


class Trainer(StepClient):
    """One trainer of a group. Made by `Client.trainer`.

    Parameters
    ----------
    client
        The client that it pulls by.
    cluster, exchange
        Those of the client.
    group
        Name of the group, the same for its trainers and for no other run on this cluster.
    rank, world_size
        This trainer's number, from 0, and how many there are.
    pace
        "bsp", "ssp" or "async".
    staleness
        ssp: how many steps a trainer may be ahead of the slowest.
    deadline_s
        A trainer that gives no sign for so long, while another waits for it, is lost. More than the longest
        step and, with retries, the longest restart of a shard.
    on_lost
        What the others do then: "stop" (their `step` raises TrainerLostError) or "go_on" without it.
    on_uneven
        What the others do about a trainer that ended (`close`, or the end of its client's `with`) after fewer
        steps: "stop" (their `step` raises TrainerLostError, at once) or "go_on": their steps are the sums of
        those that are left.
    journal
        bsp: a file of this trainer's own, where it keeps its part of the step that it is ending. With it a
        run keeps its bits even when a shard and this trainer are killed in one step.

    Attributes
    ----------
    group, rank, world_size, pace
        As they were given.
    steps
        Steps of this trainer that ended. After a restart it goes on counting where the group is.
    lost
        The trainers that the group goes on without, each with number, name and reason.
    left
        The trainers that ended before this one, each with number, name and last step.

    Raises
    ------
    ConfigError
        A wrong rank, pace, staleness, deadline, on_lost or on_uneven; InvalidRequestError when the others'
        settings differ.
    """

    _keeps_parts: ClassVar[bool] = True

    def __init__(
        self,
        client: StepClient,
        cluster: Cluster,
        exchange: Exchange,
        *,
        group: str,
        rank: int,
        world_size: int,
        pace: str = "bsp",
        staleness: int = 0,
        deadline_s: float = 60.0,
        on_lost: str = "stop",
        on_uneven: str = "stop",
        journal: str | Path | None = None,
    ) -> None:
        _check(group, rank, world_size, pace, staleness, deadline_s, on_lost, on_uneven)
        self._client, self._cluster, self._exchange = client, cluster, exchange
        self._wire_dtype = client._wire_dtype
        self._ahead = Ahead(cast(EarlyPuller, client))
        self.group, self.rank, self.world_size, self.pace = group, rank, world_size, pace
        self._pace = PACES[pace]
        self._member = pb.Member(
            group=xxhash.xxh3_64_intdigest(group.encode()),
            trainer=rank,
            trainers=world_size,
            incarnation=secrets.randbits(64),
            name=f"{socket.gethostname()}:{os.getpid()}",
            pace=self._pace,
            staleness=staleness,
            deadline_ms=max(round(deadline_s * 1000), 1),
            go_on=GO_ON[on_lost],
            uneven_go_on=GO_ON[on_uneven],
        )
        self._journal = None if journal is None else Path(journal)
        self._parts: list[TableGradients] = []
        self._pending: tuple[TableGradients, ...] | None = None
        self._begun_s = 0.0  # when the pending step was first sent
        self._closed = False
        self.steps = 0
        self.lost: tuple[str, ...] = ()
        self._leavers: dict[int, pb.Leaver] = {}
        self._process = os.getpid()
        if self._pace is not None:
            self._join()

    def __repr__(self) -> str:
        return (
            f"<Trainer rank {self.rank} of world_size {self.world_size} in group {self.group!r}, "
            f"{self.pace}, {self.steps} steps>"
        )

    @property
    def left(self) -> tuple[str, ...]:
        """See the class."""
        leavers = sorted(self._leavers.values(), key=lambda leaver: leaver.trainer)
        return tuple(f"trainer {one.trainer} ({one.name}) after step {one.step}" for one in leavers)

    @property
    def tables(self) -> Mapping[str, Table]:
        """Every table of the cluster by name (read-only): dim, dtype, config."""
        return self._client.tables

    def _join(self) -> None:
        """Tell every shard, and end the step that this trainer, before a restart, may have sealed somewhere.

        It must not be made anew: a shard that had the seal may apply it at any moment, and the rows that
        gradients are computed from would be of two steps.
        """
        request = pb.JoinGroupRequest(member=self._member)
        answers = self._exchange.every_shard("JoinGroup", request)
        self.steps = min(answer.step for answer in answers)
        step = self.steps + 1
        open_shards = [shard for shard, answer in enumerate(answers) if answer.step < step]
        written = self._journalled(step)
        if written is not None:
            self._exchange.together([partial(self._contribute, s, written[s]) for s in open_shards])
        elif not all(answers[shard].held for shard in open_shards):
            return  # not on all shards, so sealed on none
        parts = [None if written is None else written[s] for s in open_shards]
        waits = [partial(self._await, s, step, part) for s, part in zip(open_shards, parts, strict=True)]
        self._exchange.together(waits)
        self.steps = step

    def _journalled(self, step: int) -> list[Contribution] | None:
        """This trainer's part of `step` by shard, as it was written down before a restart."""
        if self._journal is None:
            return None
        pushes = read_journal(self._journal, self._member.group, self.rank, step)
        return None if pushes is None else [Contribution(self._member, push) for push in pushes]

    # ------------------------------------------------------------ a step
    def _fetch(self, asked: Asked, read_only: bool) -> list[UniqueRows]:
        return self._ahead.take(asked, read_only, partial(self._client._fetch, asked, read_only))

    def _send(self, parts: Sequence[TableGradients]) -> None:
        rates = {part.table: part.learning_rate for part in self._parts}
        for part in parts:
            if (rate := rates.get(part.table, part.learning_rate)) != part.learning_rate:
                raise InvalidRequestError(
                    f"table {part.table!r}: learning_rate is {part.learning_rate}, and {rate} in an earlier "
                    f"push of step {self.steps + 1}; a step has one learning_rate for each table"
                )
        self._parts += parts

    @whole
    def step(self) -> None:
        """End the step: send what was pushed since the last one, and wait as the pace says.

        Under bsp every trainer must call it for every step, with or without pushes.

        Raises
        ------
        TrainerLostError
            A trainer gave no sign within the deadline and the group stops, or it goes on without this one.
        RowhouseError
            Whatever a push raises. When the step's fate is not known (UnavailableError), the next call
            finishes it first; after a refusal its gradients are dropped.
        """
        self._check_usable()
        if self._pending is not None:
            self._finish()
            if not self._parts:
                return
        self._pending, self._parts = joined_by_table(self._parts), []
        self._begun_s = time.monotonic()
        self._finish()

    def _finish(self) -> None:
        """Bring the pending step to its end; after a refusal everywhere to an end without gradients."""
        assert self._pending is not None
        try:
            self._check_age()
            self._make(self._pending)
        except (TrainerLostError, SequenceGapError):
            self._pending = None  # this trainer's part in the group is over, and was not ended
            self._failed = True
            raise
        except REFUSALS:
            self._pending = ()  # shards that took the step and those that did not must not drift apart
            self._make(())
            self._end()
            raise
        self._end()

    def _check_age(self) -> None:
        """As lane.py's invariant 4: shards may have applied the first step, and forgotten the group since."""
        if self._pace == pb.PACE_BSP and not self.steps and time.monotonic() - self._begun_s > RESEND_S:
            raise SequenceGapError(
                f"group {self.group!r}: step 1 got no answer for more than {RESEND_S} s, and a shard may "
                "have forgotten the group: whether the step was applied cannot be found out any more"
            )

    def _make(self, tables: tuple[TableGradients, ...]) -> None:
        if self._pace == pb.PACE_BSP:
            self._reduce(tables)
        elif tables:
            self._client._send(tables)
            self._pending = ()  # pushed; what may still fail is the wait
        if self._pace == pb.PACE_SSP:
            self._everywhere(None)

    def _end(self) -> None:
        self._pending, self.steps = None, self.steps + 1

    def _reduce(self, tables: Sequence[TableGradients]) -> None:
        """Bring this trainer's part to every shard, then wait until every shard applied the step."""
        while True:
            partition_map = self._cluster.partition_map
            parts = split_push(tables, partition_map, self._cluster.message_bytes_max)
            step = self.steps + 1
            requests = [
                Contribution(
                    self._member,
                    PushRequest(partition_map.stamp, self._member.group, step, tuple(parts.get(shard, ()))),
                )
                for shard in range(partition_map.shard_count)
            ]
            try:
                self._exchange.together([partial(self._contribute, s, r) for s, r in enumerate(requests)])
                if self._journal is not None:  # before anybody can be told that all shards have it
                    pushes = [request.push for request in requests]
                    write_journal(self._journal, self._member.group, self.rank, step, pushes)
                self._everywhere(requests)
            except StalePartitionMapError:
                self._exchange.reload_map(partition_map)
            else:
                return

    def _contribute(self, shard: int, request: Contribution) -> pb.ContributeResponse:
        transport = self._cluster.transports[shard]
        return self._exchange.persist(partial(transport.contribute, request))

    def _everywhere(self, requests: Sequence[Contribution] | None) -> None:
        """Wait for the others on every shard."""
        shards = range(len(self._cluster.transports))
        step = self.steps + 1
        answers = self._exchange.together(
            [partial(self._await, s, step, None if requests is None else requests[s]) for s in shards]
        )
        self.lost = tuple(sorted({name for answer in answers for name in answer.lost}))
        self._leavers = {leaver.trainer: leaver for answer in answers for leaver in answer.left}

    def _await(self, shard: int, step: int, request: Contribution | None) -> pb.AwaitStepResponse:
        """Wait for the others on one shard, which gets this trainer's part again when it was restarted."""
        transport: Transport = self._cluster.transports[shard]
        pause_s = _POLL_FIRST_S
        known: set[int] = set()
        while True:
            asked_s = time.monotonic()
            told = [leaver for trainer, leaver in self._leavers.items() if trainer not in known]
            question = pb.AwaitStepRequest(member=self._member, step=step, left=told[:LEAVERS_MAX])
            ask = partial(transport.call, "AwaitStep", question)
            answer: pb.AwaitStepResponse = self._exchange.persist(ask, small=True)
            known = {leaver.trainer for leaver in answer.left}
            if new := {one.trainer: one for one in answer.left if one.trainer not in self._leavers}:
                self._leavers = {**self._leavers, **new}  # as a whole: threads of other shards read it
            if answer.done:
                return answer
            if answer.resend and request is None:
                raise PreconditionError(
                    f"shard at {transport.endpoint} lost this trainer's part of step {step}, contributed "
                    "before the trainer's restart: give a journal, or resume from a saved training state"
                )
            if answer.resend and request is not None:
                self._contribute(shard, request)
            elif time.monotonic() - asked_s < _POLL_MAX_S:  # it had no thread to wait on
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _POLL_MAX_S)

    # ------------------------------------------------------------ the end
    @whole
    def flush(self) -> None:
        """As Client.flush; a step that `step` could not finish is finished."""
        self._check_usable()
        if self._pending is not None:
            self._finish()
        self._client.flush()

    def prefetch(self, ids: Mapping[str, ArrayLike], *, read_only: bool = False) -> None:
        """Start the pull of a later step; returns at once.

        A pull of the same ids then asks the shards which of the rows have changed since, and takes those
        anew. So it gives what it would give without prefetch, under every pace.

        Parameters
        ----------
        ids
            (n,) integers by table name, as the pull will have them; copied.
        read_only
            As the pull will have it.

        Raises
        ------
        InvalidRequestError
            Wrong ids; LimitExceededError when 8 steps wait already.
        """
        self._check_usable()
        asked = [(table, checked.copy()) for table, checked in self._asked(ids)]
        self._ahead.start(asked, read_only)

    def pipeline(self, **_settings: object) -> NoReturn:
        """PreconditionError, always: a pipeline pushes behind the model, and a step ends with all its pushes.

        `prefetch` pulls ahead. Trainers without a group, or of pace "async", may use `Client.pipeline`: their
        pushes wait for nobody.
        """
        raise PreconditionError(
            "a trainer of a group has no pipeline, because step() ends with all its pushes; prefetch() pulls "
            "ahead, or use Client.pipeline() without a trainer (as pace 'async')"
        )

    def close(self) -> None:
        """End; the client is its owner's to close, and closing it closes its trainers. A second call does
        nothing.

        The others are told, see `on_uneven`; not so when an exception ends the `with` block of the trainer or
        its client: then it is lost as if it had been killed.

        Raises
        ------
        PreconditionError
            Pushes that no `step` has ended were dropped, or a step is not known to be applied (`step` raised
            UnavailableError, and nothing was called after it).
        """
        if self._closed:
            return
        self._closed = True
        self._ahead.close()
        begun, parts = self._pending, self._parts
        self._parts, self._pending = [], None
        left = []
        if not parts and begun is None and not self._failed:
            self._leave()
        if begun:
            left.append(f"step {self.steps + 1} is not known to be applied; call flush() before the end")
        if parts:
            tables = ", ".join(sorted({repr(part.table) for part in parts}))
            what = f"gradients of {sum(part.ids.shape[0] for part in parts)} ids of {tables}"
            left.append(
                f"{what}, pushed since step {self.steps}, were dropped; call step() after the last push"
            )
        if left:
            who = f"trainer {self.rank} of {self.world_size}"
            raise PreconditionError(f"{who} was closed too early: {'; '.join(left)}")

    def _leave(self) -> None:
        """Tell every shard that this trainer ended; where that cannot be, it is lost after the deadline."""
        if self._pace is None or self._process != os.getpid():
            return
        try:
            request = pb.LeaveGroupRequest(member=self._member, step=self.steps)
            self._exchange.every_shard("LeaveGroup", request, LEAVE_S)
        except RowhouseError as failure:
            _log.warning("trainer %d of %d could not tell its end: %s", self.rank, self.world_size, failure)

    def _check_usable(self) -> None:
        self._client._check_usable()
        if self._closed:
            raise PreconditionError("this trainer is closed; call Client.trainer() for another one")


def _check(
    group: str,
    rank: int,
    world_size: int,
    pace: str,
    staleness: int,
    deadline_s: float,
    on_lost: str,
    on_uneven: str,
) -> None:
    if not group:
        raise ConfigError("group is empty; it must name the run")
    if not 1 <= world_size <= TRAINERS_MAX:
        raise ConfigError(f"world_size is {world_size}; it must be 1 to {TRAINERS_MAX}")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank is {rank}; it must be 0 to {world_size - 1}")
    if pace not in PACES:
        raise ConfigError(f"pace is {pace!r}; it must be one of {list(PACES)}")
    if not 0 <= staleness < 1 << 31 or (staleness and pace != "ssp"):
        raise ConfigError(f"staleness is {staleness} with pace {pace!r}; it must be 0, or more under ssp")
    if not 0 < deadline_s < 1 << 31:
        raise ConfigError(f"deadline_s is {deadline_s}; it must be above 0")
    for name, value in (("on_lost", on_lost), ("on_uneven", on_uneven)):
        if value not in GO_ON:
            raise ConfigError(f"{name} is {value!r}; it must be one of {list(GO_ON)}")
