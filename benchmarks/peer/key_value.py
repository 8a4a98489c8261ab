# SPDX-License-Identifier: Apache-2.0
"""What peers share that only get and put values: a row and its accumulators are one value, and the optimizer
runs in the client, on what it has got. Needs NumPy and nothing of ours, as driver.py.
"""

from abc import ABC, abstractmethod

import numpy as np

from benchmarks.peer.driver import DIM, EPSILON, INITIAL_ACCUMULATOR, LEARNING_RATE, Ids, Rows


class KeyValuePeer(ABC):
    """An adapter but for its get and put.

    Parameters
    ----------
    optimizer
        "sgd" or "adagrad".
    """

    formula = "adagrad"

    def __init__(self, optimizer: str) -> None:
        self._optimizer = optimizer
        self._floats = DIM if optimizer == "sgd" else 2 * DIM

    @abstractmethod
    def _get(self, ids: Ids) -> Rows:
        """(n, floats) of n distinct known ids, ascending."""

    @abstractmethod
    def _put(self, ids: Ids, values: Rows) -> None:
        """Store (n, floats) of n distinct ids."""

    def load(self, ids: Ids, rows: Rows) -> None:
        """Put rows, with Adagrad their accumulators too."""
        if self._optimizer == "adagrad":
            rows = np.hstack([rows, np.full_like(rows, INITIAL_ACCUMULATOR)])
        self._put(ids, rows)

    def pull(self, ids: Ids) -> Rows:
        """Get the distinct ids, ascending, and put the rows back in order."""
        distinct, inverse = np.unique(ids, return_inverse=True)
        rows: Rows = self._get(distinct)[:, :DIM].take(inverse, axis=0)
        return rows

    def step(self, distinct: Ids, gradients: Rows) -> None:
        """Get, the optimizer, put."""
        values = self._get(distinct)
        if self._optimizer == "sgd":
            values -= np.float32(LEARNING_RATE) * gradients
        else:
            values[:, DIM:] += gradients * gradients
            scale = np.sqrt(values[:, DIM:]) + np.float32(EPSILON)
            values[:, :DIM] -= np.float32(LEARNING_RATE) * gradients / scale
        self._put(distinct, values)
