# SPDX-License-Identifier: Apache-2.0
"""ps_client.torch.Embedding against nn.Embedding + torch.optim.SGD; and modules in another dtype."""

from typing import Any

import numpy as np
import pytest
import torch
from rowhouse.error import InvalidRequestError, UnknownTableError
from torch import Tensor, nn

from ps_client import Client
from ps_client.torch import (
    Embedding,
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    RowOptimizer,
    dense_part,
)

from .fake_shard import first_row, local_client, make_shards

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

VOCABULARY, DIM, RATE = 30, 4, 0.5
IDS = torch.tensor([[3, 5, 3], [8, 9, 1]])
HALVES = [torch.float16, torch.bfloat16, torch.float64]


def reference(padding_idx: int | None = None, dtype: torch.dtype = torch.float32) -> nn.Embedding:
    embedding = nn.Embedding(VOCABULARY, DIM, padding_idx=padding_idx)
    with torch.no_grad():
        embedding.weight.copy_(torch.tensor(np.array([first_row(i, DIM) for i in range(VOCABULARY)])))
        if padding_idx is not None:
            embedding.weight[padding_idx] = 0
    return embedding.to(dtype)


@pytest.mark.parametrize("shape", [(7,), (4, 3), (2, 3, 2), (0,), (3, 0), ()])
@pytest.mark.parametrize("padding_idx", [None, 0])
def test_it_trains_as_torch_does(shape: tuple[int, ...], padding_idx: int | None) -> None:
    rng = np.random.default_rng(3)
    with local_client(make_shards(2)) as client:
        ours, theirs = Embedding(client, "user", padding_idx=padding_idx), reference(padding_idx)
        optimizer = torch.optim.SGD(theirs.parameters(), lr=RATE)
        for _ in range(10):
            ids = torch.from_numpy(np.asarray(rng.integers(0, 6, shape)))
            out, want = ours(ids), theirs(ids)
            assert out.shape == (*shape, DIM)
            torch.testing.assert_close(out, want)
            optimizer.zero_grad()
            ((out - 1) ** 2).sum().backward()
            ((want - 1) ** 2).sum().backward()
            optimizer.step()
        everything = torch.arange(VOCABULARY)
        torch.testing.assert_close(ours.eval()(everything), theirs(everything).detach())


def test_the_padding_id_is_not_pulled_and_reads_as_zeros() -> None:
    shards = make_shards(2)
    with local_client(shards) as client:
        out = Embedding(client, "user", padding_idx=-1)(torch.tensor([[-1, 3], [-1, -1]]))
        assert not out[0, 0].any() and not out[1].any() and out[0, 1].any()
        out.sum().backward()
    pulled = [id for shard in shards for pull in shard.pulls for part in pull.tables for id in part.ids]
    pushed = [id for shard in shards for push in shard.pushes for part in push.tables for id in part.ids]
    assert pulled == [3] and pushed == [3]


def test_frozen_or_in_eval_mode_nothing_is_pushed() -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        embedding = Embedding(client, "user")
        assert not embedding.eval()(IDS).requires_grad
        assert not embedding.train().requires_grad_(False)(IDS).requires_grad
        assert all(pull.read_only for pull in shards[0].pulls)


def test_the_optimizer_of_rows_and_the_dense_part_know_it() -> None:
    with local_client(make_shards(1)) as client:
        model = nn.Sequential(Embedding(client, "user"), nn.Flatten(), nn.Linear(3 * DIM, 1))
        rows = RowOptimizer(model)
        before = model(IDS).detach()
        model(IDS).sum().backward()
        rows.step()
        assert not torch.equal(model(IDS), before)
        model.eval()
        dense, inputs = dense_part(model, IDS)
        assert dense.input_names == ["0"] and inputs[0].shape == (2, 3, DIM)
        torch.testing.assert_close(dense(*inputs), model(IDS))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_model_gives_the_same(compiled: bool) -> None:
    with local_client(make_shards(1)) as client:
        model: Any = nn.Sequential(Embedding(client, "user"), nn.Linear(DIM, 1))
        want = model(IDS)
        compile_: Any = torch.compile
        got = compile_(model, backend="eager")(IDS) if compiled else model(IDS)
        torch.testing.assert_close(got, want)


def test_what_is_wrong_is_said() -> None:
    with local_client(make_shards(1)) as client:
        with pytest.raises(UnknownTableError):
            Embedding(client, "usr")
        with pytest.raises(ValueError, match="padding_idx"):
            Embedding(client, "user", padding_idx=1 << 64)
        with pytest.raises(InvalidRequestError, match="input is a list"):
            Embedding(client, "user")([1])
        with pytest.raises(InvalidRequestError, match="integers"):
            Embedding(client, "user")(torch.tensor([1.0]))


# ------------------------------------------------------------ another dtype
def keyed() -> KeyedJaggedTensor:
    values, lengths = torch.tensor([1, 2, 2, 7, 9]), torch.tensor([2, 1, 0, 2])
    return KeyedJaggedTensor(keys=["u", "i"], values=values, lengths=lengths)


def outputs(client: Client, dtype: torch.dtype) -> list[Tensor]:
    """Of every module, moved to that dtype."""
    bags = [EmbeddingBagConfig(name="user", embedding_dim=4, feature_names=["u"])]
    bags.append(EmbeddingBagConfig(name="item", embedding_dim=3, feature_names=["i"]))
    single = [
        EmbeddingConfig(name=b.name, embedding_dim=b.embedding_dim, feature_names=b.feature_names)
        for b in bags
    ]
    found = [Embedding(client, "user").to(dtype)(IDS), EmbeddingBag(client, "user", "sum").to(dtype)(IDS)]
    found.append(EmbeddingBag(client, "user", "max").to(dtype)(IDS))
    found.append(EmbeddingBagCollection(client, bags).to(dtype)(keyed()).values())
    return found + [one.values() for one in EmbeddingCollection(client, single).to(dtype)(keyed()).values()]


@pytest.mark.parametrize("dtype", HALVES)
def test_modules_answer_in_the_dtype_that_they_were_moved_to(dtype: torch.dtype) -> None:
    with local_client(make_shards(2)) as client:
        for moved, plain in zip(outputs(client, dtype), outputs(client, torch.float32), strict=True):
            assert moved.dtype == dtype and plain.dtype == torch.float32
            torch.testing.assert_close(moved, plain.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_model_of_another_dtype_trains(dtype: torch.dtype) -> None:
    """Gradients arrive in that dtype and are pushed in fp32, as torch's module would have them."""
    shards = make_shards(1)
    with local_client(shards) as client:
        head = nn.Linear(DIM, 2)
        ours, theirs = nn.Sequential(Embedding(client, "user"), head).to(dtype), reference(dtype=dtype)
        ours(IDS).square().sum().backward()
        head(theirs(IDS)).square().sum().backward()
    (push,) = shards[0].pushes
    (part,) = push.tables
    assert part.gradients.dtype == np.float32
    assert theirs.weight.grad is not None
    want = theirs.weight.grad[torch.from_numpy(part.ids.astype(np.int64))].float()
    torch.testing.assert_close(torch.from_numpy(np.array(part.gradients)), want, rtol=0.02, atol=1e-4)
