# SPDX-License-Identifier: Apache-2.0
"""Peer: torch.nn.EmbeddingBag(sparse=True) and an optimizer of torch.optim inside this process.

An upper bound of what a trainer gets without a parameter server: dense ranks instead of 64-bit ids, no
map, no log, no network. Gradients come one per distinct id, as ours do.
"""

import os
import time
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.batch import DIM, Batch

LEARNING_RATE: Final = 0.01
INITIAL_ACCUMULATOR: Final = 0.1
TRIALS: Final = 6
"""Batches by which the number of threads is chosen."""


def _optimizer(kind: str, parameters: list[torch.nn.Parameter], adam_eps: float) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=LEARNING_RATE)
    if kind == "adam":
        return torch.optim.SparseAdam(parameters, lr=LEARNING_RATE, eps=adam_eps)
    return torch.optim.Adagrad(
        parameters, lr=LEARNING_RATE, initial_accumulator_value=INITIAL_ACCUMULATOR, eps=1e-10
    )


class TorchTable:
    """An EmbeddingBag with an optimizer over dense ranks.

    Parameters
    ----------
    rows
        (ids, DIM) float32 to start from.
    kind
        "sgd", "adagrad" or "adam" (SparseAdam, which like ours touches the batch's rows only).
    adam_eps
        SparseAdam's.
    """

    def __init__(self, rows: NDArray[np.float32], kind: str = "adagrad", adam_eps: float = 1e-8) -> None:
        self.bag = torch.nn.EmbeddingBag(rows.shape[0], DIM, mode="sum", sparse=True)
        with torch.no_grad():
            self.bag.weight.copy_(torch.from_numpy(rows))
        self.optimizer = _optimizer(kind, list(self.bag.parameters()), adam_eps)
        self._tensors: dict[int, tuple[Any, Any, Any]] = {}

    @property
    def name(self) -> str:
        """For the report."""
        kind = type(self.optimizer).__name__
        return (
            f"torch {torch.__version__} EmbeddingBag(sparse) + {kind}, in process, dense ids, "
            f"{torch.get_num_threads()} threads, not durable"
        )

    def prepare(self, batches: list[Batch]) -> None:
        """Make the tensors of the batches, outside the clock."""
        for batch in batches:
            ranks = torch.from_numpy(batch.distinct_rank)
            offsets = torch.arange(batch.distinct_rank.shape[0])
            self._tensors[id(batch)] = (ranks, offsets, torch.from_numpy(batch.gradients))

    def pull(self, batch: Batch) -> NDArray[np.float32]:
        """Rows of the distinct ids, (u, DIM) float32."""
        ranks, offsets, _ = self._tensors[id(batch)]
        with torch.no_grad():
            rows: NDArray[np.float32] = self.bag(ranks, offsets).numpy()
        return rows

    def step(self, batch: Batch) -> None:
        """Forward over the distinct ids, backward with their gradients, one optimizer step."""
        ranks, offsets, gradients = self._tensors[id(batch)]
        self.optimizer.zero_grad(set_to_none=True)
        self.bag(ranks, offsets).backward(gradients)
        self.optimizer.step()

    def touch_all(self) -> None:
        """A step of zero gradients on every row: none changes, and Adam counts one, as ours did."""
        ranks = torch.arange(self.bag.num_embeddings)
        self.bag(ranks, ranks).backward(torch.zeros(ranks.shape[0], DIM))
        self.optimizer.step()

    def choose_threads(self, batches: list[Batch]) -> None:
        """Keep one thread or one per core, whichever steps faster here; the rows are changed by it.

        On a machine that others use too, threads that wait for one another lose more than they win.
        """
        spent_s = {}
        for threads in (1, os.cpu_count() or 1):
            torch.set_num_threads(threads)
            self.step(batches[0])
            began_s = time.perf_counter()
            for batch in batches[:TRIALS]:
                self.step(batch)
            spent_s[threads] = time.perf_counter() - began_s
        torch.set_num_threads(min(spent_s, key=lambda threads: spent_s[threads]))
