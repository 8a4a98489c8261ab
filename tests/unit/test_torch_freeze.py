# SPDX-License-Identifier: Apache-2.0
"""Frozen tables, handles among a model's parameters, torch's defaults, and what is refused."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed
from rowhouse.error import InvalidRequestError
from torch import nn

from ps_client import Client
from ps_client.torch import (
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
)

from .fake_shard import FakeShard, local_client, make_shards

IDS = torch.tensor([[3, 5], [5, 9]])
BATCH = KeyedJaggedTensor(["u", "i"], torch.tensor([1, 2, 2, 7, 9]), lengths=torch.tensor([2, 1, 0, 2]))


def bags(client: Client) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        client,
        [
            EmbeddingBagConfig(name="user", embedding_dim=4, feature_names=["u"]),
            EmbeddingBagConfig(name="item", embedding_dim=3, feature_names=["i"]),
        ],
    )


def rows(client: Client) -> EmbeddingCollection:
    return EmbeddingCollection(
        client,
        [
            EmbeddingConfig(name="user", embedding_dim=4, feature_names=["u"]),
            EmbeddingConfig(name="item", embedding_dim=3, feature_names=["i"]),
        ],
    )


def pushed(shards: list[FakeShard]) -> list[str]:
    return [part.table for push in shards[0].pushes for part in push.tables]


def freeze_all(model: nn.Module) -> None:
    model.requires_grad_(False)


def freeze_parameters(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad = False


@pytest.mark.parametrize("freeze", [freeze_all, freeze_parameters])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_frozen_bag_gives_its_rows_and_moves_none(freeze: Callable[[nn.Module], None], mode: str) -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        model, head = nn.Sequential(EmbeddingBag(client, "user", mode)), nn.Linear(4, 1)
        want = model(IDS).detach()
        freeze(model)
        out = model(IDS)
        assert not out.requires_grad and torch.equal(out, want)
        head(out).sum().backward()
        assert shards[0].pulls[-1].read_only and not shards[0].pushes
        model.requires_grad_(True)
        head(model(IDS)).sum().backward()
        assert pushed(shards) == ["user"] and not shards[0].pulls[-1].read_only


@pytest.mark.parametrize("weighted", [False, True])
def test_one_table_of_a_collection_is_frozen(weighted: bool) -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        ours = bags(client)
        batch, factors = BATCH, torch.ones(5, requires_grad=True)
        if weighted:
            ours = EmbeddingBagCollection(client, ours._configs, is_weighted=True)
            batch = KeyedJaggedTensor(["u", "i"], BATCH.values(), factors, lengths=BATCH.lengths())
        ours.embedding_bags["user"].requires_grad_(False)
        (ours(batch).values() ** 2).sum().backward()
        assert pushed(shards) == ["item"]
        assert (factors.grad is not None) == weighted
        names = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
        assert names == ["embedding_bags.item.weight"]
        ours.embedding_bags["item"].requires_grad_(False)
        assert ours(BATCH if not weighted else batch).values().requires_grad == weighted
        unpooled = rows(client)
        unpooled.embeddings["item"].requires_grad_(False)
        found = unpooled(BATCH)
        assert found["u"].values().requires_grad and not found["i"].values().requires_grad
        sum(one.values().sum() for one in found.values()).backward()
    assert pushed(shards) == ["item", "user"]


def test_handles_are_in_no_state_and_copies_have_their_own() -> None:
    with local_client(make_shards(1)) as client:
        model = nn.ModuleDict(
            {"bag": EmbeddingBag(client, "user"), "bags": bags(client), "rows": rows(client)}
        )
        assert not model.state_dict()
        model.load_state_dict({}, strict=True)
        other = copy.deepcopy(model).requires_grad_(False)
        assert all(p.requires_grad for p in model.parameters()) and not any(
            p.requires_grad for p in other.parameters()
        )
        torch.optim.Adam(model.parameters()).step()
        assert float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)) == 0


def test_a_model_with_bags_is_wrapped_by_ddp(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    shards = make_shards(1)
    try:
        with local_client(shards) as client:
            model = nn.parallel.DistributedDataParallel(
                nn.Sequential(EmbeddingBag(client, "user"), nn.Linear(4, 1))
            )
            for _ in range(3):
                model(IDS).sum().backward()
            assert pushed(shards) == ["user"] * 3
    finally:
        torch.distributed.destroy_process_group()


def test_the_mode_is_torch_s_own_where_none_is_given() -> None:
    with local_client(make_shards(1)) as client:
        ours = EmbeddingBag(client, "user")
        assert ours.mode == nn.EmbeddingBag(3, 4).mode == "mean"
        torch.testing.assert_close(ours(IDS), EmbeddingBag(client, "user", "mean")(IDS))


@pytest.mark.parametrize("shape", ["offsets", "2-D", "no bags"])
def test_weights_get_a_gradient_on_an_empty_batch(shape: str) -> None:
    ids, offsets = {
        "offsets": (torch.empty(0, dtype=torch.int64), torch.tensor([0, 0])),
        "2-D": (torch.empty(3, 0, dtype=torch.int64), None),
        "no bags": (torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)),
    }[shape]
    with local_client(make_shards(1)) as client:
        for module in (EmbeddingBag(client, "user", "sum"), EmbeddingBag(client, "user", "sum").eval()):
            weights = torch.ones(ids.shape, requires_grad=True)
            out = module(ids, offsets, weights)
            assert out.shape == (0 if shape == "no bags" else 2 if offsets is not None else 3, 4)
            out.sum().backward()
            assert weights.grad is not None and weights.grad.shape == ids.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_offsets_and_lengths_that_are_no_integers_are_refused(dtype: torch.dtype) -> None:
    ids = torch.tensor([1, 2, 3])
    wrong = torch.tensor([0.0, 1.7]).to(dtype)
    with local_client(make_shards(1)) as client:
        for mode in ("sum", "max"):
            with pytest.raises(
                InvalidRequestError, match=f"offsets are a tensor of {dtype}; they must be integers"
            ):
                EmbeddingBag(client, "user", mode)(ids, wrong)
        for make in (
            lambda: KeyedJaggedTensor(["u"], ids, lengths=wrong),
            lambda: KeyedJaggedTensor(["u"], ids, offsets=wrong),
            lambda: KeyedJaggedTensor.from_lengths_sync(["u"], ids, wrong),
            lambda: JaggedTensor(ids, lengths=wrong),
        ):
            with pytest.raises(InvalidRequestError, match="must be integers"):
                make()


def test_torch_s_own_arguments_are_refused_in_words() -> None:
    with pytest.raises(
        InvalidRequestError, match=r"client is 1000; it must be what ps_client.connect\(\) gives"
    ):
        EmbeddingBag(1000, 16)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=r"client is \[\]; .* EmbeddingBagCollection\(client"):
        EmbeddingBagCollection([], [])  # type: ignore[arg-type]
