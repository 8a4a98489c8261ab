# SPDX-License-Identifier: Apache-2.0
"""Export of a whole table: batches of columns, straight from the store.

Thread safety: as the shard's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
from rowhouse.error import UnknownTableError
from rowhouse.problem import nearest

from ps_server.bulk.column import schema_of, to_record_batch
from ps_server.bulk.open_table import open_table
from ps_server.disk.directory import read_descriptor
from ps_server.life.recovery import state_of
from ps_server.shard.shard import Shard

EXPORT_ROWS: Final = 65_536
"""Rows per exported batch."""


def export_schema(target: Shard | Path, table: str) -> pa.Schema:
    """Arrow schema of a table's export; raises as `export_table`."""
    if isinstance(target, Shard):
        config = target.table_at_lsn(table)[0].config
        return schema_of(config.layout, state_of(config))
    descriptor = read_descriptor(target)
    if table not in descriptor.layouts:
        raise UnknownTableError(f"table {table!r} is unknown; {nearest(table, list(descriptor.layouts))}")
    return schema_of(descriptor.layouts[table], descriptor.states.get(table))


def export_table(
    target: Shard | Path, table: str, *, batch_rows: int = EXPORT_ROWS
) -> Iterator[pa.RecordBatch]:
    """Every row of a table, in the order of the mixed keys, as they were when the export began.

    Parameters
    ----------
    target
        A running shard (its dirty rows are written back first; pushes go on), or the directory of one
        that was stopped cleanly.
    table
        Its name.
    batch_rows
        Rows per batch, at most.

    Yields
    ------
    pyarrow.RecordBatch
        Columns `id` uint64, `weights` and `state` fixed-size lists (float16 weights where the table has
        them, else float32; no `state` where the optimizer keeps none), the metadata that the table's
        policies read (column.py), `lsn` uint64.

    Raises
    ------
    UnknownTableError, DirectoryInUseError, StoreError
        No such table; a shard runs there; not stopped cleanly. CorruptionError: rows before the damage
        were yielded.
    """
    with open_table(target, table, writing=False) as opened:
        schema = schema_of(opened.layout, opened.state_of)
        for keys, values in opened.rows.scan(batch_rows):
            yield to_record_batch(keys, values, opened.layout, schema)
