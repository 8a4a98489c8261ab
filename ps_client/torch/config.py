# SPDX-License-Identifier: Apache-2.0
"""What a collection is told about its tables.

The names are torchrec's. A collection reads `name`, `embedding_dim`, `feature_names` and `pooling` and
nothing else, so a torchrec config object does as well. `num_embeddings` bounds nothing: a table grows by
itself. Thread safety: immutable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class PoolingType(Enum):
    """How the rows of a bag become one vector."""

    SUM = "SUM"
    MEAN = "MEAN"


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """One table of an EmbeddingCollection.

    Attributes
    ----------
    name
        Name of the table on the shards.
    embedding_dim
        Its dim; must be what the shards declare.
    feature_names
        Features that are looked up in it.
    num_embeddings
        How many rows the model's author expects, or None. Nothing reads it here: ids may be any 64 bits.
    """

    name: str
    embedding_dim: int
    feature_names: Sequence[str]
    num_embeddings: int | None = None


@dataclass(frozen=True, kw_only=True)
class EmbeddingBagConfig(EmbeddingConfig):
    """One table of an EmbeddingBagCollection.

    Attributes
    ----------
    pooling
        PoolingType.SUM or PoolingType.MEAN.
    """

    pooling: PoolingType = PoolingType.SUM
