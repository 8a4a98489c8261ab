# SPDX-License-Identifier: Apache-2.0
"""KeyedTensor: dense blocks of one batch, side by side, (B, sum of D_key).

Thread safety: objects hold references and do not change.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx._pytree import register_pytree_flatten_spec
from torch.fx._symbolic_trace import ProxyableClassMeta
from torch.utils import _pytree

from ps_client.torch.jagged_tensor import numbers_text


class KeyedTensor(metaclass=ProxyableClassMeta):
    """Dense blocks of one batch, side by side.

    Parameters
    ----------
    keys
        Name of each block.
    length_per_key
        D of each block.
    values
        (B, sum of D) for key_dim 1.
    key_dim
        The dimension along which the blocks lie.
    """

    def __init__(
        self, keys: Sequence[str], length_per_key: Sequence[int], values: Tensor, key_dim: int = 1
    ) -> None:
        fits = len(keys) == len(length_per_key)
        if not fits or (keys and sum(length_per_key) != values.shape[key_dim]):
            raise ValueError(
                f"{len(keys)} keys with lengths {list(length_per_key)} do not fit values of shape "
                f"{tuple(values.shape)} along dimension {key_dim}"
            )
        self._keys, self._length_per_key, self._values = list(keys), list(length_per_key), values
        self._key_dim = key_dim

    @staticmethod
    def from_tensor_list(
        keys: Sequence[str], tensors: Sequence[Tensor], key_dim: int = 1, cat_dim: int = 1
    ) -> "KeyedTensor":
        """From one tensor per key."""
        lengths = [tensor.shape[key_dim] for tensor in tensors]
        return KeyedTensor(keys, lengths, torch.cat(list(tensors), dim=cat_dim), key_dim)

    def keys(self) -> list[str]:
        """Name of each block."""
        return self._keys

    def values(self) -> Tensor:
        """The blocks side by side."""
        return self._values

    def key_dim(self) -> int:
        """The dimension along which the blocks lie."""
        return self._key_dim

    def device(self) -> torch.device:
        """Where the values are."""
        return self._values.device

    def length_per_key(self) -> list[int]:
        """D of each block."""
        return self._length_per_key

    def offset_per_key(self) -> list[int]:
        """Where each block starts, and where the last one ends."""
        return [0, *accumulate(self._length_per_key)]

    def size_in_bytes(self) -> int:
        """Bytes of the values."""
        return self._values.element_size() * self._values.numel()

    def __getitem__(self, key: str) -> Tensor:
        number = self._keys.index(key) if key in self._keys else -1
        if number < 0:
            raise KeyError(key)
        return self._values.narrow(self._key_dim, self.offset_per_key()[number], self._length_per_key[number])

    def to_dict(self) -> dict[str, Tensor]:
        """One block per key, as views."""
        blocks = torch.split(self._values, self._length_per_key, dim=self._key_dim)
        return dict(zip(self._keys, blocks, strict=True))

    @staticmethod
    def regroup(keyed_tensors: Sequence["KeyedTensor"], groups: Sequence[Sequence[str]]) -> list[Tensor]:
        """For each group of keys their blocks side by side, whichever tensor has them.

        Parameters
        ----------
        keyed_tensors
            Of one batch and one key_dim. A key that several have is taken from the first.
        groups
            Keys; each may be in any number of groups. KeyError for one that nobody has.
        """
        return _regrouped(keyed_tensors, groups)

    @staticmethod
    def regroup_as_dict(
        keyed_tensors: Sequence["KeyedTensor"], groups: Sequence[Sequence[str]], keys: Sequence[str]
    ) -> dict[str, Tensor]:
        """As `regroup`, by the name of each group in `keys`.

        Parameters
        ----------
        keyed_tensors, groups
            As of `regroup`.
        keys
            A name for each group; ValueError when there are more or fewer.
        """
        if len(keys) != len(groups):
            raise ValueError(f"{len(groups)} groups have {len(keys)} keys; each group needs one")
        return _named(keys, _regrouped(keyed_tensors, groups))

    def to(self, device: torch.device, non_blocking: bool = False) -> "KeyedTensor":
        """This on another device."""
        moved = self._values.to(device, non_blocking=non_blocking)
        return KeyedTensor(self._keys, self._length_per_key, moved, self._key_dim)

    def record_stream(self, stream: Any) -> None:
        """As Tensor.record_stream.

        Parameters
        ----------
        stream
            A CUDA stream.
        """
        self._values.record_stream(stream)

    def __repr__(self) -> str:
        if not self._keys:
            return "KeyedTensor()\n"
        lines = [f'    "{key}": {numbers_text(list(self[key]))}' for key in self._keys]
        return "KeyedTensor({\n" + ",\n".join(lines) + "\n})\n"


def _regrouped(keyed_tensors: Sequence[KeyedTensor], groups: Sequence[Sequence[str]]) -> list[Tensor]:
    blocks: dict[str, Tensor] = {}
    for keyed in reversed(keyed_tensors):
        blocks.update(keyed.to_dict())
    dim = keyed_tensors[0].key_dim()
    return [torch.cat([blocks[key] for key in group], dim=dim) for group in groups]


def _named(keys: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(keys, tensors, strict=True))


fx.wrap("_regrouped")  # one step of a traced graph
fx.wrap("_named")


def _keyed_of(parts: Any, context: Any) -> KeyedTensor:
    made = object.__new__(KeyedTensor)  # torch puts other things than tensors into a tree's leaves
    (made._values,), (made._keys, made._length_per_key, made._key_dim) = parts, context
    return made


def _parts_of(keyed: KeyedTensor) -> tuple[list[Any], Any]:
    return [keyed.values()], (keyed.keys(), keyed.length_per_key(), keyed.key_dim())


def _in_order_of(keyed: KeyedTensor, spec: Any) -> list[Tensor]:
    keys, _, _ = spec.context
    return [keyed.values() if keyed.keys() == keys else _regrouped([keyed], [keys])[0]]


_pytree.register_pytree_node(KeyedTensor, _parts_of, _keyed_of)
register_pytree_flatten_spec(KeyedTensor, _in_order_of)  # an exported program takes keys in any order
