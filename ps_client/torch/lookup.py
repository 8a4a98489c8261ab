# SPDX-License-Identifier: Apache-2.0
"""The bridge between autograd and the shards: rows come in as tensors, their gradients go out.

    ids ── pull_unique ──▶ rows (u, D) ── torch indexes, pools, weighs ──▶ output
                             │                                              │ backward
    shards ◀── push_many ── gradient (u, D), one per distinct id ◀──────────┘

Only the distinct rows enter the graph, so sum, mean, max, per-sample weights and whatever else is done
with them get their gradients from torch itself.

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
from rowhouse.error import InvalidRequestError, PreconditionError
from torch import Tensor

from ps_client.pipeline import Pipeline
from ps_client.step import StepClient, UniqueRows
from ps_client.trainer import Trainer

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
class _Step:
    """What the backward of one lookup needs."""

    client: StepClient
    unique: Mapping[str, UniqueRows]
    gradient_scale: float
    device: torch.device


def _as_tensor(rows: NDArray[np.float32], device: torch.device) -> Tensor:
    # torch takes only memory that it may write and that is aligned; an answer's view is neither.
    usable = rows.flags.writeable and rows.flags.aligned and rows.flags.c_contiguous
    return torch.from_numpy(rows if usable else np.array(rows)).to(device)


class _Rows(torch.autograd.Function):
    """Rows of one step as outputs of one node, so that all their gradients arrive together."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, step: _Step) -> tuple[Tensor, ...]:
        ctx.step = step
        ctx.set_materialize_grads(False)
        return tuple(_as_tensor(unique.rows, step.device) for unique in step.unique.values())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None]:
        step: _Step = ctx.step
        push = {}
        for (table, unique), gradient in zip(step.unique.items(), gradients, strict=True):
            if gradient is not None:  # None: nothing that was differentiated used this table
                values = gradient.detach().to("cpu", torch.float32).numpy()
                if step.gradient_scale != 1.0:
                    values = values * np.float32(step.gradient_scale)
                push[table] = (unique.ids, values)
        step.client.push_many(push)
        return None, None


def prefetch(client: StepClient, ids: Mapping[str, Tensor], *, recorded: bool) -> None:
    """Start the pull that a `look_up` of the same ids will make.

    Raises
    ------
    PreconditionError
        The client is not a Pipeline, or a Trainer, which has none.
    """
    if isinstance(client, Trainer):
        client.pipeline()  # raises, and says why there is none
    if not isinstance(client, Pipeline):
        raise PreconditionError("prefetch needs a pipeline: make the module with client.pipeline()")
    bits = {table: id_bits(tensor) for table, tensor in ids.items()}
    client.prefetch(bits, read_only=not (recorded and torch.is_grad_enabled()))


def look_up(
    client: StepClient, ids: Mapping[str, Tensor], *, recorded: bool, gradient_scale: float
) -> dict[str, Found]:
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

    Returns
    -------
    dict
        Found by table name, in the order of `ids`.
    """
    recorded = recorded and torch.is_grad_enabled()
    bits = {table: id_bits(tensor) for table, tensor in ids.items()}
    unique = client.pull_unique(bits, read_only=not recorded)
    device = next(iter(ids.values())).device if ids else torch.device("cpu")
    step = _Step(client, unique, gradient_scale, device)
    if recorded:
        # The anchor is what makes the outputs require gradients: ids and rows from outside have none.
        rows: tuple[Tensor, ...] = _Rows.apply(torch.empty(0, requires_grad=True), step)  # type: ignore[no-untyped-call]
    else:
        rows = tuple(_as_tensor(found.rows, device) for found in unique.values())
    inverses = [torch.from_numpy(found.inverse).to(device) for found in unique.values()]
    return {
        table: Found(values, inverse) for table, values, inverse in zip(unique, rows, inverses, strict=True)
    }
