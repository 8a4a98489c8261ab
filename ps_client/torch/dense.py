# SPDX-License-Identifier: Apache-2.0
"""The dense part of a model by itself, with rows as inputs: what torch.export and ONNX can take.

    model(batch) = dense(what its bags give for the batch, the other tensors of the batch)

A server pulls rows by itself and needs only the rest of the model, as a program of torch's operations. Here
each of our modules is replaced by one that gives what it was given. Thread safety: that of torch's modules.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rowhouse.error import InvalidRequestError
from torch import Tensor, nn

from ps_client.torch.handle import RowModule, row_modules
from ps_client.torch.keyed import JaggedTensor, KeyedTensor


@dataclass(frozen=True, slots=True)
class _Form:
    """How an answer of a module is made of tensors: names of the tensors, and the way back."""

    names: tuple[str, ...]
    rebuild: Callable[[Sequence[Tensor]], Any]


def _taken_apart(label: str, answer: Any) -> tuple[list[Tensor], _Form]:
    """The tensors of what one of our modules gave, and how to make it of others."""
    if isinstance(answer, Tensor):
        return [answer], _Form((label,), lambda tensors: tensors[0])
    if isinstance(answer, dict):  # of an EmbeddingCollection
        keys = list(answer)
        tensors = [part for one in answer.values() for part in (one.values(), one.lengths())]
        names = [f"{label}.{key}.{part}" for key in keys for part in ("values", "lengths")]

        def jagged(given: Sequence[Tensor]) -> dict[str, JaggedTensor]:
            pairs = zip(keys, given[::2], given[1::2], strict=True)
            return {key: JaggedTensor(values, lengths=lengths) for key, values, lengths in pairs}

        return tensors, _Form(tuple(names), jagged)
    keys, dims = answer.keys(), answer.length_per_key()
    return [answer.values()], _Form((label,), lambda tensors: KeyedTensor(keys, dims, tensors[0]))


class _Given(nn.Module):
    """In the place of a module of ours: gives the next answer that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Any] = []

    def forward(self, *_: Any, **__: Any) -> Any:
        """The next answer, whatever the arguments.

        Parameters
        ----------
        _, __
            The batch's part for the module, not looked at.
        """
        return self.answers.pop(0)


class _ReadError(Exception):
    """A part of the batch that was withheld is read; its number is the argument."""


class _Withheld:
    """In the place of a part of the batch that only our modules may read: any other use raises _ReadError."""

    def __init__(self, number: int) -> None:
        self.__dict__["number"] = number

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        """Any function of torch.

        Parameters
        ----------
        function, types, arguments, named
            As torch calls it.
        """
        parts = (*arguments, *(named or {}).values())
        raise _ReadError(next((part.__dict__["number"] for part in parts if isinstance(part, cls)), None))

    def _read(self, *_: Any) -> Any:
        raise _ReadError(self.__dict__["number"])

    __getattr__ = __getitem__ = __len__ = __iter__ = __bool__ = __contains__ = __float__ = __int__ = _read
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _read
    __floordiv__ = __mod__ = __neg__ = __invert__ = __and__ = __or__ = __matmul__ = __rmatmul__ = _read
    __lt__ = __le__ = __gt__ = __ge__ = _read


class DensePart(nn.Module):
    """A model whose rows, and other tensors, are inputs. Made by `dense_part`.

    Attributes
    ----------
    input_names
        What each input is: a module's name in the model, with the number of the call from the second one on;
        or `input.N` for the batch's N-th tensor.
    """

    def __init__(
        self, model: nn.Module, calls: Sequence[tuple[str, _Form]], batch: Sequence[Any], kept: Sequence[int]
    ) -> None:
        super().__init__()
        self.model, self._calls, self._kept = model, list(calls), list(kept)
        self._batch = list(batch)
        found = dict(model.named_modules())
        self._given = {name: one for name, _ in calls if isinstance(one := found[name], _Given)}
        rows = [name for _, form in calls for name in form.names]
        self.input_names = [*rows, *(f"input.{number}" for number in kept)]

    def forward(self, *tensors: Tensor) -> Any:
        """What the model gives.

        Parameters
        ----------
        tensors
            By `input_names`.
        """
        at = 0
        for given in self._given.values():
            given.answers = []
        for name, form in self._calls:
            self._given[name].answers.append(form.rebuild(tensors[at : at + len(form.names)]))
            at += len(form.names)
        batch = list(self._batch)
        for number, tensor in zip(self._kept, tensors[at:], strict=True):
            batch[number] = tensor
        return self.model(*batch)


def dense_part(model: nn.Module, *batch: Any) -> tuple[DensePart, tuple[Tensor, ...]]:
    """The dense part of a model, and its inputs for one batch: `dense(*inputs)` is `model(*batch)`.

    Parameters
    ----------
    model
        The model, in eval mode. Its weights are copied.
    batch
        What its forward takes. Tensors that only our modules read (ids, offsets), and jagged tensors, are
        no inputs of the dense part; numbers and texts are constants.

    Returns
    -------
    tuple
        The module, and the tensors.

    Raises
    ------
    InvalidRequestError
        The model is in training mode, has none of our modules, or is one; or its dense part reads a part of
        the batch that is no tensor.
    """
    if model.training:
        raise InvalidRequestError("the model is in training mode; call eval()")
    if not row_modules(model) or isinstance(model, RowModule):
        raise InvalidRequestError("the model is no module with modules of ps_client.torch inside")
    calls: list[tuple[str, _Form]] = []
    rows: list[Tensor] = []
    taken: set[int] = set()
    names = {module: name for name, module in model.named_modules() if isinstance(module, RowModule)}

    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], answer: Any) -> None:
        name = names[module]  # type: ignore[index]
        count = sum(other == name for other, _ in calls)
        tensors, form = _taken_apart(f"{name}.{count + 1}" if count else name, answer)
        calls.append((name, form))
        rows.extend(tensor.detach() for tensor in tensors)
        taken.update(id(part) for part in (*arguments, *named.values()))

    hooks = [one.register_forward_hook(note, with_kwargs=True) for one in names]
    try:
        with torch.no_grad():
            model(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    bare = copy.deepcopy(model)
    for name in names.values():
        bare.set_submodule(name, _Given())
    kept = [n for n, part in enumerate(batch) if isinstance(part, Tensor) and id(part) not in taken]
    while True:
        parts = [part if _plain(part) else _Withheld(number) for number, part in enumerate(batch)]
        dense, inputs = (
            DensePart(bare, calls, parts, sorted(kept)).eval(),
            (*rows, *(batch[n] for n in sorted(kept))),
        )
        try:
            with torch.no_grad():
                dense(*inputs)
        except _ReadError as read:
            number = read.args[0]
            if not isinstance(batch[number], Tensor):
                raise InvalidRequestError(
                    f"the dense part reads input {number} of the batch, a {type(batch[number]).__name__}, "
                    "itself; only modules of ps_client.torch may: give it what it needs as tensors"
                ) from None
            kept.append(number)
        else:
            return dense, inputs


def _plain(part: Any) -> bool:
    """Whether a part of a batch may be a constant of the dense part."""
    return part is None or isinstance(part, bool | int | float | str)
