# SPDX-License-Identifier: Apache-2.0
"""pool.py: the pass over an output's gradient gives what torch's own backward of the rows gives."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ps_client import Client
from ps_client.torch import (
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
    pool,
)

from .fake_shard import FakeShard, local_client, make_shards

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

SPLITS = [("user", 4, ["u", "v"]), ("item", 3, ["v", "w"])]


def keyed(seed: int) -> KeyedJaggedTensor:
    rng = np.random.default_rng(seed)
    lengths = torch.from_numpy(rng.integers(0, 4, 15))
    values = torch.from_numpy(rng.integers(0, 9, int(lengths.sum())))
    weights = torch.from_numpy(rng.normal(size=values.shape[0]).astype(np.float32))
    return KeyedJaggedTensor(keys=["u", "v", "w"], values=values, lengths=lengths, weights=weights)


def bags(client: Client, pooling: PoolingType, weighted: bool) -> EmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(name=t, embedding_dim=d, feature_names=f, pooling=pooling) for t, d, f in SPLITS
    ]
    return EmbeddingBagCollection(client, configs, is_weighted=weighted, gradient_scale=0.7)


def one_feature(client: Client, seed: int) -> list[Tensor]:
    """Outputs of "u" and "w" are not differentiated: their rows are pushed with a gradient of zero."""
    return [bags(client, PoolingType.MEAN, False)(keyed(seed))["v@item"]]


def weighted(client: Client, seed: int) -> list[Tensor]:
    return [bags(client, PoolingType.SUM, True)(keyed(seed)).values()]


def mean(client: Client, seed: int) -> list[Tensor]:
    return [bags(client, PoolingType.MEAN, False)(keyed(seed)).values()]


def rows_themselves(client: Client, seed: int) -> list[Tensor]:
    configs = [EmbeddingConfig(name=t, embedding_dim=d, feature_names=f) for t, d, f in SPLITS]
    found = EmbeddingCollection(client, configs)(keyed(seed))
    return [found["u"].values(), found["v@user"].values(), found["w"].values()]


def single(client: Client, seed: int) -> list[Tensor]:
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, 9, (12, 1)))
    return [EmbeddingBag(client, "user", mode)(ids) for mode in ("sum", "max")]


def expanded(client: Client, seed: int) -> list[Tensor]:
    """The gradient of a sum has strides of 0."""
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, 9, (6, 3)))
    return [EmbeddingBag(client, "user", "sum")(ids).sum() + 0.0]


MODELS = [one_feature, weighted, mean, rows_themselves, single, expanded]


def train(shards: list[FakeShard], model: Callable[[Client, int], list[Tensor]]) -> list[Tensor]:
    outputs = []
    with local_client(shards) as client:
        for seed in range(6):
            found = model(client, seed)
            torch.autograd.backward([((out * 1.25 - 1) ** 2).sum() for out in found])
            outputs += [out.detach() for out in found]
    return outputs


@pytest.mark.parametrize("model", MODELS)
def test_the_kernel_and_torch_agree(
    model: Callable[[Client, int], list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 1."""
    ours, theirs = make_shards(2), make_shards(2)
    found = train(ours, model)
    monkeypatch.setattr(pool, "_starts", lambda *_: None)
    expected = train(theirs, model)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for one_shard, other_shard in zip(ours, theirs, strict=True):
        assert one_shard.rows.keys() == other_shard.rows.keys()
        for key, row in one_shard.rows.items():
            np.testing.assert_allclose(row, other_shard.rows[key], rtol=1e-4, atol=1e-5)


def test_ids_after_the_last_bag_get_nothing() -> None:
    """With include_last_offset they belong to no bag, and torch gives them what is in its memory."""
    shards = make_shards(1)
    ids, offsets = torch.tensor([4, 1, 4, 8, 1, 7]), torch.tensor([0, 2, 4])
    with local_client(shards) as client:
        EmbeddingBag(client, "user", "sum", include_last_offset=True)(ids, offsets).sum().backward()
    pushed = shards[0].pushes[0].tables[0]
    assert pushed.ids.tolist() == [4, 1, 8, 7]
    assert pushed.gradients[:, 0].tolist() == [2, 1, 1, 0]


def test_one_backward_is_one_push_of_distinct_ids() -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        bags(client, PoolingType.SUM, False)(keyed(1)).values().sum().backward()
    assert len(shards[0].pushes) == 1, "of both tables"
    assert [t.table for t in shards[0].pushes[0].tables] == ["user", "item"]


def test_weights_changed_before_the_backward_are_noticed() -> None:
    with local_client(make_shards(1)) as client:
        weights = torch.ones(2, 2)
        out = EmbeddingBag(client, "user", "sum")(torch.tensor([[1, 2], [2, 3]]), None, weights)
        weights += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
