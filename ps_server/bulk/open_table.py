# SPDX-License-Identifier: Apache-2.0
"""A table to load into or to export (bulk.py): of a running shard, or in the directory of a stopped one.

Thread safety: one load per shard at a time; the rest as shard.py says.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.error import StoreError, UnknownTableError
from rowhouse.placement import PartitionMap
from rowhouse.problem import nearest

from ps_server.disk import checkpoint
from ps_server.disk.directory import Descriptor, held, open_store, read_descriptor
from ps_server.disk.row import RowLayout
from ps_server.disk.store import RowFamily, Store
from ps_server.life.recovery import state_of
from ps_server.life.saved import check_no_restore
from ps_server.shard.shard import Shard

SCAN_ROWS: Final = 65_536
"""Keys read at a time where rows are counted."""


@dataclass(frozen=True, kw_only=True)
class OpenTable:
    """A table to load into or to export: what a running shard and a stopped one have in common.

    Attributes
    ----------
    name, layout
        The table's.
    rows
        Its family.
    directory, shard, partition_map
        Of the shard.
    lsn
        Applied so far; nothing changes the table while a load lasts.
    state_of
        Optimizer whose state the rows hold, "" for none; None where an old directory does not say.
    initial_state
        Optimizer state of a row that comes without one; None where only a config would know it.
    commit
        Runs an ingest of so many rows more than before, and makes it count.
    """

    name: str
    layout: RowLayout
    rows: RowFamily
    directory: Path
    shard: int
    partition_map: PartitionMap
    lsn: int
    state_of: str | None
    initial_state: NDArray[np.float32] | None
    commit: Callable[[Callable[[], None], int], None]


def is_whole(directory: Path) -> bool:
    """Whether the store of a stopped shard's directory has all of its rows: it needs no log; raises as
    `read_descriptor`."""
    store = open_store(directory, {})
    try:
        return checkpoint.read_life(store).clean
    finally:
        store.close()


@contextmanager
def open_table(target: Shard | Path, name: str, *, writing: bool) -> Iterator[OpenTable]:
    """The table of a running shard, or of a stopped one's directory, for as long as the context lasts.

    Parameters
    ----------
    target, name
        The shard, and the table's name.
    writing
        False: a stopped shard's store is opened read-only.

    Raises
    ------
    UnknownTableError, DirectoryInUseError, StoreError
        No such table; a shard runs there; not stopped cleanly.
    """
    if isinstance(target, Shard):
        yield _of_running(target, name, writing)
        return
    check_no_restore(target)
    descriptor = read_descriptor(target)
    layout = descriptor.layouts.get(name)
    if layout is None:
        raise UnknownTableError(f"table {name!r} is unknown; {nearest(name, list(descriptor.layouts))}")
    if writing:
        store = open_store(target, descriptor.families(), read_only=False)
        try:
            yield _of_stopped(target, name, descriptor, store)
        finally:
            store.close()
        return
    with held(target):
        store = open_store(target, descriptor.families())
        try:
            yield _of_stopped(target, name, descriptor, store)
        finally:
            store.close()


def _of_running(shard: Shard, name: str, writing: bool) -> OpenTable:
    table, lsn = shard.table_at_lsn(name, writing=writing)
    tier = table.tier
    tier.write_back()
    return OpenTable(
        name=name, layout=table.layout, rows=tier.rows,
        directory=shard.directory, shard=shard.index, partition_map=shard.partition_map, lsn=lsn,
        state_of=state_of(table.config), initial_state=table.initial_state,
        commit=lambda ingest, added: tier.replace_stored(ingest, added, lsn),
    )  # fmt: skip


def _of_stopped(directory: Path, name: str, descriptor: Descriptor, store: Store) -> OpenTable:
    state, life = checkpoint.read(store), checkpoint.read_life(store)
    if not life.clean:
        raise StoreError(
            f"{directory}: was not stopped cleanly; start and stop its shard once to recover it, or export "
            "with --config, which replays its log beside it"
        )
    layout, rows = descriptor.layouts[name], store.families[f"row.{name}"]

    if rows.count is None:
        rows.count = state.rows.get(name)

    def commit(ingest: Callable[[], None], _added: int) -> None:
        checkpoint.note_row_format(store, name)
        ingest()

    return OpenTable(
        name=name, layout=layout, rows=rows,
        directory=directory, shard=descriptor.shard, partition_map=descriptor.partition_map(), lsn=state.lsn,
        state_of=descriptor.states.get(name),
        initial_state=None if layout.state_size else np.empty(0, np.float32), commit=commit,
    )  # fmt: skip
