# SPDX-License-Identifier: Apache-2.0
"""DLRM (Naumov et al. 2019) on clicks like Criteo's: two shards, a KeyedJaggedTensor, DDP.

python -m examples.dlrm config > cluster.yaml && ps-server up --config cluster.yaml
torchrun --nproc-per-node 2 -m examples.dlrm 127.0.0.1:7470,127.0.0.1:7471
"""

import json
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ps_client import connect
from ps_client.torch import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

DIM, BATCH, STEPS = 16, 2048, 100
# How many values Criteo's columns C1 to C26 have; the cluster does not ask: a row is made when its id comes.
VALUES = [1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27]
VALUES += [14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572]
COLUMNS = [f"C{number + 1}" for number in range(len(VALUES))]
ADAGRAD = {"kind": "adagrad", "learning_rate": 0.05}  # of the rows: it runs on the shards


def clicks(seed: int) -> tuple[Tensor, KeyedJaggedTensor, Tensor]:
    """(B, 13) counters, an id of each column for each example, (B,) labels. Your data comes here."""
    random = torch.Generator().manual_seed(seed)
    dense = torch.randn(BATCH, 13, generator=random)
    ids = torch.rand(len(VALUES), BATCH, generator=random) ** 4 * torch.tensor(VALUES)[:, None]
    columns = KeyedJaggedTensor(COLUMNS, ids.long().reshape(-1), lengths=torch.ones(ids.numel()).long())
    taste = (ids.long() * 2654435761 % 1000) / 500.0 - 1  # what each value stands for, -1 to 1
    logits = dense[:, 0] + 2 * taste[0] + 2 * taste[1] * taste[4] - 1
    return dense, columns, torch.bernoulli(torch.sigmoid(logits), generator=random)


class DLRM(nn.Module):
    """Dot products of a vector of the counters and one of each column, then linear layers."""

    def __init__(self, rows: EmbeddingBagCollection) -> None:
        super().__init__()
        self.rows = rows
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, DIM), nn.ReLU())
        self.first, self.second = torch.triu_indices(len(COLUMNS) + 1, len(COLUMNS) + 1, 1)
        self.top = nn.Sequential(nn.Linear(DIM + len(self.first), 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense: Tensor, columns: KeyedJaggedTensor) -> Tensor:
        """(B,) logits."""
        counters, pooled = self.bottom(dense), self.rows(columns).values()
        vectors = torch.cat([counters, pooled], dim=1).reshape(len(dense), -1, DIM)
        products = (vectors @ vectors.mT)[:, self.first, self.second]
        return self.top(torch.cat([counters, products], dim=1))[:, 0]  # type: ignore[no-any-return]


def main(endpoints: str) -> None:
    """Train as one of torchrun's processes."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    with connect(endpoints) as client:
        trainer = client.trainer(group="dlrm", rank=rank, world_size=world_size)  # bsp
        tables = [EmbeddingBagConfig(name=name, embedding_dim=DIM, feature_names=[name]) for name in COLUMNS]
        model = DLRM(EmbeddingBagCollection(trainer, tables, gradient_scale=1 / world_size))
        parallel = DistributedDataParallel(model)  # for the dense part; the rows' gradients go to the shards
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.02)  # of the dense part
        for step in range(STEPS):
            dense, columns, labels = clicks(1 + step * world_size + rank)
            loss = nn.functional.binary_cross_entropy_with_logits(parallel(dense, columns), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimizer.step()
            trainer.step()  # the gradients of all trainers are applied to the rows
        dense, columns, labels = clicks(0)  # that nobody was trained on
        with torch.no_grad():
            logits = parallel(dense, columns)
        right = (logits[labels > 0][:, None] > logits[labels == 0]).float().mean()  # pairs in the right order
        print(f"trainer {rank}: AUC {right:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.argv[1] == "config":
        rows = [{"name": name, "dim": DIM, "optimizer": ADAGRAD} for name in COLUMNS]
        print(json.dumps({"data_dir": "dlrm", "shards": 2, "tables": rows}))
    else:
        main(sys.argv[1])
