# SPDX-License-Identifier: Apache-2.0
"""The torch modules over a pipeline: the bits of a plain client, one pull ahead per step."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from rowhouse.error import PreconditionError
from torch import Tensor

from ps_client import Pipeline, StepClient
from ps_client.torch import EmbeddingBag, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from .fake_shard import FakeShard, local_client, make_shards

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

STEPS = 15
PADDING = 3


def bag_batches() -> list[Tensor]:
    return [torch.from_numpy(np.random.default_rng(s).integers(0, 30, (6, 4))) for s in range(STEPS)]


def keyed_batches() -> list[KeyedJaggedTensor]:
    batches = []
    for seed in range(STEPS):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(0, 4, 12)
        values = torch.from_numpy(rng.integers(0, 25, int(lengths.sum())))
        batches.append(
            KeyedJaggedTensor(keys=["u", "v", "w"], values=values, lengths=torch.from_numpy(lengths))
        )
    return batches


def train_bag(client: StepClient) -> list[float]:
    bag, losses = EmbeddingBag(client, "user", "mean", padding_idx=PADDING), []
    batches = client.ahead(bag_batches(), bag.prefetch) if isinstance(client, Pipeline) else bag_batches()
    for batch in batches:
        loss = (bag(batch) ** 2).sum()
        loss.backward()
        losses.append(loss.item())
    client.flush()
    return losses


def train_collection(client: StepClient) -> list[float]:
    torch.manual_seed(1)
    bags = EmbeddingBagCollection(
        client,
        [
            EmbeddingBagConfig(name="user", embedding_dim=4, feature_names=["u", "v"]),
            EmbeddingBagConfig(name="item", embedding_dim=3, feature_names=["w"]),
        ],
    )
    dense, losses = torch.nn.Linear(11, 1), []
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.1)
    batches = (
        client.ahead(keyed_batches(), bags.prefetch) if isinstance(client, Pipeline) else keyed_batches()
    )
    for batch in batches:
        loss = ((dense(bags(batch).values()) - 1) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    client.flush()
    return losses


def held(shards: list[FakeShard]) -> dict[tuple[str, int], list[float]]:
    return {key: row.tolist() for shard in shards for key, row in shard.rows.items()}


@pytest.mark.parametrize("train", [train_bag, train_collection])
def test_a_training_loop_has_the_bits_of_one_without(train: Callable[[StepClient], list[float]]) -> None:
    plain, piped = make_shards(2), make_shards(2)
    with local_client(plain) as client:
        expected = train(client)
    with local_client(piped) as client, client.pipeline() as pipeline:
        assert train(pipeline) == expected
        assert not pipeline._ahead, "every prefetched step must have been used"
    assert held(piped) == held(plain)
    assert expected[-1] < expected[0]


def test_prefetch_in_eval_mode_is_read_only_and_is_used() -> None:
    shards = make_shards(1)
    with local_client(shards) as client, client.pipeline() as pipeline:
        bag = EmbeddingBag(pipeline, "user", "sum").eval()
        ids = torch.tensor([[1, 2]])
        bag.prefetch(ids)
        bag(ids)
        assert [p.read_only for p in shards[0].pulls] == [True]


def test_prefetch_needs_a_pipeline() -> None:
    with local_client(make_shards(1)) as client:
        bag = EmbeddingBag(client, "user", "sum")
        with pytest.raises(
            PreconditionError, match=r"use what client.pipeline\(\) gives, or make the module with it"
        ):
            bag.prefetch(torch.tensor([1]))
