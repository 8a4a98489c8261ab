# SPDX-License-Identifier: Apache-2.0
"""AUC of trained runs on the test part, from what the shards hold now.

    python -m examples.evaluate --example click --endpoints 127.0.0.1:7470,127.0.0.1:7471 \\
        --ids build/demo/ids --out build/click --runs with-0 --plain-tables

prints one JSON object per line, {"run": "with-0", "auc": 0.78}. One thread, one order, read-only pulls: rows
that are bit for bit the same give an AUC that is the same to the last digit.
Thread safety: a process's main thread.
"""

import argparse
import json
import sys
from collections.abc import Sequence

import torch

from examples.cluster import PATIENCE_S
from examples.dataset import read
from examples.metric import auc
from examples.model import Dense, Rows
from examples.recipe import Example
from examples.train import add_flags, dense_path, parse_runs, score
from ps_client import connect


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; `argv` without the program's name, None takes the process's. The exit code."""
    parser = argparse.ArgumentParser(prog="examples.evaluate", description="Evaluate trained runs.")
    add_flags(parser)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    recipe = Example(arguments.example).recipe
    runs = parse_runs(arguments.runs, not arguments.plain_tables)
    test = read(arguments.ids / "test.parquet", recipe.features())
    with connect(arguments.endpoints, timeout_s=PATIENCE_S) as client:
        for run in runs:
            dense = Dense(recipe, run)
            dense.load_state_dict(torch.load(dense_path(arguments.out, run), weights_only=True))
            value = auc(test.labels, score(Rows(client, recipe, run), dense, test))
            print(json.dumps({"run": run.name, "auc": value}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
