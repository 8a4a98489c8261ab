# SPDX-License-Identifier: Apache-2.0
"""What torch sees of rows that live on the shards: per table an empty parameter, a handle.

torch freezes parameters (`requires_grad_`), counts them and moves them. A module of ours has a handle for
each of its tables, so `model.requires_grad_(False)` freezes its rows as it freezes a layer. A handle has no
elements and never a gradient: optimizers and gradient clipping pass it over, DDP ignores it, and it is in
no state_dict. Thread safety: that of torch's modules.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rowhouse.error import InvalidRequestError
from torch import fx, nn

from ps_client.step import StepProtocol
from ps_client.validation import as_number

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


class RowHandle(nn.Parameter):
    """The handle of one table: (0, dim). `requires_grad` says whether backward moves the table's rows."""

    _ddp_ignored = True  # what DDP looks for when it casts parameters (mixed_precision)


def _is_handle(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a handle; its class is lost when torch moves it to or from the meta device."""
    return name == "weight" and parameter.shape[:1] == (0,)


class _HandleOwner(nn.Module):
    """A module whose handles are in no state_dict, and are missing in none."""

    def _handle_keys(self, prefix: str) -> set[str]:
        own = {name: parameter for name, parameter in self._parameters.items() if parameter is not None}
        return {prefix + name for name, parameter in own.items() if _is_handle(name, parameter)}

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As torch's; without `recurse` the handles are left out, because DDP asks so, module by module, for
        the parameters whose gradients it must reduce.

        Parameters
        ----------
        prefix, recurse, remove_duplicate
            As torch's.
        """
        found = super().named_parameters(prefix, recurse, remove_duplicate)
        return (pair for pair in found if recurse or not _is_handle(pair[0].rpartition(".")[2], pair[1]))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key in self._handle_keys(prefix):
            del destination[key]

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: list[str], *lists: list[str]
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *lists)
        keys = self._handle_keys(prefix)
        missing[:] = [key for key in missing if key not in keys]


class RemoteTable(_HandleOwner):
    """One table of a collection: its handle, called `weight` as torchrec's is.

    Parameters
    ----------
    dim
        The table's dim.
    device
        Where the handle is.
    """

    def __init__(self, dim: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.weight = RowHandle(torch.empty(0, dim, device=device))
        self.embedding_dim = dim


class RemoteTables(nn.Module):
    """The tables of a collection by name, as torchrec's `embedding_bags`; a name may be any text.

    Parameters
    ----------
    dims
        Dim of each table by name.
    device
        Where the handles are.
    """

    def __init__(self, dims: Mapping[str, int], device: torch.device | str | None = None) -> None:
        super().__init__()
        self._modules.update({name: RemoteTable(dim, device) for name, dim in dims.items()})

    def __getitem__(self, name: str) -> RemoteTable:
        table = self._modules[name]
        assert isinstance(table, RemoteTable)
        return table

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def keys(self) -> Iterable[str]:
        """Names of the tables."""
        return self._modules.keys()

    def values(self) -> Iterable[RemoteTable]:
        """The tables."""
        return [self[name] for name in self]

    def items(self) -> Iterable[tuple[str, RemoteTable]]:
        """Name and table of each."""
        return [(name, self[name]) for name in self]


class GradientSink(Protocol):
    """Where backward leaves gradients when it does not push them itself: a RowOptimizer."""

    def add(
        self, client: StepProtocol, gradients: Mapping[str, tuple[NDArray[np.uint64], NDArray[np.float32]]]
    ) -> None:
        """Take the gradients of one backward, as `push_unique` would."""


class RowModule(_HandleOwner):
    """What our modules share: their client, and where their gradients go.

    Parameters
    ----------
    client
        A connected client, its pipeline or its trainer; or any other StepProtocol.

    Raises
    ------
    InvalidRequestError
        `client` is none.
    """

    client: StepProtocol
    sink: GradientSink | None

    def __init__(self, client: StepProtocol) -> None:
        super().__init__()
        if not hasattr(client, "tables") or not hasattr(client, "pull_unique"):
            raise InvalidRequestError(
                f"client is {client!r}; it must be what ps_client.connect() gives, or its pipeline or "
                f"trainer: {type(self).__name__}(client, ...)"
            )
        self.client = client
        self.sink = None

    def handles(self) -> Mapping[str, nn.Parameter]:
        """The handle of each of its tables, by table name."""
        raise NotImplementedError

    def trained_tables(self) -> frozenset[str]:
        """Tables whose rows a backward of a lookup made now moves: none in eval mode or without gradients."""
        if not (self.training and torch.is_grad_enabled()):
            return frozenset()
        return frozenset(table for table, handle in self.handles().items() if handle.requires_grad)


def check_gradient_scale(gradient_scale: float) -> float:
    """The factor on pushed gradients: finite and above 0, else InvalidRequestError."""
    scale = as_number("gradient_scale", gradient_scale)
    if not (math.isfinite(scale) and scale > 0):
        raise InvalidRequestError(f"gradient_scale is {scale}; it must be finite and above 0")
    return scale


def outside_graphs(forward: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """A forward that `torch.compile` leaves out of its graphs, and that `torch.fx` traces as one call of its
    module: pulls and kernels are no operations of torch.

    torch.compiler.disable would import torch._dynamo, in three seconds, into every program. So it is asked
    for only where torch._dynamo is loaded, as torch.compile has it.

    Parameters
    ----------
    forward
        A module's forward.
    """
    left_out: list[Callable[Given, Answer]] = []

    @functools.wraps(forward)
    def called(*arguments: Given.args, **named: Given.kwargs) -> Answer:
        for given in (*arguments[1:], *named.values()):
            if isinstance(given, fx.Proxy):
                return _one_call(given.tracer, arguments, named)  # type: ignore[no-any-return]
        if "torch._dynamo" not in sys.modules:
            return forward(*arguments, **named)
        if not left_out:
            left_out.append(torch.compiler.disable(forward))  # type: ignore[no-untyped-call]
        return left_out[0](*arguments, **named)

    return called


def _one_call(tracer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The node of a traced graph that stands for a module's forward."""
    module, *others = arguments
    if tracer.root is module:
        raise InvalidRequestError(
            f"{type(module).__name__} has no graph of its own; trace a model that has it inside"
        )
    return tracer.create_proxy("call_module", tracer.path_of_module(module), tuple(others), named)


def row_modules(modules: nn.Module | Iterable[nn.Module]) -> list[RowModule]:
    """Every module of ours in a model, or in several."""
    roots = [modules] if isinstance(modules, nn.Module) else list(modules)
    return [one for root in roots for one in root.modules() if isinstance(one, RowModule)]
