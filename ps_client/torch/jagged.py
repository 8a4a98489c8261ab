# SPDX-License-Identifier: Apache-2.0
"""Jagged batches where torchrec is not installed: same constructors, same meaning, no fbgemm.

F features, B batch (stride), L ids of one feature over the batch, D dim.

                 example 0     example 1     example 2
    "user"       [7]           []            [4, 9]          lengths 1 0 2
    "item"       [3, 5]        [8]           []              lengths 2 1 0

    KeyedJaggedTensor(keys=["user", "item"],
                      values=[7, 4, 9, 3, 5, 8],       feature by feature, then example by example
                      lengths=[1, 0, 2, 2, 1, 0])      (F * B,)
    offsets()     = [0, 1, 1, 3, 5, 6, 6]              (F * B + 1,)
    kjt["item"]   = JaggedTensor(values=[3, 5, 8], lengths=[2, 1, 0])

A KeyedTensor is the dense outcome: one (B, D_key) block per key, side by side in (B, sum of D_key).

Either lengths or offsets are given and the other is computed when asked for. Thread safety: these
classes hold references and do not change.
"""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from rowhouse.error import InvalidRequestError
from torch import Tensor


def check_integers(name: str, tensor: Tensor) -> None:
    """InvalidRequestError unless the lengths or offsets of bags are integers: nothing is truncated.

    Parameters
    ----------
    name
        What they are, for the message.
    tensor
        The lengths or offsets.
    """
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise InvalidRequestError(f"{name} are a tensor of {tensor.dtype}; they must be integers")


def _lengths_of(offsets: Tensor) -> Tensor:
    return offsets[1:] - offsets[:-1]


def _offsets_of(lengths: Tensor) -> Tensor:
    offsets = lengths.new_zeros(lengths.numel() + 1)
    torch.cumsum(lengths, dim=0, out=offsets[1:])
    return offsets


class _Jagged:
    """Values with optional weights, cut into pieces by lengths or offsets."""

    def __init__(
        self, values: Tensor, weights: Tensor | None, lengths: Tensor | None, offsets: Tensor | None
    ) -> None:
        if lengths is None and offsets is None:
            raise ValueError("lengths or offsets must be given")
        for name, tensor in (("lengths", lengths), ("offsets", offsets)):
            if tensor is not None:
                check_integers(name, tensor)
        self._values, self._weights, self._lengths, self._offsets = values, weights, lengths, offsets

    def values(self) -> Tensor:
        """All values, piece by piece."""
        return self._values

    def lengths(self) -> Tensor:
        """Number of values of each piece."""
        if self._lengths is None:
            assert self._offsets is not None
            self._lengths = _lengths_of(self._offsets)
        return self._lengths

    def offsets(self) -> Tensor:
        """Where each piece starts, and where the last one ends."""
        if self._offsets is None:
            assert self._lengths is not None
            self._offsets = _offsets_of(self._lengths)
        return self._offsets

    def weights(self) -> Tensor:
        """Weight of each value; ValueError if there are none."""
        if self._weights is None:
            raise ValueError("this batch has no weights")
        return self._weights

    def weights_or_none(self) -> Tensor | None:
        """Weight of each value, or None."""
        return self._weights

    def device(self) -> torch.device:
        """Where the values are."""
        return self._values.device


class JaggedTensor(_Jagged):
    """B pieces of one feature.

    Parameters
    ----------
    values
        (L,) ids or (L, D) rows.
    weights
        (L,), one per value.
    lengths
        (B,); this or `offsets` must be given.
    offsets
        (B + 1,).
    """

    def __init__(
        self,
        values: Tensor,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> None:
        super().__init__(values, weights, lengths, offsets)

    @staticmethod
    def from_dense(values: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> "JaggedTensor":
        """Pieces from a list of B tensors."""
        lengths = torch.tensor([piece.shape[0] for piece in values], dtype=torch.int64)
        return JaggedTensor(
            torch.cat(list(values)), None if weights is None else torch.cat(list(weights)), lengths
        )

    def to_dense(self) -> list[Tensor]:
        """The B pieces."""
        return list(torch.split(self.values(), self.lengths().tolist()))

    def to_padded_dense(self, desired_length: int | None = None, padding_value: float = 0.0) -> Tensor:
        """(B, desired_length) or (B, desired_length, D): pieces cut or filled to one length (the longest)."""
        pieces = self.to_dense()
        length = max((p.shape[0] for p in pieces), default=0) if desired_length is None else desired_length
        out = self.values().new_full((len(pieces), length, *self.values().shape[1:]), padding_value)
        for row, piece in zip(out, pieces, strict=True):
            row[: piece.shape[0]] = piece[:length]
        return out

    def to(self, device: torch.device, non_blocking: bool = False) -> "JaggedTensor":
        """This on another device."""
        move = [None if t is None else t.to(device, non_blocking=non_blocking) for t in self._parts()]
        assert move[0] is not None
        return JaggedTensor(move[0], *move[1:])

    def _parts(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        return self._values, self._weights, self._lengths, self._offsets


class KeyedJaggedTensor(_Jagged):
    """F features of a batch of B; see the module's example.

    Parameters
    ----------
    keys
        The F feature names, distinct.
    values
        (sum of L,) ids, feature by feature.
    weights
        (sum of L,), one per id.
    lengths
        (F * B,); this or `offsets` must be given.
    offsets
        (F * B + 1,).
    stride
        B; needed only where it cannot be computed (no keys).

    Raises
    ------
    ValueError
        Keys twice, or neither lengths nor offsets.
    InvalidRequestError
        (Also a ValueError.) A negative length, lengths that do not sum to the number of values, or not
        F * B of them.
    """

    def __init__(
        self,
        keys: Sequence[str],
        values: Tensor,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
        stride: int | None = None,
    ) -> None:
        super().__init__(values, weights, lengths, offsets)
        self._keys = list(keys)
        if len(set(self._keys)) != len(self._keys):
            raise ValueError(f"keys are {self._keys}; they must be distinct")
        if offsets is not None and not offsets.numel():
            raise InvalidRequestError(
                "offsets are empty; their first is 0 and their last the number of values"
            )
        pieces, count = self.lengths().numel(), len(self._keys)
        fits = not pieces % count and stride in (None, pieces // count) if count else not pieces
        if not fits:
            raise InvalidRequestError(
                f"{pieces} lengths do not fit {count} keys and stride {stride}; there must be keys * stride"
            )
        self._check_lengths()
        self._stride = pieces // len(self._keys) if self._keys else stride or 0
        self._index = {key: number for number, key in enumerate(self._keys)}
        self._bounds: list[int] | None = None

    def _check_lengths(self) -> None:
        """Refuse lengths that would cut the values in wrong places; one wait for the device."""
        lengths, count = self.lengths(), self._values.shape[0]
        first = lengths.new_zeros(()) if self._offsets is None else self._offsets[0]
        low = lengths.min() if lengths.numel() else lengths.new_zeros(())
        facts = torch.stack([part.to(torch.int64) for part in (first, low, lengths.sum())])
        start, least, total = facts.tolist()
        if start:
            raise InvalidRequestError(f"the first offset is {start}; it must be 0")
        if least < 0:
            raise InvalidRequestError(f"a length is {least}; lengths must be at least 0")
        if total != count:
            raise InvalidRequestError(
                f"the lengths sum to {total}, and there are {count} values; they must agree"
            )

    @classmethod
    def from_lengths_sync(
        cls,
        keys: Sequence[str],
        values: Tensor,
        lengths: Tensor,
        weights: Tensor | None = None,
        stride: int | None = None,
    ) -> Self:
        """From lengths; the per-key offsets are computed at once."""
        batch = cls(keys, values, weights, lengths=lengths, stride=stride)
        batch.offset_per_key()
        return batch

    @classmethod
    def from_offsets_sync(
        cls,
        keys: Sequence[str],
        values: Tensor,
        offsets: Tensor,
        weights: Tensor | None = None,
        stride: int | None = None,
    ) -> Self:
        """From offsets; the per-key offsets are computed at once."""
        batch = cls(keys, values, weights, offsets=offsets, stride=stride)
        batch.offset_per_key()
        return batch

    @staticmethod
    def from_jt_dict(jt_dict: Mapping[str, JaggedTensor]) -> "KeyedJaggedTensor":
        """From one JaggedTensor per feature, all of one B."""
        jagged = list(jt_dict.values())
        weights = [w for w in (j.weights_or_none() for j in jagged) if w is not None]
        if weights and len(weights) != len(jagged):
            raise ValueError("some features have weights and some have none")
        return KeyedJaggedTensor(
            list(jt_dict),
            torch.cat([j.values() for j in jagged]),
            torch.cat(weights) if weights else None,
            lengths=torch.cat([j.lengths() for j in jagged]),
        )

    def keys(self) -> list[str]:
        """The F feature names."""
        return self._keys

    def stride(self) -> int:
        """B."""
        return self._stride

    def offset_per_key(self) -> list[int]:
        """(F + 1): where each feature's values start, and where the last one's end."""
        if self._bounds is None:
            ends = self.offsets()[:: self._stride] if self._stride else self.offsets()[:1]
            self._bounds = ends.tolist() if self._stride else [0] * (len(self._keys) + 1)
        return self._bounds

    def length_per_key(self) -> list[int]:
        """(F): number of values of each feature."""
        bounds = self.offset_per_key()
        return [stop - start for start, stop in itertools.pairwise(bounds)]

    def __getitem__(self, key: str) -> JaggedTensor:
        number, stride = self._index[key], self._stride
        start, stop = self.offset_per_key()[number : number + 2]
        weights = None if self._weights is None else self._weights[start:stop]
        lengths = self.lengths()[number * stride : (number + 1) * stride]
        return JaggedTensor(self._values[start:stop], weights, lengths)

    def to_dict(self) -> dict[str, JaggedTensor]:
        """One JaggedTensor per feature; its values are views."""
        return {key: self[key] for key in self._keys}

    def to(self, device: torch.device, non_blocking: bool = False) -> "KeyedJaggedTensor":
        """This on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "KeyedJaggedTensor":
        """This in page-locked memory."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "KeyedJaggedTensor":
        moved = copy.copy(self)  # not the constructor: its checks would wait for a non-blocking copy
        parts = (self._weights, self._lengths, self._offsets)
        moved._weights, moved._lengths, moved._offsets = (None if t is None else change(t) for t in parts)
        moved._values = change(self._values)
        return moved


class KeyedTensor:
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
        if sum(length_per_key) != values.shape[key_dim] or len(keys) != len(length_per_key):
            raise ValueError(
                f"{len(keys)} keys with lengths {list(length_per_key)} do not fit values of shape "
                f"{tuple(values.shape)} along dimension {key_dim}"
            )
        self._keys, self._lengths, self._values = list(keys), list(length_per_key), values
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

    def length_per_key(self) -> list[int]:
        """D of each block."""
        return self._lengths

    def offset_per_key(self) -> list[int]:
        """Where each block starts, and where the last one ends."""
        bounds = [0]
        for length in self._lengths:
            bounds.append(bounds[-1] + length)
        return bounds

    def __getitem__(self, key: str) -> Tensor:
        number = self._keys.index(key) if key in self._keys else -1
        if number < 0:
            raise KeyError(key)
        return self._values.narrow(self._key_dim, self.offset_per_key()[number], self._lengths[number])

    def to_dict(self) -> dict[str, Tensor]:
        """One block per key, as views."""
        blocks = torch.split(self._values, self._lengths, dim=self._key_dim)
        return dict(zip(self._keys, blocks, strict=True))
