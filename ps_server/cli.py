# SPDX-License-Identifier: Apache-2.0
"""`ps-server`: run one shard (`serve`) or a whole local cluster (`up`), or put saved tables back (`restore`).

This module parses; the commands are in command/serve.py. Exit codes: 0 stopped cleanly; 2 a wrong flag,
config or endpoint; 69 a shard died too often; 74 the data directory or a write to it failed; 1 anything else.
Thread safety: a process's main thread.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from rowhouse.program import run_program

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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `ps-server`; returns the exit code. `argv` is without the program's name."""
    arguments = _parser().parse_args(argv)
    who = f"shard {arguments.shard}" if arguments.command == "serve" else arguments.command
    of_many = getattr(arguments, "parent_pid", None) is not None  # `up` shows what all its shards say
    name = f"ps-server: {who}" if of_many else "ps-server"
    logging.basicConfig(level=arguments.log_level, format=f"%(asctime)s {who} %(levelname)s %(message)s")
    # Imported when the command runs: pydantic, gRPC and kernels take a second to load, and --help needs none.
    return run_program(name, lambda: import_module("ps_server.command.serve").run(arguments))


if __name__ == "__main__":
    sys.exit(main())
