# SPDX-License-Identifier: Apache-2.0
"""`psctl export`: a table's rows to a Parquet file, from stopped shards, saved copies, or running shards.

An export of stopped shards, or of a saved copy, is of one moment. An export of running shards is not: pushes
go on, so each row is as it was at some moment of the export (ps_server/shard/listing.py). The report tells
the range of each shard's LSNs.

Thread safety: a process's main thread.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rowhouse.error import InvalidRequestError, StoreError, UnknownTableError
from rowhouse.mix import mix64
from rowhouse.problem import nearest
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.transport.grpc import GrpcTransport
from ps_server.bulk.column import schema_of, to_record_batch
from ps_server.bulk.export import export_schema, export_table
from ps_server.bulk.recovered import exportable
from ps_server.command.offline import directories_of, progress_of, show_facts
from ps_server.command.online import ask
from ps_server.config.cluster import load_config
from ps_server.life.recovery import state_of
from ps_server.shard.listing import from_message
from ps_server.table.config import TableConfig

Facts: TypeAlias = dict[str, Any]
Source: TypeAlias = tuple[Facts, Callable[[], Iterator[pa.RecordBatch]]]
"""What is reported of a shard, to which the export adds, and how its rows are read."""


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Carry out export as psctl.py has parsed it; returns the exit code."""
    if arguments.out.exists() and not arguments.overwrite:
        raise InvalidRequestError(f"--out: {arguments.out} is there already; name another, or --overwrite")
    live = arguments.endpoints is not None
    if live == (arguments.directory is not None):
        raise InvalidRequestError("name the directory of stopped shards, or running ones by --endpoints")
    if live and (arguments.saved or arguments.config):
        raise InvalidRequestError("--saved and --config go with a directory, not with --endpoints")
    schema, sources = (_running if live else _stopped)(arguments)
    unfinished = arguments.out.with_name(arguments.out.name + ".unfinished")
    try:
        with progress_of(arguments) as progress, pq.ParquetWriter(unfinished, schema) as writer:
            for facts, read in sources:
                task = progress.add_task(f"{facts['shard']} {arguments.table}", total=None)
                facts["rows"] = 0
                for batch in read():
                    writer.write_batch(batch)
                    facts["rows"] += batch.num_rows
                    progress.update(task, completed=facts["rows"])
        unfinished.replace(arguments.out)
    except OSError as error:
        raise StoreError(f"{arguments.out}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    show_facts([facts for facts, _ in sources], arguments, console)
    return 0


def _stopped(arguments: argparse.Namespace) -> tuple[pa.Schema, list[Source]]:
    directories = directories_of(arguments)
    config = (
        load_config(arguments.config, {"data_dir": str(arguments.directory)}) if arguments.config else None
    )

    def source(directory: Any) -> Source:
        def read() -> Iterator[pa.RecordBatch]:
            with exportable(directory, config) as place:
                yield from export_table(place, arguments.table)

        return {"shard": directory.name}, read

    return export_schema(directories[0], arguments.table), [source(path) for path in directories]


def _running(arguments: argparse.Namespace) -> tuple[pa.Schema, list[Source]]:
    """Every shard of a cluster, each of which must be named once."""
    tables: list[TableConfig] = []
    shards: dict[int, str] = {}
    for endpoint in arguments.endpoints:
        with closing(GrpcTransport(endpoint)) as transport:
            cluster = ask(transport, "GetCluster", pb.GetClusterRequest(), arguments.timeout_s)
        shards[cluster.shard] = endpoint
        tables = [TableConfig.model_validate_json(table.config_json) for table in cluster.tables]
    if len(shards) != len(cluster.endpoints) or len(shards) != len(arguments.endpoints):
        raise InvalidRequestError(
            f"--endpoints names {len(shards)} of the cluster's {len(cluster.endpoints)} shards; an export "
            "takes all of them: name each of them once"
        )
    config = next((table for table in tables if table.name == arguments.table), None)
    if config is None:
        names = [table.name for table in tables]
        raise UnknownTableError(f"table {arguments.table!r} is unknown; {nearest(arguments.table, names)}")
    schema = schema_of(config.layout, state_of(config))

    def source(index: int, endpoint: str) -> Source:
        facts: Facts = {"shard": f"shard-{index:04d}", "rows": 0, "first_lsn": 0, "last_lsn": 0}
        return facts, lambda: _pages(endpoint, config, schema, arguments.timeout_s, facts)

    return schema, [source(index, endpoint) for index, endpoint in sorted(shards.items())]


def _pages(
    endpoint: str, config: TableConfig, schema: pa.Schema, timeout_s: float | None, facts: Facts
) -> Iterator[pa.RecordBatch]:
    """Pages of a running shard's rows."""
    first_key, begun = 0, False
    with closing(GrpcTransport(endpoint)) as transport:
        while first_key or not begun:
            request = pb.ListRowsRequest(table=config.name, first_key=first_key)
            page = ask(transport, "ListRows", request, timeout_s)
            facts["last_lsn"] = page.lsn_after
            facts["first_lsn"] = facts["first_lsn"] if begun else page.lsn_before
            ids, values = from_message(page.rows, config.layout)
            yield to_record_batch(mix64(ids), values, config.layout, schema)
            first_key, begun = page.next_key, True
