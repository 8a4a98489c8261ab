# SPDX-License-Identifier: Apache-2.0
"""One table's part of a push: checked, widened to float32, its duplicates summed.

Each part is checked once, vectorised, before anything changes. Duplicates are summed in the order of the
push, so a replay gives the same bits. Thread safety: immutable values and pure functions.
"""

import secrets
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse import dtype, message
from rowhouse.error import InvalidRequestError
from rowhouse.kernel import as_read_only, ascend, deduplicate, first_not_below, sum_groups

from ps_server.disk.row import RowLayout
from ps_server.table.config import TableConfig

Ids = NDArray[np.uint64]

SALT: Final = np.uint64(secrets.randbits(64))
"""Where ids come in the table that finds duplicates: another place in each process, so that nobody can choose
ids that crowd there. No answer depends on it."""


@dataclass(frozen=True, slots=True)
class TablePush:
    """One table's part of a push.

    Attributes
    ----------
    ids
        (n,) uint64, distinct.
    gradients
        (n, dim) float32, finite, one per id.
    learning_rate
        Replaces the optimizer's for this push, or None.
    events
        (n, 2) float32 shows and clicks, where the table has a show/click policy.
    """

    ids: Ids
    gradients: NDArray[np.float32]
    learning_rate: float | None = None
    events: NDArray[np.float32] | None = None

    @staticmethod
    def of(part: message.TableGradients, layout: RowLayout) -> "TablePush":
        """A part of a request that was checked when it came (the push log has no other)."""
        ids, sums = sum_duplicates(part.ids, dtype.widen(part.gradients, part.dtype))
        return TablePush(ids, sums, part.learning_rate, _events(part, layout))

    def only(self, keep: NDArray[np.bool_]) -> "TablePush":
        """The part's rows where `keep` ((n,) bool) is true."""
        events = None if self.events is None else self.events[keep]
        return TablePush(self.ids[keep], self.gradients[keep], self.learning_rate, events)


def check_dim(config: TableConfig, dim: int) -> None:
    """InvalidRequestError unless `dim` is the table's."""
    if dim != config.dim:
        raise InvalidRequestError(f"table {config.name!r}: dim is {dim}; it must be {config.dim}")


def checked_push(part: message.TableGradients, config: TableConfig) -> TablePush:
    """Check a part of a request and sum its duplicates; nothing is changed.

    Parameters
    ----------
    part
        As it came: duplicates allowed, gradients in any element type of the wire.
    config
        The table's.

    Raises
    ------
    InvalidRequestError
        A wrong dim or learning rate; a gradient, or a sum of gradients, that is not finite or not below the
        bound that keeps the optimizer's state finite; shows or clicks that are negative or not finite.
    """
    check_dim(config, part.gradients.shape[1])
    rate = part.learning_rate
    if rate is not None:  # as the log keeps it, so that a replay computes the same
        with np.errstate(over="ignore"):
            rate = float(np.float32(rate))
    try:  # what the optimizer would refuse must be refused before it is logged: a replay could not pass it
        config.optimizer.hyper(rate)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"table {config.name!r}: {error}") from None
    bound = config.gradient_bound
    ids, sums, bad = sum_below(part.ids, dtype.widen(part.gradients, part.dtype), bound)
    if bad >= 0:
        raise _not_below(config, ids, sums, bad)
    for name, events in (("shows", part.shows), ("clicks", part.clicks)):
        if events is not None and not (fine := np.isfinite(events) & (events >= 0)).all():
            at = int(np.flatnonzero(~fine)[0])
            raise InvalidRequestError(
                f"table {config.name!r}: {name} of id {int(part.ids[at])} is {events[at]}; "
                "it must be finite and not negative"
            )
    return TablePush(ids, sums, rate, _events(part, config.layout))


def _not_below(
    config: TableConfig, ids: Ids, gradients: NDArray[np.float32], bad: int
) -> InvalidRequestError:
    """The error for element `bad` of the flat gradients."""
    row, column = divmod(bad, config.dim)
    reason = "it must be finite"
    if np.isfinite(gradients[row, column]):
        bound = config.gradient_bound
        reason = f"{config.optimizer.kind} sums squares: it must be below {bound:g}, or clip_value be set"
    return InvalidRequestError(
        f"table {config.name!r}: the gradient of id {int(ids[row])} (row {row}, column {column}) is "
        f"{gradients[row, column]:g}; {reason}"
    )


def _events(part: message.TableGradients, layout: RowLayout) -> NDArray[np.float32] | None:
    """Shows and clicks summed as the gradients are; without them each id counts as one show."""
    if not layout.show_click:
        return None
    events = np.zeros((part.ids.shape[0], 2), np.float32)
    events[:, 0] = 1.0 if part.shows is None else part.shows
    events[:, 1] = 0.0 if part.clicks is None else part.clicks
    return sum_duplicates(part.ids, events)[1]


def sum_duplicates(
    ids: NDArray[np.uint64], gradients: NDArray[np.float32]
) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Ids without duplicates, and the sum of each one's gradients.

    Parameters
    ----------
    ids
        (n,) uint64, contiguous.
    gradients
        (n, dim) float32, C-contiguous.

    Returns
    -------
    tuple
        Ids in order of first appearance, (m,) uint64, and summed gradients, (m, dim) float32. The
        arguments themselves, not copies, if no id appears twice.
    """
    if ascend(ids):  # as np.unique and torch.unique leave them
        return ids, gradients
    group = np.empty(ids.shape[0], np.int32)
    unique = deduplicate(as_read_only(ids), group, SALT)
    if unique.shape[0] == ids.shape[0]:
        return ids, gradients
    return unique, sum_groups(gradients, group, unique.shape[0])


def sum_below(
    ids: NDArray[np.uint64], gradients: NDArray[np.float32], bound: float
) -> tuple[NDArray[np.uint64], NDArray[np.float32], int]:
    """`sum_duplicates`, where no element reaches `bound` in magnitude, before or after the sum.

    Returns
    -------
    tuple
        What `sum_duplicates` returns, and -1. Or the ids and gradients in which an element is a NaN or not
        below `bound` (greater than 0, infinity for any finite one), and its flat index.
    """
    bad = int(first_not_below(gradients, bound))
    if bad >= 0:
        return ids, gradients, bad
    unique, sums = sum_duplicates(ids, gradients)
    return unique, sums, -1 if sums is gradients else int(first_not_below(sums, bound))
