# SPDX-License-Identifier: Apache-2.0
"""Our own jagged batches (ps_client/torch/*jagged_tensor.py) on the module's own example and on its edges."""

import pytest
import torch

from ps_client.torch.jagged_tensor import JaggedTensor
from ps_client.torch.keyed_jagged_tensor import KeyedJaggedTensor
from ps_client.torch.keyed_tensor import KeyedTensor

VALUES = torch.tensor([7, 4, 9, 3, 5, 8])
LENGTHS = torch.tensor([1, 0, 2, 2, 1, 0])
OFFSETS = torch.tensor([0, 1, 1, 3, 5, 6, 6])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0, 5.0])


def example(by: str) -> KeyedJaggedTensor:
    if by == "lengths":
        return KeyedJaggedTensor.from_lengths_sync(["user", "item"], VALUES, LENGTHS, WEIGHTS)
    return KeyedJaggedTensor.from_offsets_sync(["user", "item"], VALUES, OFFSETS, WEIGHTS)


@pytest.mark.parametrize("by", ["lengths", "offsets"])
def test_the_example_of_the_module(by: str) -> None:
    kjt = example(by)
    assert (kjt.keys(), kjt.stride(), kjt.device().type) == (["user", "item"], 3, "cpu")
    assert kjt.lengths().tolist() == LENGTHS.tolist() and kjt.offsets().tolist() == OFFSETS.tolist()
    assert kjt.offset_per_key() == [0, 3, 6] and kjt.length_per_key() == [3, 3]
    item = kjt["item"]
    assert item.values().tolist() == [3, 5, 8] and item.lengths().tolist() == [2, 1, 0]
    assert item.offsets().tolist() == [0, 2, 3, 3] and item.weights().tolist() == [3.0, 4.0, 5.0]
    assert [piece.tolist() for piece in item.to_dense()] == [[3, 5], [8], []]
    assert list(kjt.to_dict()) == ["user", "item"]


def test_moving_and_building_from_features() -> None:
    kjt = KeyedJaggedTensor.from_jt_dict(example("lengths").to_dict())
    moved = kjt.to(torch.device("cpu"), non_blocking=True)
    assert moved.values().tolist() == VALUES.tolist() and moved.weights().tolist() == WEIGHTS.tolist()
    assert moved.lengths().tolist() == LENGTHS.tolist() and moved.stride() == 3
    jagged = moved["user"].to(torch.device("cpu"))
    assert jagged.values().tolist() == [7, 4, 9] and jagged.lengths().tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="some features have weights and some have none"):
        KeyedJaggedTensor.from_jt_dict({"a": jagged, "b": JaggedTensor(VALUES[:3], lengths=LENGTHS[:3])})


def test_padding_to_dense() -> None:
    jagged = JaggedTensor.from_dense([torch.tensor([[1.0], [2.0]]), torch.empty(0, 1), torch.tensor([[3.0]])])
    assert jagged.lengths().tolist() == [2, 0, 1] and jagged.weights_or_none() is None
    assert jagged.to_padded_dense().tolist() == [[[1.0], [2.0]], [[0.0], [0.0]], [[3.0], [0.0]]]
    assert jagged.to_padded_dense(1, -1).tolist() == [[[1.0]], [[-1.0]], [[3.0]]]
    weighted = JaggedTensor.from_dense([VALUES[:2], VALUES[2:3]], [WEIGHTS[:2], WEIGHTS[2:3]])
    assert weighted.weights().tolist() == [0.5, 1.0, 2.0]


def test_batches_without_keys_or_examples() -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    assert KeyedJaggedTensor([], nothing, lengths=nothing, stride=4).stride() == 4
    empty = KeyedJaggedTensor(["a", "b"], nothing, lengths=nothing)
    assert empty.stride() == 0 and empty.length_per_key() == [0, 0] and empty["b"].lengths().numel() == 0


@pytest.mark.parametrize(
    ("keys", "options", "text"),
    [
        (["a"], {}, "lengths or offsets must be given"),
        (["a", "a"], {"lengths": LENGTHS}, "they must be distinct"),
        (["a", "b", "c", "d"], {"lengths": LENGTHS}, "6 lengths do not fit 4 keys"),
        (["a", "b"], {"offsets": OFFSETS, "stride": 4}, "6 lengths do not fit 2 keys and stride 4"),
        ([], {"lengths": LENGTHS}, "6 lengths do not fit 0 keys"),
        (["a", "b"], {"lengths": LENGTHS + 1}, "lengths sum to 12, and there are 6 values"),
        (["a", "b"], {"lengths": torch.tensor([7, -1])}, "a length is -1"),
        (["a", "b"], {"offsets": OFFSETS[:5]}, "lengths sum to 5, and there are 6 values"),
        (["a", "b"], {"offsets": torch.tensor([0, 7, 6])}, "a length is -1"),
        (["a", "b"], {"offsets": OFFSETS + 1}, "the first offset is 1"),
        (["a"], {"offsets": OFFSETS[:0]}, "offsets are empty"),
    ],
)
def test_batches_that_do_not_fit_are_errors(keys: list[str], options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        KeyedJaggedTensor(keys, VALUES, **options)  # type: ignore[arg-type]


def test_keyed_tensor() -> None:
    blocks = [torch.ones(2, 3), torch.zeros(2, 1)]
    keyed = KeyedTensor.from_tensor_list(["a", "b"], blocks)
    assert keyed.keys() == ["a", "b"] and keyed.length_per_key() == [3, 1] and keyed.key_dim() == 1
    assert keyed.offset_per_key() == [0, 3, 4] and keyed.values().shape == (2, 4)
    assert torch.equal(keyed["b"], blocks[1]) and torch.equal(keyed.to_dict()["a"], blocks[0])
    with pytest.raises(KeyError, match="c"):
        keyed["c"]
    with pytest.raises(ValueError, match=r"2 keys with lengths \[3, 2\] do not fit"):
        KeyedTensor(["a", "b"], [3, 2], keyed.values())
