# SPDX-License-Identifier: Apache-2.0
"""Collections over a KeyedJaggedTensor: conventions, one pull and one push per step, equality with torch."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rowhouse.error import ConfigError, InvalidRequestError, UnknownTableError
from torch import Tensor, nn

from ps_client.torch import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)

from .fake_shard import first_row, local_client, make_shards

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

VOCABULARY, RATE = 20, 0.5
TABLES = {"user": 4, "item": 3}
USER = EmbeddingBagConfig(name="user", embedding_dim=4, feature_names=["u", "shared"])
ITEM = EmbeddingBagConfig(
    name="item", embedding_dim=3, feature_names=["i", "shared"], pooling=PoolingType.MEAN
)


def batch(seed: int, weighted: bool = False, keys: tuple[str, ...] = ("i", "extra", "shared", "u")) -> Any:
    """Five examples, 0 to 3 ids per feature; "extra" is a feature that no table names."""
    rng = np.random.default_rng(seed)
    lengths = torch.from_numpy(rng.integers(0, 4, len(keys) * 5))
    values = torch.from_numpy(rng.integers(0, VOCABULARY, int(lengths.sum())))
    weights = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)) if weighted else None
    return KeyedJaggedTensor(list(keys), values, weights, lengths)


def references(mode: dict[str, str]) -> dict[str, nn.EmbeddingBag]:
    bags = {name: nn.EmbeddingBag(VOCABULARY, dim, mode=mode[name]) for name, dim in TABLES.items()}
    for name, bag in bags.items():
        rows = np.array([first_row(i, TABLES[name]) for i in range(VOCABULARY)])
        with torch.no_grad():
            bag.weight.copy_(torch.from_numpy(rows))
    return bags


@pytest.mark.parametrize("shard_count", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_bags_equal_torch_for_twenty_steps(shard_count: int, weighted: bool) -> None:
    item = (
        EmbeddingBagConfig(name="item", embedding_dim=3, feature_names=["i", "shared"]) if weighted else ITEM
    )
    theirs = references({"user": "sum", "item": "sum" if weighted else "mean"})
    parameters = [p for bag in theirs.values() for p in bag.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=RATE)
    shards = make_shards(shard_count)
    with local_client(shards) as client:
        ours = EmbeddingBagCollection(client, [USER, item], is_weighted=weighted)
        assert sum(p.numel() for p in ours.parameters()) == 0 and not ours.state_dict()
        assert "'user': ['u', 'shared']" in repr(ours)
        for step in range(20):
            kjt = batch(step, weighted)
            out = ours(kjt)
            want = [
                theirs[table](
                    kjt[feature].values(), kjt[feature].offsets()[:-1], kjt[feature].weights_or_none()
                )
                for table, feature in (("user", "u"), ("user", "shared"), ("item", "i"), ("item", "shared"))
            ]
            assert out.keys() == ["u", "shared@user", "i", "shared@item"] == ours.embedding_names()
            assert out.length_per_key() == [4, 4, 3, 3]
            torch.testing.assert_close(out.values(), torch.cat(want, 1), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(out["shared@item"], want[3], rtol=1e-5, atol=1e-6)
            optimizer.zero_grad()
            (out.values() ** 2).mean().backward()
            torch.autograd.backward((torch.cat(want, 1) ** 2).mean())
            optimizer.step()
        pulls = sum(len(shard.pulls) for shard in shards)
        assert pulls <= 20 * shard_count, "one pull per shard and step, for both tables"
        assert [len(s.pulls) for s in shards] == [20] * shard_count == [len(s.pushes) for s in shards]
        for name, bag in theirs.items():
            rows = torch.from_numpy(client.pull(name, np.arange(VOCABULARY)))
            torch.testing.assert_close(rows, bag.weight.detach(), rtol=1e-5, atol=1e-6)


def test_sequences_equal_torch_and_may_have_mixed_dims() -> None:
    tables = [
        EmbeddingConfig(name="user", embedding_dim=4, feature_names=["u", "shared"]),
        EmbeddingConfig(name="item", embedding_dim=3, feature_names=["shared"]),
    ]
    shards = make_shards(2)
    theirs = references({"user": "sum", "item": "sum"})
    optimizer = torch.optim.SGD([p for b in theirs.values() for p in b.parameters()], lr=RATE)
    with local_client(shards) as client:
        ours = EmbeddingCollection(client, tables)
        for step in range(5):
            kjt = batch(step)
            out = ours(kjt)
            assert list(out) == ["u", "shared@user", "shared@item"]
            loss: Any = torch.zeros(())
            want: Any = torch.zeros(())
            for name, jagged in out.items():
                feature, _, table = name.partition("@")
                source = kjt[feature]
                rows = nn.functional.embedding(source.values(), theirs[table or "user"].weight)
                torch.testing.assert_close(jagged.values(), rows, rtol=1e-5, atol=1e-6)
                assert jagged.lengths().tolist() == source.lengths().tolist()
                loss, want = loss + (jagged.values() ** 2).sum(), want + (rows**2).sum()
            optimizer.zero_grad()
            (loss / 10).backward()
            (want / 10).backward()
            optimizer.step()
        for name, bag in theirs.items():
            rows = torch.from_numpy(client.pull(name, np.arange(VOCABULARY)))
            torch.testing.assert_close(rows, bag.weight.detach(), rtol=1e-5, atol=1e-6)
    assert [len(request.tables) for request in shards[0].pushes] == [2] * 5


@pytest.mark.parametrize("length", [0, 1])
def test_a_batch_without_ids_gives_zeros_and_empty_sequences(length: int) -> None:
    shards = make_shards(2)
    kjt = KeyedJaggedTensor(
        ["u", "shared", "i"], torch.arange(2 * length), lengths=torch.tensor([length, length, 0, 0, 0, 0])
    )
    with local_client(shards) as client:
        out = EmbeddingBagCollection(client, [USER, ITEM])(kjt)
        assert out.values().shape == (2, 14) and not out.values()[:, 4:].any()
        torch.autograd.backward(out.values().sum())
        sequences = EmbeddingCollection(client, [USER, ITEM])(kjt)
        assert {name: tuple(j.values().shape) for name, j in sequences.items()} == {
            "u": (2 * length, 4), "shared@user": (0, 4), "i": (0, 3), "shared@item": (0, 3),
        }  # fmt: skip
    assert sum(len(r.tables) for s in shards for r in s.pushes) == (1 if length else 0) * len(
        [s for s in shards if s.pushes]
    )


def test_a_table_that_the_loss_does_not_use_is_not_pushed_and_eval_never_pushes() -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        ours = EmbeddingBagCollection(client, [USER, ITEM], gradient_scale=0.5)
        sequences = EmbeddingCollection(client, [USER, ITEM])
        ours(batch(0))["u"].sum().backward()
        sequences(batch(0))["u"].values().sum().backward()
        assert [[t.table for t in r.tables] for r in shards[0].pushes] == [["user", "item"], ["user"]]
        assert not shards[0].pushes[0].tables[1].gradients.any()
        counts = np.unique(batch(0)["u"].values().numpy(), return_counts=True)[1]
        assert np.abs(shards[0].pushes[0].tables[0].gradients).max() == counts.max() * 0.5
        ours.eval()
        assert not ours(batch(0)).values().requires_grad
        assert shards[0].pulls[-1].read_only


def test_torchrec_like_configs_are_taken() -> None:
    pooling = SimpleNamespace(value="MEAN")
    config = SimpleNamespace(
        num_embeddings=10, embedding_dim=3, name="item", feature_names=["i"], pooling=pooling
    )
    with local_client(make_shards(1)) as client:
        ours = EmbeddingBagCollection(client, [config])
        kjt = KeyedJaggedTensor(["i"], torch.tensor([1, 2]), lengths=torch.tensor([2]))
        mean = (first_row(1, 3) + first_row(2, 3)) / 2
        np.testing.assert_allclose(ours(kjt)["i"].detach()[0], mean, rtol=1e-6)


def bag_config(**changes: Any) -> EmbeddingBagConfig:
    fields: dict[str, Any] = {"name": "user", "embedding_dim": 4, "feature_names": ["u"]}
    return EmbeddingBagConfig(**{**fields, **changes})


@pytest.mark.parametrize(
    ("tables", "weighted", "kind", "text"),
    [
        ([bag_config(), bag_config()], False, ValueError, "table 'user' is configured more than once"),
        ([bag_config(feature_names=["u", "u"])], False, ValueError, r"feature_names are \['u', 'u'\]"),
        ([bag_config(name="usr")], False, UnknownTableError, "did you mean 'user'"),
        ([bag_config(embedding_dim=8)], False, ConfigError, "embedding_dim is 8; the shards say 4"),
        ([bag_config(pooling="MAX")], False, ValueError, "pooling is 'MAX'"),
        ([bag_config(pooling=PoolingType.MEAN)], True, ValueError, "weights need PoolingType.SUM"),
    ],
)
def test_wrong_configs_are_errors(
    tables: list[EmbeddingBagConfig], weighted: bool, kind: type[Exception], text: str
) -> None:
    with local_client(make_shards(1)) as client, pytest.raises(kind, match=text):
        EmbeddingBagCollection(client, tables, is_weighted=weighted)


def test_missing_features_and_weights_are_named() -> None:
    with local_client(make_shards(1)) as client:
        for kind in (EmbeddingBagCollection, EmbeddingCollection):
            text = r"features \['shared'\] are not among the batch's keys \['u'\]"
            with pytest.raises(InvalidRequestError, match=text):
                kind(client, [USER])(batch(0, keys=("u",)))
            text = r"the batch is a dict with the keys \['u'\]; .*KeyedJaggedTensor .*\['shared', 'u'\]"
            with pytest.raises(InvalidRequestError, match=text):
                kind(client, [USER])({"u": torch.tensor([1])})
        with pytest.raises(
            InvalidRequestError, match="the batch is a Tensor; it must be a KeyedJaggedTensor"
        ):
            EmbeddingBagCollection(client, [USER], is_weighted=True)(torch.tensor([1]))
        with pytest.raises(ValueError, match="no weights"):
            EmbeddingBagCollection(client, [USER], is_weighted=True)(batch(0))


def test_jagged_rows_keep_the_dtype_and_device_of_the_model() -> None:
    with local_client(make_shards(1), "bf16") as client:
        out: Tensor = EmbeddingBagCollection(client, [USER])(batch(1)).values()
    assert out.dtype == torch.float32 and out.device.type == "cpu"
