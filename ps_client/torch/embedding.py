# SPDX-License-Identifier: Apache-2.0
"""Embedding: torch.nn.Embedding whose rows live on the shards.

Thread safety: that of the client; the module itself holds no state that changes.
"""

from rowhouse.error import InvalidRequestError
from torch import Tensor

from ps_client.step import StepProtocol
from ps_client.torch.handle import outside_graphs
from ps_client.torch.lookup import look_up
from ps_client.torch.one_table import OneTable
from ps_client.torch.pool import Bags, pooled


class Embedding(OneTable):
    """The row of each id, as `torch.nn.Embedding`; backward pushes the gradients of the distinct ids.

    Its one parameter, `weight`, has no elements: it is there to be frozen (`requires_grad_(False)`), and it
    says the output's dtype. The optimizer of the table runs on the shards.

    Parameters
    ----------
    client
        A connected client, its pipeline or its trainer; or any other StepProtocol.
    table
        Name of the table.
    padding_idx
        An id that reads as zeros: it is not pulled and gets no gradient.
    gradient_scale
        Factor on the pushed gradients; see docs/client.md, "Several trainers".

    Raises
    ------
    UnknownTableError
        The cluster has no such table.
    ValueError
        An impossible `padding_idx`.
    """

    def __init__(
        self,
        client: StepProtocol,
        table: str,
        *,
        padding_idx: int | None = None,
        gradient_scale: float = 1.0,
    ) -> None:
        super().__init__(client, table, padding_idx, gradient_scale)

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        return f"{self.table!r}, dim={self.embedding_dim}"

    @outside_graphs
    def forward(self, input: Tensor) -> Tensor:
        """The rows of some ids.

        Parameters
        ----------
        input
            Integer ids of any shape.

        Returns
        -------
        Tensor
            (*input.shape, dim) on the device of `input`, in the dtype of `weight`: float32 unless the module
            was moved to another.
        """
        if not isinstance(input, Tensor):
            raise InvalidRequestError(f"input is a {type(input).__name__}; it must be a tensor")
        ids, places = input.reshape(-1), None
        if self.padding_idx is not None:
            places = self.not_padding(ids).nonzero()[:, 0]
            ids = ids[places]
        step = look_up(self, {self.table: ids}, gradient_scale=self.gradient_scale)
        rows = pooled(step, [Bags(self.table, 0, ids.shape[0])])[0].to(self.weight.dtype)
        if places is not None:
            rows = rows.new_zeros(input.numel(), self.embedding_dim).index_copy(0, places, rows)
        return rows.reshape(*input.shape, self.embedding_dim)
