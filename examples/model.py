# SPDX-License-Identifier: Apache-2.0
"""The wide and deep model of the examples.

    logit = bias + sum of wide rows (dim 1, one weight per id) + MLP(pooled deep rows)

Rows live on the shards and are stepped there; the MLP and the bias are this process's, and under DDP when
several trainers run. With a mirrored view v' of each example v, the logit is bias + g(v, v') - g(v', v):
what speaks for one side speaks against the other, by construction.

Source: Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems", section 3.
Thread safety: one thread, as any torch module.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from examples.dataset import Dataset
from examples.recipe import MIRROR, Recipe, Run
from ps_client import StepClient
from ps_client.torch import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

DEEP_DIM = 16


class Rows(nn.Module):
    """Pooled rows of a batch, from the shards; its backward pushes.

    Parameters
    ----------
    client
        Connected to a cluster that has the run's tables; for `prefetch` a pipeline of one.
    recipe
        The model's tables and features.
    run
        Which arm's tables, and what they are called.
    """

    def __init__(self, client: StepClient, recipe: Recipe, run: Run) -> None:
        super().__init__()
        tables = recipe.arm_tables(run.arm)
        views = ("", MIRROR) if recipe.mirror else ("",)
        configs = [
            EmbeddingBagConfig(
                name=run.table(name),
                embedding_dim=1 if use.part == "wide" else DEEP_DIM,
                feature_names=[view + feature for view in views for feature in use.features],
                pooling=PoolingType.SUM if use.pooling == "sum" else PoolingType.MEAN,
            )
            for name, use in tables.items()
        ]
        self.features = recipe.features(run.arm)
        self.collection = EmbeddingBagCollection(client, configs)
        owners = [feature for config in configs for feature in config.feature_names]
        self._keys = [
            {
                part: [
                    view + feature + (f"@{run.table(name)}" if owners.count(view + feature) > 1 else "")
                    for name, use in tables.items()
                    if use.part == part
                    for feature in use.features
                ]
                for part in ("wide", "deep")
            }
            for view in views
        ]

    def prefetch(self, batch: Dataset) -> None:
        """Start the pull of a later `forward`."""
        self.collection.prefetch(self._keyed(batch))

    def forward(self, batch: Dataset) -> list[tuple[Tensor, Tensor]]:
        """For each view: the summed wide rows (B,), and the deep rows side by side (B, features · dim)."""
        pooled = self.collection(self._keyed(batch))
        views = []
        for keys in self._keys:
            wide = torch.cat([pooled[key] for key in keys["wide"]], dim=1).sum(dim=1)
            views.append((wide, torch.cat([pooled[key] for key in keys["deep"]], dim=1)))
        return views

    def _keyed(self, batch: Dataset) -> KeyedJaggedTensor:
        bags = [batch.features[name] for name in self.features]
        lengths = [torch.from_numpy(bag.offsets).diff() for bag in bags]
        values = [torch.from_numpy(bag.ids) for bag in bags]
        return KeyedJaggedTensor(keys=self.features, values=torch.cat(values), lengths=torch.cat(lengths))


class Dense(nn.Module):
    """The bias and the MLP.

    Parameters
    ----------
    recipe
        Says the hidden width and whether there is a mirrored view.
    run
        Its seed makes the initial weights.
    """

    def __init__(self, recipe: Recipe, run: Run) -> None:
        super().__init__()
        deep = sum(len(t.features) for t in recipe.arm_tables(run.arm).values() if t.part == "deep")
        width = deep * DEEP_DIM * (2 if recipe.mirror else 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            self.bias = nn.Parameter(torch.zeros(()))
            self.mlp = nn.Sequential(nn.Linear(width, recipe.hidden), nn.ReLU(), nn.Linear(recipe.hidden, 1))

    def forward(self, views: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Logits (B,) of one or two views as `Rows` gives them."""
        wides, deeps = zip(*views, strict=True)
        if len(wides) == 1:
            score: Tensor = wides[0] + self.mlp(deeps[0]).squeeze(1)
        else:
            own, other = deeps
            forward, backward = torch.cat([own, other], dim=1), torch.cat([other, own], dim=1)
            score = wides[0] - wides[1] + (self.mlp(forward) - self.mlp(backward)).squeeze(1)
        return self.bias + score
