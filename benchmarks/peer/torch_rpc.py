# SPDX-License-Identifier: Apache-2.0
"""Peer: a parameter server of PyTorch's own parts, as its tutorials build one: torch.distributed.rpc.

The server process holds a weight and an accumulator tensor; 64-bit ids are found by searchsorted in a
sorted tensor, for torch has no hash map. Pull and push are rpc_sync calls over TensorPipe.
"""

import os
import sys
from importlib import import_module
from typing import Any, Final

import numpy as np
import torch
from torch.distributed import rpc

from benchmarks.peer.driver import (
    EPSILON,
    INITIAL_ACCUMULATOR,
    LEARNING_RATE,
    Ids,
    Rows,
    free_port,
    main,
    start_server,
)

SIGN: Final = -(2**63)
"""torch compares int64; with this bit turned, their order is that of the uint64 ids."""

THREADS: Final = 4


class Store:
    """The server's rows; an instance lives in the server process, reached by an RRef."""

    def __init__(self) -> None:
        self.keys = torch.empty(0, dtype=torch.int64)
        self.weights = torch.empty(0, 1)
        self.sums = torch.empty(0, 1)

    def load(self, ids: torch.Tensor, rows: torch.Tensor) -> None:
        """Add rows and keep the keys sorted."""
        keys = torch.cat([self.keys, ids ^ SIGN])
        weights = torch.cat([self.weights, rows]) if self.weights.numel() else rows
        order = torch.argsort(keys)
        self.keys, self.weights = keys[order].contiguous(), weights[order].contiguous()
        self.sums = torch.full_like(self.weights, INITIAL_ACCUMULATOR)

    def pull(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of known ids."""
        return self.weights.index_select(0, torch.searchsorted(self.keys, ids ^ SIGN))

    def push(self, ids: torch.Tensor, gradients: torch.Tensor, optimizer: str) -> None:
        """Apply one gradient to each of distinct known ids."""
        places = torch.searchsorted(self.keys, ids ^ SIGN)
        if optimizer == "sgd":
            self.weights.index_add_(0, places, gradients, alpha=-LEARNING_RATE)
            return
        sums = self.sums.index_select(0, places).addcmul_(gradients, gradients)
        self.sums.index_copy_(0, places, sums)
        self.weights.index_add_(0, places, gradients / sums.sqrt_().add_(EPSILON), alpha=-LEARNING_RATE)

    def process(self) -> int:
        """Id of the server's process."""
        return os.getpid()


def join(rank: int, port: int) -> None:
    """Become rank 0 (the server) or 1 (the trainer) of two."""
    options = rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=THREADS, rpc_timeout=120, init_method=f"tcp://127.0.0.1:{port}"
    )
    rpc.init_rpc(("server", "trainer")[rank], rank=rank, world_size=2, rpc_backend_options=options)  # type: ignore[no-untyped-call]


class TorchRpc:
    """The adapter.

    Parameters
    ----------
    optimizer
        "sgd" or "adagrad".
    """

    durability = "none: RAM only"
    formula = "adagrad"

    def __init__(self, optimizer: str) -> None:
        self._optimizer = optimizer
        port = free_port()
        self._server = start_server([sys.executable, "-m", "benchmarks.peer.torch_rpc", "--serve", str(port)])
        join(1, port)
        self._store: Any = rpc.remote("server", Store)
        self.server_pids = [self._store.rpc_sync().process()]
        self.name = (
            f"torch.distributed.rpc {torch.__version__}, TensorPipe, {THREADS} threads, "
            "u64 ids by searchsorted, dedup in the client"
        )

    def load(self, ids: Ids, rows: Rows) -> None:
        """Add rows."""
        self._store.rpc_sync().load(torch.from_numpy(ids.view(np.int64)), torch.from_numpy(rows))

    def pull(self, ids: Ids) -> Rows:
        """Distinct ids travel; the trainer puts them back in order."""
        distinct, inverse = torch.unique(torch.from_numpy(ids.view(np.int64)), return_inverse=True)
        rows: Rows = self._store.rpc_sync().pull(distinct).index_select(0, inverse).numpy()
        return rows

    def step(self, distinct: Ids, gradients: Rows) -> None:
        """Pull and push of distinct ids."""
        keys = torch.from_numpy(distinct.view(np.int64))
        store = self._store.rpc_sync()
        store.pull(keys)
        store.push(keys, torch.from_numpy(gradients), self._optimizer)

    def finish(self) -> None:
        """Every call has waited already."""

    def close(self) -> None:
        """Kill the server."""
        self._server.kill()
        self._server.wait()


if __name__ == "__main__":
    # RPC names functions and classes by their module: this file must be known by its name, not as __main__
    known: Any = import_module("benchmarks.peer.torch_rpc")
    if sys.argv[1] == "--serve":
        known.join(0, int(sys.argv[2]))
        rpc.shutdown()
    else:
        main(lambda _work, optimizer: known.TorchRpc(optimizer))
