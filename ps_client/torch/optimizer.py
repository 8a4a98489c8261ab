# SPDX-License-Identifier: Apache-2.0
"""RowOptimizer: the rows' step where the training loop is, beside the optimizer of the dense part.

    backward ── add ──▶ a placeholder per table, its .grad (u, D) ◀── unscaled, clipped, as any other gradient
                                    │ step
    shards ◀── one push per client ─┘  with each group's learning rate, where it was changed

Without it backward pushes. With it backward keeps what it would push, until `step`. So a loss scaler skips
the step of rows as it skips the dense one, several backwards are one step (gradient accumulation), a
gradient norm covers rows and dense part, and a scheduler sets learning rates. What an update does is still
the table's optimizer on the shards.

Invariants: 1. a step is one push per client, with each distinct id once; 2. gradients of several backwards
are added in fp32 in their order; 3. a placeholder has no memory of its own, only its gradient has.
Thread safety: that of the client.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rowhouse.error import InvalidRequestError
from rowhouse.kernel import as_read_only, sum_groups
from torch import nn

from ps_client.split import distinct
from ps_client.step import StepProtocol
from ps_client.table import Table, find_table
from ps_client.torch.handle import outside_graphs, row_modules


@dataclass(slots=True)
class _Kept:
    """Gradients of one table between backward and step: `parameter.grad[i]` is that of `ids[i]`.

    They are where the module's handle is: a GradScaler on a GPU does not wait for its scale to reach the CPU.
    """

    client: StepProtocol
    table: Table
    handle: nn.Parameter | None
    parameter: nn.Parameter
    configured_rate: float
    ids: NDArray[np.uint64]

    def add(self, ids: NDArray[np.uint64], sums: NDArray[np.float32]) -> None:
        if self.parameter.grad is not None:
            unique = distinct(self.table, np.concatenate([self.ids, ids]))
            joined = np.concatenate([self.parameter.grad.cpu().numpy(), sums])
            ids, sums = unique.ids, sum_groups(as_read_only(joined), unique.inverse, unique.ids.shape[0])
        self.ids = ids
        self.parameter.grad = None
        moved = torch.from_numpy(sums)
        if self.handle is not None and not self.handle.is_meta:
            moved = moved.to(self.handle.device)
        self.parameter.data = moved.new_empty(1, 1).expand(sums.shape)
        self.parameter.grad = moved

    def take(self) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        assert self.parameter.grad is not None
        taken = self.ids, self.parameter.grad.cpu().numpy()
        self.clear()
        return taken

    def clear(self) -> None:
        self.ids = np.empty(0, np.uint64)
        self.parameter.grad = None
        self.parameter.data = torch.empty(0, self.table.dim)


@dataclass(frozen=True, slots=True)
class _Push:
    """One client's part of a step; a rate that was not changed is the table's own."""

    client: StepProtocol
    gradients: dict[str, tuple[NDArray[np.uint64], NDArray[np.float32]]]
    rates: dict[str, float]


class RowOptimizer(torch.optim.Optimizer):
    """Steps the rows of a model's modules: `backward` keeps their gradients, `step` pushes them.

    It is a `torch.optim.Optimizer` with one group for each table, whose `lr` starts as the table's configured
    learning rate: schedulers, `GradScaler` and `clip_grad_norm_` take it as any other. The table's own
    optimizer, on the shards, does the update.

    Parameters
    ----------
    modules
        A model, or several: every module of ps_client.torch in them.

    Raises
    ------
    InvalidRequestError
        There is none of them, or one is another RowOptimizer's.
    """

    def __init__(self, modules: nn.Module | Iterable[nn.Module]) -> None:
        ours = row_modules(modules)
        if not ours:
            raise InvalidRequestError(
                "the modules hold no Embedding, EmbeddingBag, EmbeddingBagCollection or EmbeddingCollection "
                "of ps_client.torch"
            )
        if any(module.sink is not None for module in ours):
            raise InvalidRequestError("the modules are another RowOptimizer's; one steps them")
        self._kept: dict[tuple[int, str], _Kept] = {}
        groups = [
            self._group(module.client, name, handle)
            for module in ours
            for name, handle in module.handles().items()
            if (id(module.client), name) not in self._kept
        ]
        super().__init__(groups, {})
        for module in ours:
            module.sink = self

    def _group(self, client: StepProtocol, name: str, handle: nn.Parameter | None) -> dict[str, Any]:
        table = find_table(client.tables, name)
        rate = float(table.config.get("optimizer", {}).get("learning_rate", 1.0))
        parameter = nn.Parameter(torch.empty(0, table.dim))
        self._kept[id(client), name] = _Kept(client, table, handle, parameter, rate, np.empty(0, np.uint64))
        return {"params": [parameter], "lr": rate, "table": name}

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # A copy of a model goes on with the same connections, and the same step.
        return self

    def parameters(self) -> list[nn.Parameter]:
        """What stands for the rows of each table between backward and step, for `clip_grad_norm_`.

        Their `.grad` is (u, dim), a row for each distinct id.
        """
        return [kept.parameter for kept in self._kept.values()]

    def add(
        self, client: StepProtocol, gradients: Mapping[str, tuple[NDArray[np.uint64], NDArray[np.float32]]]
    ) -> None:
        """What backward calls; the arrays are given away.

        Parameters
        ----------
        client
            Where `step` will push them.
        gradients
            Distinct ids and their gradients by table name, as for `push_unique`.
        """
        for name, (ids, sums) in gradients.items():
            if (id(client), name) not in self._kept:  # the module has got another client since
                self.add_param_group(self._group(client, name, None))
            self._kept[id(client), name].add(ids, sums)

    @outside_graphs
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Push the gradients kept since the last step, and keep none.

        Parameters
        ----------
        closure
            Called first, with gradients on, where one is given; its value is returned.

        Raises
        ------
        RowhouseError
            Whatever a push raises; the gradients are gone then too.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pushes: dict[int, _Push] = {}
        for kept, group in zip(self._kept.values(), self.param_groups, strict=True):
            if kept.parameter.grad is not None:
                push = pushes.setdefault(id(kept.client), _Push(kept.client, {}, {}))
                push.gradients[kept.table.name] = kept.take()
                if (rate := float(group["lr"])) != kept.configured_rate:
                    push.rates[kept.table.name] = rate
        for push in pushes.values():
            push.client.push_unique(push.gradients, push.rates)
        return loss

    @outside_graphs
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients kept since the last step.

        Parameters
        ----------
        set_to_none
            Without effect: a placeholder without gradients has none.
        """
        for kept in self._kept.values():
            kept.clear()
