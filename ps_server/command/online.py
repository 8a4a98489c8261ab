# SPDX-License-Identifier: Apache-2.0
"""The commands of psctl that look at running shards and steer them: each shard is asked, one after the other.

They ask over the client's transport. Exit codes are those of the error tree (rowhouse/error.py): 0 done, 2 a
wrong request or table, 69 a shard did not answer, 74 its store failed.
Thread safety: a process's main thread.
"""

import argparse
import json
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rowhouse.control import FREEZE_MODES
from rowhouse.error import RowhouseError
from rowhouse.problem import counted
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.long_call import ask_until_ended, give_ticket
from ps_client.report import checkpoint_of, shard_stats
from ps_client.retry import Retry
from ps_client.transport.grpc import GrpcTransport

ANSWER_S: Final = 60.0
"""How long a shard may give no answer, unless --timeout-s says how long."""

Facts = dict[str, Any]
"""One shard's answer, by field name, in the order of the .proto."""

_FACTS: Final[dict[str, Callable[[Any], Facts]]] = {
    "GetCluster": lambda answer: {"endpoints": list(answer.endpoints)},
    "GetStats": lambda answer: asdict(shard_stats(answer)),
    "CreateCheckpoint": lambda answer: asdict(checkpoint_of(answer)),
    "SetTableFreeze": lambda _: {},
    "EvictRows": lambda answer: {"rows_evicted": answer.rows_evicted},
}


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Carry out stats, checkpoint, freeze or evict as psctl.py has parsed it.

    Parameters
    ----------
    arguments
        Of psctl.py.
    console
        Where tables for people go.

    Returns
    -------
    int
        The exit code; of the worst shard, after all of them were asked.
    """
    method, request = _request(arguments)
    if arguments.command != "stats":
        named, has = len(arguments.endpoints), _shard_count(arguments)
        if named != has:
            print(
                f"psctl: --endpoints names {named} of the cluster's {counted(has, 'shard')}; "
                f"{arguments.command} acts on those named only: name each of them once",
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
            text = f"{type(error).__name__}: {str(error).removeprefix('shard at ')}"
            print(f"psctl: {text}", file=sys.stderr)
            told.append({"endpoint": endpoint, "error": text})
            exit_code = max(exit_code, error.exit_code)
    if arguments.json:
        print(json.dumps(told, indent=2))
    elif answers:
        show = _show_stats if arguments.command == "stats" else _show_answers
        show(answers, console)
    return exit_code


def _request(arguments: argparse.Namespace) -> tuple[str, Any]:
    """The method's name and its request."""
    match arguments.command:
        case "stats":
            return "GetStats", pb.GetStatsRequest()
        case "checkpoint":
            return "CreateCheckpoint", pb.CreateCheckpointRequest()
        case "freeze":
            request = pb.SetTableFreezeRequest(table=arguments.table, mode=FREEZE_MODES[arguments.mode])
            return "SetTableFreeze", request
        case _:
            return "EvictRows", pb.EvictRowsRequest(table=arguments.table)


def _call(endpoint: str, method: str, request: Any, timeout_s: float | None) -> Facts:
    with closing(GrpcTransport(endpoint)) as transport:
        return {"endpoint": endpoint, **_FACTS[method](ask(transport, method, request, timeout_s))}


def ask(transport: GrpcTransport, method: str, request: Any, timeout_s: float | None) -> Any:
    """A shard's answer; a long call takes what it takes, `timeout_s` at most."""
    if hasattr(request, "ticket"):
        give_ticket(request)
    call, retry = partial(transport.call, method, request), Retry(timeout_s=ANSWER_S)
    return ask_until_ended(call, retry, timeout_s, threading.Event(), patient=False)


def _shard_count(arguments: argparse.Namespace) -> int:
    """Shards of the cluster, as the first one that answers has it; the number named when none does."""
    for endpoint in arguments.endpoints:
        try:
            answer = _call(endpoint, "GetCluster", pb.GetClusterRequest(), arguments.timeout_s)
        except RowhouseError:
            continue  # the command itself tells why
        return len(answer["endpoints"])
    return len(arguments.endpoints)


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
            frozen = f"frozen: {t['freeze']}" if t["frozen"] else "open"
            where, evicted = (t["name"], str(a["shard"])), f"{t['evicted_rows']:,}"
            tables.add_row(*where, rows, *counts, rate, memory, disk, evicted, frozen)
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
