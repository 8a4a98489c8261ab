# SPDX-License-Identifier: Apache-2.0
"""A bsp step of several trainers as one push: whether their parts fit together, and the parts joined.

Everything that could refuse the whole step is looked for while parts are held (group.py): once a step is
applied on one shard, another one must not refuse it. Thread safety: pure functions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from rowhouse import message
from rowhouse.error import InvalidRequestError, LimitExceededError
from rowhouse.kernel import first_not_below
from rowhouse.limit import IDS_PER_REQUEST_MAX, TABLES_PER_REQUEST_MAX

from ps_server.table.push import TablePush
from ps_server.table.table import Table

FLOAT32_MAX: Final = float(np.finfo(np.float32).max)

TABLE_HEADS_BYTES: Final = TABLES_PER_REQUEST_MAX * 256
"""What a name and some numbers for each table of a whole step take at most, when the log gets it as one push.
"""


def _size(push: message.PushRequest) -> tuple[int, int]:
    """Ids and bytes of a push."""
    # A show and a click for each id: a part without them gets them when another one has some.
    sizes = [(t.ids.shape[0], t.ids.nbytes + t.gradients.nbytes + 8 * t.ids.shape[0]) for t in push.tables]
    return sum(ids for ids, _ in sizes), sum(size for _, size in sizes)


def check_fits(
    trainer: int,
    push: message.PushRequest,
    others: Mapping[int, message.PushRequest],
    name: Callable[[int], str],
    message_bytes_max: int,
) -> None:
    """Refuse a part that could not be joined with those held: the log takes a step as one push.

    Parameters
    ----------
    trainer, push
        Who brings which part.
    others
        The parts held, by trainer.
    name
        A trainer's name, for messages.
    message_bytes_max
        Largest push of the shard, encoded.

    Raises
    ------
    LimitExceededError
        All parts together are past a limit; InvalidRequestError when wire dtype or learning rate differ.
    """
    sizes = [_size(p) for p in (push, *others.values())]
    ids, size_bytes = sum(n for n, _ in sizes), sum(n for _, n in sizes)
    step_bytes_max = message_bytes_max - TABLE_HEADS_BYTES
    if ids > IDS_PER_REQUEST_MAX or size_bytes > step_bytes_max:
        raise LimitExceededError(
            f"step {push.sequence}: {ids} ids and {size_bytes} bytes of all trainers together; at most "
            f"{IDS_PER_REQUEST_MAX} and {step_bytes_max}: use smaller steps, or raise memory_budget"
        )
    tables = {part.table for p in (push, *others.values()) for part in p.tables}
    if len(tables) > TABLES_PER_REQUEST_MAX:
        raise LimitExceededError(
            f"step {push.sequence}: {len(tables)} tables of all trainers; at most {TABLES_PER_REQUEST_MAX}"
        )
    mine = {part.table: part for part in push.tables}
    for other, held in others.items():
        for part in held.tables:
            same = mine.get(part.table, part)
            if (same.dtype, same.learning_rate) != (part.dtype, part.learning_rate):
                raise InvalidRequestError(
                    f"table {part.table!r}: wire dtype and learning_rate of {name(trainer)} are "
                    f"{same.dtype} and {same.learning_rate}; those of {name(other)} are {part.dtype} "
                    f"and {part.learning_rate}"
                )


def check_rows(
    push: message.PushRequest, others: Mapping[int, message.PushRequest], tables: Mapping[str, Table]
) -> None:
    """Refuse a part with which the step has too many rows for this shard: others would have applied it."""
    held = [part for other in others.values() for part in other.tables]
    for part in push.tables:
        ids = [part.ids, *(h.ids for h in held if h.table == part.table)]
        if part.table in tables and sum(i.shape[0] for i in ids) > tables[part.table].tier.rows_min:
            tables[part.table].check_push(np.unique(np.concatenate(ids)).shape[0])


def check_share(step: int, parts: Sequence[tuple[Table, TablePush]], trainers: int) -> None:
    """Refuse a part whose gradients could, summed with the other trainers', be what no shard applies.

    A sum past the bound would be found by the shard that has its row, when others have applied the step. So
    each trainer has its share of the bound: parts that are legal are legal together.

    Parameters
    ----------
    step, trainers
        Number of the step, and of trainers in the group.
    parts
        A checked part, duplicates summed.

    Raises
    ------
    InvalidRequestError
        An element is not below the share.
    """
    if trainers == 1:
        return  # what is checked is the sum
    for table, push in parts:
        # The greatest float32 where any finite sum will do; a half of it is left for the rounding of the sum.
        bound = min(table.config.gradient_bound, FLOAT32_MAX)
        share = bound / (2 * trainers)
        bad = int(first_not_below(push.gradients, share))
        if bad >= 0:
            row, column = divmod(bad, table.layout.dim)
            raise InvalidRequestError(
                f"step {step}: table {table.name!r}: the gradient of id {int(push.ids[row])} (column "
                f"{column}) is {push.gradients[row, column]:g}; with {trainers} trainers each must be below "
                f"{share:g}, so that their sum is below {bound:g}"
            )


def joined(parts: list[message.PushRequest]) -> message.PushRequest:
    """One push of all trainers' parts, table by table, in their order."""
    tables = message.joined_by_table([part for push in parts for part in push.tables])
    return message.PushRequest(parts[0].map_version, parts[0].client_id, parts[0].sequence, tables)
