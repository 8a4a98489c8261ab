# SPDX-License-Identifier: Apache-2.0
"""Rows of one step as pooled outputs, and the sums of their gradients as one push.

    rows (u, D) ── Bags: which row each id is, which ids a bag has ──▶ outputs (B, D), one per Bags
                                                                          │ backward
    shards ◀── gradient (u, D), one per distinct id, summed by a kernel ◀──┘

Torch's own backward of a pooled table sorts the ids of the batch again (and gives ids after the last bag
what is in its memory); here their distinct rows are known, and one pass over the output's gradient sums
what each row gets. Where torch must see the rows themselves (mode "max", weights that want a gradient,
another device) they enter the graph instead.

Invariants: 1. both ways give the same outputs and, but for rounding, the same pushes; 2. a distinct id's
gradients are added in fp32 in the order of its appearance, so a push has the same bits whether the rows
were pulled ahead or not. Thread safety: that of the client.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rowhouse.kernel import as_read_only
from torch import Tensor
from torch.nn import functional

from ps_client.kernel import are_bags, gather, sum_pooled
from ps_client.torch.handle import outside_graphs
from ps_client.torch.jagged_tensor import check_integers
from ps_client.torch.lookup import Found, Step, found_rows


@dataclass(frozen=True, slots=True)
class Bags:
    """What one output is made of.

    Attributes
    ----------
    table
        Name of the table.
    first, last
        Its ids are number `first` to `last` - 1 of those that were looked up in the table.
    offsets
        (B,) or (B + 1,) integers, where each bag starts among them; None: each id is a bag, without weights.
    mode
        "sum", "mean" or "max".
    weights
        (last - first,) factors of the ids, with mode "sum" only.
    include_last
        Whether `offsets` holds the end of the last bag.
    """

    table: str
    first: int
    last: int
    offsets: Tensor | None = None
    mode: str = "sum"
    weights: Tensor | None = None
    include_last: bool = False


def pooled(step: Step, bags: Sequence[Bags]) -> list[Tensor]:
    """The outputs of a lookup.

    Parameters
    ----------
    step
        The lookup.
    bags
        What each output is; those of one table one after the other, as its ids are.

    Returns
    -------
    list
        (B, D) float32 by bags, on the step's device; zeros for an empty bag.
    """
    if step.device.type == "meta":
        return [_shaped(step, one) for one in bags]
    starts = [_starts(step, one) for one in bags]
    if any(start is None for start in starts):
        found = found_rows(step)
        return [_pool(_part(found[one.table], one), one) for one in bags]
    poolings = [_Pooling(one, start) for one, start in zip(bags, starts, strict=True) if start is not None]
    if not step.recorded:
        return [_output(step, pooling) for pooling in poolings]
    # The anchor is what makes the outputs require gradients: ids and rows from outside have none.
    outputs: tuple[Tensor, ...] = _Pooled.apply(torch.empty(0, requires_grad=True), step, poolings)  # type: ignore[no-untyped-call]
    return list(outputs)


def _shaped(step: Step, bags: Bags) -> Tensor:
    """An output on the meta device, which has a shape and no values."""
    count = bags.last - bags.first if bags.offsets is None else bags.offsets.shape[0] - bags.include_last
    dim = step.client.tables[bags.table].dim
    return torch.empty(count, dim, device="meta", requires_grad=bags.table in step.trained)


@dataclass(frozen=True, slots=True)
class _Pooling:
    """Bags and where each starts: (B + 1,) int64, or (0,) where each id is a bag."""

    bags: Bags
    starts: NDArray[np.int64]

    @property
    def whole(self) -> bool:
        """Whether each id is in a bag; those after the end that include_last names are in none."""
        return not self.starts.shape[0] or int(self.starts[-1]) == self.bags.last - self.bags.first


def _starts(step: Step, bags: Bags) -> NDArray[np.int64] | None:
    """Where each bag starts; None where torch must see the rows, or say what is wrong with the offsets."""
    if bags.offsets is not None:
        check_integers("offsets", bags.offsets)
    if step.device.type != "cpu" or (bags.weights is not None and bags.weights.requires_grad):
        return None
    if bags.offsets is None:
        return np.empty(0, np.int64)
    if bags.mode == "max":
        return None
    count = bags.last - bags.first
    starts = np.empty(bags.offsets.shape[0] + (not bags.include_last), np.int64)
    starts[-1:] = count
    starts[: bags.offsets.shape[0]] = bags.offsets.detach().numpy()
    return starts if are_bags(starts, count) else None


def _part(found: Found, bags: Bags) -> Found:
    return Found(found.rows, found.inverse[bags.first : bags.last])


def _output(step: Step, pooling: _Pooling) -> Tensor:
    """One output, outside the graph."""
    bags, unique = pooling.bags, step.unique[pooling.bags.table]
    inverse = unique.inverse[bags.first : bags.last]
    if bags.offsets is None:
        out = torch.empty(inverse.shape[0], unique.rows.shape[1])
        gather(as_read_only(unique.rows), as_read_only(inverse), out.numpy())
        return out
    return _pool(Found(step.tensor(bags.table), torch.from_numpy(inverse)), bags)


def _pool(found: Found, bags: Bags) -> Tensor:
    """One output by torch's own operations."""
    rows, offsets, weights = found.rows, bags.offsets, bags.weights
    if offsets is None:
        if not rows.shape[0]:  # torch takes no empty table
            return rows
        return functional.embedding(found.inverse, rows)
    if not rows.shape[0]:  # the sum, 0, keeps the answer in the graph
        empty = rows.new_zeros(offsets.shape[0] - bags.include_last, rows.shape[1]) + rows.sum()
        return empty if weights is None else empty + weights.sum().to(rows.dtype)
    return functional.embedding_bag(
        found.inverse,
        rows,
        offsets.to(torch.int64),
        mode=bags.mode,
        per_sample_weights=None if weights is None else weights.to(rows.dtype),
        include_last_offset=bags.include_last,
    )


class _Pooled(torch.autograd.Function):
    """Outputs of one step as one node, so that all their gradients arrive together."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, step: Step, poolings: Sequence[_Pooling]) -> tuple[Tensor, ...]:
        ctx.step, ctx.poolings = step, poolings
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            *[pooling.bags.weights for pooling in poolings]
        )  # torch notices if they are changed
        outputs = [_output(step, pooling) for pooling in poolings]
        pairs = zip(poolings, outputs, strict=True)
        ctx.mark_non_differentiable(*[out for one, out in pairs if one.bags.table not in step.trained])
        return tuple(outputs)

    @staticmethod
    @outside_graphs
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None, None]:
        step: Step = ctx.step
        outputs = list(zip(ctx.poolings, gradients, ctx.saved_tensors, strict=True))
        sums = {}
        for table in (table for table in step.unique if table in step.trained):  # in one order, always
            mine = [output for output in outputs if output[0].bags.table == table]
            if any(gradient is not None for _, gradient, _ in mine):  # else nothing differentiated used it
                sums[table] = _sums(step, table, mine)
        step.push(sums)
        return None, None, None


def _sums(
    step: Step, table: str, outputs: Sequence[tuple[_Pooling, Tensor | None, Tensor | None]]
) -> NDArray[np.float32]:
    """(u, D) sums of what each distinct row of a table gets."""
    unique = step.unique[table]
    whole = all(gradient is not None and pooling.whole for pooling, gradient, _ in outputs)
    # A whole batch shows every row in the order of its number: each first gradient is copied, none added.
    sums = (np.empty if whole else np.zeros)(unique.rows.shape, np.float32)
    seen = 0 if whole else -1
    for pooling, gradient, weights in outputs:
        if gradient is not None:
            bags = pooling.bags
            factors = np.empty(0, np.float32) if weights is None else weights.to(torch.float32).numpy()
            seen = sum_pooled(
                as_read_only(gradient.detach().to(torch.float32).contiguous().numpy()),
                as_read_only(pooling.starts),
                as_read_only(unique.inverse[bags.first : bags.last]),
                as_read_only(np.ascontiguousarray(factors)),
                bags.mode == "mean",
                seen,
                sums,
            )
    return sums
