# SPDX-License-Identifier: Apache-2.0
"""Two trainers under torchrun (gloo, DDP, bsp) against one process of plain torch with the joint batch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ps_client import Client, connect
from tests.conftest import ROOT, MakeConfig
from tests.ddp import BATCH, DIM, RATE, TABLES, VOCABULARY, lookups, make_dense
from tests.process import ServerProcess

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

STEPS, WORLD = 40, 2


def reference(client: Client) -> tuple[list[nn.EmbeddingBag], nn.Module]:
    """nn.EmbeddingBag and the dense part after the steps of all ranks on the joint batch."""
    bags = [nn.EmbeddingBag(VOCABULARY, DIM, mode="sum", include_last_offset=True) for _ in TABLES]
    for bag, table in zip(bags, TABLES, strict=True):
        with torch.no_grad():
            bag.weight.copy_(torch.from_numpy(client.pull(table["name"], np.arange(VOCABULARY))))
    dense = make_dense()
    parameters = [*dense.parameters(), *(bag.weight for bag in bags)]
    optimizer = torch.optim.SGD(parameters, lr=RATE)
    for step in range(STEPS):
        losses = []
        for rank in range(WORLD):
            lengths, ids, labels = lookups(rank, step)
            cut = int(lengths[:BATCH].sum())
            pooled = []
            for bag, piece, own in zip(
                bags, (ids[:cut], ids[cut:]), (lengths[:BATCH], lengths[BATCH:]), strict=True
            ):
                offsets = torch.cat([torch.zeros(1, dtype=torch.int64), own.cumsum(0)])
                pooled.append(bag(piece, offsets))
            losses.append(((dense(torch.cat(pooled, dim=1)) - labels) ** 2).mean())
        optimizer.zero_grad()
        (sum(losses) / WORLD).backward()
        optimizer.step()
    return bags, dense


def test_two_trainers_equal_one_process_with_the_joint_batch(make_config: MakeConfig, tmp_path: Path) -> None:
    with ServerProcess("up", make_config(tables=TABLES, shards=2)) as server:
        with connect(server.endpoints()) as client:
            bags, dense = reference(client)
            start = client.pull("user", np.arange(VOCABULARY))
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            command += ["-m", "tests.ddp", server.endpoints(), str(tmp_path), str(STEPS)]
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=2_400, check=False
            )
            assert done.returncode == 0, done.stderr
            for bag, table in zip(bags, TABLES, strict=True):
                rows = torch.from_numpy(client.pull(table["name"], np.arange(VOCABULARY)))
                torch.testing.assert_close(rows, bag.weight.detach(), rtol=1e-4, atol=1e-5)
            assert np.abs(client.pull("user", np.arange(VOCABULARY)) - start).mean() > 0.01
        assert server.stop() == 0
    found = [torch.load(tmp_path / f"dense.{rank}.pt", weights_only=True) for rank in range(WORLD)]
    for name, value in dense.state_dict().items():
        assert torch.equal(found[0][name], found[1][name])
        torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=1e-5)
