# SPDX-License-Identifier: Apache-2.0
"""ps_client.torch.EmbeddingBag against nn.EmbeddingBag + torch.optim.SGD, forward and after 20 steps."""

from typing import Any

import numpy as np
import pytest
import torch
from rowhouse.error import InvalidRequestError, UnknownTableError
from torch import Tensor, nn

from ps_client import Client
from ps_client.torch import EmbeddingBag
from ps_client.torch.lookup import id_bits

from .fake_shard import FakeShard, first_row, local_client, make_shards

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

VOCABULARY, DIM, RATE = 30, 4, 0.5
STEPS = 20


def reference(mode: str, **options: Any) -> nn.EmbeddingBag:
    """nn.EmbeddingBag that starts from the rows of the fake shards."""
    bag = nn.EmbeddingBag(VOCABULARY, DIM, mode=mode, **options)
    with torch.no_grad():
        bag.weight.copy_(torch.tensor(np.array([first_row(i, DIM) for i in range(VOCABULARY)])))
    return bag


def jagged_batch(rng: np.random.Generator, include_last_offset: bool) -> tuple[Tensor, Tensor]:
    """Bags of 0 to 4 ids, duplicates within and between them, the last one sometimes empty."""
    lengths = rng.integers(0, 5, 8)
    ids = torch.from_numpy(rng.integers(0, VOCABULARY, int(lengths.sum())))
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    return ids, offsets if include_last_offset else offsets[:-1]


def train(ours: EmbeddingBag, theirs: nn.EmbeddingBag, kind: str, weighted: bool) -> None:
    """The same steps on both sides; outputs and gradients of the rest of the model agree in each."""
    rng = np.random.default_rng(11)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=RATE)
    for _ in range(STEPS):
        if kind == "2-D":
            ids, offsets = torch.from_numpy(rng.integers(0, VOCABULARY, (6, 3))), None
        else:
            ids, offsets = jagged_batch(rng, ours.include_last_offset)
        factors = [
            torch.from_numpy(rng.normal(size=ids.shape).astype(np.float32)) for _ in range(2 * weighted)
        ]
        factors = [torch.nn.Parameter(f.clone()) for f in factors[:1] * 2]
        out, want = ours(ids, offsets, *factors[:1]), theirs(ids, offsets, *factors[1:])
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)
        target = torch.from_numpy(rng.normal(size=want.shape).astype(np.float32))
        optimizer.zero_grad()
        ((out - target) ** 2).mean().backward()
        ((want - target) ** 2).mean().backward()
        optimizer.step()
        if weighted:
            torch.testing.assert_close(factors[0].grad, factors[1].grad, rtol=1e-5, atol=1e-6)


def check_rows(client: Client, theirs: nn.EmbeddingBag) -> None:
    rows = torch.from_numpy(client.pull("user", np.arange(VOCABULARY)))
    torch.testing.assert_close(rows, theirs.weight.detach(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(rows, reference("sum").weight, atol=0.05), "training must have changed the rows"


@pytest.mark.parametrize("shard_count", [1, 3])
@pytest.mark.parametrize("kind", ["offsets", "2-D"])
@pytest.mark.parametrize(
    ("mode", "weighted"), [("sum", False), ("sum", True), ("mean", False), ("max", False)]
)
def test_twenty_steps_equal_torch(mode: str, weighted: bool, kind: str, shard_count: int) -> None:
    theirs = reference(mode)
    with local_client(make_shards(shard_count)) as client:
        train(EmbeddingBag(client, "user", mode), theirs, kind, weighted)
        check_rows(client, theirs)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("options", [{"padding_idx": 3}, {"include_last_offset": True}])
def test_options_equal_torch(mode: str, options: dict[str, Any]) -> None:
    theirs = reference(mode, **options)
    with local_client(make_shards(2)) as client:
        train(EmbeddingBag(client, "user", mode, **options), theirs, "offsets", weighted=mode == "sum")
        check_rows(client, theirs)


def test_padding_in_two_dimensions_and_with_weights_equals_torch() -> None:
    theirs = reference("sum", padding_idx=3)
    shards = make_shards(1)
    with local_client(shards) as client:
        train(EmbeddingBag(client, "user", "sum", padding_idx=3), theirs, "2-D", weighted=True)
        check_rows(client, theirs)
    assert ("user", 3) not in shards[0].rows, "the padding id is never pushed"
    assert not any(3 in request.tables[0].ids for request in shards[0].pulls[:-1]), "nor pulled"


def test_a_padding_id_above_2_63_is_its_bits() -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        for padding in (-1, 2**64 - 1):
            bag = EmbeddingBag(client, "user", "sum", padding_idx=padding)
            out = bag(torch.tensor([[-1, 5]]))
            np.testing.assert_array_equal(out.detach()[0], first_row(5, 4))


def test_batches_of_empty_bags_are_zeros_and_push_nothing() -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        for mode in ("sum", "mean", "max"):
            bag = EmbeddingBag(client, "user", mode)
            out = bag(torch.empty(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
            assert out.shape == (3, 4) and not out.any() and out.dtype == torch.float32
            out.sum().backward()
            assert bag(torch.empty((2, 0), dtype=torch.int64)).shape == (2, 4)
        last = EmbeddingBag(client, "user", "sum", include_last_offset=True)
        assert last(torch.empty(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)).shape == (2, 4)
    assert not shards[0].pushes and not shards[0].pulls


def test_ids_are_bit_cast_and_never_clipped() -> None:
    assert id_bits(torch.tensor([-1, 0, 2**62])).tolist() == [2**64 - 1, 0, 2**62]
    assert id_bits(torch.tensor([-2], dtype=torch.int32)).tolist() == [2**64 - 2]
    assert id_bits(torch.tensor([200], dtype=torch.uint8)).tolist() == [200]
    assert id_bits(torch.tensor([2**64 - 1], dtype=torch.uint64)).tolist() == [2**64 - 1]
    for wrong in (torch.tensor([1.0]), torch.tensor([True])):
        with pytest.raises(InvalidRequestError, match=f"tensor of {wrong.dtype}; they must be integers"):
            id_bits(wrong)
    with local_client(make_shards(2)) as client:
        out = EmbeddingBag(client, "user", "sum")(torch.tensor([[-1]]))
    np.testing.assert_array_equal(out.detach()[0], first_row(2**64 - 1, 4))


def test_evaluation_pulls_read_only_and_pushes_nothing() -> None:
    shards = make_shards(1)
    ids = torch.tensor([[1, 2]])
    scale = torch.nn.Parameter(torch.ones(4))

    def loss(bag: EmbeddingBag) -> Any:
        return (bag(ids) * scale).sum()

    with local_client(shards) as client:
        bag = EmbeddingBag(client, "user", "sum")
        bag.eval()
        loss(bag).backward()
        bag.train()
        with torch.no_grad():
            loss(bag)
        with torch.inference_mode():
            loss(bag)
        assert [request.read_only for request in shards[0].pulls] == [True] * 3
        assert not shards[0].pushes
        loss(bag).backward()
        assert not shards[0].pulls[-1].read_only and len(shards[0].pushes) == 1


def test_one_push_per_backward_of_each_distinct_id() -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        bag = EmbeddingBag(client, "user", "sum", gradient_scale=0.25)
        assert [p.numel() for p in bag.parameters()] == [0] and "user" in repr(bag) and not bag.state_dict()
        out = bag(torch.tensor([5, 5, 9, 5]), torch.tensor([0, 2]))
        out.sum().backward(retain_graph=True)
        (part,) = shards[0].pushes[0].tables
        assert part.ids.tolist() == [5, 9]
        np.testing.assert_array_equal(part.gradients, np.array([[0.75] * 4, [0.25] * 4], np.float32))
        (2 * out).sum().backward()
        assert [request.sequence for request in shards[0].pushes] == [1, 2]
        np.testing.assert_array_equal(shards[0].pushes[1].tables[0].gradients[1], [0.5] * 4)


def test_autocast_and_a_frozen_part_of_the_model() -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        bag, dense = EmbeddingBag(client, "user", "sum"), nn.Linear(4, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = bag(torch.tensor([[1, 2], [3, 4]]))
            loss = dense(out).float().sum()
        assert out.dtype == torch.float32
        loss.backward()
        assert shards[0].pushes[0].tables[0].gradients.shape == (4, 4)
        # Only the dense part is asked for: the table is not part of that backward, so nothing is pushed.
        torch.autograd.grad(dense(bag(torch.tensor([[1]]))).sum(), list(dense.parameters()))
    assert len(shards[0].pushes) == 1


@pytest.mark.parametrize(
    ("shape", "offsets", "weights", "text"),
    [
        ((4,), None, None, "offsets must be given with one dimension"),
        ((2, 2), torch.tensor([0]), None, "offsets must be given with one dimension"),
        ((1, 1, 1), None, None, r"shape \(1, 1, 1\); it must have one or two"),
        ((4,), torch.tensor([[0]]), None, r"offsets have shape \(1, 1\)"),
        ((4,), torch.tensor([0]), torch.ones(3), r"shapes \(3,\) and \(4,\)"),
    ],
)
def test_wrong_shapes_are_value_errors(
    shape: tuple[int, ...], offsets: Tensor | None, weights: Tensor | None, text: str
) -> None:
    with local_client(make_shards(1)) as client, pytest.raises(ValueError, match=text):
        EmbeddingBag(client, "user", "sum")(torch.ones(shape, dtype=torch.int64), offsets, weights)


def test_wrong_options_are_errors() -> None:
    with local_client(make_shards(1)) as client:
        with pytest.raises(UnknownTableError, match="did you mean 'user'"):
            EmbeddingBag(client, "users", "sum")
        with pytest.raises(ValueError, match="mode is 'avg'"):
            EmbeddingBag(client, "user", "avg")
        with pytest.raises(ValueError, match="padding_idx is 18446744073709551616"):
            EmbeddingBag(client, "user", "sum", padding_idx=2**64)
        with pytest.raises(InvalidRequestError, match="gradient_scale is 0"):
            EmbeddingBag(client, "user", "sum", gradient_scale=0)
        with pytest.raises(NotImplementedError, match="need mode 'sum'; this bag has 'max'"):
            EmbeddingBag(client, "user", "max")(torch.tensor([[1]]), None, torch.ones(1, 1))


def test_a_push_that_fails_in_backward_raises_there() -> None:
    shards: list[FakeShard] = make_shards(1)
    with local_client(shards) as client:
        out = EmbeddingBag(client, "user", "sum")(torch.tensor([[1]]))
        with pytest.raises(InvalidRequestError, match=r"'user': gradients\[0, 0\] is nan for id 1"):
            (out * torch.nan).sum().backward()
    assert not shards[0].pushes
