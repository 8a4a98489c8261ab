# SPDX-License-Identifier: Apache-2.0
"""table.memory_per_row.*: what one more hot row really takes.

The process's resident memory is read after a small number of rows and after many; the growth between
them holds records, index and whatever growing left behind, and not the interpreter. Beside it stands
what the shard charged to its budget for the same rows. The goal is on both.
"""

from typing import Final

import psutil

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.embedded import SGD, create_rows, embedded_scratch, table_config
from ps_client.client import Client

BASE_ROWS: Final = 100_000
"""Enough that kernels are compiled, buffers are as large as a push needs, and huge pages are in use."""

RAW_BYTES: Final = {"fp32": 72.0, "fp16": 40.0}
"""A 64-bit id and 16 weights."""


def _charged_bytes(client: Client) -> int:
    return client.stats()[0].memory_used_bytes


def measure(settings: Settings, name: str, dtype: str, goal: Goal) -> list[Bar]:
    """Bytes per hot row of a table without optimizer state."""
    process = psutil.Process()
    rows = max(settings.ids, 4 * BASE_ROWS)
    raw = RAW_BYTES[dtype]
    config = table_config(SGD, dtype=dtype, durability="none")
    with embedded_scratch(settings, "table", config) as client:
        create_rows(client, BASE_ROWS)
        resident, charged = process.memory_info().rss, _charged_bytes(client)
        create_rows(client, rows, start=BASE_ROWS)
        grown = process.memory_info().rss - resident
        charged = _charged_bytes(client) - charged
        table = client.stats()[0].tables[0]
        detail = {
            "rows": rows, "hot_rows": table.hot_rows, "record_bytes": table.record_bytes,
            "index_bytes": table.index_bytes,
        }  # fmt: skip
        if table.hot_rows != rows:
            raise ValueError(f"{name}: {table.hot_rows} rows are hot; all {rows} must be")
    added = rows - BASE_ROWS
    peer = f"the id and the {dtype} weights alone"
    return [
        make_bar(
            name, f"resident memory per hot row, {dtype} SGD", "B/row", goal, [grown / added], peer,
            ratio_to=raw, detail=detail,
        ),
        make_bar(
            f"{name}.budget", f"budget charged per hot row, {dtype} SGD", "B/row", goal, [charged / added],
            peer, ratio_to=raw,
        ),
    ]  # fmt: skip
