# SPDX-License-Identifier: Apache-2.0
"""EmbeddingBag: torch.nn.EmbeddingBag whose rows live on the shards.

Thread safety: that of the client; the module itself holds no state that changes.
"""

from typing import Final

import torch
from rowhouse.error import InvalidRequestError
from torch import Tensor

from ps_client.step import StepProtocol
from ps_client.torch.handle import outside_graphs
from ps_client.torch.jagged_tensor import check_integers
from ps_client.torch.lookup import look_up
from ps_client.torch.one_table import OneTable
from ps_client.torch.pool import Bags, pooled

MODES: Final = ("sum", "mean", "max")


class EmbeddingBag(OneTable):
    """Pooled rows of one table, as `torch.nn.EmbeddingBag`; backward pushes their gradients.

    Its one parameter, `weight`, has no elements: it is there to be frozen (`requires_grad_(False)`), and it
    says the output's dtype. The optimizer of the table runs on the shards. In eval mode, where gradients are
    off, or frozen, it pulls read-only and pushes nothing.

    Parameters
    ----------
    client
        A connected client, its pipeline or its trainer; or any other StepProtocol.
    table
        Name of the table.
    mode
        "mean", "sum" or "max".
    padding_idx
        An id that counts for nothing: it is not pulled, not pooled, not counted by a mean, and gets no
        gradient. As its 64 bits: -1 and 2^64 - 1 are the same id.
    include_last_offset
        Whether `offsets` ends with the number of ids.
    gradient_scale
        Factor on the pushed gradients; see docs/client.md, "Several trainers".

    Raises
    ------
    UnknownTableError
        The cluster has no such table.
    ValueError
        An unknown mode or an impossible `padding_idx`.
    """

    def __init__(
        self,
        client: StepProtocol,
        table: str,
        mode: str = "mean",
        *,
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        gradient_scale: float = 1.0,
    ) -> None:
        super().__init__(client, table, padding_idx, gradient_scale)
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; it must be one of {MODES}")
        self.mode, self.include_last_offset = mode, include_last_offset

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        return f"{self.table!r}, dim={self.embedding_dim}, mode={self.mode!r}"

    @outside_graphs
    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pool bags of ids.

        Parameters
        ----------
        input
            (n,) integer ids with `offsets`, or (B, N): B bags of N ids.
        offsets
            (B,), or (B + 1,) with include_last_offset: where each bag starts. Only for (n,) input.
        per_sample_weights
            Factors of the shape of `input`; only with mode "sum".

        Returns
        -------
        Tensor
            (B, dim) on the device of `input`, in the dtype of `weight`: float32 unless the module was moved
            to another.
        """
        self._check(input, offsets, per_sample_weights)
        ids, weights, last = input.reshape(-1), per_sample_weights, self.include_last_offset
        if weights is not None:
            weights = weights.reshape(-1)
        single = offsets is None and input.shape[1] == 1 and weights is None and self.padding_idx is None
        if offsets is None and not single:  # single: each id is a bag, which needs no offsets
            offsets, last = torch.arange(input.shape[0], device=input.device) * input.shape[1], False
        if self.padding_idx is not None:
            assert offsets is not None
            ids, offsets, weights = self._without_padding(ids, offsets, weights)
        step = look_up(self, {self.table: ids}, gradient_scale=self.gradient_scale)
        bags = Bags(self.table, 0, ids.shape[0], offsets, self.mode, weights, last)
        return pooled(step, [bags])[0].to(self.weight.dtype)

    def _check(self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> None:
        for name, given in (("input", ids), ("offsets", offsets), ("per_sample_weights", weights)):
            if not (isinstance(given, Tensor) or (given is None and name != "input")):
                raise InvalidRequestError(f"{name} is a {type(given).__name__}; it must be a tensor")
        if ids.dim() not in (1, 2):
            raise ValueError(f"input has shape {tuple(ids.shape)}; it must have one or two dimensions")
        if (ids.dim() == 1) == (offsets is None):
            raise ValueError(
                f"input has {ids.dim()} dimensions; offsets must be given with one dimension, and only then"
            )
        if offsets is not None and offsets.dim() != 1:
            raise ValueError(f"offsets have shape {tuple(offsets.shape)}; they must have one dimension")
        if offsets is not None:
            check_integers("offsets", offsets)
        if weights is not None and self.mode != "sum":
            raise NotImplementedError(f"per_sample_weights need mode 'sum'; this bag has {self.mode!r}")
        if weights is not None and weights.shape != ids.shape:
            shapes = f"{tuple(weights.shape)} and {tuple(ids.shape)}"
            raise ValueError(f"per_sample_weights and input have shapes {shapes}; they must be the same")

    def _without_padding(
        self, ids: Tensor, offsets: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same bags without the padding id; offsets keep their form."""
        kept = self.not_padding(ids)
        before = kept.new_zeros(ids.shape[0] + 1, dtype=torch.int64)
        torch.cumsum(kept, dim=0, out=before[1:])
        return ids[kept], before[offsets.to(torch.int64)], None if weights is None else weights[kept]
