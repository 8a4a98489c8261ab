# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules over a Client: the only part of rowhouse's packages that imports torch.

bag = EmbeddingBag(client, "user", mode="sum")
loss = model(bag(ids, offsets)).sum()
loss.backward()      # pushes the gradient of each distinct id; the table's optimizer runs on the shards
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as failure:
    from rowhouse.distribution import install_hint

    raise ImportError(f"ps_client.torch needs PyTorch: {install_hint('torch')}") from failure

from ps_client.torch.bag import EmbeddingBag
from ps_client.torch.checkpoint import TablesState, lightning_callback, saved_tables_in
from ps_client.torch.collection import EmbeddingBagCollection, EmbeddingCollection
from ps_client.torch.config import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from ps_client.torch.dense import dense_part
from ps_client.torch.embedding import Embedding
from ps_client.torch.keyed import JaggedTensor, KeyedJaggedTensor, KeyedTensor
from ps_client.torch.optimizer import RowOptimizer
from ps_client.torch.state import load_training_state, save_training_state, saved_tables_of

__all__ = [
    "Embedding", "EmbeddingBag", "EmbeddingBagCollection", "EmbeddingBagConfig", "EmbeddingCollection",
    "EmbeddingConfig", "JaggedTensor", "KeyedJaggedTensor", "KeyedTensor", "PoolingType", "RowOptimizer",
    "TablesState", "dense_part", "lightning_callback", "load_training_state", "save_training_state",
    "saved_tables_in", "saved_tables_of",
]  # fmt: skip
