# SPDX-License-Identifier: Apache-2.0
"""Peer: the table that TorchRec trains on CPU, FBGEMM's TBE, in the trainer's process, behind a u64 hash map.

The map is FBGEMM's pruned_hashmap (a fixed set of ids: its op that takes in new ones is read-only on CPU in
this release). No server and no network: an upper bound of what TorchRec gives without a GPU.
"""

import os
from importlib import import_module
from typing import Any, Final

import numpy as np
import torch

from benchmarks.peer.driver import DIM, EPSILON, INITIAL_ACCUMULATOR, LEARNING_RATE, Ids, Rows, main

CAPACITY_PER_ROW: Final = 2.1
OPS: Final = "fbgemm_gpu.split_table_batched_embeddings_ops"


class TorchrecTable:
    """The adapter.

    Parameters
    ----------
    optimizer
        "sgd" or "adagrad".
    """

    durability = "none: RAM only"
    formula = "adagrad"

    def __init__(self, optimizer: str) -> None:
        package: Any = import_module("fbgemm_gpu")
        self._optimizer = optimizer
        self._parts: list[tuple[Ids, Rows]] = []
        self._table: Any = None
        self.server_pids = [os.getpid()]
        self.name = (
            f"fbgemm-gpu-cpu {package.__version__} TBE on CPU with its pruned_hashmap over u64 ids, "
            f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        )

    def load(self, ids: Ids, rows: Rows) -> None:
        """Keep rows; the table is built when the last came."""
        self._parts.append((ids, rows))

    def finish(self) -> None:
        """Build the table, once."""
        if self._table is not None or not self._parts:
            return
        keys = np.concatenate([ids for ids, _ in self._parts])
        rows = np.concatenate([part for _, part in self._parts])
        self._parts = []
        operations: Any = import_module(f"{OPS}_training")
        shared: Any = import_module(f"{OPS}_common")
        kind = (
            operations.OptimType.EXACT_SGD if self._optimizer == "sgd" else operations.OptimType.EXACT_ADAGRAD
        )
        place = (rows.shape[0], DIM, shared.EmbeddingLocation.HOST, operations.ComputeDevice.CPU)
        self._table = operations.SplitTableBatchedEmbeddingBagsCodegen(
            [place], optimizer=kind, learning_rate=LEARNING_RATE, eps=EPSILON,
            pooling_mode=shared.PoolingMode.NONE,
        )  # fmt: skip
        if self._optimizer == "adagrad":
            self._table.split_optimizer_states()[0][0].fill_(INITIAL_ACCUMULATOR)
        self._table.split_embedding_weights()[0].copy_(torch.from_numpy(rows))
        capacity = int(keys.shape[0] * CAPACITY_PER_ROW)
        self._map = torch.full((capacity, 2), -1, dtype=torch.int64)
        self._ends = torch.tensor([0, capacity])
        torch.ops.fbgemm.pruned_hashmap_insert(
            torch.from_numpy(keys.view(np.int64)), torch.arange(keys.shape[0]),
            torch.tensor([0, keys.shape[0]]), self._map, self._ends,
        )  # fmt: skip

    def _places(self, ids: Ids) -> tuple[torch.Tensor, torch.Tensor]:
        keys = torch.from_numpy(ids.view(np.int64))
        ends = torch.tensor([0, ids.shape[0]])
        places: torch.Tensor = torch.ops.fbgemm.pruned_hashmap_lookup(keys, ends, self._map, self._ends)
        return places, torch.arange(ids.shape[0] + 1)

    def pull(self, ids: Ids) -> Rows:
        """Every requested id is looked up: in one process a dedup costs more than it saves."""
        with torch.no_grad():
            rows: Rows = self._table(*self._places(ids)).numpy()
        return rows

    def step(self, distinct: Ids, gradients: Rows) -> None:
        """Forward, and a backward that updates in place."""
        self._table(*self._places(distinct)).backward(torch.from_numpy(gradients))

    def close(self) -> None:
        """Nothing to end."""


if __name__ == "__main__":
    main(lambda _work, optimizer: TorchrecTable(optimizer))
