# SPDX-License-Identifier: Apache-2.0
"""`psctl`: look at running shards and steer them, and work on the directories of stopped ones (offline.py).

It speaks the generated stubs to each endpoint in turn. Exit codes are those of the error tree
(rowhouse/error.py): 0 done, 2 a wrong request or table, 69 a shard did not answer, 74 its store failed.
Thread safety: a process's main thread.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table
from rowhouse.error import ERROR_METADATA_KEY, RowhouseError, from_status
from rowhouse.v1 import rowhouse_pb2 as pb
from rowhouse.v1 import rowhouse_pb2_grpc

from ps_server.command import plan_flag
from ps_server.config.endpoint import check_endpoint

_EXAMPLES: Final = """\
examples:
  psctl stats --endpoints 127.0.0.1:7470,127.0.0.1:7471
  psctl stats --endpoints 127.0.0.1:7470 --json
  psctl checkpoint --endpoints 127.0.0.1:7470,127.0.0.1:7471
  psctl freeze --endpoints 127.0.0.1:7470,127.0.0.1:7471 --table user --mode refuse
  psctl evict --endpoints 127.0.0.1:7470,127.0.0.1:7471 --table user
"""

_OFFLINE: Final = {
    "verify": "read everything that a stopped shard has on disk, and name what is damaged",
    "load": "load a table's rows from a Parquet file, all or none of it per shard",
    "export": "write a table's rows to a Parquet file",
}

_OFFLINE_EXAMPLES: Final = """\
examples, each on a stopped shard or data_dir:
  psctl verify data
  psctl verify data/shard-0000 --json
  psctl export data user --out user.parquet
  psctl load data user user.parquet
  psctl load data user user.parquet --config cluster.yaml   (a new data_dir, or rows without state)
"""

_MODES: Final = {
    "off": pb.FREEZE_MODE_OFF,
    "refuse": pb.FREEZE_MODE_REFUSE,
    "ignore": pb.FREEZE_MODE_IGNORE,
}

_CHANNEL_OPTIONS: Final = (("grpc.enable_http_proxy", 0),)  # a shard is never behind a web proxy

_PIPE_WIDTH: Final = 160
"""Columns of a table that goes to a file or a pipe, where nothing says how wide it may be."""

Facts = dict[str, Any]
"""One shard's answer, by field name; 64-bit integers as ints."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="psctl",
        description="Look at running shards and steer them; check, load and export stopped ones.",
        epilog=_EXAMPLES + _OFFLINE_EXAMPLES + plan_flag.EXAMPLES.removeprefix("examples:\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "stats": "live counters of each shard and table",
        "checkpoint": "write every dirty row to the store and drop the push log",
        "freeze": "stop pushes to a table, or allow them again; kept until the config's freeze changes",
        "evict": "run a table's eviction policies now",
    }
    for name, text in helps.items():
        command = commands.add_parser(
            name, help=text, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("--endpoints", required=True, metavar="HOST:PORT,…", type=_endpoints_flag)
        command.add_argument("--timeout-s", type=float, default=60.0, help="per shard (default 60)")
        command.add_argument("--json", action="store_true", help="print JSON instead of a table")
        if name in ("freeze", "evict"):
            command.add_argument("--table", required=True)
        if name == "freeze":
            command.add_argument("--mode", required=True, choices=sorted(_MODES))
    planning = commands.add_parser(
        "plan",
        help="bytes per row, machines and times of a cluster before it exists; --check measures them here",
        epilog=plan_flag.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan_flag.add_flags(planning)
    for name, text in _OFFLINE.items():
        command = commands.add_parser(
            name, help=text, epilog=_OFFLINE_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        _add_offline_flags(command, name)
    return parser


def _add_offline_flags(command: argparse.ArgumentParser, name: str) -> None:
    """Arguments of the commands of offline.py."""
    command.add_argument("directory", metavar="DIR", type=Path, help="a shard's directory, or a data_dir")
    if name != "verify":
        command.add_argument("table", metavar="TABLE")
    if name == "load":
        columns = "columns id, weights and, where the optimizer keeps any, state (ps_server/bulk/column.py)"
        command.add_argument("file", metavar="FILE", type=Path, help=f"Parquet file with {columns}")
        command.add_argument(
            "--config", metavar="FILE", help="the cluster's: makes the shards of a new DIR, and knows the "
            "optimizer's state of rows that come without it"
        )  # fmt: skip
    if name == "export":
        command.add_argument("--out", metavar="FILE", type=Path, required=True, help="Parquet file to write")
        command.add_argument("--overwrite", action="store_true", help="replace FILE if there is one")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _endpoints_flag(text: str) -> list[str]:
    endpoints = text.split(",")
    for endpoint in endpoints:
        try:
            check_endpoint(endpoint)
        except RowhouseError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return endpoints


def _request(arguments: argparse.Namespace) -> tuple[str, Any]:
    """The method's name and its request."""
    match arguments.command:
        case "stats":
            return "GetStats", pb.GetStatsRequest()
        case "checkpoint":
            return "CreateCheckpoint", pb.CreateCheckpointRequest()
        case "freeze":
            request = pb.SetTableFreezeRequest(table=arguments.table, mode=_MODES[arguments.mode])
            return "SetTableFreeze", request
        case _:
            return "EvictRows", pb.EvictRowsRequest(table=arguments.table)


def _call(endpoint: str, method: str, request: Any, timeout_s: float) -> Facts:
    with grpc.insecure_channel(endpoint, options=_CHANNEL_OPTIONS) as channel:
        stub = rowhouse_pb2_grpc.ParameterServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        try:
            answer = getattr(stub, method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            names = [m.value for m in error.trailing_metadata() or () if m.key == ERROR_METADATA_KEY]
            text = f"{endpoint}: {error.details()}"
            raise from_status(error.code(), text, str(names[0]) if names else None) from None
    return {"endpoint": endpoint, **_plain(answer)}


def _shard_count(arguments: argparse.Namespace) -> int:
    """Shards of the cluster, as the first one that answers has it; the number named when none does."""
    for endpoint in arguments.endpoints:
        try:
            answer = _call(endpoint, "GetCluster", pb.GetClusterRequest(), arguments.timeout_s)
        except RowhouseError:
            continue  # the command itself tells why
        return len(answer["endpoints"])
    return len(arguments.endpoints)


def _plain(message: Any) -> Facts:
    """A message as a dict, zeros included; protobuf's JSON writes 64-bit integers as strings, we do not."""
    facts = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _ordered(facts, message.DESCRIPTOR)


def _ordered(facts: Facts, descriptor: Any) -> Facts:
    """Fields in the order of the .proto; protobuf's JSON puts those that are zero last."""
    return {f.name: _number(facts[f.name], f) for f in descriptor.fields if f.name in facts}


def _number(value: Any, descriptor: Any) -> Any:
    if isinstance(value, list):
        if descriptor.message_type is None:
            return value
        return [_ordered(one, descriptor.message_type) for one in value]
    return int(value) if descriptor.cpp_type == descriptor.CPPTYPE_UINT64 else value


def _show_stats(answers: list[Facts], console: Console) -> None:
    shards = Table("shard", "endpoint", "applied", "durable", "checkpoint", "log", "memory", "of", "state")
    tables = Table("table", "shard", "rows", "hot", "dirty", "hit rate", "memory", "disk", "evicted", "state")
    for a in answers:
        state = f"poisoned: {a['poison']}" if a["poison"] else "healthy"
        lsns = [str(a[k]) for k in ("applied_lsn", "durable_lsn", "checkpoint_lsn")]
        sizes = [_size(a[k]) for k in ("log_bytes", "memory_used_bytes", "memory_budget_bytes")]
        shards.add_row(str(a["shard"]), a["endpoint"], *lsns, *sizes, state)
        for t in a["tables"]:
            rows = f"{t['rows']:,}" if t["rows_exact"] else f"~{t['rows']:,}"
            rate = f"{t['hot_hits'] / t['pulled_ids']:.1%}" if t["pulled_ids"] else "-"
            memory, disk = _size(t["record_bytes"] + t["index_bytes"]), _size(t["disk_bytes"])
            counts = [f"{t[k]:,}" for k in ("hot_rows", "dirty_rows")]
            frozen = "frozen" if t["frozen"] else "open"
            tables.add_row(
                t["name"],
                str(a["shard"]),
                rows,
                *counts,
                rate,
                memory,
                disk,
                f"{t['evicted_rows']:,}",
                frozen,
            )
    console.print(shards)
    console.print(tables)


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def _show_answers(answers: list[Facts], console: Console) -> None:
    table = Table(*answers[0])
    for answer in answers:
        table.add_row(*(str(v) for v in answer.values()))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `psctl`.

    Parameters
    ----------
    argv
        Arguments without the program's name; None takes those of the process.

    Returns
    -------
    int
        The exit code; of the worst shard, after all of them were asked.
    """
    arguments = _parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    if arguments.command == "plan":
        from ps_server.command import plan as plan_command  # noqa: PLC0415 # the same

        return plan_command.run(arguments, console)
    if arguments.command in _OFFLINE:
        # Imported here: the kernels take a second to load, and the other commands need none.
        from ps_server.command import offline  # noqa: PLC0415

        return offline.run(arguments, console)
    method, request = _request(arguments)
    if arguments.command != "stats":
        named, has = len(arguments.endpoints), _shard_count(arguments)
        if named != has:
            print(
                f"psctl: --endpoints names {named} of the cluster's {has} shards; {arguments.command} acts "
                "on those named only: name each of them once",
                file=sys.stderr,
            )
            return 2
    answers: list[Facts] = []
    told: list[Facts] = []  # with those that failed, so that a script finds each endpoint in its place
    exit_code = 0
    for endpoint in arguments.endpoints:
        try:
            answers.append(_call(endpoint, method, request, arguments.timeout_s))
            told.append(answers[-1])
        except RowhouseError as error:
            text = f"{type(error).__name__}: {error}"
            print(f"psctl: {text}", file=sys.stderr)
            told.append({"endpoint": endpoint, "error": text})
            exit_code = max(exit_code, error.exit_code)
    if arguments.json:
        print(json.dumps(told, indent=2))
    elif answers:
        show: Callable[[list[Facts], Console], None]
        show = _show_stats if arguments.command == "stats" else _show_answers
        show(answers, console)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
