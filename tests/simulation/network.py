# SPDX-License-Identifier: Apache-2.0
"""The network of a simulation: the client's seam to a shard, with everything that may happen to a message.

A message is lost before the shard has it, or its answer is; it comes later, after its sender gave it up and
sent it again; it comes twice. What waits for a shard dies with the shard's process, as a connection does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rowhouse import codec
from rowhouse.control import METHODS
from rowhouse.error import BusyError, DeadlineExceededError, RowhouseError, UnavailableError
from rowhouse.message import Contribution, PullRequest, PullResponse, PushRequest, PushResponse
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.transport.transport import Transport

if TYPE_CHECKING:
    from tests.simulation.world import Actor, World

FATES = {"arrives": 80, "lost": 5, "late": 3, "answer lost": 6, "twice": 4, "busy": 2}
"""What may become of a message, and how often."""


@dataclass(frozen=True, eq=False)
class Late:
    """A message that is still under way."""

    due_s: float
    shard: int
    life: object
    what: str
    deliver: Callable[[], object]


class Link(Transport):
    """One client's way to one shard.

    Parameters
    ----------
    world
        Which has the shards, and draws.
    actor
        Whose way it is.
    shard
        Number of the shard.
    """

    def __init__(self, world: "World", actor: "Actor", shard: int) -> None:
        self._world, self._actor, self._shard = world, actor, shard
        self.endpoint = str(shard)

    def pull(self, request: PullRequest, timeout_s: float) -> PullResponse:
        data = codec.encode_pull_request(request)
        answer = self._carry("pull", lambda: self._world.pull(self._shard, data, self._actor))
        return codec.decode_pull_response(answer)

    def push(self, request: PushRequest, timeout_s: float) -> PushResponse:
        data = codec.encode_push_request(request)
        return codec.decode_push_response(self._carry("push", lambda: self._world.push(self._shard, data)))

    def contribute(self, request: Contribution, timeout_s: float) -> pb.ContributeResponse:
        raise AssertionError("nobody joined a group")

    def call(self, method: str, request: Any, timeout_s: float) -> Any:
        data = request.SerializeToString()
        answer = self._carry(method, lambda: self._world.call(self._shard, method, data))
        return METHODS[method].response.FromString(answer)

    def close(self) -> None:
        pass

    def _carry(self, what: str, deliver: Callable[[], bytes]) -> bytes:
        world = self._world
        world.interlude(0.1)
        fate = world.fate_of_a_message()
        if fate == "busy":
            raise BusyError("the shard has too much in flight")
        if fate == "lost":
            raise UnavailableError("the message was lost")
        if (fate == "late" and what != "pull") or (fate == "twice" and what == "push"):
            host = world.hosts[self._shard]
            due_s = world.now_s + world.chance.choice([0.01, 1.0, 20.0])
            world.late.append(Late(due_s, self._shard, host.machine, what, deliver))
        if fate == "late":
            world.sleep(0.5)
            raise DeadlineExceededError("no answer in time")
        answer = deliver()
        if fate == "answer lost":
            raise UnavailableError("the answer was lost")
        return answer


def deliver_late(world: "World") -> None:
    """Bring what is due; nobody waits for its answer."""
    due = [late for late in world.late if late.due_s <= world.now_s]
    for late in due:
        if late not in world.late or (late.what != "push" and world.hosts[late.shard].depth):
            continue  # somebody in between has brought it; or it would wait for a checkpoint under way
        world.late.remove(late)
        if world.hosts[late.shard].machine is not late.life:
            continue
        world.events["late messages"] += 1
        try:
            late.deliver()
        except RowhouseError:
            world.events["late messages refused"] += 1
