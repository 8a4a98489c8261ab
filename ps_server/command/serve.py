# SPDX-License-Identifier: Apache-2.0
"""The commands of `ps-server`: serve one shard, run a whole local cluster, put saved tables back.

Thread safety: a process's main thread.
"""

import argparse
import ctypes
import json
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.table import Table
from rowhouse.error import ConfigError, UnavailableError
from rowhouse.program import screen, show_table

from ps_server.config.cluster import ClusterConfig, load_config, shard_directory
from ps_server.config.endpoint import as_told, socket_path, split_endpoint
from ps_server.config.memory import check_memory
from ps_server.disk.data_dir import claim_data_dir, has_cluster_id
from ps_server.life.saved import check_no_restore, restore_tables
from ps_server.serve.server import Server, StopFlag
from ps_server.serve.service import ServedShard
from ps_server.serve.supervisor import Supervisor

_PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that this process gets when its parent dies."""

_PROGRESS_S: Final = 5.0
"""How often a recovery tells how far it has come."""

_OVERRIDES: Final = (
    "data_dir", "shards", "host", "base_port", "data_port", "durability", "memory_budget",
    "checkpoint_log_bytes", "worker_threads",
)  # fmt: skip

_log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> None:
    """Carry out serve, up or restore as cli.py has parsed it, until it ends or a signal asks for its end."""
    with StopFlag().on_signals() as flag:
        {"serve": _serve, "up": _up, "restore": _restore}[arguments.command](arguments, flag)


def _config_from(arguments: argparse.Namespace) -> ClusterConfig:
    given = {key: getattr(arguments, key) for key in _OVERRIDES}
    return load_config(arguments.config, {k: v for k, v in given.items() if v is not None})


def _follow_parent(parent_pid: int) -> None:
    """Have the kernel send SIGTERM when the parent dies; it may have died before we asked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:
        raise UnavailableError(f"parent process {parent_pid} is gone")


def _open_shard(flag: StopFlag, config: ClusterConfig, index: int, directory: Path) -> ServedShard:
    """Warm the kernels, open the shard, and say every few seconds how far a long recovery has come."""
    # Imported here: `up` runs no shard, and the kernels take a second to load.
    from ps_server.serve.warmup import warm_up  # noqa: PLC0415
    from ps_server.shard.shard import Shard  # noqa: PLC0415

    check_no_restore(directory)
    warm_up(config)
    told_s = time.monotonic()

    def progress(records: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _PROGRESS_S:
            told_s = time.monotonic()
            _log.info("recovering: %d log records replayed", records)

    with _ending_at_once(flag):
        return Shard.open(config, index, directory, progress=progress)


@contextmanager
def _ending_at_once(flag: StopFlag) -> Iterator[None]:
    """A signal ends the process at once meanwhile: RocksDB may be busy where no handler of Python's runs, and
    a shard that is not open yet has acknowledged nothing."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if flag.requested:
            os.kill(os.getpid(), signal.SIGTERM)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(arguments: argparse.Namespace, flag: StopFlag) -> None:
    if arguments.parent_pid is not None:
        _follow_parent(arguments.parent_pid)
    config = _config_from(arguments)
    check_one_id(config)
    if arguments.parent_pid is None:  # else `up` has looked, for all of its shards
        check_memory(config)
    claim_data_dir(config.data_dir, config.shard_count, config.cluster_id)
    began_s = time.monotonic()
    server = Server(config, arguments.shard, partial(_open_shard, flag))
    server.start()
    if not arguments.quiet:
        _show_config(config)
    took_s = time.monotonic() - began_s
    print(f"shard {arguments.shard} serves at {server.endpoint} (started in {took_s:.1f} s)", flush=True)
    try:
        server.run(flag, poison_ends=arguments.parent_pid is not None)  # `up` starts it again
    finally:
        server.stop()
    print(f"shard {arguments.shard} stopped", flush=True)


def check_one_id(config: ClusterConfig) -> None:
    """ConfigError where each machine would make an id of its own for one cluster, and clients refuse that."""
    hosts = {split_endpoint(e)[0] for e in config.endpoints if socket_path(e) is None}
    if len(hosts) > 1 and config.cluster_id is None and not has_cluster_id(config.data_dir):
        raise ConfigError(
            f"shards are on several machines ({', '.join(sorted(hosts)[:3])}, …), so the cluster's id cannot "
            f"be made by one of them. Add to the config of all of them: cluster_id: {secrets.token_hex(16)}"
        )


def _up(arguments: argparse.Namespace, flag: StopFlag) -> None:
    config = _config_from(arguments)
    check_memory(config, config.shard_count)
    supervisor = Supervisor(config, on_healthy=lambda resolved: _announce(resolved, arguments.json))
    supervisor.run(flag)
    _log.info("all shards stopped")


def _restore(arguments: argparse.Namespace, _flag: StopFlag) -> None:
    config = _config_from(arguments)
    directories = [shard_directory(config, index) for index in range(config.shard_count)]
    for directory, lsn in zip(directories, restore_tables(directories, arguments.name), strict=True):
        print(f"{directory}: restored to {arguments.name!r}, LSN {lsn}")


def _show_config(config: ClusterConfig) -> None:
    """Print what runs, once it runs: before, it would bury the reason why it does not."""
    print(f"# resolved config\n{config.to_yaml()}", flush=True)


def _reachable(endpoint: str) -> str:
    """Where clients reach a shard: one that listens on every address, by the name of this machine."""
    told = as_told(endpoint)
    return socket.gethostname() + told if told.startswith(":") else told


def _announce(config: ClusterConfig, as_json: bool) -> None:
    """Print the config and the endpoints of a cluster that serves."""
    if as_json:
        facts: dict[str, Any] = {"endpoints": list(config.endpoints), "data_dir": str(config.data_dir)}
        print(json.dumps(facts), flush=True)
        return
    _show_config(config)
    serve = "1 shard serves" if config.shard_count == 1 else f"{config.shard_count} shards serve"
    table = Table("shard", "endpoint", title=f"{config.name}: {serve}")
    for index, endpoint in enumerate(config.endpoints):
        table.add_row(str(index), endpoint)
    show_table(table, screen())
    print(f'ps_client.connect("{",".join(map(_reachable, config.endpoints))}")', flush=True)
