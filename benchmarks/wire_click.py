# SPDX-License-Identifier: Apache-2.0
"""wire.click: a click model's examples per second, its table on a shard, beside the table in process.

The model: 26 features of dim 16, pooled by themselves, concatenated, two hidden layers (64, 32), binary
cross-entropy; 1,024 examples a step. Ours is ps_client.torch's EmbeddingBag over a pipeline that prefetches
the next batch and pushes behind the model; beside it nn.EmbeddingBag(sparse=True), Adagrad, dense ids.
Both dense parts train with the same Adagrad. Staleness 0 (the bits of a run without a pipeline) and 1.
"""

import os
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.batch import DIM, FEATURES, SAMPLES, Batch, load_batches
from benchmarks.contest import Step, contest
from benchmarks.embedded import ADAGRAD, TABLE, all_rows, create_rows, require_equal, table_config
from benchmarks.peer_torch import INITIAL_ACCUMULATOR, LEARNING_RATE
from benchmarks.wire import remote
from ps_client.pace.pipeline import Pipeline
from ps_client.torch import EmbeddingBag

HIDDEN: Final = (64, 32)
CHECK_STEPS: Final = 3
TRIALS: Final = 32
"""Batches by which each side's number of threads is chosen. After 6 our side, whose threads wake one another,
took the slower number 22 times of 64; after 32, 2 times of 20."""

ROUNDING: Final = 2e-5
"""float32 rounding of a few steps whose sums are taken in another order."""


def make_dense(seed: int = 7) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The dense part, the same for both sides, and its optimizer."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    width = FEATURES * DIM
    for hidden in HIDDEN:
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    dense = nn.Sequential(*layers, nn.Linear(width, 1))
    return dense, torch.optim.Adagrad(dense.parameters(), lr=LEARNING_RATE)


def labels(batch: Batch) -> Tensor:
    """A label of each example, a function of its first id."""
    first = batch.requested.reshape(SAMPLES, FEATURES)[:, 0]
    return torch.from_numpy((first % np.uint64(3) == 0).astype(np.float32))


class Trainer:
    """A step of the click model over any bag of (examples × features) single ids.

    Parameters
    ----------
    bag
        (n, 1) ids to (n, DIM) rows.
    sparse
        Optimizer of the bag's own weights; None where a shard has them.
    """

    def __init__(self, bag: nn.Module, sparse: torch.optim.Optimizer | None) -> None:
        self.bag, self.sparse = bag, sparse
        self.dense, self.optimizer = make_dense()
        self.criterion = nn.BCEWithLogitsLoss()

    def step(self, ids: Tensor, target: Tensor) -> None:
        """Forward, backward, optimizers."""
        rows = self.bag(ids).view(SAMPLES, FEATURES * DIM)
        loss = self.criterion(self.dense(rows).squeeze(1), target)
        self.optimizer.zero_grad(set_to_none=True)
        if self.sparse is not None:
            self.sparse.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.sparse is not None:
            self.sparse.step()


Inputs = tuple[Tensor, Tensor]


def _remote_steps(pipeline: Pipeline, bag: EmbeddingBag, inputs: list[Inputs]) -> Step:
    """Our side: each call trains on the next batch, whose rows were asked for one call before."""
    trainer = Trainer(bag, None)

    def stream() -> Iterator[Inputs]:
        return iter(pipeline.ahead(cycle(inputs), lambda found: bag.prefetch(found[0])))

    ahead = stream()

    def step(_batch: Batch) -> None:
        trainer.step(*next(ahead))

    return step


def with_threads(side: Step, batches: list[Batch]) -> Step:
    """The side with one torch thread or one per core, whichever it is faster with here."""
    spent_s = {}
    for threads in (1, os.cpu_count() or 1):
        torch.set_num_threads(threads)
        side(batches[0])
        began_s = time.perf_counter()
        for batch in batches[:TRIALS]:
            side(batch)
        spent_s[threads] = time.perf_counter() - began_s
    best = min(spent_s, key=lambda threads: spent_s[threads])

    def step(batch: Batch) -> None:
        torch.set_num_threads(best)
        side(batch)

    return step


def measure(settings: Settings, name: str, distribution: str, goal: Goal) -> list[Bar]:
    """Examples per second, staleness 0 and 1, beside nn.EmbeddingBag in process."""
    batches = load_batches(distribution, settings.cache, settings.ids)
    targets = [labels(batch) for batch in batches]
    ranks = [torch.from_numpy(batch.requested_rank)[:, None] for batch in batches]
    ids = [torch.from_numpy(batch.requested.view(np.int64))[:, None] for batch in batches]
    bars: list[Bar] = []
    for staleness in (0, 1):
        with remote(settings.scratch / f"shard-{staleness}", table_config(ADAGRAD)) as client:
            create_rows(client, settings.ids)
            peer = nn.EmbeddingBag(settings.ids, DIM, mode="sum", sparse=True)
            with torch.no_grad():
                peer.weight.copy_(torch.from_numpy(all_rows(client, settings.ids)))
            sparse = torch.optim.Adagrad(
                peer.parameters(), lr=LEARNING_RATE, initial_accumulator_value=INITIAL_ACCUMULATOR, eps=1e-10
            )
            beside = Trainer(peer, sparse)
            places = {id(batch): number for number, batch in enumerate(batches)}

            def theirs(batch: Batch, trainer: Trainer = beside, places: dict[int, int] = places) -> None:
                number = places[id(batch)]
                trainer.step(ranks[number], targets[number])

            with client.pipeline(staleness=staleness) as pipeline:
                ours = _remote_steps(
                    pipeline, EmbeddingBag(pipeline, TABLE, "sum"), list(zip(ids, targets, strict=True))
                )
                for batch in batches[:CHECK_STEPS]:
                    ours(batch)
                    theirs(batch)
                pipeline.flush()
                if staleness == 0:
                    found = client.pull(TABLE, batches[0].distinct)
                    with torch.no_grad():
                        wanted = peer.weight[torch.from_numpy(batches[0].distinct_rank)].numpy()
                    require_equal(name, found, wanted, ROUNDING)
                sides = [with_threads(side, batches) for side in (ours, theirs)]
                mine, other = contest(sides, batches, settings)
        bars.append(_bar(name, distribution, goal, staleness, mine, other))
    return bars


def _bar(name: str, distribution: str, goal: Goal, staleness: int, mine: Any, other: Any) -> Bar:
    """Examples are requested ids over FEATURES."""
    thousands = [rate / FEATURES / 1e3 for rate in mine.ids_per_s]
    peer = [rate / FEATURES / 1e3 for rate in other.ids_per_s]
    what = f"click model, table on a shard, prefetching, staleness {staleness}, {distribution}"
    label = f"torch {torch.__version__} nn.EmbeddingBag(sparse) + Adagrad in process, dense ids, not durable"
    detail = {**mine.detail("ours"), **other.detail("peer"), "staleness": staleness}
    id_ = name if staleness == 0 else f"{name}.staleness_{staleness}"
    return make_bar(id_, what, "k examples/s", goal, thousands, label, peer, detail)
