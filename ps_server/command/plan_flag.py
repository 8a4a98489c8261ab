# SPDX-License-Identifier: Apache-2.0
"""Flags of `psctl plan`, apart from the work (plan_command.py), which loads kernels to know a row's layout.

Thread safety: pure.
"""

import argparse
from pathlib import Path
from typing import Final

EXAMPLES: Final = """\
examples:
  psctl plan                                         (what 72 and 40 bytes become)
  psctl plan --rows 14e9 --dim 16 --optimizer adagrad --share 0.1 --shards 64
  feature-cross estimate features.yaml data.parquet --json > estimate.json
  psctl plan --estimate estimate.json --shards 8 --share 0.2 --json
  psctl plan --config cluster.yaml --rows user=2e9,item=5e7
  psctl plan --check                                 (a few minutes: measures here, prints the error)
"""

CHECK_ROWS: Final = 1_000_000
EVICTION_KINDS: Final = ("ttl", "least_frequent", "l2_norm", "show_click")


def add_flags(command: argparse.ArgumentParser) -> None:
    """Flags of `psctl plan`."""
    command.add_argument("--rows", metavar="ROWS", help="14e9 or 14B; with --config NAME=ROWS,…")
    command.add_argument(
        "--estimate", metavar="FILE", type=Path, help="what `feature-cross estimate --json` printed"
    )
    command.add_argument("--config", metavar="FILE", help="the cluster's: its tables, shards and log")
    command.add_argument("--dim", type=int, help="weights per row (16, or what the estimate says)")
    command.add_argument(
        "--dtype", choices=["fp32", "fp16", "bf16"], help="(fp32, or what the estimate says)"
    )
    command.add_argument("--optimizer", metavar="KIND", help="(adagrad, or what the estimate says)")
    command.add_argument("--eviction", metavar="KIND,…", default="", help=f"of {', '.join(EVICTION_KINDS)}")
    command.add_argument(
        "--admission-bits", type=int, metavar="BITS", help="width_bits of a min_count admission"
    )
    command.add_argument("--shards", type=int, help="shard processes (1, or the config's)")
    command.add_argument("--share", type=float, default=1.0, help="share of the rows in memory (default 1)")
    command.add_argument(
        "--machine-memory", metavar="SIZE", default="256GiB", help="of one machine, for shards"
    )
    command.add_argument("--machine-disk", metavar="SIZE", default="4TB", help="of one machine, for shards")
    command.add_argument("--log", metavar="SIZE", help="checkpoint_log_bytes (512MiB, or the config's)")
    command.add_argument(
        "--constants", metavar="FILE", type=Path, help="measured runs (default: those shipped)"
    )
    command.add_argument("--check", action="store_true", help="measure rows here and print the plan's error")
    command.add_argument(
        "--check-rows", type=int, metavar="ROWS", default=CHECK_ROWS, help="rows of a measurement"
    )
    command.add_argument(
        "--folder", metavar="DIR", type=Path, help="where --check writes; a temporary one else"
    )
    command.add_argument(
        "--save", metavar="FILE", type=Path, help="with --check: keep the runs, for --constants"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
