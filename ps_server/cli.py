# SPDX-License-Identifier: Apache-2.0
"""`ps-server`: run one shard (`serve`) or a whole local cluster (`up`), or put saved tables back (`restore`).

Exit codes: 0 stopped cleanly; 2 a wrong flag, config or endpoint; 69 a shard died too often; 74 the data
directory or a write to it failed; 1 anything else. Thread safety: a process's main thread.
"""

import argparse
import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rowhouse.error import RowhouseError, StoreError, UnavailableError

from ps_server.config.cluster import ClusterConfig, load_config, shard_directory
from ps_server.disk.directory import claim_data_dir
from ps_server.life.saved import check_no_restore, restore_tables
from ps_server.serve.server import Server, StopFlag
from ps_server.serve.service import ServedShard
from ps_server.serve.supervisor import Supervisor

_PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that this process gets when its parent dies."""

_PROGRESS_S: Final = 5.0
"""How often a recovery tells how far it has come."""

_EXAMPLES: Final = """\
examples:
  ps-server up --config cluster.yaml
  ps-server up --config cluster.yaml --durability fsync --memory-budget 4GiB
  ps-server up --config cluster.yaml --host unix:/run/rowhouse   (socket files in that folder)
  ps-server serve --config cluster.yaml --shard 0
  ps-server restore --config cluster.yaml --name state-3f2a   (the cluster must be stopped)

a config that works:
  data_dir: data
  shards: 2
  tables:
    - name: user
      dim: 16
      optimizer: {kind: adagrad, learning_rate: 0.05}
"""

_log = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ps-server",
        description="Serve embedding tables from memory and RocksDB.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run one shard in this process")
    serve.add_argument("--shard", type=int, required=True, help="index of the shard, from 0")
    serve.add_argument("--parent-pid", type=int, help="stop when this parent process ends (`up` sets it)")
    serve.add_argument("--quiet", action="store_true", help="do not print the resolved config")
    up = commands.add_parser("up", help="run every shard as a child process, and restart those that die")
    up.add_argument("--json", action="store_true", help="print the endpoints as one line of JSON")
    restore = commands.add_parser("restore", help="put saved tables in the place of a stopped cluster's")
    restore.add_argument("--name", required=True, help="what they were saved as")
    for command in (serve, up, restore):
        command.epilog, command.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
        _add_config_flags(command)
    return parser


def _add_config_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of the cluster")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    group = parser.add_argument_group("instead of the config's value")
    group.add_argument("--data-dir", metavar="DIR")
    group.add_argument("--shards", metavar="COUNT|HOST:PORT,…|unix:/PATH,…", type=_shards_flag)
    group.add_argument("--host", metavar="HOST|unix:/FOLDER")
    group.add_argument("--base-port", metavar="PORT", type=int)
    group.add_argument("--data-port", metavar="auto|off|PORT", type=_data_port_flag)
    group.add_argument("--durability", metavar="none|os|fsync")
    group.add_argument("--memory-budget", metavar="SIZE")
    group.add_argument("--checkpoint-log-bytes", metavar="SIZE")
    group.add_argument("--worker-threads", metavar="COUNT", type=int)


def _data_port_flag(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _shards_flag(text: str) -> int | list[str]:
    return int(text) if text.isdigit() else text.split(",")


_OVERRIDES: Final = (
    "data_dir", "shards", "host", "base_port", "data_port", "durability", "memory_budget",
    "checkpoint_log_bytes", "worker_threads",
)  # fmt: skip


def _config_from(arguments: argparse.Namespace) -> ClusterConfig:
    given = {key: getattr(arguments, key) for key in _OVERRIDES}
    return load_config(arguments.config, {k: v for k, v in given.items() if v is not None})


def _follow_parent(parent_pid: int) -> None:
    """Have the kernel send SIGTERM when the parent dies; it may have died before we asked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:
        raise UnavailableError(f"parent process {parent_pid} is gone")


def _open_shard(config: ClusterConfig, index: int, directory: Path) -> ServedShard:
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

    return Shard.open(config, index, directory, progress=progress)


def _serve(arguments: argparse.Namespace, flag: StopFlag) -> None:
    if arguments.parent_pid is not None:
        _follow_parent(arguments.parent_pid)
    config = _config_from(arguments)
    claim_data_dir(config.data_dir, config.shard_count)
    began_s = time.monotonic()
    server = Server(config, arguments.shard, _open_shard)
    server.start()
    if not arguments.quiet:
        _show_config(config)
    took_s = time.monotonic() - began_s
    print(f"shard {arguments.shard} serves at {server.endpoint} (started in {took_s:.1f} s)", flush=True)
    try:
        server.run(flag)
    finally:
        server.stop()
    print(f"shard {arguments.shard} stopped", flush=True)


def _up(arguments: argparse.Namespace, flag: StopFlag) -> None:
    config = _config_from(arguments)
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


def _announce(config: ClusterConfig, as_json: bool) -> None:
    """Print the config and the endpoints of a cluster that serves."""
    if as_json:
        facts: dict[str, Any] = {"endpoints": list(config.endpoints), "data_dir": str(config.data_dir)}
        print(json.dumps(facts), flush=True)
        return
    _show_config(config)
    table = Table("shard", "endpoint", title=f"{config.name}: {config.shard_count} shards serve")
    for index, endpoint in enumerate(config.endpoints):
        table.add_row(str(index), endpoint)
    Console().print(table)
    print(f'ps_client.connect("{",".join(config.endpoints)}")', flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `ps-server`.

    Parameters
    ----------
    argv
        Arguments without the program's name; None takes those of the process.

    Returns
    -------
    int
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    who = f"shard {arguments.shard}" if arguments.command == "serve" else arguments.command
    of_many = getattr(arguments, "parent_pid", None) is not None  # `up` shows what all its shards say
    name = f"ps-server: {who}" if of_many else "ps-server"
    logging.basicConfig(level=arguments.log_level, format=f"%(asctime)s {who} %(levelname)s %(message)s")
    try:
        with StopFlag().on_signals() as flag:
            {"serve": _serve, "up": _up, "restore": _restore}[arguments.command](arguments, flag)
    except RowhouseError as error:
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return StoreError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
