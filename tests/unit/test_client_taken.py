# SPDX-License-Identifier: Apache-2.0
"""What a client takes for arrays and numbers, and how it refuses the rest: never by an error of NumPy's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from rowhouse.error import InvalidRequestError, RowhouseError, UnknownTableError

from ps_client.torch import EmbeddingBag, EmbeddingBagCollection

from .fake_shard import local_client, make_shards

ONE = np.ones((1, 4), np.float32)
BAG: Any = EmbeddingBag
NOTHING: list[Any] = [np.array([]), [], np.empty((0, 4), np.float32)]


@pytest.mark.parametrize("nothing", [[], (), np.array([]), torch.tensor([])], ids=repr)
def test_nothing_is_nothing_whatever_its_dtype(nothing: Any) -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        assert client.pull("user", nothing).shape == (0, 4)
        for gradients in NOTHING:
            client.push("user", nothing, gradients)
    assert not shards[0].pushes


@pytest.mark.parametrize(
    "gradients",
    [
        torch.full((1, 4), 1.5, dtype=torch.bfloat16),
        torch.full((1, 4), 1.5, dtype=torch.float16),
        torch.full((1, 4), 1.5, requires_grad=True),
        torch.full((1, 4), 1.5, dtype=torch.float64) * torch.ones(1, requires_grad=True),
        [[1.5] * 4],
    ],
    ids=lambda value: str(getattr(value, "dtype", "list")),
)
def test_gradients_of_torch_are_taken(gradients: Any) -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        client.push("user", torch.tensor([3]), gradients)
    assert shards[0].pushes[0].tables[0].gradients.tolist() == [[1.5] * 4]


WRONG: dict[str, tuple[Callable[[Any], object], str]] = {
    "float ids": (lambda c: c.pull("user", torch.ones(2)), "ids have dtype float32"),
    "ids without memory": (
        lambda c: c.pull("user", torch.empty(2, dtype=torch.int64, device="meta")), "ids are no array of",
    ),
    "ragged ids": (lambda c: c.pull("user", [[1], [2, 3]]), "ids are no array of numbers: .*inhomogeneous"),
    "ragged gradients": (lambda c: c.push("user", [1, 2], [[1.0] * 4, [1.0]]), "gradients are no array"),
    "sparse gradients": (lambda c: c.push("user", [1], torch.ones(1, 4).to_sparse()), "are no array"),
    "shows": (lambda c: c.push("user", [1], ONE, shows=["x"]), "shows have dtype <U1; they"),
    "rate": (lambda c: c.push("user", [1], ONE, "1"), "learning_rate is '1'; it must be a number"),
    "rates": (lambda c: c.push_many({"user": ([1], ONE)}, [1, 2]), r"learning_rate is \[1, 2\]; it"),
    "bag's client": (lambda c: BAG(1000, 16), r"client is 1000; it must be what ps_client.connect"),
    "bag's padding": (lambda c: BAG(c, "user", padding_idx="3"), "padding_idx is '3'; it must"),
    "bag's scale": (lambda c: BAG(c, "user", gradient_scale="a"), "gradient_scale is 'a'; it"),
    "bag's input": (lambda c: BAG(c, "user")([[1]]), "input is a list; it must be a tensor"),
    "bag's offsets": (lambda c: BAG(c, "user")(torch.tensor([1]), [0]), "offsets is a list; it"),
    "tables": (lambda c: EmbeddingBagCollection(c, [3]), "tables has 3; each must be an Embedd"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_array_and_no_number_is_refused_in_our_words(what: str) -> None:
    ask, message = WRONG[what]
    shards = make_shards(1)
    with local_client(shards) as client, pytest.raises(InvalidRequestError, match=message):
        ask(client)
    assert not shards[0].pushes


@pytest.mark.parametrize("name", [3, None, ["user"], {"user"}], ids=repr)
def test_a_table_s_name_of_any_type_is_an_unknown_table(name: Any) -> None:
    with local_client(make_shards(1)) as client:
        for ask in (lambda: client.pull(name, [1]), lambda: EmbeddingBag(client, name)):
            with pytest.raises(UnknownTableError) as caught:
                ask()
            assert isinstance(caught.value, RowhouseError) and str(name) in str(caught.value)
