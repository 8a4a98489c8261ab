# SPDX-License-Identifier: Apache-2.0
"""A trainer's process under torchrun for tests: EmbeddingBagCollection by the shards, dense part by DDP.

torchrun --nproc-per-node 2 -m tests.ddp ENDPOINTS OUT STEPS
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ps_client import StepClient, connect
from ps_client.torch import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

VOCABULARY, DIM, BATCH, RATE = 50, 4, 8, 0.5
TABLES: list[dict[str, Any]] = [
    {"name": name, "dim": DIM, "optimizer": {"kind": "sgd", "learning_rate": RATE}}
    for name in ("user", "item")
]


def lookups(rank: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths, ids and labels of a rank's batch: two features, bags of 0 to 3 ids."""
    rng = np.random.default_rng([rank, step])
    lengths = rng.integers(0, 4, 2 * BATCH)
    ids = rng.integers(0, VOCABULARY, int(lengths.sum()))
    labels = rng.normal(size=(BATCH, 1)).astype(np.float32)
    return torch.from_numpy(lengths), torch.from_numpy(ids), torch.from_numpy(labels)


def make_dense() -> nn.Module:
    """The same on every rank."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(2 * DIM, 6), nn.Tanh(), nn.Linear(6, 1))


def make_bags(client: StepClient, scale: float) -> EmbeddingBagCollection:
    """Features u and i in the tables user and item."""
    configs = [
        EmbeddingBagConfig(name=name, embedding_dim=DIM, feature_names=[name[0]]) for name in ("user", "item")
    ]
    return EmbeddingBagCollection(client, configs, gradient_scale=scale)


def main() -> None:
    """Train; rank 0 writes the dense part, each rank its digest of it."""
    endpoints, out, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    with connect(endpoints) as client:
        trainer = client.trainer(group="ddp", rank=rank, world_size=world, deadline_s=120)
        bags, dense = make_bags(trainer, 1 / world), DistributedDataParallel(make_dense())
        optimizer = torch.optim.SGD(dense.parameters(), lr=RATE)
        for step in range(steps):
            lengths, ids, labels = lookups(rank, step)
            pooled = bags(KeyedJaggedTensor(keys=["u", "i"], values=ids, lengths=lengths)).values()
            loss = ((dense(pooled) - labels) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trainer.step()
    torch.save(dense.module.state_dict(), out / f"dense.{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
