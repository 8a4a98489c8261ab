# SPDX-License-Identifier: Apache-2.0
"""Running a seed, and what is told of one that failed."""

import traceback
from collections import Counter
from dataclasses import dataclass

from tests.simulation.network import FATES
from tests.simulation.world import OPERATIONS, simulated


@dataclass(frozen=True)
class Failure:
    """A seed that failed: everything that a replay needs, and the end of what happened before.

    Attributes
    ----------
    seed, operation, without
        `operation` operations of this seed, without those kinds, fail.
    durability
        That of the run.
    error
        What failed, with its traceback.
    trace
        The last operations.
    """

    seed: int
    operation: int
    without: frozenset[str]
    durability: str
    error: str
    trace: tuple[str, ...]

    def text(self) -> str:
        """For people, with the command that replays it."""
        without = f" --without '{','.join(sorted(self.without))}'" if self.without else ""
        what = (
            f"seed {self.seed} (durability {self.durability}) failed at operation {self.operation}; replay:"
        )
        command = f"python -m tests.simulation {self.seed} {self.operation}{without}"
        return "\n".join([*self.trace, "", self.error, what, command])


def run(seed: int, operations: int, without: frozenset[str] = frozenset()) -> Counter[str] | Failure:
    """Run a seed; how often each thing happened, or how it failed."""
    with simulated(seed, without) as world:
        try:
            world.run(operations)
        except Exception:
            error = traceback.format_exc()
            return Failure(seed, world.operation, without, world.durability, error, tuple(world.trace))
        return world.events


def shrink(failure: Failure) -> Failure:
    """The same seed with as few kinds of operations and of faults as still fail, one left out at a time."""
    for kind in [*OPERATIONS, *FATES]:
        if kind in {"push", "arrives"} | failure.without:
            continue
        found = run(failure.seed, failure.operation, failure.without | {kind})
        if isinstance(found, Failure):
            failure = found
    return failure
