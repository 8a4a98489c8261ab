# SPDX-License-Identifier: Apache-2.0
"""torchrec's surface on our collections: what they say of themselves, variable batches, fx; and a DLRM."""

from typing import Any

import numpy as np
import pytest
import torch
from rowhouse.error import InvalidRequestError, PreconditionError
from torch import Tensor, fx, nn

from ps_client import Client
from ps_client.torch import (
    Embedding,
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)

from .fake_shard import first_row, local_client, make_shards

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

USER = EmbeddingBagConfig(name="user", num_embeddings=1000, embedding_dim=4, feature_names=["u", "v"])
ITEM = EmbeddingBagConfig(name="item", embedding_dim=3, feature_names=["i"], pooling=PoolingType.MEAN)
PLAIN = EmbeddingConfig(name="user", num_embeddings=1000, embedding_dim=4, feature_names=["u", "v"])
VALUES, LENGTHS = torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([1, 1, 2, 0, 1, 1])


def batch(names: tuple[str, ...] = ("u", "v", "i")) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(list(names), VALUES, lengths=LENGTHS)


def test_collections_say_what_they_are_made_of() -> None:
    with local_client(make_shards(1)) as client:
        bags = EmbeddingBagCollection(client, [USER, ITEM])
        assert bags.embedding_bag_configs() == [USER, ITEM] and bags.is_weighted() is False
        assert USER.num_embeddings == 1000 and ITEM.num_embeddings is None
        assert bags.embedding_names_by_table() == [["u", "v"], ["i"]] and bags.device == torch.device("cpu")
        rows = EmbeddingCollection(client, [PLAIN], need_indices=True)
        assert rows.embedding_configs() == [PLAIN] and rows.embedding_dim() == 4 and rows.need_indices()
        other = EmbeddingConfig(name="item", embedding_dim=3, feature_names=["i"])
        with pytest.raises(PreconditionError, match=r"\[3, 4\]"):
            EmbeddingCollection(client, [PLAIN, other]).embedding_dim()
        with pytest.raises(PreconditionError, match="no tables"):
            EmbeddingCollection(client, []).embedding_dim()


def test_the_ids_come_as_weights_where_they_are_asked_for() -> None:
    with local_client(make_shards(1)) as client:
        out = EmbeddingCollection(client, [PLAIN], need_indices=True)(batch())
        assert out["v"].weights().tolist() == [3, 4] and out["v"].lengths().tolist() == [2, 0]
        assert EmbeddingCollection(client, [PLAIN])(batch())["v"].weights_or_none() is None


@pytest.mark.parametrize("spread", [False, True])
def test_features_may_have_batches_of_their_own_size(spread: bool) -> None:
    """u has two distinct examples, v one; they are spread over a batch of three."""
    inverse = torch.tensor([[0, 1, 1], [0, 0, 0]])
    made = KeyedJaggedTensor(
        ["u", "v"], torch.tensor([1, 2, 3, 9]), lengths=torch.tensor([2, 1, 1]),
        stride_per_key_per_rank=[[2], [1]], inverse_indices=(["u", "v"], inverse),
    )  # fmt: skip
    config = EmbeddingBagConfig(name="user", embedding_dim=4, feature_names=["u", "v"] if spread else ["v"])
    shards = make_shards(1)
    with local_client(shards) as client:
        out = EmbeddingBagCollection(client, [config])(made)
        rows = {n: torch.from_numpy(np.array(first_row(n, 4))) for n in (1, 2, 3, 9)}
        u, v = torch.stack([rows[1] + rows[2], rows[3], rows[3]]), rows[9].expand(3, 4)
        torch.testing.assert_close(out.values(), torch.cat([u, v], dim=1) if spread else v)
        out.values().sum().backward()
    (push,) = shards[0].pushes
    sums = dict(zip(push.tables[0].ids.tolist(), push.tables[0].gradients[:, 0].tolist(), strict=True))
    assert sums == ({1: 1.0, 2: 1.0, 3: 2.0, 9: 3.0} if spread else {9: 3.0})


PAIR = torch.tensor([[0, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("inverse", "text"),
    [
        (None, r"batches of the sizes \{'u': 2, 'v': 1\}; without inverse_indices"),
        ((["u", "v"], PAIR.float()), "inverse_indices are a tensor of torch.float32"),
        ((["u"], PAIR), r"1 features have the shape \(2, 3\)"),
        ((["u", "i"], PAIR), r"inverse_indices lack the features \['v'\]"),
        ((["u", "v"], PAIR - 1), "inverse_indices of 'u' are -1 to 0; they must be 0 to 1"),
        ((["v", "u"], PAIR), "inverse_indices of 'v' are 0 to 1; they must be 0 to 0"),
    ],
)
def test_examples_that_are_not_there_are_refused_before_a_pull(
    inverse: tuple[list[str], Tensor] | None, text: str
) -> None:
    made = KeyedJaggedTensor(
        ["u", "v"], torch.tensor([1, 2, 3, 9]), lengths=torch.tensor([2, 1, 1]),
        stride_per_key_per_rank=[[2], [1]], inverse_indices=inverse,
    )  # fmt: skip
    shards = make_shards(1)
    with local_client(shards) as client:
        with pytest.raises(InvalidRequestError, match=text):
            EmbeddingBagCollection(client, [USER])(made)
        assert not shards[0].pulls
        one = EmbeddingBagConfig(name="user", embedding_dim=4, feature_names=["v"])
        if inverse is None:  # a single feature has one size
            assert EmbeddingBagCollection(client, [one])(made).values().shape == (1, 4)


def test_batches_of_sizes_below_0_are_refused() -> None:
    for inverse in (None, (["u", "v"], torch.tensor([[0], [0]]))):
        with pytest.raises(InvalidRequestError, match=r"\[\[3\], \[-1\]\]; sizes must be at least 0"):
            KeyedJaggedTensor(
                ["u", "v"], torch.tensor([1, 2]), lengths=torch.tensor([1, 1]),
                stride_per_key_per_rank=[[3], [-1]], inverse_indices=inverse,
            )  # fmt: skip
    with pytest.raises(InvalidRequestError, match=r"inverse_indices .* shape \(2,\)"):
        KeyedJaggedTensor(
            ["u", "v"], torch.tensor([1, 2]), lengths=torch.tensor([1, 1]),
            stride_per_key_per_rank=[[1], [1]], inverse_indices=(["u", "v"], torch.tensor([0, 0])),
        )  # fmt: skip


class Model(nn.Module):
    """A DLRM: dot products between a dense vector and pooled rows, then a linear layer."""

    def __init__(self, rows: nn.Module) -> None:
        super().__init__()
        self.rows, self.bottom, self.top = rows, nn.Linear(2, 4), nn.Linear(7, 1)

    def forward(self, dense: Tensor, sparse: Any) -> Tensor:
        first = self.bottom(dense)
        blocks = self.rows(sparse)
        pooled = torch.stack([first, blocks["u"], blocks["v"]], dim=1)
        products = torch.bmm(pooled, pooled.transpose(1, 2))[:, [0, 0, 1], [1, 2, 2]]
        answer: Tensor = self.top(torch.cat([first, products], dim=1))
        return answer


def test_fx_traces_a_model_with_our_modules_as_single_calls() -> None:
    with local_client(make_shards(1)) as client:
        model = Model(EmbeddingBagCollection(client, [USER]))
        graph: Any = fx.symbolic_trace(model)
        assert [node.target for node in graph.graph.nodes if node.op == "call_module"][:2] == [
            "bottom",
            "rows",
        ]
        dense = torch.randn(2, 2)
        torch.testing.assert_close(graph(dense, batch()), model(dense, batch()))
        single: Any = fx.symbolic_trace(nn.Sequential(EmbeddingBag(client, "user"), nn.Linear(4, 1)))
        assert single(VALUES.reshape(2, 3)).shape == (2, 1)


def test_a_module_of_ours_is_no_graph_by_itself() -> None:
    with (
        local_client(make_shards(1)) as client,
        pytest.raises(InvalidRequestError, match="EmbeddingBagCollection has no graph of its own; trace a"),
    ):
        fx.symbolic_trace(EmbeddingBagCollection(client, [USER]))


def test_on_the_meta_device_outputs_have_shapes_and_nothing_is_pulled_or_pushed() -> None:
    shards, meta = make_shards(1), torch.device("meta")
    with local_client(shards) as client:
        pooled = EmbeddingBagCollection(client, [USER, ITEM], device=meta)(batch().to(meta))
        assert pooled.values().shape == (2, 11) and pooled.values().is_meta
        torch.autograd.backward(pooled.values().sum())
        rows = EmbeddingCollection(client, [PLAIN, ITEM])(batch().to(meta))
        assert {key: one.values().shape for key, one in rows.items()} == {
            "u": (2, 4),
            "v": (2, 4),
            "i": (2, 3),
        }
        assert EmbeddingBag(client, "user")(VALUES.reshape(2, 3).to(meta)).shape == (2, 4)
        assert not EmbeddingBag(client, "user").eval()(VALUES.reshape(2, 3).to(meta)).requires_grad
        assert Embedding(client, "user")(VALUES.reshape(2, 3).to(meta)).shape == (2, 3, 4)
    assert not shards[0].pulls and not shards[0].pushes


class Bags(nn.Module):
    """The same rows in nn.EmbeddingBag."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(10, 4, mode="sum")
        with torch.no_grad():
            self.bag.weight.copy_(torch.from_numpy(np.array([first_row(i, 4) for i in range(10)])))

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        return {key: self.bag(one.values(), one.offsets()[:-1]) for key, one in sparse.to_dict().items()}


def trained(model: Model, client: Client | None = None) -> list[float]:
    """Losses of some steps; the shards have SGD at a rate of 0.5."""
    parameters = [p for name, p in model.named_parameters() if not name.startswith("rows")]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    rows = None if client else torch.optim.SGD(model.rows.parameters(), lr=0.5)
    losses = []
    for step in range(6):
        dense = torch.full((2, 2), step / 3)
        loss = nn.functional.binary_cross_entropy_with_logits(
            model(dense, batch(("u", "v", "x"))), torch.tensor([[1.0], [0.0]])
        )
        for one in (optimizer, rows):
            if one is not None:
                one.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for one in (optimizer, rows):
            if one is not None:
                one.step()
        losses.append(loss.item())
    return losses


def test_a_dlrm_trains_as_over_torch() -> None:
    with local_client(make_shards(2)) as client:
        torch.manual_seed(0)
        ours = Model(EmbeddingBagCollection(client, [USER]))
        torch.manual_seed(0)
        theirs = Model(nn.Identity())
        theirs.rows = Bags()
        np.testing.assert_allclose(trained(ours, client), trained(theirs), rtol=1e-4)
