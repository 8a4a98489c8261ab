# SPDX-License-Identifier: Apache-2.0
"""JaggedTensor: pieces of different lengths, one after the other in one tensor; without fbgemm.

    example 0     example 1     example 2
    [3, 5]        [8]           []            values 3 5 8, lengths 2 1 0, offsets 0 2 3 3

Either lengths or offsets are given and the other is computed when asked for. Thread safety: objects hold
references and change by `copy_` only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from rowhouse.error import InvalidRequestError
from torch import Tensor, fx
from torch.fx._symbolic_trace import ProxyableClassMeta
from torch.utils import _pytree

Change = Callable[[Tensor], Tensor]


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


def offsets_of(lengths: Tensor) -> Tensor:
    """(n + 1,): where each of n pieces starts, and where the last one ends."""
    offsets = lengths.new_zeros(lengths.numel() + 1)
    torch.cumsum(lengths.reshape(-1), dim=0, out=offsets[1:])
    return offsets


def _masked(tensor: Tensor | None, mask: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[mask]


def empty_like(jagged: Any, device: torch.device | None) -> Any:
    """A jagged tensor of the same shapes and dtypes, with values that mean nothing."""
    return jagged._each(lambda tensor: torch.empty_like(tensor, device=device or tensor.device))


fx.wrap("_masked")  # one step of a traced graph
fx.wrap("empty_like")


class Jagged(metaclass=ProxyableClassMeta):
    """Values with optional weights, cut into pieces by lengths or offsets.

    Parameters
    ----------
    values
        (L,) or (L, D).
    weights
        (L,), one per value, or None.
    lengths, offsets
        (n,) and (n + 1,) integers; at least one of them.
    """

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
            self._lengths = self._offsets[1:] - self._offsets[:-1]
        return self._lengths

    def lengths_or_none(self) -> Tensor | None:
        """The lengths, where they were given or computed already."""
        return self._lengths

    def offsets(self) -> Tensor:
        """Where each piece starts, and where the last one ends."""
        if self._offsets is None:
            assert self._lengths is not None
            self._offsets = offsets_of(self._lengths)
        return self._offsets

    def offsets_or_none(self) -> Tensor | None:
        """The offsets, where they were given or computed already."""
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

    def size_in_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.element_size() * tensor.numel() for tensor in self.parts() if tensor is not None)

    def record_stream(self, stream: Any) -> None:
        """As Tensor.record_stream, of each of its tensors.

        Parameters
        ----------
        stream
            A CUDA stream.
        """
        for tensor in self.parts():
            if tensor is not None:
                tensor.record_stream(stream)

    def parts(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Values, weights, lengths and offsets, as far as they are there."""
        return self._values, self._weights, self._lengths, self._offsets

    def _copy_parts(self, other: "Jagged", non_blocking: bool) -> None:
        """Overwrite this with the same of another; ValueError when one lacks weights."""
        if (self._weights is None) != (other._weights is None):
            raise ValueError("one of the two has weights and the other has none")
        self._lengths, self._offsets = self.lengths(), None
        pairs = [(self._values, other.values()), (self._lengths, other.lengths())]
        if self._weights is not None:
            pairs.append((self._weights, other.weights()))
        for mine, theirs in pairs:
            mine.copy_(theirs, non_blocking=non_blocking)


class JaggedTensor(Jagged):
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
    def empty(
        is_weighted: bool = False,
        device: torch.device | None = None,
        values_dtype: torch.dtype | None = None,
        weights_dtype: torch.dtype | None = None,
        lengths_dtype: torch.dtype = torch.int32,
    ) -> "JaggedTensor":
        """No piece at all."""
        weights = torch.empty(0, dtype=weights_dtype, device=device) if is_weighted else None
        lengths = torch.empty(0, dtype=lengths_dtype, device=device)
        return JaggedTensor(torch.empty(0, dtype=values_dtype, device=device), weights, lengths)

    @staticmethod
    def empty_like(jt: "JaggedTensor", device: torch.device | None = None) -> "JaggedTensor":
        """Of the same shapes and dtypes, with values that mean nothing until `copy_`."""
        return empty_like(jt, device)  # type: ignore[no-any-return]

    def copy_(self, jt: "JaggedTensor", non_blocking: bool = False) -> "JaggedTensor":
        """Overwrite this with another one of the same shapes."""
        self._copy_parts(jt, non_blocking)
        return self

    @staticmethod
    def from_dense(values: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> "JaggedTensor":
        """Pieces from a list of B tensors."""
        lengths = torch.tensor([piece.shape[0] for piece in values], device=values[0].device)
        return JaggedTensor(
            torch.cat(list(values)), None if weights is None else torch.cat(list(weights)), lengths
        )

    @staticmethod
    def from_dense_lengths(values: Tensor, lengths: Tensor, weights: Tensor | None = None) -> "JaggedTensor":
        """The first `lengths[b]` values of each row of (B, N) or (B, N, D)."""
        kept = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
        return JaggedTensor(values[kept], _masked(weights, kept), lengths)

    def to_dense(self) -> list[Tensor]:
        """The B pieces."""
        return list(torch.split(self.values(), self.lengths().tolist()))

    def to_dense_weights(self) -> list[Tensor] | None:
        """The weights of the B pieces, or None."""
        return None if self._weights is None else list(torch.split(self._weights, self.lengths().tolist()))

    def to_padded_dense(self, desired_length: int | None = None, padding_value: float = 0.0) -> Tensor:
        """(B, desired_length) or (B, desired_length, D): pieces cut or filled to one length (the longest)."""
        return self._padded(self.values(), desired_length, padding_value)

    def to_padded_dense_weights(
        self, desired_length: int | None = None, padding_value: float = 0.0
    ) -> Tensor | None:
        """The weights as `to_padded_dense` gives the values, or None."""
        return None if self._weights is None else self._padded(self._weights, desired_length, padding_value)

    def _padded(self, flat: Tensor, desired_length: int | None, padding_value: float) -> Tensor:
        lengths = self.lengths()
        longest = int(lengths.max()) if desired_length is None and lengths.numel() else desired_length or 0
        places = torch.arange(longest, device=flat.device)
        there = places < lengths[:, None]
        out = flat.new_full((lengths.shape[0], longest, *flat.shape[1:]), padding_value)
        out[there] = flat[(self.offsets()[:-1, None] + places)[there]]
        return out

    def to(self, device: torch.device, non_blocking: bool = False) -> "JaggedTensor":
        """This on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _each(self, change: Change) -> "JaggedTensor":
        values, *others = (None if tensor is None else change(tensor) for tensor in self.parts())
        assert values is not None
        return JaggedTensor(values, *others)

    def __repr__(self) -> str:
        return f"JaggedTensor({{\n{pieces_text('', self.to_dense(), self.to_dense_weights())}\n}})\n"


def pieces_text(name: str, pieces: Sequence[Tensor], weights: Sequence[Tensor] | None) -> str:
    """The values of a feature as text, and its weights where it has them."""
    label = f'"{name}": ' if name else ""
    if weights is None:
        return f"    {label}{numbers_text(pieces)}"
    inner = "        " if name else "    "
    lines = [f'{inner}"values": {numbers_text(pieces)}', f'{inner}"weights": {numbers_text(weights)}']
    return f"    {label}{{\n{(',' + chr(10)).join(lines)}\n    }}" if name else ",\n".join(lines)


def numbers_text(tensors: Sequence[Tensor]) -> str:
    """Tensors as nested lists."""
    return "[" + ", ".join(str(tensor.tolist()) for tensor in tensors) + "]"


def _jagged_of(parts: Any, _: Any) -> JaggedTensor:
    made = object.__new__(JaggedTensor)  # torch puts other things than tensors into a tree's leaves
    made._values, made._weights, made._lengths, made._offsets = parts
    return made


_pytree.register_pytree_node(JaggedTensor, lambda jagged: (list(jagged.parts()), None), _jagged_of)
