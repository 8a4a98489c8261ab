# SPDX-License-Identifier: Apache-2.0
"""Exactly once under any order of faults: a random schedule against a list of what was applied.

Each step's push carries its number as learning rate, and the shards note each number that they apply.
"""

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rowhouse import message
from rowhouse.error import (
    BusyError,
    DeadlineExceededError,
    InternalError,
    RowhouseError,
    TableFrozenError,
    UnavailableError,
)

from ps_client.retry import Retry

from .fake_shard import FakeShard, local_client, raising
from .linked_shard import LinkedTransport

SHARDS = 2
IDS = np.arange(24)
LOST = [UnavailableError, DeadlineExceededError, InternalError, BusyError]

Fault = tuple[str, type[RowhouseError]] | None
FAULT: st.SearchStrategy[Fault] = st.none() | st.sampled_from(
    [
        *[("before", kind) for kind in LOST],
        *[("after", kind) for kind in LOST[:3]],
        ("refuse", TableFrozenError),
    ]
)
STEPS = st.lists(st.lists(FAULT, min_size=0, max_size=5), min_size=1, max_size=12)


class NotingShard(FakeShard):
    """Notes the number of each push that it applies."""

    def __init__(self, shard: int) -> None:
        super().__init__({"user": 2}, shard, SHARDS)
        self.noted: list[int] = []

    def _apply(self, part: message.TableGradients) -> None:
        super()._apply(part)
        assert part.learning_rate is not None
        self.noted.append(int(part.learning_rate))


def arm(shard: NotingShard, faults: list[Fault]) -> None:
    """Give the shard the faults of its next calls, in their order on each side."""
    for side in ("before", "refuse", "after"):
        calls = [raising(f[1]) if f is not None and f[0] == side else None for f in faults]
        getattr(shard, side)["push"][:] = calls


class Skew:
    """A clock that each attempt moves, so that a call gives up after about three."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.1
        return self.now_s


@settings(max_examples=300)
@given(schedule=st.tuples(STEPS, STEPS))
def test_each_push_is_applied_once_or_was_refused(schedule: tuple[Any, Any]) -> None:
    shards = [NotingShard(number) for number in range(SHARDS)]
    retry = Retry(timeout_s=1.0, clock=Skew(), sleep=lambda _: None, uniform=lambda low, high: low)
    owners = shards[0].map.shards_of(IDS.astype(np.uint64))
    by_shard = [IDS[owners == number] for number in range(SHARDS)]
    refused: list[dict[int, bool]] = [{}, {}]
    with local_client(shards, retry=retry) as client:
        for number in range(SHARDS):  # one shard per push, so that an error speaks of that shard alone
            for step, faults in enumerate(schedule[number], start=1):
                arm(shards[number], faults)
                ids = by_shard[number]
                try:
                    client.push("user", ids, np.ones((ids.shape[0], 2)), learning_rate=step)
                except RowhouseError as failure:
                    refused[number][step] = "is kept and sent again" not in str(failure)
                arm(shards[number], [])
                client.flush()
    for number, shard in enumerate(shards):
        applied = Counter(shard.noted)
        for step in range(1, len(schedule[number]) + 1):
            assert applied[step] + refused[number].get(step, False) == 1, (number, step, shard.noted, refused)
        assert shard.noted == sorted(shard.noted)
        assert list(shard.sequences.values()) in ([], [len(shard.noted)])


PASSING = st.lists(
    st.none()
    | st.tuples(
        st.sampled_from(["before", "after"]), st.sampled_from([UnavailableError, DeadlineExceededError])
    ),
    max_size=6,
)
"""Faults after which a call is tried again."""


@settings(max_examples=60, deadline=None)
@given(schedule=st.tuples(PASSING, PASSING), steps=st.integers(1, 4))
def test_steps_of_several_shards_over_data_ports_are_applied_once_and_in_order(
    schedule: tuple[Any, Any], steps: int
) -> None:
    shards = [NotingShard(number) for number in range(SHARDS)]
    retry = Retry(timeout_s=20.0, sleep=lambda _: None)
    with local_client(shards, retry=retry, transport=LinkedTransport) as client:
        for shard, faults in zip(shards, schedule, strict=True):
            arm(shard, faults)
        for step in range(1, steps + 1):
            client.push("user", IDS, np.ones((IDS.shape[0], 2)), learning_rate=step)
    assert [shard.noted for shard in shards] == [list(range(1, steps + 1))] * SHARDS
