# SPDX-License-Identifier: Apache-2.0
"""One table's rows by hand: assigned or removed, checked whole before anything changes.

Thread safety: immutable values and pure functions.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype, message
from rowhouse.error import InvalidRequestError

from ps_server.table.config import TableConfig
from ps_server.table.push import Ids, check_dim


@dataclass(frozen=True, slots=True)
class RowEdit:
    """Rows to assign; or to remove, where there are no weights.

    Attributes
    ----------
    ids
        (n,) uint64, distinct.
    weights
        (n, dim) of the table's storage dtype.
    state
        (n, state_size) float32; None: rows keep theirs.
    events
        By column, 0 shows and 1 clicks: (n,) float32, where they are assigned.
    """

    ids: Ids
    weights: NDArray[Any] | None = None
    state: NDArray[np.float32] | None = None
    events: tuple[tuple[int, NDArray[np.float32]], ...] = ()

    def only(self, keep: NDArray[np.bool_]) -> "RowEdit":
        """The rows where `keep` ((n,) bool) is true."""
        assert self.weights is not None
        state = None if self.state is None else self.state[keep]
        events = tuple((column, values[keep]) for column, values in self.events)
        return replace(self, ids=self.ids[keep], weights=self.weights[keep], state=state, events=events)


def checked_edit(part: message.TableEdit, config: TableConfig) -> RowEdit:
    """Check rows by hand; nothing is changed.

    Parameters
    ----------
    part
        As it came; weights in any element type of the wire.
    config
        The table's.

    Raises
    ------
    InvalidRequestError
        An id that is there twice; a wrong dim or state size; a number that is not finite, or too large for
        the table's dtype; shows or clicks that are negative, or of a table that keeps none.
    """
    what, layout = f"table {config.name!r}", config.layout
    distinct, counts = np.unique(part.ids, return_counts=True)
    if distinct.shape[0] != part.ids.shape[0]:
        raise InvalidRequestError(f"{what}: id {int(distinct[counts > 1][0])} is there twice")
    if part.weights is None:
        return RowEdit(part.ids)
    check_dim(config, part.weights.shape[1])
    wide = dtype.widen(part.weights, part.dtype)
    _check(what, "weights", part.ids, wide, np.isfinite(wide))
    weights = part.weights
    if part.dtype != layout.dtype:
        weights = dtype.narrow(wide, layout.dtype, f"{what}: the weights")
    if part.state is not None:
        if part.state.shape[1] != layout.state_size:
            raise InvalidRequestError(
                f"{what}: state has {part.state.shape[1]} numbers for each row; its optimizer, "
                f"{config.optimizer.kind}, keeps {layout.state_size}"
            )
        _check(what, "state", part.ids, part.state, np.isfinite(part.state))
    given = [(0, "shows", part.shows), (1, "clicks", part.clicks)]
    events = [(column, name, values) for column, name, values in given if values is not None]
    for _, name, values in events:
        if not layout.show_click:
            raise InvalidRequestError(f"{what} keeps no {name}: it has no show_click policy")
        _check(what, name, part.ids, values[:, None], (np.isfinite(values) & (values >= 0))[:, None])
    return RowEdit(part.ids, weights, part.state, tuple((column, values) for column, _, values in events))


def _check(what: str, name: str, ids: Ids, values: NDArray[np.float32], fine: NDArray[np.bool_]) -> None:
    if not fine.all():
        row, column = (int(at[0]) for at in np.nonzero(~fine))
        raise InvalidRequestError(
            f"{what}: {name} of id {int(ids[row])} (row {row}, column {column}) is {values[row, column]:g}; "
            f"it must be finite{'' if name in ('weights', 'state') else ' and not negative'}"
        )
