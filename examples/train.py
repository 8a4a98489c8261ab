# SPDX-License-Identifier: Apache-2.0
"""Train runs of an example, one after another, by the trainer processes that torchrun starts.

Each trainer takes every world-size-th example of the epoch's order and pushes its own gradients to the
shards; the dense part is averaged by DDP over gloo. The first trainer saves the dense part of each run and
prints progress, one JSON object per line:

    {"run": "with-0", "step": 40, "steps": 160}                         while it trains
    {"run": "with-0", "step": 40, "steps": 160, "auc": 0.71}            after a probe of the test part
    {"run": "with-0", "examples": 163840, "train_s": 4.1}               at the end of a run

By hand, against a cluster from the example's own cluster.yaml:

    torchrun --nproc-per-node 2 -m examples.train --example click --endpoints 127.0.0.1:7470,127.0.0.1:7471 \\
        --ids build/demo/ids --out build/click --runs with-0 --plain-tables

Exit codes: 0 done, 1 an error, 130 interrupted. Thread safety: a process's main thread.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from examples.cluster import PATIENCE_S
from examples.dataset import Dataset, read
from examples.leash import follow_parent
from examples.metric import auc
from examples.model import Dense, Rows
from examples.recipe import ARMS, EXAMPLES, Example, Recipe, Run
from ps_client import Pipeline, connect

PROBES: Final = 6
"""Points of a run's AUC curve."""

PROBE_EXAMPLES: Final = 16_384
"""Test examples of a probe: enough for a curve; the final figures come from examples/evaluate.py."""

PROGRESS_STEPS: Final = 10
"""Steps between two lines of progress."""


def parse_runs(text: str, own_tables: bool) -> list[Run]:
    """Runs of a comma-separated list of arm-seed, such as "without-0,with-0"."""
    runs = []
    for name in text.split(","):
        arm, _, seed = name.rpartition("-")
        if arm not in ARMS or not seed.isdecimal():
            raise argparse.ArgumentTypeError(f"run is {name!r}; it must be without-SEED or with-SEED")
        runs.append(Run(arm=arm, seed=int(seed), own_tables=own_tables))
    return runs


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that training and evaluation share."""
    parser.add_argument("--example", required=True, choices=EXAMPLES)
    parser.add_argument("--endpoints", required=True, metavar="HOST:PORT,…", help="shards of the cluster")
    parser.add_argument("--ids", required=True, type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs' dense parts")
    parser.add_argument("--runs", required=True, metavar="ARM-SEED,…", help="such as without-0,with-0")
    parser.add_argument(
        "--plain-tables", action="store_true", help="tables named as in cluster.yaml, not one copy per run"
    )


def dense_path(out: Path, run: Run) -> Path:
    """Where a run's dense part is kept."""
    return out / f"dense.{run.name}.pt"


class Trainer:
    """One process's part of a run.

    Parameters
    ----------
    pipeline
        Over a client of the cluster.
    recipe
        The model.
    run
        Arm and seed.
    train, test
        Datasets with at least the run's features.
    """

    def __init__(self, pipeline: Pipeline, recipe: Recipe, run: Run, train: Dataset, test: Dataset) -> None:
        self.recipe, self.run, self.train = recipe, run, train
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.pipeline, self.rows = pipeline, Rows(pipeline, recipe, run)
        self.dense = DistributedDataParallel(Dense(recipe, run))
        self.optimizer = torch.optim.Adam(self.dense.parameters(), lr=recipe.dense_learning_rate)
        share = len(train) // self.world
        if share == 0:
            raise ValueError(f"{len(train)} training examples cannot be shared by {self.world} trainers")
        self.batch_size = min(recipe.batch_size, share)
        self.epoch_steps = share // self.batch_size  # equal for all, so nobody waits for a gradient in vain
        self.steps = self.epoch_steps * recipe.epochs
        probe = np.arange(min(PROBE_EXAMPLES, len(test)))
        self.probe_labels = test.labels[probe]
        self.probe_part = test.take(probe[self.rank :: self.world])
        self.probe_steps = {round(self.steps * (i + 1) / PROBES) for i in range(PROBES)}

    def fit(self) -> None:
        """Train the run from its first step to its last."""
        order = np.random.default_rng(self.run.seed)
        step, train_s = 0, 0.0
        for _ in range(self.recipe.epochs):
            mine = order.permutation(len(self.train))[self.rank :: self.world]
            share = self.train.take(mine[: self.epoch_steps * self.batch_size])
            for batch in self.pipeline.ahead(share.batches(self.batch_size), self.rows.prefetch):
                started_s = time.perf_counter()
                self.step(batch)
                train_s += time.perf_counter() - started_s
                step += 1
                if step in self.probe_steps:
                    self.report(step=step, steps=self.steps, auc=self.probe())
                elif step % PROGRESS_STEPS == 0:
                    self.report(step=step, steps=self.steps)
        self.report(examples=self.steps * self.batch_size * self.world, train_s=train_s)

    def step(self, batch: Dataset) -> None:
        """One batch: pull, forward, backward (which pushes), and Adam on the dense part."""
        logits = self.dense(self.rows(batch))
        # The sum, not the mean: a row's gradient is then that of its own examples, whatever the batch size.
        loss = binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.labels), reduction="sum")
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss of run {self.run.name} is {loss.item()}")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        self.optimizer.step()

    def probe(self) -> float:
        """AUC on the probe; each trainer scores its share."""
        mine = score(self.rows, self.dense.module, self.probe_part)
        shares: list[Any] = [None] * self.world
        dist.all_gather_object(shares, mine)
        scores = np.empty(len(self.probe_labels), np.float32)
        for rank, share in enumerate(shares):
            scores[rank :: self.world] = share
        return auc(self.probe_labels, scores)

    def report(self, **facts: Any) -> None:
        """Print a line of progress, from the first trainer only."""
        if self.rank == 0:
            print(json.dumps({"run": self.run.name, **facts}), flush=True)


def score(
    rows: Rows, dense: torch.nn.Module, dataset: Dataset, batch_size: int = 4096
) -> NDArray[np.float32]:
    """Logits (N,) of a dataset, by read-only pulls; nothing is created or changed."""
    modes = rows.training, dense.training
    rows.eval()
    dense.eval()
    with torch.no_grad():
        parts = [dense(rows(batch)).numpy() for batch in dataset.batches(batch_size)]
    rows.train(modes[0])
    dense.train(modes[1])
    return np.concatenate(parts)


def _train(arguments: argparse.Namespace) -> None:
    recipe = Example(arguments.example).recipe
    runs = parse_runs(arguments.runs, not arguments.plain_tables)
    features = recipe.features("with" if any(run.arm == "with" for run in runs) else "without")
    train, test = (read(arguments.ids / f"{part}.parquet", features) for part in ("train", "test"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    with connect(arguments.endpoints, timeout_s=PATIENCE_S) as client, client.pipeline() as pipeline:
        for run in runs:
            trainer = Trainer(pipeline, recipe, run, train, test)
            trainer.fit()
            if trainer.rank == 0:
                pipeline.flush()  # what is saved here and what is on the shards are of one step
                torch.save(trainer.dense.module.state_dict(), dense_path(arguments.out, run))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of a trainer; `argv` without the program's name, None: the process's. The exit code."""
    parser = argparse.ArgumentParser(prog="examples.train", description="Train under torchrun.")
    add_flags(parser)
    arguments = parser.parse_args(argv)
    if "RANK" not in os.environ:
        parser.error("start it with torchrun --nproc-per-node N -m examples.train …")
    follow_parent()  # torchrun starts its trainers in sessions of their own; killed, it leaves them behind
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        _train(arguments)
    except KeyboardInterrupt:
        return 130
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
