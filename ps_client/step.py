# SPDX-License-Identifier: Apache-2.0
"""What a training step asks of a client: pull rows, push gradients.

    ids ─▶ validation ─▶ dedup (split, kernel) ─▶ `_fetch` ─▶ gather
    gradients ─▶ validation ─▶ sum of duplicates (kernel) ─▶ `_send`

`Client` fetches and sends at once, `Pipeline` ahead and behind; everything else is said here, once, and
ps_client.torch takes either.

Invariant: nothing is fetched or sent before the whole step is checked. Thread safety: that of the class.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, NoReturn, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rowhouse import dtype
from rowhouse.error import PreconditionError
from rowhouse.kernel import as_read_only, sum_groups
from rowhouse.message import TableGradients

from ps_client.interrupt import whole
from ps_client.kernel import gather
from ps_client.split import distinct
from ps_client.table import Table, find_table
from ps_client.validation import as_events, as_gradients, as_ids, check_learning_rate, check_out

Asked = Sequence[tuple[Table, NDArray[np.uint64]]]
"""Tables of one step with their checked ids, (n,) uint64."""


@dataclass(frozen=True, slots=True)
class UniqueRows:
    """Rows of the distinct ids of one pull.

    Attributes
    ----------
    ids
        (u,) uint64 in the order of first appearance.
    inverse
        (n,) int64: `rows[inverse]` is what `pull` gives.
    rows
        (u, dim) float32; may be a read-only view of the shard's answer.
    """

    ids: NDArray[np.uint64]
    inverse: NDArray[np.int64]
    rows: NDArray[np.float32]

    def own_rows(self) -> NDArray[np.float32]:
        """`rows` where they may be written and torch takes them as they are (aligned), else a copy."""
        usable = self.rows.flags.writeable and self.rows.flags.aligned and self.rows.flags.c_contiguous
        return self.rows if usable else np.array(self.rows)


class StepProtocol(Protocol):
    """What the modules of ps_client.torch ask of a client: in a step, one pull and one push.

    A Client, a Pipeline and a Trainer offer it. So may a class of your own, for instance one that counts what
    a model asks for, or one that stands in for a cluster in a test.
    """

    @property
    def tables(self) -> Mapping[str, Table]:
        """Every table by name (read-only)."""

    def pull_unique(self, ids: Mapping[str, ArrayLike], *, read_only: bool = False) -> dict[str, UniqueRows]:
        """The row of each distinct id, with the inverse, by table name; as StepClient.pull_unique."""

    @whole
    def push_unique(
        self,
        gradients: Mapping[str, tuple[NDArray[np.uint64], NDArray[np.float32]]],
        learning_rates: Mapping[str, float] | None = None,
    ) -> None:
        """A gradient of each distinct id that `pull_unique` gave; as StepClient.push_unique."""

    def prefetch(self, ids: Mapping[str, ArrayLike], *, read_only: bool = False) -> None:
        """Start the pull of a later step; PreconditionError where that cannot be had."""


class StepClient(ABC):
    """Pulls and pushes of training steps, by NumPy arrays: what Client, Pipeline and Trainer have in common.

    It is a StepProtocol.
    """

    _wire_dtype: int
    _keeps_parts: ClassVar[bool] = False
    """Whether `_send` holds on to the arrays that it gets, so that they must not be the caller's."""
    _failed = False

    @property
    @abstractmethod
    def tables(self) -> Mapping[str, Table]:
        """Every table of the cluster by name (read-only): dim, dtype, config."""

    @abstractmethod
    def _check_usable(self) -> None:
        """PreconditionError when this client may not be used (any more)."""

    @abstractmethod
    def _fetch(self, asked: Asked, read_only: bool) -> list[UniqueRows]:
        """Distinct rows of each table asked for, in their order."""

    def _fetch_distinct(self, asked: Asked, read_only: bool) -> list[NDArray[np.float32]]:
        """Rows of each table asked for, where no id is asked for twice."""
        return [unique.rows for unique in self._fetch(asked, read_only)]

    @abstractmethod
    def _send(self, parts: Sequence[TableGradients]) -> None:
        """Push one step's parts: distinct ids with summed gradients, at least one part."""

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # A copy of a model (an average of its weights, say) goes on with the same connections.
        return self

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"a {name} cannot be pickled: call connect() in the process that needs one")

    @abstractmethod
    def flush(self) -> None:
        """Return when every push made so far is known to be applied."""

    @abstractmethod
    def close(self) -> None:
        """End; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._fail()
        try:
            self.close()
        except PreconditionError as failure:
            if value is None:
                raise
            value.add_note(str(failure))

    def _fail(self) -> None:
        """A block ends by an exception: its end is not to be told as a planned one."""
        self._failed = True

    def _asked(self, ids: Mapping[str, ArrayLike]) -> Asked:
        declared = [(find_table(self.tables, table), values) for table, values in ids.items()]
        return [(table, as_ids(table, values)) for table, values in declared]

    @whole
    def pull(
        self, table: str, ids: ArrayLike, out: NDArray[np.float32] | None = None, *, read_only: bool = False
    ) -> NDArray[np.float32]:
        """Rows of `ids`, in their order. An id without a row gets the row that a push would start from.

        Parameters
        ----------
        table
            Name of the table.
        ids
            (n,) integers; duplicates allowed. Signed ids must not be negative.
        out
            Where to write: C-contiguous (n, dim) float32. None: a new array.
        read_only
            For evaluation and export: rows do not move into the hot set.

        Returns
        -------
        ndarray
            (n, dim) float32: `out`, or a new array.

        Raises
        ------
        InvalidRequestError
            Wrong ids or a wrong `out` (nothing was sent); UnknownTableError for an unknown table.
        UnavailableError
            No answer within the client's timeout.
        """
        self._check_usable()
        declared = find_table(self.tables, table)
        checked = as_ids(declared, ids)
        if out is not None:
            check_out(declared, checked.shape[0], out)
        unique = self._fetch([(declared, checked)], read_only)[0]
        return _in_order(unique, out)

    def pull_many(
        self, ids: Mapping[str, ArrayLike], *, read_only: bool = False
    ) -> dict[str, NDArray[np.float32]]:
        """Rows of several tables in one step: one call per shard, whatever the number of tables.

        Parameters
        ----------
        ids
            (n,) integers by table name, as for `pull`.
        read_only
            As for `pull`.

        Returns
        -------
        dict
            (n, dim) float32 by table name.
        """
        answers = {}
        for table, unique in self.pull_unique(ids, read_only=read_only).items():
            answers[table] = _in_order(unique, None)
        return answers

    @whole
    def pull_unique(self, ids: Mapping[str, ArrayLike], *, read_only: bool = False) -> dict[str, UniqueRows]:
        """As `pull_many`, but each distinct id's row once, with the inverse; the base of ps_client.torch.

        Parameters
        ----------
        ids
            (n,) integers by table name, as for `pull`.
        read_only
            As for `pull`.

        Returns
        -------
        dict
            UniqueRows by table name.
        """
        self._check_usable()
        asked = self._asked(ids)
        found = self._fetch(asked, read_only)
        return {table.name: unique for (table, _), unique in zip(asked, found, strict=True)}

    def prefetch(self, ids: Mapping[str, ArrayLike], *, read_only: bool = False) -> None:
        """Start the pull of a later step, where this is a Pipeline; else PreconditionError."""
        raise PreconditionError(
            "prefetch needs a pipeline: use what client.pipeline() gives, or make the module with it"
        )

    @whole
    def push(
        self,
        table: str,
        ids: ArrayLike,
        gradients: ArrayLike,
        learning_rate: float | None = None,
        *,
        shows: ArrayLike | None = None,
        clicks: ArrayLike | None = None,
    ) -> None:
        """Apply gradients to one table; see `push_many` for what it raises.

        Parameters
        ----------
        table
            Name of the table.
        ids
            (n,) integers; gradients of duplicates are summed in fp32, in their order.
        gradients
            (n, dim) floating-point, finite.
        learning_rate
            Overrides the optimizer's learning rate for this push.
        shows, clicks
            (n,) not negative: how often each id was shown and clicked, for a table with a show/click
            policy (other tables ignore them). None: a show for each time an id stands here, no click.
        """
        self._check_usable()
        part = self._part(table, ids, gradients, check_learning_rate(learning_rate), shows, clicks)
        if part.ids.shape[0]:
            self._send([part])

    @whole
    def push_many(
        self, gradients: Mapping[str, tuple[ArrayLike, ArrayLike]], learning_rate: float | None = None
    ) -> None:
        """Apply one step's gradients to several tables, once on each shard; returns when they are applied
        (of a Pipeline: when they are queued, and errors come at a later call).

        Each shard applies its part as a whole. When a part fails, those of other shards may be applied
        all the same. A part whose fate is not known (no answer in time) is kept and sent again under
        its own number before the next push to its shard, so it must not be pushed anew; `flush` waits
        for it. A part that a shard refused changed nothing.

        Parameters
        ----------
        gradients
            (ids, gradients) by table name, as for `push`.
        learning_rate
            As for `push`, for every table of this step.

        Raises
        ------
        InvalidRequestError
            Wrong ids, shapes or values (nothing was sent); UnknownTableError for an unknown table.
        TableFrozenError
            A table refuses pushes.
        UnavailableError
            No answer within the client's timeout.
        """
        self._check_usable()
        rate = check_learning_rate(learning_rate)
        parts = [self._part(name, ids, values, rate) for name, (ids, values) in gradients.items()]
        if parts := [part for part in parts if part.ids.shape[0]]:
            self._send(parts)

    @whole
    def push_unique(
        self,
        gradients: Mapping[str, tuple[NDArray[np.uint64], NDArray[np.float32]]],
        learning_rates: Mapping[str, float] | None = None,
    ) -> None:
        """As `push_many`, for distinct ids: nothing is deduplicated or copied again.

        Parameters
        ----------
        gradients
            By table name, (u,) distinct ids as `pull_unique` gave them, and their (u, dim) gradients. The
            arrays are given away: whoever pushes in the background still reads them later.
        learning_rates
            Overrides the learning rate of the optimizer of each table named, for this push.
        """
        self._check_usable()
        parts, rates = [], learning_rates or {}
        for name, (ids, values) in gradients.items():
            table = find_table(self.tables, name)
            own = as_ids(table, ids)
            checked = as_gradients(table, own, values, self._wire_dtype)
            narrow = dtype.narrow(checked, self._wire_dtype)
            rate = check_learning_rate(rates.get(name))
            parts.append(TableGradients(name, self._wire_dtype, own, narrow, rate))
        if parts := [part for part in parts if part.ids.shape[0]]:
            self._send(parts)

    def _part(
        self,
        name: str,
        ids: ArrayLike,
        gradients: ArrayLike,
        rate: float | None,
        shows: ArrayLike | None = None,
        clicks: ArrayLike | None = None,
    ) -> TableGradients:
        """One table's part of a push, checked whole and its duplicates summed; nothing is sent yet."""
        table = find_table(self.tables, name)
        checked = as_ids(table, ids)
        events = [as_events(table, kind, e, checked) for kind, e in (("shows", shows), ("clicks", clicks))]
        values = as_gradients(table, checked, gradients, self._wire_dtype)
        return self._summed(table, checked, values, rate, *events)

    def _summed(
        self,
        table: Table,
        ids: NDArray[np.uint64],
        gradients: NDArray[np.float32],
        rate: float | None,
        shows: NDArray[np.float32] | None = None,
        clicks: NDArray[np.float32] | None = None,
    ) -> TableGradients:
        unique = distinct(table, ids)
        count = unique.ids.shape[0]
        if count < ids.shape[0]:
            sums = sum_groups(as_read_only(gradients), unique.inverse, count)
            sums = as_gradients(
                table, unique.ids, sums, self._wire_dtype
            )  # a sum of finite ones may overflow
        else:
            sums = gradients.copy() if self._keeps_parts else gradients
        narrow = dtype.narrow(sums, self._wire_dtype)
        if not table.scored:
            shows = clicks = None
        elif shows is None and count < ids.shape[0]:
            shows = np.ones(ids.shape[0], np.float32)  # each duplicate is a show of its own
        events = [
            e if e is None else sum_groups(as_read_only(e[:, np.newaxis]), unique.inverse, count)[:, 0]
            for e in (shows, clicks)
        ]
        return TableGradients(table.name, self._wire_dtype, unique.ids, narrow, rate, *events)


def _in_order(unique: UniqueRows, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Rows in the order of the caller's ids, (n, dim), in `out` if there is one."""
    count = unique.inverse.shape[0]
    if unique.ids.shape[0] == count:  # each id once, so in the caller's order
        if out is None:
            return unique.own_rows()
        np.copyto(out, unique.rows)
        return out
    answer = np.empty((count, unique.rows.shape[1]), np.float32) if out is None else out
    gather(as_read_only(unique.rows), unique.inverse, answer)
    return answer
