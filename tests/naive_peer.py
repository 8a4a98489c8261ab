# SPDX-License-Identifier: Apache-2.0
"""A peer of the benchmarks that is a dict: what their machinery for peers is tested with.

NAIVE_FAULT makes it wrong on purpose: "late" pushes that are applied at the end of a turn only, "wrong"
answers, "raise" in a pull, "die" at the start.
"""

import os
from pathlib import Path

import numpy as np

from benchmarks.peer.driver import EPSILON, INITIAL_ACCUMULATOR, LEARNING_RATE, Ids, Rows, main


class NaivePeer:
    durability = "none"
    formula = "adagrad"

    def __init__(self, work: Path, optimizer: str) -> None:
        self.fault = os.environ.get("NAIVE_FAULT", "")
        if self.fault == "die":
            raise OSError("no such library")
        print("libraries print what they like")
        self.name, self.server_pids, self.optimizer = f"a dict in {work.name}", [os.getpid()], optimizer
        self.rows: dict[int, np.ndarray] = {}
        self.sums: dict[int, np.ndarray] = {}

    def load(self, ids: Ids, rows: Rows) -> None:
        for key, row in zip(ids.tolist(), rows, strict=True):
            self.rows[key] = row.copy()
            self.sums[key] = np.full_like(row, INITIAL_ACCUMULATOR)

    def pull(self, ids: Ids) -> Rows:
        if self.fault == "raise":
            raise KeyError(7)
        rows = np.stack([self.rows[key] for key in ids.tolist()])
        return rows + np.float32(self.fault == "wrong")

    def step(self, distinct: Ids, gradients: Rows) -> None:
        for key, gradient in zip(distinct.tolist(), gradients, strict=True):
            self.sums[key] = self.sums[key] + gradient * gradient
            self.rows[key] = self.rows[key] - LEARNING_RATE * gradient / (np.sqrt(self.sums[key]) + EPSILON)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


if __name__ == "__main__":
    main(NaivePeer)
