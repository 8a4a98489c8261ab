# SPDX-License-Identifier: Apache-2.0
"""`psctl rows`: list, read, assign and delete rows of a running cluster, by the client's calls.

Thread safety: a process's main thread.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rowhouse import dtype
from rowhouse.error import InvalidRequestError
from rowhouse.problem import counted, id_in
from rowhouse.program import show_table

from ps_client import Client, Rows, connect
from ps_client.row import PART_ROWS
from ps_client.table import find_table
from ps_server.bulk.column import RESETTABLE, columns_of
from ps_server.command.offline import progress_of
from ps_server.life.recovery import state_of
from ps_server.table.config import TableConfig

SHOWN_WEIGHTS: Final = 4
"""Weights of a row that a table for people has; --json has all of them."""


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Carry out a command of `psctl rows` as psctl.py has parsed it; returns the exit code."""
    timeout = {} if arguments.timeout_s is None else {"timeout_s": arguments.timeout_s}
    with connect(",".join(arguments.endpoints), **timeout) as client:
        match arguments.action:
            case "list":
                found = client.list_rows(arguments.table)
                _show(islice(_one_by_one(found), arguments.limit), arguments, console)
            case "read":
                rows = client.read_rows(arguments.table, np.array(arguments.ids, np.uint64))
                _show(_one_by_one([rows]), arguments, console)
            case "assign":
                _assign(client, arguments, console)
            case _:
                return _delete(client, arguments, console)
    return 0


def _one_by_one(pages: Iterable[Rows]) -> Iterator[dict[str, Any]]:
    for page in pages:
        columns = page.columns()
        for place in range(len(page)):
            yield {name: array[place].tolist() for name, array in columns.items()}


def _show(rows: Iterator[dict[str, Any]], arguments: argparse.Namespace, console: Console) -> None:
    named = [{"id": row.pop("ids"), **row} for row in rows]
    if arguments.json:
        print(json.dumps(named))
        return
    if not named:
        console.print("no rows")
        return
    table = Table(*named[0])
    for row in named:
        table.add_row(*(_text(value) for value in row.values()))
    show_table(table, console)


def _text(value: Any) -> str:
    if not isinstance(value, list):
        return f"{value:g}" if isinstance(value, float) else str(value)
    shown = " ".join(f"{number:.4g}" for number in value[:SHOWN_WEIGHTS])
    return f"{shown} … ({len(value)})" if len(value) > SHOWN_WEIGHTS else shown


def _assign(client: Client, arguments: argparse.Namespace, console: Console) -> None:
    declared = find_table(client.tables, arguments.table)
    config = TableConfig.model_validate_json(json.dumps(dict(declared.config)))
    try:
        with pq.ParquetFile(arguments.file) as file, progress_of(arguments) as progress:
            task = progress.add_task(f"assign {arguments.table}", total=file.metadata.num_rows)
            for batch in file.iter_batches(PART_ROWS):
                missing = [name for name in RESETTABLE if name not in batch.schema.names]
                columns = columns_of(
                    batch, config.layout, config.name, state_of=state_of(config), reset=missing
                )
                client.assign(
                    config.name, columns.ids, dtype.widen(columns.weights, config.layout.dtype),
                    state=columns.state, shows=columns.metadata.get("shows"),
                    clicks=columns.metadata.get("clicks"),
                )  # fmt: skip
                progress.advance(task, batch.num_rows)
            total = file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise InvalidRequestError(f"{arguments.file}: cannot be read as Parquet: {error}") from None
    _tell({"table": config.name, "assigned": total}, arguments, console)


def _delete(client: Client, arguments: argparse.Namespace, console: Console) -> int:
    ids = np.unique(np.concatenate([np.array(arguments.ids, np.uint64), _ids_in(arguments.ids_from)]))
    if not ids.shape[0]:
        raise InvalidRequestError("name the ids to delete, or a file of them by --ids-from")
    there = sum(len(client.read_rows(arguments.table, part)) for part in _parts(ids))
    if not arguments.yes and not _agreed(f"delete {counted(there, 'row')} of table {arguments.table!r}?"):
        print("psctl: nothing was deleted; --yes deletes without asking", file=sys.stderr)
        return 2
    with progress_of(arguments) as progress:
        task = progress.add_task(f"delete from {arguments.table}", total=ids.shape[0])
        for part in _parts(ids):
            client.delete(arguments.table, part)
            progress.advance(task, part.shape[0])
    facts = {"table": arguments.table, "deleted": there, "without_row": int(ids.shape[0]) - there}
    _tell(facts, arguments, console)
    return 0


def _parts(ids: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    return (ids[start : start + PART_ROWS] for start in range(0, ids.shape[0], PART_ROWS))


def _ids_in(path: Any) -> NDArray[np.uint64]:
    """The ids of a text file, one on each line."""
    if path is None:
        return np.empty(0, np.uint64)
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: {error}") from None
    ids = [id_in(word) for word in words]
    if None in ids:
        number = ids.index(None)
        raise InvalidRequestError(f"{path}: word {number + 1} is {words[number]!r}; an id is 0 to 2^64 - 1")
    return np.array(ids, np.uint64)


def _agreed(question: str) -> bool:
    return sys.stdin.isatty() and input(f"psctl: {question} [y/N] ").strip().lower() in ("y", "yes")


def _tell(facts: dict[str, Any], arguments: argparse.Namespace, console: Console) -> None:
    if arguments.json:
        print(json.dumps(facts))
        return
    table = Table(*facts)
    table.add_row(*(str(value) for value in facts.values()))
    show_table(table, console)
