# SPDX-License-Identifier: Apache-2.0
"""Whole models on our collection learn what they learn on nn.EmbeddingBag: a small DLRM, and torchrec's own.

Where torchrec is installed, `pytest -W default` runs its models: the import of torchrec gives warnings.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ps_client import connect
from ps_client.torch import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    KeyedTensor,
    PoolingType,
)

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

DIM, VALUES, DENSE, RATE = 8, 40, 5, 0.2
TABLES = [
    {"name": name, "dim": DIM, "optimizer": {"kind": "sgd", "learning_rate": RATE}}
    for name in ("user", "item")
]
CONFIGS = [
    EmbeddingBagConfig(num_embeddings=VALUES, embedding_dim=DIM, name="user", feature_names=["u"]),
    EmbeddingBagConfig(
        num_embeddings=VALUES,
        embedding_dim=DIM,
        name="item",
        feature_names=["seen", "bought"],
        pooling=PoolingType.MEAN,
    ),
]


class Reference(nn.Module):
    """The same tables by nn.EmbeddingBag."""

    def __init__(self, rows: dict[str, Tensor]) -> None:
        super().__init__()
        self.bags = nn.ModuleDict()
        for config in CONFIGS:
            self.bags[config.name] = nn.EmbeddingBag.from_pretrained(
                rows[config.name],
                freeze=False,
                mode=config.pooling.value.lower(),
                include_last_offset=True,
            )

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        return CONFIGS

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        parts = {f: features[f] for config in CONFIGS for f in config.feature_names}
        found = [
            self.bags[config.name](parts[f].values(), parts[f].offsets() - parts[f].offsets()[0])
            for config in CONFIGS
            for f in config.feature_names
        ]
        return KeyedTensor(list(parts), [DIM] * len(parts), torch.cat(found, 1))


class SmallDLRM(nn.Module):
    """Dot products of a vector of the dense features and the pooled rows, as a DLRM's."""

    def __init__(self, rows: Any) -> None:
        super().__init__()
        self.rows, self.bottom = rows, nn.Sequential(nn.Linear(DENSE, DIM), nn.ReLU())
        self.features = [f for config in rows.embedding_bag_configs() for f in config.feature_names]
        self.top = nn.Linear(DIM + 6, 1)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        pooled, dense = self.rows(sparse_features).to_dict(), self.bottom(dense_features)
        vectors = torch.stack([dense, *(pooled[feature] for feature in self.features)], 1)
        first, second = torch.triu_indices(4, 4, 1)
        products = (vectors @ vectors.mT)[:, first, second]
        out: Tensor = self.top(torch.cat([dense, products], 1))
        return out


def theirs(name: str) -> Callable[[Any], nn.Module]:
    """A model of torchrec on a collection; the test is skipped where torchrec is not installed."""
    try:
        from torchrec.models.deepfm import SimpleDeepFMNN  # type: ignore[import-not-found]
        from torchrec.models.dlrm import DLRM, DLRM_DCN  # type: ignore[import-not-found]
    except (ImportError, OSError) as failure:  # OSError: its compiled part is for another torch
        pytest.skip(f"torchrec cannot be imported: {failure}")
    sizes = {"dense_arch_layer_sizes": [6, DIM], "over_arch_layer_sizes": [5, 1]}
    makers: dict[str, Callable[[Any], nn.Module]] = {
        "DLRM": lambda rows: DLRM(rows, DENSE, **sizes),
        "DLRM_DCN": lambda rows: DLRM_DCN(rows, DENSE, **sizes, dcn_num_layers=2, dcn_low_rank_dim=3),
        "DeepFM": lambda rows: SimpleDeepFMNN(DENSE, rows, hidden_layer_size=6, deep_fm_dimension=3),
    }
    return makers[name]


def batch(seed: int) -> tuple[Tensor, KeyedJaggedTensor, Tensor]:
    random = np.random.default_rng(seed)
    lengths = torch.from_numpy(random.integers(0, 4, 3 * 16))
    ids = torch.from_numpy(random.integers(0, VALUES, int(lengths.sum())))
    dense = torch.from_numpy(random.normal(size=(16, DENSE)).astype(np.float32))
    return dense, KeyedJaggedTensor(["u", "seen", "bought"], ids, lengths=lengths), dense[:, :1] > 0


@pytest.mark.parametrize("name", ["small DLRM", "DLRM", "DLRM_DCN", "DeepFM"])
def test_a_model_learns_what_it_learns_on_torch_s_bags(tmp_path: Path, name: str) -> None:
    make = SmallDLRM if name == "small DLRM" else theirs(name)
    with connect(f"embedded:{tmp_path}", config={"tables": TABLES}) as client:
        every = np.arange(VALUES)
        rows = {config.name: torch.from_numpy(client.pull(config.name, every).copy()) for config in CONFIGS}
        first = {table: values.clone() for table, values in rows.items()}
        collections = [EmbeddingBagCollection(client, CONFIGS), Reference(rows)]
        models = []
        for collection in collections:
            torch.manual_seed(7)
            models.append(make(collection))
        losses: list[list[float]] = [[], []]
        for step in range(6):
            dense, sparse, clicked = batch(step)
            for model, found in zip(models, losses, strict=True):
                optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
                logits = model(dense, sparse)
                loss = nn.functional.binary_cross_entropy_with_logits(logits, clicked.float())
                torch.autograd.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                found.append(loss.item())
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
        for table, before in first.items():
            want = collections[1].get_parameter(f"bags.{table}.weight").detach()
            assert not torch.equal(want, before)
            torch.testing.assert_close(
                torch.from_numpy(client.pull(table, every)), want, rtol=1e-4, atol=1e-6
            )
