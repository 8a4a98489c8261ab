# SPDX-License-Identifier: Apache-2.0
"""The bridge between autograd and the shards: rows come in as tensors, their gradients go out.

    ids ── pull_unique ──▶ rows (u, D) ── indexed, pooled, weighed (pool.py) ──▶ output
                             │                                                  │ backward
    shards ◀── push ──── gradient (u, D), one per distinct id ◀─────────────────┘

Only distinct rows come and go; what makes outputs of them is in pool.py.

Invariants: 1. one lookup is one pull, and its backward one push, for all its tables; 2. a lookup that
is not recorded (evaluation, no_grad, inference_mode) pulls read-only and never pushes; 3. ids travel
as their 64 bits: nothing is clipped. Thread safety: that of the client.
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
    recorded
        Whether backward pushes.
    gradient_scale
        Factor on what is pushed.
    device
        Where the ids were, and the rows go.
    """

    client: StepProtocol
    unique: Mapping[str, UniqueRows]
    recorded: bool
    gradient_scale: float
    device: torch.device

    def tensor(self, table: str) -> Tensor:
        """The distinct rows of one table, (u, D) float32 on `device`."""
        return torch.from_numpy(self.unique[table].own_rows()).to(self.device)

    def push(self, sums: Mapping[str, NDArray[np.float32]]) -> None:
        """Push new (u, D) float32 arrays, a gradient for each distinct id of each table named; they are
        given away, and scaled in place."""
        if self.gradient_scale != 1.0:
            for values in sums.values():
                np.multiply(values, np.float32(self.gradient_scale), out=values)
        self.client.push_unique({table: (self.unique[table].ids, sums[table]) for table in sums})


class _Rows(torch.autograd.Function):
    """Rows of one step as outputs of one node, so that all their gradients arrive together."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, step: Step) -> tuple[Tensor, ...]:
        ctx.step = step
        ctx.set_materialize_grads(False)
        return tuple(step.tensor(table) for table in step.unique)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None]:
        step: Step = ctx.step
        arrived = zip(step.unique, gradients, strict=True)
        # None: nothing that was differentiated used this table. Copied: torch may hand the same memory on.
        given = {table: gradient.detach().cpu() for table, gradient in arrived if gradient is not None}
        step.push({table: np.array(gradient.numpy(), np.float32) for table, gradient in given.items()})
        return None, None


def prefetch(client: StepProtocol, ids: Mapping[str, Tensor], *, recorded: bool) -> None:
    """Start the pull that a `look_up` of the same ids will make; PreconditionError without a pipeline."""
    bits = {table: id_bits(tensor) for table, tensor in ids.items()}
    client.prefetch(bits, read_only=not (recorded and torch.is_grad_enabled()))


def look_up(
    client: StepProtocol, ids: Mapping[str, Tensor], *, recorded: bool, gradient_scale: float
) -> Step:
    """Rows of several tables in one pull.

    Parameters
    ----------
    client
        Where to pull, and where the backward pushes.
    ids
        Integer ids by table name; all on one device, where the rows go too.
    recorded
        Whether this is a training step. If so, and gradients are on, backward pushes; otherwise the
        pull is read-only.
    gradient_scale
        Factor on what is pushed.
    """
    recorded = recorded and torch.is_grad_enabled()
    bits = {table: id_bits(tensor) for table, tensor in ids.items()}
    unique = client.pull_unique(bits, read_only=not recorded)
    device = next(iter(ids.values())).device if ids else torch.device("cpu")
    return Step(client, unique, recorded, gradient_scale, device)


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
