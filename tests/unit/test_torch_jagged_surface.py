# SPDX-License-Identifier: Apache-2.0
"""What torchrec's users call on jagged batches, on our own classes: each against lists of Python."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from rowhouse.error import InvalidRequestError
from torch import Tensor, fx, nn
from torch.fx._pytree import tree_flatten_spec
from torch.utils import _pytree

from ps_client.torch.jagged_tensor import JaggedTensor
from ps_client.torch.keyed_jagged_tensor import KeyedJaggedTensor
from ps_client.torch.keyed_tensor import KeyedTensor

Pieces = dict[str, list[list[int]]]
BATCH: Pieces = {"a": [[1], [], [2, 3]], "b": [[], [4, 5, 6], []], "c": [[7, 8], [9], [10]]}
VARIABLE: Pieces = {"a": [[1], []], "b": [[2, 3], [], [4]], "c": [[5]]}


def keyed(pieces: Pieces, weighted: bool = False, offsets: bool = False) -> KeyedJaggedTensor:
    flat = [piece for feature in pieces.values() for piece in feature]
    values = torch.tensor([value for piece in flat for value in piece])
    lengths = torch.tensor([len(piece) for piece in flat])
    weights = values / 2 if weighted else None
    sizes = [len(feature) for feature in pieces.values()]
    strides = [[size] for size in sizes] if len(set(sizes)) > 1 else None
    if offsets:
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return KeyedJaggedTensor.from_offsets_sync(list(pieces), values, ends, weights, None, strides)
    return KeyedJaggedTensor.from_lengths_sync(list(pieces), values, lengths, weights, None, strides)


def lists(batch: KeyedJaggedTensor) -> list[tuple[str, list[list[int]]]]:
    """The features as they are, weights checked."""
    found = []
    for number, key in enumerate(batch.keys()):
        jagged = batch._feature(number)
        if batch.weights_or_none() is not None:
            assert torch.equal(jagged.weights(), jagged.values() / 2)
        found.append((key, [piece.tolist() for piece in jagged.to_dense()]))
    return found


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pieces", [BATCH, VARIABLE])
def test_split_permute_and_concat(pieces: Pieces, weighted: bool, offsets: bool) -> None:
    batch, features = keyed(pieces, weighted, offsets), list(pieces.items())
    assert lists(batch) == features
    first, none, rest = batch.split([1, 0, 2])
    assert (lists(first), lists(none), lists(rest)) == (features[:1], [], features[1:])
    assert lists(batch.permute([2, 0])) == [features[2], features[0]]
    assert lists(batch.permute([1, 1])) == [features[1]] * 2
    assert lists(batch.permute([])) == []
    assert lists(KeyedJaggedTensor.concat([rest, first])) == features[1:] + features[:1]
    assert lists(KeyedJaggedTensor.from_jt_dict(batch.to_dict())) == features
    with pytest.raises(ValueError, match="segments"):
        batch.split([4])


def test_what_a_batch_says_of_itself() -> None:
    batch, variable = keyed(BATCH), keyed(VARIABLE)
    assert (batch.stride(), batch.stride_per_key(), batch.variable_stride_per_key()) == (3, [3, 3, 3], False)
    assert batch.offset_per_key() == [0, 3, 6, 10] and batch.length_per_key() == [3, 3, 4]
    assert batch.index_per_key() == {"a": 0, "b": 1, "c": 2} and batch.stride_per_key_per_rank() == []
    assert (variable.stride(), variable.stride_per_key()) == (3, [2, 3, 1])
    assert variable.stride_per_key_per_rank() == [[2], [3], [1]] and variable.variable_stride_per_key()
    assert variable.lengths_offset_per_key() == [0, 2, 5, 6]
    assert batch.unsync().offset_per_key_or_none() is None and batch.length_per_key_or_none() is None
    assert batch.sync().length_per_key_or_none() == [3, 3, 4]
    assert batch.size_in_bytes() == 8 * (10 + 9 + 10)  # values, lengths, offsets
    assert batch.device() == torch.device("cpu")
    empty = KeyedJaggedTensor.empty(is_weighted=True)
    assert empty.keys() == [] and empty.weights().numel() == 0 and empty.to_dict() == {}
    two_dimensional = copy.copy(batch)
    two_dimensional._lengths = batch.lengths().reshape(3, 3)
    assert two_dimensional.flatten_lengths().lengths().shape == (9,)


def test_concat_refuses_what_does_not_fit() -> None:
    for others in ([], [keyed(BATCH), keyed(VARIABLE)], [keyed(BATCH), keyed(BATCH, weighted=True)]):
        with pytest.raises(ValueError, match=r"strides differ|some have|nothing"):
            KeyedJaggedTensor.concat(others)
    short = keyed({"d": [[1]]})
    with pytest.raises(ValueError, match="strides differ"):
        KeyedJaggedTensor.concat([keyed(BATCH), short])


def test_strides_and_lengths_must_agree() -> None:
    with pytest.raises(InvalidRequestError, match="stride_per_key_per_rank"):
        KeyedJaggedTensor(["a"], torch.arange(3), lengths=torch.ones(3).long(), stride_per_key_per_rank=[[2]])


def test_padded_and_dense_forms() -> None:
    rng = np.random.default_rng(0)
    pieces = [rng.integers(1, 9, int(n)).tolist() for n in rng.integers(0, 5, 20)]
    jagged = JaggedTensor.from_dense(
        [torch.tensor(p, dtype=torch.int64) for p in pieces], [torch.tensor(p) / 2 for p in pieces]
    )
    for length in (None, 0, 2, 9):
        longest = max(map(len, pieces)) if length is None else length
        want = [(p + [-1] * longest)[:longest] for p in pieces]
        assert jagged.to_padded_dense(length, -1).tolist() == want
        weights = jagged.to_padded_dense_weights(length, -0.5)
        assert weights is not None and weights.tolist() == [[v / 2 for v in row] for row in want]
    dense = jagged.to_padded_dense(padding_value=0)
    again = JaggedTensor.from_dense_lengths(dense, jagged.lengths(), dense / 2)
    assert torch.equal(again.values(), jagged.values()) and torch.equal(again.weights(), jagged.weights())
    parts = again.to_dense_weights()
    assert parts is not None and [p.tolist() for p in parts] == [[v / 2 for v in p] for p in pieces]
    rows = JaggedTensor(torch.arange(6.0).reshape(3, 2), lengths=torch.tensor([2, 1]))
    assert rows.to_padded_dense().tolist() == [[[0, 1], [2, 3]], [[4, 5], [0, 0]]]


def test_copies() -> None:
    batch = keyed(BATCH, weighted=True)
    like = KeyedJaggedTensor.empty_like(batch)
    assert like.keys() == batch.keys() and like.values().shape == batch.values().shape
    assert lists(like.copy_(batch)) == list(BATCH.items())
    assert like.values().data_ptr() != batch.values().data_ptr()
    jagged = batch["b"]
    assert torch.equal(JaggedTensor.empty_like(jagged).copy_(jagged).values(), jagged.values())
    with pytest.raises(ValueError, match="keys"):
        like.copy_(batch.permute([1, 0, 2]))
    with pytest.raises(ValueError, match="weights"):
        like.copy_(keyed(BATCH))


def test_as_text() -> None:
    assert repr(keyed({"a": [[1], []], "b": [[2, 3], []]})) == (
        'KeyedJaggedTensor({\n    "a": [[1], []],\n    "b": [[2, 3], []]\n})\n'
    )
    weighted = repr(keyed({"a": [[1], []]}, weighted=True))
    inside = '        "values": [[1], []],\n        "weights": [[0.5], []]\n'
    assert weighted == 'KeyedJaggedTensor({\n    "a": {\n' + inside + "    }\n})\n"
    assert repr(keyed({"a": [[1], []]})["a"]) == "JaggedTensor({\n    [[1], []]\n})\n"
    assert (
        repr(KeyedTensor(["a"], [2], torch.tensor([[1.0, 2.0]])))
        == 'KeyedTensor({\n    "a": [[1.0, 2.0]]\n})\n'
    )
    assert repr(KeyedTensor([], [], torch.empty(0))) == "KeyedTensor()\n"
    assert repr(KeyedJaggedTensor([], torch.empty(0))) == "KeyedJaggedTensor()\n"


def test_blocks_are_regrouped() -> None:
    first = KeyedTensor.from_tensor_list(["a", "b"], [torch.tensor([[1.0]]), torch.tensor([[2.0, 3.0]])])
    second = KeyedTensor(["c"], [1], torch.tensor([[4.0]]))
    groups = [["c", "a"], ["b"], ["a", "b", "c"]]
    found = KeyedTensor.regroup([first, second], groups)
    assert [block.tolist() for block in found] == [[[4, 1]], [[2, 3]], [[1, 2, 3, 4]]]
    named = KeyedTensor.regroup_as_dict([first, second], groups, ["x", "y", "z"])
    assert torch.equal(named["z"], found[2])
    with pytest.raises(KeyError):
        KeyedTensor.regroup([first], groups)
    with pytest.raises(ValueError, match="keys"):
        KeyedTensor.regroup_as_dict([first, second], groups, ["x"])
    assert first.to(torch.device("meta")).values().is_meta and first.size_in_bytes() == 12


BLOCKS = KeyedTensor(["a"], [2], torch.ones(1, 2))


@pytest.mark.parametrize("made", [keyed(BATCH, weighted=True), keyed(VARIABLE), keyed(BATCH)["a"], BLOCKS])
def test_they_are_trees_of_tensors(made: Any) -> None:
    doubled = _pytree.tree_map(lambda leaf: leaf * 2 if leaf is not None else None, made)
    assert type(doubled) is type(made)
    assert torch.equal(doubled.values(), made.values() * 2)
    if isinstance(made, KeyedTensor | KeyedJaggedTensor):
        assert doubled.keys() == made.keys()


def test_blocks_in_another_order_fit_the_tree_of_an_export() -> None:
    made = KeyedTensor(["a", "b"], [1, 2], torch.tensor([[1.0, 2.0, 3.0]]))
    other = KeyedTensor(["b", "a"], [2, 1], torch.tensor([[2.0, 3.0, 1.0]]))
    _, spec = _pytree.tree_flatten(made)
    (values,) = tree_flatten_spec(other, spec)
    assert torch.equal(values, made.values()) and torch.equal(tree_flatten_spec(made, spec)[0], made.values())


class Like(nn.Module):
    """Makes room for a batch inside a traced graph."""

    def forward(self, batch: KeyedJaggedTensor) -> KeyedJaggedTensor:
        return KeyedJaggedTensor.empty_like(batch).copy_(batch)


def test_fx_traces_copies() -> None:
    graph: Any = fx.symbolic_trace(Like())
    assert lists(graph(keyed(BATCH))) == list(BATCH.items())


class Regrouping(nn.Module):
    """Makes batches and blocks inside a traced graph."""

    def forward(self, values: Tensor, lengths: Tensor) -> list[Tensor]:
        jagged = JaggedTensor.from_dense_lengths(values, lengths)
        batch = KeyedJaggedTensor(["a"], jagged.values(), lengths=lengths)
        blocks = KeyedTensor(["a", "b"], [1, 2], values)
        parts = KeyedTensor.regroup([blocks], [["b"], ["a"]])
        return [batch["a"].values(), parts[0], parts[1]]


def test_fx_traces_what_makes_them() -> None:
    values, lengths = torch.arange(6).reshape(2, 3), torch.tensor([1, 3])
    graph: Any = fx.symbolic_trace(Regrouping())
    got, want = graph(values, lengths), Regrouping()(values, lengths)
    assert [list(map(int, part.reshape(-1))) for part in got] == [p.reshape(-1).tolist() for p in want]
