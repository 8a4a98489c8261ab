# SPDX-License-Identifier: Apache-2.0
"""The bridge between autograd and the shards: rows come in as tensors, their gradients go out.

    ids ── pull_unique ──▶ rows (u, D) ── indexed, pooled, weighed (pool.py) ──▶ output
                             │                                                  │ backward
    shards ◀── push ──── gradient (u, D), one per distinct id ◀─────────────────┘

Only distinct rows come and go; what makes outputs of them is in pool.py.

Invariants: 1. one lookup is one pull, and its backward one push, for all its tables (or what a RowOptimizer
pushes later); 2. a lookup that is not recorded (evaluation, no_grad, inference_mode, frozen tables) pulls
read-only and never pushes; 3. ids travel as their 64 bits: nothing is clipped. Thread safety: that of the
client.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rowhouse.error import InvalidRequestError
from torch import Tensor

from ps_client.step import StepProtocol, UniqueRows
from ps_client.torch.handle import GradientSink, RowModule, outside_graphs

_SIGNED = {torch.int64, torch.int32, torch.int16, torch.int8}
_UNSIGNED = {torch.uint8, torch.uint16, torch.uint32, torch.uint64}


def id_bits(ids: Tensor) -> NDArray[np.uint64]:
    """The ids of a tensor as (n,) uint64.

    int64 is bit-cast: -1 is the id 2^64 - 1. Narrower signed integers are sign-extended first, so an id
    is the same whatever width it comes in.

    Raises
    ------
    InvalidRequestError
        The tensor is not of an integer dtype.
    """
    if ids.dtype not in _SIGNED and ids.dtype not in _UNSIGNED:
        raise InvalidRequestError(f"ids are a tensor of {ids.dtype}; they must be integers")
    array = ids.detach().reshape(-1).contiguous().cpu().numpy()
    if ids.dtype in _SIGNED:
        array = array.astype(np.int64, copy=False)
    return array.view(np.uint64) if array.dtype.itemsize == 8 else array.astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of one table: `rows` is (u, D) float32, `inverse` (n,) int64 leads each id to its row."""

    rows: Tensor
    inverse: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """One lookup: its rows, and what its backward needs.

    Attributes
    ----------
    client
        Where it pulled, and where its backward pushes.
    unique
        Rows of its distinct ids by table name.
    trained
        Tables whose gradients backward pushes; none: the lookup is not recorded.
    gradient_scale
        Factor on what is pushed.
    device
        Where the ids were, and the rows go.
    sink
        Where backward leaves the gradients; None: it pushes them.
    """

    client: StepProtocol
    unique: Mapping[str, UniqueRows]
    trained: frozenset[str]
    gradient_scale: float
    device: torch.device
    sink: GradientSink | None

    @property
    def recorded(self) -> bool:
        """Whether backward comes back here."""
        return bool(self.trained)

    def tensor(self, table: str) -> Tensor:
        """The distinct rows of one table, (u, D) float32 on `device`."""
        found = self.unique[table]
        if self.device.type != "cuda":
            return torch.from_numpy(found.own_rows()).to(self.device)
        pinned = torch.empty(found.rows.shape, pin_memory=True)  # torch keeps it until the copy is done
        np.copyto(pinned.numpy(), found.rows)
        return pinned.to(self.device, non_blocking=True)

    def push(self, sums: Mapping[str, NDArray[np.float32]]) -> None:
        """Push, or leave to the sink, new (u, D) float32 arrays, a gradient for each distinct id of each
        table named; they are given away, and scaled in place."""
        if self.gradient_scale != 1.0:
            for values in sums.values():
                np.multiply(values, np.float32(self.gradient_scale), out=values)
        gradients = {table: (self.unique[table].ids, sums[table]) for table in sums}
        if self.sink is not None:
            self.sink.add(self.client, gradients)
        else:
            self.client.push_unique(gradients)


class _Rows(torch.autograd.Function):
    """Rows of one step as outputs of one node, so that all their gradients arrive together."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, step: Step) -> tuple[Tensor, ...]:
        ctx.step = step
        ctx.set_materialize_grads(False)
        rows = {table: step.tensor(table) for table in step.unique}
        ctx.mark_non_differentiable(*[rows[table] for table in rows if table not in step.trained])
        return tuple(rows.values())

    @staticmethod
    @outside_graphs
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None]:
        step: Step = ctx.step
        arrived = zip(step.unique, gradients, strict=True)
        # None: nothing that was differentiated used this table. Copied: torch may hand the same memory on.
        given = {
            table: gradient.detach().cpu()
            for table, gradient in arrived
            if gradient is not None and table in step.trained
        }
        step.push({table: np.array(gradient.numpy(), np.float32) for table, gradient in given.items()})
        return None, None


def prefetch(module: RowModule, ids: Mapping[str, Tensor]) -> None:
    """Start the pull that a `look_up` of the same ids will make; PreconditionError without a pipeline."""
    bits = {table: id_bits(tensor) for table, tensor in ids.items()}
    module.client.prefetch(bits, read_only=not module.trained_tables())


def look_up(module: RowModule, ids: Mapping[str, Tensor], *, gradient_scale: float) -> Step:
    """Rows of several tables in one pull.

    Parameters
    ----------
    module
        Whose lookup it is: its client pulls; in training mode backward pushes, of tables that are not frozen,
        or leaves the gradients to its sink. Where it pushes nothing the pull is read-only.
    ids
        Integer ids by table name; all on one device, where the rows go too.
    gradient_scale
        Factor on what is pushed.

    Raises
    ------
    InvalidRequestError
        The ids are no integers; or this is a training step under autocast in float16, whose loss a scaler
        scales, and backward would push.
    """
    trained = module.trained_tables()
    device = next(iter(ids.values())).device if ids else torch.device("cpu")
    if device.type == "meta":  # shapes only: nothing is pulled, and nothing pushed
        return Step(module.client, {}, trained, gradient_scale, device, module.sink)
    if trained and module.sink is None and _is_half(device.type):
        raise InvalidRequestError(
            f"{type(module).__name__}: a training step under autocast in float16 needs a loss scaler, and "
            "backward would push the scaled gradients: make RowOptimizer(model) and pass it to scaler.step"
        )
    bits = {table: id_bits(tensor) for table, tensor in ids.items()}
    unique = module.client.pull_unique(bits, read_only=not trained)
    return Step(module.client, unique, trained, gradient_scale, device, module.sink)


def _is_half(device_type: str) -> bool:
    """Whether operations there run in float16 at the moment."""
    return torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16


def found_rows(step: Step) -> dict[str, Found]:
    """The rows of a lookup as tensors of the graph, by table name in its order.

    Parameters
    ----------
    step
        The lookup.
    """
    if step.recorded:
        # The anchor is what makes the outputs require gradients: ids and rows from outside have none.
        rows: tuple[Tensor, ...] = _Rows.apply(torch.empty(0, requires_grad=True), step)  # type: ignore[no-untyped-call]
    else:
        rows = tuple(step.tensor(table) for table in step.unique)
    inverses = [torch.from_numpy(found.inverse).to(step.device) for found in step.unique.values()]
    return {
        table: Found(values, inverse)
        for table, values, inverse in zip(step.unique, rows, inverses, strict=True)
    }
