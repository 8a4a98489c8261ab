# SPDX-License-Identifier: Apache-2.0
"""KeyedJaggedTensor: the jagged features of a batch in one tensor, as torchrec's but without fbgemm.

F features, B batch (stride), L ids of one feature over the batch.

                 example 0     example 1     example 2
    "user"       [7]           []            [4, 9]          lengths 1 0 2
    "item"       [3, 5]        [8]           []              lengths 2 1 0

    KeyedJaggedTensor(keys=["user", "item"],
                      values=[7, 4, 9, 3, 5, 8],       feature by feature, then example by example
                      lengths=[1, 0, 2, 2, 1, 0])      (F * B,)
    offsets()     = [0, 1, 1, 3, 5, 6, 6]              (F * B + 1,)
    kjt["item"]   = JaggedTensor(values=[3, 5, 8], lengths=[2, 1, 0])

A feature may have a batch of its own size (variable batch, VBE): `stride_per_key_per_rank` has the sizes, and
`inverse_indices` says which of them each example of the whole batch is.

Thread safety: objects hold references and change by `copy_` only.
"""

import copy
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
from rowhouse.error import InvalidRequestError
from torch import Tensor, fx
from torch.utils import _pytree

from ps_client.torch.jagged_tensor import Change, Jagged, JaggedTensor, empty_like, pieces_text

fx.wrap("empty_like")  # one step of a traced graph

Strides = Sequence[Sequence[int]] | Tensor


def check_sizes(strides: Sequence[Sequence[int]]) -> None:
    """InvalidRequestError where a batch of a feature has a size below 0.

    Parameters
    ----------
    strides
        Sizes by feature and rank.
    """
    if any(size < 0 for row in strides for size in row):
        raise InvalidRequestError(f"stride_per_key_per_rank is {strides}; sizes must be at least 0")


class KeyedJaggedTensor(Jagged):
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
    stride_per_key_per_rank
        (F, R) integers: a feature's batch is the sum of its R numbers, one for each trainer that the batch is
        of. Then there are as many lengths as they sum to.
    inverse_indices
        The F keys, and (F, B) int64: for each example of the whole batch its place in the feature's own.

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
        stride_per_key_per_rank: Strides | None = None,
        *,
        inverse_indices: tuple[Sequence[str], Tensor] | None = None,
    ) -> None:
        if lengths is None and offsets is None and not keys:
            lengths = torch.empty(0, dtype=torch.int64, device=values.device)
        super().__init__(values, weights, lengths, offsets)
        self._keys = list(keys)
        if len(set(self._keys)) != len(self._keys):
            raise ValueError(f"keys are {self._keys}; they must be distinct")
        if offsets is not None and not offsets.numel():
            raise InvalidRequestError(
                "offsets are empty; their first is 0 and their last the number of values"
            )
        given = stride_per_key_per_rank
        self._strides = [list(row) for row in (given.tolist() if isinstance(given, Tensor) else given or [])]
        self._inverse = None if inverse_indices is None else (list(inverse_indices[0]), inverse_indices[1])
        self._stride = self._checked_stride(stride)
        self._check_lengths()
        self._index = {key: number for number, key in enumerate(self._keys)}
        self._bounds: list[int] | None = None

    def _checked_stride(self, stride: int | None) -> int:
        """B, once there are as many lengths as it needs."""
        pieces, count = self.lengths().numel(), len(self._keys)
        if self._strides:
            check_sizes(self._strides)
            wanted = sum(sum(row) for row in self._strides)
            if len(self._strides) != count or wanted != pieces:
                raise InvalidRequestError(
                    f"{pieces} lengths do not fit {count} keys and stride_per_key_per_rank {self._strides}"
                )
            if self._inverse and self._inverse[1].dim() != 2:
                raise InvalidRequestError(
                    f"inverse_indices have the shape {tuple(self._inverse[1].shape)}; they must be one row "
                    "of examples for each key"
                )
            whole = self._inverse[1].shape[1] if self._inverse else None
            return whole or max(sum(row) for row in self._strides)
        fits = not pieces % count and stride in (None, pieces // count) if count else not pieces
        if not fits:
            raise InvalidRequestError(
                f"{pieces} lengths do not fit {count} keys and stride {stride}; there must be keys * stride"
            )
        return pieces // count if count else stride or 0

    def _check_lengths(self) -> None:
        """Refuse lengths that would cut the values in wrong places; one wait for the device."""
        lengths, count = self.lengths(), self._values.shape[0]
        if lengths.is_meta:  # there is nothing to look at
            return
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

    # ------------------------------------------------------------ made
    @classmethod
    def from_lengths_sync(
        cls,
        keys: Sequence[str],
        values: Tensor,
        lengths: Tensor,
        weights: Tensor | None = None,
        stride: int | None = None,
        stride_per_key_per_rank: Strides | None = None,
        inverse_indices: tuple[Sequence[str], Tensor] | None = None,
    ) -> Self:
        """From lengths; the per-key offsets are computed at once."""
        given = (lengths, None, stride, stride_per_key_per_rank)
        return cls(keys, values, weights, *given, inverse_indices=inverse_indices).sync()

    @classmethod
    def from_offsets_sync(
        cls,
        keys: Sequence[str],
        values: Tensor,
        offsets: Tensor,
        weights: Tensor | None = None,
        stride: int | None = None,
        stride_per_key_per_rank: Strides | None = None,
        inverse_indices: tuple[Sequence[str], Tensor] | None = None,
    ) -> Self:
        """From offsets; the per-key offsets are computed at once."""
        given = (None, offsets, stride, stride_per_key_per_rank)
        return cls(keys, values, weights, *given, inverse_indices=inverse_indices).sync()

    @staticmethod
    def from_jt_dict(jt_dict: Mapping[str, JaggedTensor]) -> "KeyedJaggedTensor":
        """From one JaggedTensor per feature; their batches may differ in size."""
        jagged = list(jt_dict.values())
        weights = [w for w in (j.weights_or_none() for j in jagged) if w is not None]
        if weights and len(weights) != len(jagged):
            raise ValueError("some features have weights and some have none")
        sizes = [j.lengths().numel() for j in jagged]
        return KeyedJaggedTensor(
            list(jt_dict),
            torch.cat([j.values() for j in jagged]),
            torch.cat(weights) if weights else None,
            lengths=torch.cat([j.lengths() for j in jagged]),
            stride_per_key_per_rank=[[size] for size in sizes] if len(set(sizes)) > 1 else None,
        )

    @staticmethod
    def concat(kjt_list: Sequence["KeyedJaggedTensor"]) -> "KeyedJaggedTensor":
        """The features of several, of one batch, as one; ValueError where they do not fit together."""
        if not kjt_list:
            raise ValueError("there is nothing to concatenate")
        weights = [w for w in (one.weights_or_none() for one in kjt_list) if w is not None]
        if weights and len(weights) != len(kjt_list):
            raise ValueError("some have weights and some have none")
        variable = kjt_list[0].variable_stride_per_key()
        strides = {one.stride() for one in kjt_list if not variable}
        if len(strides) > 1 or any(one.variable_stride_per_key() != variable for one in kjt_list):
            raise ValueError(f"their strides differ: {[one.stride_per_key() for one in kjt_list]}")
        inverse = [one._inverse for one in kjt_list if one._inverse is not None]
        if inverse and len(inverse) != len(kjt_list):
            raise ValueError("some have inverse indices and some have none")
        return KeyedJaggedTensor(
            [key for one in kjt_list for key in one._keys],
            torch.cat([one.values() for one in kjt_list]),
            torch.cat(weights) if weights else None,
            lengths=torch.cat([one.lengths().reshape(-1) for one in kjt_list]),
            stride=None if variable else strides.pop(),
            stride_per_key_per_rank=[row for one in kjt_list for row in one._strides] if variable else None,
            inverse_indices=(
                ([key for keys, _ in inverse for key in keys], torch.cat([index for _, index in inverse]))
                if inverse
                else None
            ),
        )

    @staticmethod
    def empty(
        is_weighted: bool = False,
        device: torch.device | None = None,
        values_dtype: torch.dtype | None = None,
        weights_dtype: torch.dtype | None = None,
        lengths_dtype: torch.dtype = torch.int32,
    ) -> "KeyedJaggedTensor":
        """No feature at all."""
        jagged = JaggedTensor.empty(is_weighted, device, values_dtype, weights_dtype, lengths_dtype)
        return KeyedJaggedTensor([], jagged.values(), jagged.weights_or_none(), jagged.lengths(), stride=0)

    @staticmethod
    def empty_like(kjt: "KeyedJaggedTensor", device: torch.device | None = None) -> "KeyedJaggedTensor":
        """Of the same keys, shapes and dtypes, with values that mean nothing until `copy_`."""
        return empty_like(kjt, device)  # type: ignore[no-any-return]

    def copy_(self, kjt: "KeyedJaggedTensor", non_blocking: bool = False) -> "KeyedJaggedTensor":
        """Overwrite this with another one of the same keys and shapes."""
        if self._keys != kjt.keys():
            raise ValueError(f"the keys are {self._keys} here and {kjt.keys()} there; they must be equal")
        self._copy_parts(kjt, non_blocking)
        return self.unsync()

    # ------------------------------------------------------------ what it is
    def keys(self) -> list[str]:
        """The F feature names."""
        return self._keys

    def stride(self) -> int:
        """B; of a variable batch that of `inverse_indices`, else the largest."""
        return self._stride

    def stride_per_key(self) -> list[int]:
        """(F): B of each feature."""
        return [sum(row) for row in self._strides] or [self._stride] * len(self._keys)

    def stride_per_key_per_rank(self) -> list[list[int]]:
        """(F, R) of a variable batch; empty otherwise."""
        return self._strides

    def variable_stride_per_key(self) -> bool:
        """Whether each feature has a batch of its own size."""
        return bool(self._strides)

    def inverse_indices(self) -> tuple[list[str], Tensor]:
        """Keys, and (F, B) places in the features' own batches; ValueError if there are none."""
        if self._inverse is None:
            raise ValueError("this batch has no inverse indices")
        return self._inverse

    def inverse_indices_or_none(self) -> tuple[list[str], Tensor] | None:
        """As `inverse_indices`, or None."""
        return self._inverse

    def index_per_key(self) -> dict[str, int]:
        """Number of each feature."""
        return self._index

    def offset_per_key(self) -> list[int]:
        """(F + 1): where each feature's values start, and where the last one's end."""
        if self._bounds is None and self._values.is_meta:  # nobody knows: equal shares, as torchrec's
            count = max(len(self._keys), 1)
            self._bounds = [self._values.shape[0] * number // count for number in range(len(self._keys) + 1)]
        elif self._bounds is None:
            self._bounds = self.offsets()[self._piece_bounds()].tolist()
        return self._bounds

    def offset_per_key_or_none(self) -> list[int] | None:
        """As `offset_per_key`, where it was computed already."""
        return self._bounds

    def length_per_key(self) -> list[int]:
        """(F): number of values of each feature."""
        return [stop - start for start, stop in pairwise(self.offset_per_key())]

    def length_per_key_or_none(self) -> list[int] | None:
        """As `length_per_key`, where the offsets per key were computed already."""
        return None if self._bounds is None else self.length_per_key()

    def lengths_offset_per_key(self) -> list[int]:
        """(F + 1): where each feature's lengths start, and where the last one's end."""
        return self._piece_bounds()

    def _piece_bounds(self) -> list[int]:
        return [0, *accumulate(self.stride_per_key())]

    def sync(self) -> Self:
        """This, with the offsets per key computed: one wait for the device, here and not later."""
        if not self._values.is_meta:
            self.offset_per_key()
        return self

    def unsync(self) -> Self:
        """This, without the offsets per key that were computed."""
        self._bounds = None
        return self

    # ------------------------------------------------------------ parts of it
    def __getitem__(self, key: str) -> JaggedTensor:
        return self._feature(self._index[key])

    def _feature(self, number: int) -> JaggedTensor:
        start, stop = self.offset_per_key()[number : number + 2]
        first, last = self._piece_bounds()[number : number + 2]
        weights = None if self._weights is None else self._weights[start:stop]
        return JaggedTensor(self._values[start:stop], weights, self.lengths().reshape(-1)[first:last])

    def to_dict(self) -> dict[str, JaggedTensor]:
        """One JaggedTensor per feature; its values are views."""
        return {key: self[key] for key in self._keys}

    def split(self, segments: Sequence[int]) -> list["KeyedJaggedTensor"]:
        """The first `segments[0]` features, the next `segments[1]`, and so on; their values are views."""
        if sum(segments) > len(self._keys):
            raise ValueError(f"segments are {list(segments)}; there are {len(self._keys)} keys")
        bounds, pieces, parts = self.offset_per_key(), self._piece_bounds(), []
        for first, last in pairwise([0, *accumulate(segments)]):
            values = slice(bounds[first], bounds[last])
            weights = None if self._weights is None else self._weights[values]
            lengths = self.lengths().reshape(-1)[pieces[first] : pieces[last]]
            parts.append(self._derived(range(first, last), self._values[values], weights, lengths))
        return parts

    def permute(self, indices: Sequence[int], indices_tensor: Tensor | None = None) -> "KeyedJaggedTensor":
        """The features of these numbers, in this order.

        Parameters
        ----------
        indices
            Numbers of features; one that is there twice comes twice.
        indices_tensor
            The same as a tensor; torchrec's users give it, and it is not needed here.
        """
        chosen = [self._feature(number) for number in indices]
        if not chosen:
            return self.split([0])[0]
        weights = [jagged.weights() for jagged in chosen] if self._weights is not None else []
        return self._derived(
            indices,
            torch.cat([jagged.values() for jagged in chosen]),
            torch.cat(weights) if weights else None,
            torch.cat([jagged.lengths() for jagged in chosen]),
        )

    def _derived(
        self, features: Sequence[int], values: Tensor, weights: Tensor | None, lengths: Tensor
    ) -> "KeyedJaggedTensor":
        """Some of the features; what was checked is not checked again."""
        made = copy.copy(self)
        made._keys = [self._keys[number] for number in features]
        made._strides = [self._strides[number] for number in features] if self._strides else []
        made._values, made._weights, made._lengths, made._offsets = values, weights, lengths, None
        made._index = {key: number for number, key in enumerate(made._keys)}
        made._bounds = made._inverse = None
        return made

    def flatten_lengths(self) -> "KeyedJaggedTensor":
        """This, with lengths of one dimension."""
        flat = copy.copy(self)
        flat._lengths, flat._offsets = self.lengths().reshape(-1), None
        return flat

    def to(self, device: torch.device, non_blocking: bool = False) -> "KeyedJaggedTensor":
        """This on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "KeyedJaggedTensor":
        """This in page-locked memory."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Change) -> "KeyedJaggedTensor":
        moved = copy.copy(self)  # not the constructor: its checks would wait for a non-blocking copy
        parts = (self._weights, self._lengths, self._offsets)
        moved._weights, moved._lengths, moved._offsets = (None if t is None else change(t) for t in parts)
        moved._values = change(self._values)
        if self._inverse is not None:
            moved._inverse = self._inverse[0], change(self._inverse[1])
        return moved

    def __repr__(self) -> str:
        if not self._keys:
            return "KeyedJaggedTensor()\n"
        lines = [pieces_text(k, j.to_dense(), j.to_dense_weights()) for k, j in self.to_dict().items()]
        return "KeyedJaggedTensor({\n" + ",\n".join(lines) + "\n})\n"


def _parts_of(kjt: KeyedJaggedTensor) -> tuple[list[Any], Any]:
    index = None if kjt._inverse is None else kjt._inverse[1]
    names = None if kjt._inverse is None else kjt._inverse[0]
    return [*kjt.parts(), index], (kjt._keys, kjt._stride, kjt._strides, names)


def _keyed_of(parts: Any, context: Any) -> KeyedJaggedTensor:
    made = object.__new__(KeyedJaggedTensor)  # torch puts other things than tensors into a tree's leaves
    made._values, made._weights, made._lengths, made._offsets, index = parts
    made._keys, made._stride, made._strides, names = context
    made._inverse = None if names is None else (names, index)
    made._index = {key: number for number, key in enumerate(made._keys)}
    made._bounds = None
    return made


_pytree.register_pytree_node(KeyedJaggedTensor, _parts_of, _keyed_of)
