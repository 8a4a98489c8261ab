# SPDX-License-Identifier: Apache-2.0
"""What the modules over one table share: its handle, the padding id, and pulls ahead.

Thread safety: that of the client; a module holds no state that changes.
"""

from collections.abc import Mapping
from numbers import Integral

import torch
from rowhouse.error import InvalidRequestError
from torch import Tensor, nn

from ps_client.step import StepProtocol
from ps_client.table import find_table
from ps_client.torch.handle import RowHandle, RowModule, check_gradient_scale
from ps_client.torch.lookup import prefetch


class OneTable(RowModule):
    """A module over one table.

    Parameters
    ----------
    client
        A connected client, its pipeline or its trainer; or any other StepProtocol.
    table
        Name of the table.
    padding_idx
        An id that counts for nothing, or None. As its 64 bits: -1 and 2^64 - 1 are the same id.
    gradient_scale
        Factor on the pushed gradients.

    Raises
    ------
    UnknownTableError
        The cluster has no such table.
    InvalidRequestError, ValueError
        A `padding_idx` that is no integer; one past 64 bits. A wrong `gradient_scale`.
    """

    def __init__(
        self, client: StepProtocol, table: str, padding_idx: int | None, gradient_scale: float
    ) -> None:
        super().__init__(client)
        if padding_idx is not None and not isinstance(padding_idx, Integral):
            raise InvalidRequestError(f"padding_idx is {padding_idx!r}; it must be an integer")
        if padding_idx is not None and not -(1 << 63) <= padding_idx < 1 << 64:
            raise ValueError(f"padding_idx is {padding_idx}; it must be -2^63 to 2^64 - 1")
        declared = find_table(client.tables, table)
        self.weight = RowHandle(torch.empty(0, declared.dim))
        self.table, self.embedding_dim, self.padding_idx = table, declared.dim, padding_idx
        self.gradient_scale = check_gradient_scale(gradient_scale)

    def handles(self) -> Mapping[str, nn.Parameter]:
        """`weight`, by the name of its table."""
        return {self.table: self.weight}

    def not_padding(self, ids: Tensor) -> Tensor:
        """Which ids are not the padding id, which there is; bool, of the shape of `ids`."""
        assert self.padding_idx is not None
        signed = self.padding_idx - (1 << 64) if self.padding_idx >= 1 << 63 else self.padding_idx
        return ids.to(torch.int64) != signed

    def prefetch(self, input: Tensor) -> None:
        """Start the pull of a later `forward`; the module's client must be a Pipeline or a Trainer.

        Parameters
        ----------
        input
            The ids as `forward` will have them, in the same mode (training or evaluation).
        """
        ids = input.reshape(-1)
        if self.padding_idx is not None:
            ids = ids[self.not_padding(ids)]
        prefetch(self, {self.table: ids})
