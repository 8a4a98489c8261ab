# SPDX-License-Identifier: Apache-2.0
"""Peer: a parameter server as Ray's documentation builds one: an actor with arrays, called by the trainer.

The actor finds 64-bit ids by np.searchsorted; arguments and answers are NumPy arrays that pass through Ray's
shared-memory object store.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.peer.driver import DIM, EPSILON, INITIAL_ACCUMULATOR, LEARNING_RATE, Ids, Rows, main

STORE_BYTES: Final = 1 << 30


class Store:
    """The actor's rows, keys ascending."""

    def __init__(self) -> None:
        self.keys = np.empty(0, np.uint64)
        self.weights = np.empty((0, DIM), np.float32)
        self.sums = np.empty((0, DIM), np.float32)

    def load(self, ids: Ids, rows: Rows) -> None:
        """Add rows."""
        keys, weights = np.concatenate([self.keys, ids]), np.concatenate([self.weights, rows])
        order = np.argsort(keys)
        self.keys, self.weights = keys[order], weights[order]
        self.sums = np.full_like(self.weights, INITIAL_ACCUMULATOR)

    def pull(self, ids: Ids) -> Rows:
        """Rows of known ids."""
        return self.weights.take(np.searchsorted(self.keys, ids), 0)

    def push(self, ids: Ids, gradients: Rows, optimizer: str) -> None:
        """Apply one gradient to each of distinct known ids."""
        places = np.searchsorted(self.keys, ids)
        rate = np.float32(LEARNING_RATE)
        if optimizer == "sgd":
            self.weights[places] -= rate * gradients
            return
        sums = self.sums.take(places, 0) + gradients * gradients
        self.sums[places] = sums
        self.weights[places] -= rate * gradients / (np.sqrt(sums) + np.float32(EPSILON))

    def process(self) -> int:
        """Id of the actor's process."""
        return os.getpid()


class RayActor:
    """The adapter.

    Parameters
    ----------
    work
        Folder for Ray's files.
    optimizer
        "sgd" or "adagrad".
    """

    durability = "none: RAM only"
    formula = "adagrad"

    def __init__(self, work: Path, optimizer: str) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self._ray: Any = import_module("ray")
        self._optimizer = optimizer
        self._ray.init(
            num_cpus=2, include_dashboard=False, object_store_memory=STORE_BYTES, log_to_driver=False,
            configure_logging=False, _temp_dir=f"/tmp/rowhouse-ray-{os.getpid()}",
        )  # fmt: skip
        known = import_module("benchmarks.peer.ray_actor")  # pickled by its name, not as __main__
        self._store = self._ray.remote(known.Store).options(num_cpus=1).remote()
        self.server_pids = [self._ray.get(self._store.process.remote())]
        self.name = (
            f"ray {self._ray.__version__} actor, NumPy through the object store, u64 ids by searchsorted, "
            "dedup in the client"
        )

    def load(self, ids: Ids, rows: Rows) -> None:
        """Add rows."""
        self._ray.get(self._store.load.remote(ids, rows))

    def pull(self, ids: Ids) -> Rows:
        """Distinct ids travel; the trainer puts them back in order."""
        distinct, inverse = np.unique(ids, return_inverse=True)
        rows: Rows = self._ray.get(self._store.pull.remote(distinct)).take(inverse, 0)
        return rows

    def step(self, distinct: Ids, gradients: Rows) -> None:
        """Pull and push of distinct ids."""
        self._ray.get(self._store.pull.remote(distinct))
        self._ray.get(self._store.push.remote(distinct, gradients, self._optimizer))

    def finish(self) -> None:
        """Every call has waited already."""

    def close(self) -> None:
        """End Ray."""
        self._ray.shutdown()


if __name__ == "__main__":
    main(RayActor)
