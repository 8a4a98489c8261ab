# SPDX-License-Identifier: Apache-2.0
"""The torch modules under inference_mode, no_grad, autocast, pinned memory and CUDA (where there is one)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ps_client import Client
from ps_client.torch import (
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    RowOptimizer,
)

from .fake_shard import first_row, local_client, make_shards

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

IDS = torch.tensor([[3, 5, 3], [8, 9, 1]])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def collection(client: Client) -> EmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(name="user", embedding_dim=4, feature_names=["u"]),
        EmbeddingBagConfig(name="item", embedding_dim=3, feature_names=["i"]),
    ]
    return EmbeddingBagCollection(client, configs)


def keyed(device: str = "cpu") -> KeyedJaggedTensor:
    values, lengths = torch.tensor([1, 2, 2, 7, 9]), torch.tensor([2, 1, 0, 2])
    return KeyedJaggedTensor(keys=["u", "i"], values=values.to(device), lengths=lengths.to(device))


def reference() -> nn.EmbeddingBag:
    bag = nn.EmbeddingBag(10, 4, mode="sum")
    with torch.no_grad():
        bag.weight.copy_(torch.tensor(np.array([first_row(i, 4) for i in range(10)])))
    return bag


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_gradients_nothing_is_created_and_training_goes_on(mode: Callable[[], Any]) -> None:
    shards = make_shards(2)
    with local_client(shards) as client:
        bag, bags = EmbeddingBag(client, "user", "sum"), collection(client)
        with mode():
            out, pooled = bag(IDS), bags(keyed()).values()
        assert not out.requires_grad and not pooled.requires_grad
        assert out.is_inference() == (mode is torch.inference_mode)
        assert all(pull.read_only for shard in shards for pull in shard.pulls)
        assert not any(shard.pushes or shard.rows for shard in shards)
        torch.testing.assert_close(bag(IDS).detach(), out.clone())
        bag(IDS).sum().backward()
        assert sum(len(shard.rows) for shard in shards) == 5


def test_ids_made_under_inference_mode_can_be_trained_on() -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        with torch.inference_mode():
            ids = IDS + 1
        EmbeddingBag(client, "user", "sum")(ids).sum().backward()
        assert shards[0].applied == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_equals_torch(dtype: torch.dtype) -> None:
    """Rows and their gradients stay float32; what follows runs in the narrow dtype."""
    shards, theirs = make_shards(1), reference()
    dense = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.5)
    with local_client(shards) as client:
        ours = EmbeddingBag(client, "user", "sum")
        steps = RowOptimizer(ours)
        for _ in range(5):
            losses = []
            with torch.autocast("cpu", dtype=dtype):
                for bag in (ours, theirs):
                    pooled = bag(IDS)
                    hidden = dense(pooled)
                    assert pooled.dtype == torch.float32 and hidden.dtype == dtype
                    losses.append((hidden.float() ** 2).mean())
            assert torch.equal(losses[0], losses[1])
            optimizer.zero_grad()
            torch.autograd.backward(losses)
            optimizer.step()
            steps.step()
        torch.testing.assert_close(
            torch.from_numpy(client.pull("user", np.arange(10))), theirs.weight.detach()
        )
    assert shards[0].applied == 5


def step(client: Client, ids: Tensor, batch: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
    """One training step of both modules; their outputs."""
    out, pooled = EmbeddingBag(client, "user", "sum")(ids), collection(client)(batch).values()
    ((out**2).sum() + (pooled**3).sum()).backward()
    return out, pooled


@needs_cuda
@pytest.mark.parametrize("pinned", [False, True])
def test_cuda_equals_the_cpu(pinned: bool) -> None:
    here, there = make_shards(2), make_shards(2)
    with local_client(here) as client:
        expected = step(client, IDS, keyed())
    ids = IDS.pin_memory() if pinned else IDS
    with local_client(there) as client:
        found = step(client, ids.to("cuda", non_blocking=True), keyed("cuda"))
    for one, other in zip(expected, found, strict=True):
        assert other.is_cuda
        torch.testing.assert_close(other.detach().cpu(), one.detach())
    for one_shard, other_shard in zip(here, there, strict=True):
        assert one_shard.rows.keys() == other_shard.rows.keys()
        for key, row in one_shard.rows.items():
            np.testing.assert_allclose(other_shard.rows[key], row, rtol=1e-5, atol=1e-6)


@needs_cuda
def test_ids_in_pinned_memory_are_taken_as_they_are() -> None:
    with local_client(make_shards(1)) as client:
        bag = EmbeddingBag(client, "user", "sum")
        assert torch.equal(bag(IDS.pin_memory()), bag(IDS))


@needs_cuda
def test_a_pipeline_and_autocast_on_cuda() -> None:
    plain, piped = make_shards(1), make_shards(1)
    batches = [torch.from_numpy(np.random.default_rng(s).integers(0, 10, (6, 3))).cuda() for s in range(6)]
    dense = nn.Linear(4, 1).cuda()
    with local_client(plain) as client, local_client(piped) as other, other.pipeline() as pipeline:
        bags = EmbeddingBag(client, "user", "sum"), EmbeddingBag(pipeline, "user", "sum")
        for one, two in zip(batches, pipeline.ahead(batches, bags[1].prefetch), strict=True):
            for bag, batch in zip(bags, (one, two), strict=True):
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    loss = (dense(bag(batch)).float() ** 2).mean()
                loss.backward()
        pipeline.flush()
        assert {k: v.tolist() for k, v in plain[0].rows.items()} == {
            k: v.tolist() for k, v in piped[0].rows.items()
        }


@needs_cuda
def test_a_loss_scaler_on_cuda_unscales_rows_and_skips_their_step() -> None:
    shards, theirs = make_shards(1), reference().cuda()
    dense = nn.Linear(4, 2).cuda()
    table = torch.optim.SGD(theirs.parameters(), lr=0.5)
    with local_client(shards) as client:
        ours = EmbeddingBag(client, "user", "sum").cuda()
        rows = RowOptimizer(ours)
        scalers = torch.amp.GradScaler("cuda"), torch.amp.GradScaler("cuda")
        for number in range(6):
            factor = 1e30 if number == 3 else 1.0
            for bag, scaler, optimizer in ((ours, scalers[0], rows), (theirs, scalers[1], table)):
                loss = (dense(bag(IDS.cuda())) * factor).square().mean()
                optimizer.zero_grad()
                torch.autograd.backward(scaler.scale(loss))
                assert all(p.grad.is_cuda for g in optimizer.param_groups for p in g["params"])
                scaler.step(optimizer)
                scaler.update()
            assert scalers[0].get_scale() == scalers[1].get_scale()
        rows_now = torch.from_numpy(client.pull("user", np.arange(10)))
        torch.testing.assert_close(rows_now, theirs.weight.detach().cpu(), rtol=1e-5, atol=1e-6)
    assert shards[0].applied == 5


@needs_cuda
def test_pulls_one_after_another_do_not_share_pinned_memory() -> None:
    """The copies to the GPU are not waited for."""
    with local_client(make_shards(1)) as client:
        bag = EmbeddingBag(client, "user", "sum")
        batches = [torch.full((1, 1), place) for place in range(200)]
        on_gpu = [bag(batch.cuda()) for batch in batches]
        for batch, out in zip(batches, on_gpu, strict=True):
            torch.testing.assert_close(out.cpu(), bag(batch))
