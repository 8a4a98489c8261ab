# SPDX-License-Identifier: Apache-2.0
"""Collections of tables over a KeyedJaggedTensor, with torchrec's names and conventions.

Invariants: 1. a forward is one pull and a backward one push, for all tables and features; 2. outputs
come table by table, and within a table in the order of its features; 3. a feature that is looked up in
several tables comes out as `feature@table`. Thread safety: that of the client.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from logging import getLogger
from typing import Any

import torch
from rowhouse.error import ConfigError, InvalidRequestError, PreconditionError
from rowhouse.problem import with_article
from torch import Tensor, nn

from ps_client.step import StepProtocol
from ps_client.table import find_table
from ps_client.torch import keyed_jagged_tensor as own
from ps_client.torch.config import TableConfig, check_declared
from ps_client.torch.handle import RemoteTables, RowModule, check_gradient_scale, outside_graphs
from ps_client.torch.jagged_tensor import check_integers
from ps_client.torch.keyed import JaggedTensor, KeyedJaggedTensor, KeyedTensor
from ps_client.torch.lookup import Step, look_up, prefetch
from ps_client.torch.pool import Bags, pooled

_log = getLogger(__name__)


def check_configs(client: StepProtocol, configs: Sequence[TableConfig]) -> None:
    """Refuse configs that do not fit one another or the cluster's tables.

    Raises
    ------
    ValueError
        A table is configured twice, or has a feature twice.
    UnknownTableError, ConfigError
        The cluster has no such table, or its dim, dtype or initial rows differ.
    """
    for config in configs:
        if not all(hasattr(config, key) for key in ("name", "embedding_dim", "feature_names")):
            raise InvalidRequestError(
                f"tables has {config!r}; each must be an EmbeddingBagConfig or EmbeddingConfig"
            )
    names = [config.name for config in configs]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"table {twice[0]!r} is configured more than once")
    for config in configs:
        features = list(config.feature_names)
        if len(set(features)) != len(features):
            raise ValueError(f"table {config.name!r}: feature_names are {features}; they must be distinct")
        table = find_table(client.tables, config.name)
        if table.dim != config.embedding_dim:
            raise ConfigError(
                f"table {config.name!r}: embedding_dim is {config.embedding_dim}; the shards say {table.dim}"
            )
        check_declared(config, table)


def output_names(configs: Sequence[TableConfig]) -> list[list[str]]:
    """Names of the outputs, by table: the feature's, or `feature@table` where tables share it."""
    shared = Counter(feature for config in configs for feature in config.feature_names)
    return [[f"{f}@{c.name}" if shared[f] > 1 else f for f in c.feature_names] for c in configs]


def examples_of(features: Any, needed: Sequence[str]) -> dict[str, Tensor]:
    """Which of a feature's own examples each example of the whole batch is; {} where they are the same.

    Parameters
    ----------
    features
        A KeyedJaggedTensor, ours or torchrec's.
    needed
        The features that are looked up.

    Raises
    ------
    InvalidRequestError
        The inverse indices name examples that are not there, or are needed and missing.
    """
    sizes = dict(zip(features.keys(), features.stride_per_key(), strict=True))
    if (inverse := features.inverse_indices_or_none()) is None:
        if len({sizes[feature] for feature in needed}) > 1:
            raise InvalidRequestError(
                f"the features have batches of the sizes { {name: sizes[name] for name in needed} }; without "
                "inverse_indices, which spread them over one batch, they must be equal"
            )
        return {}
    names, index = inverse
    check_integers("inverse_indices", index)
    if index.dim() != 2 or index.shape[0] != len(names):
        raise InvalidRequestError(
            f"inverse_indices of {len(names)} features have the shape {tuple(index.shape)}; they must be one "
            "row of examples for each"
        )
    places = dict(zip(names, index, strict=True))
    if lacking := [feature for feature in needed if feature not in places]:
        raise InvalidRequestError(f"inverse_indices lack the features {lacking}")
    if index.numel() and not index.is_meta:
        ends = torch.stack([torch.stack([row.min(), row.max()]) for row in places.values()]).tolist()
        for name, (least, greatest) in zip(places, ends, strict=True):
            if name in needed and not 0 <= least <= greatest < sizes[name]:
                raise InvalidRequestError(
                    f"inverse_indices of {name!r} are {least} to {greatest}; they must be 0 to "
                    f"{sizes[name] - 1}, because the feature has {sizes[name]} examples"
                )
    return places


class _Collection(RowModule):
    """What both collections share: the configs, and one lookup for all of them."""

    def __init__(self, client: StepProtocol, tables: Sequence[TableConfig], gradient_scale: float) -> None:
        super().__init__(client)
        self._configs = list(tables)
        check_configs(client, self._configs)
        for config in self._configs:
            if not config.feature_names:  # torchrec's, which takes the table's name, and tells the config
                config.feature_names = [config.name]  # type: ignore[misc]
        self._names = output_names(self._configs)
        self.gradient_scale = check_gradient_scale(gradient_scale)

    def _remote(self, device: torch.device | str | None) -> RemoteTables:
        return RemoteTables({config.name: config.embedding_dim for config in self._configs}, device)

    def handles(self) -> Mapping[str, nn.Parameter]:
        """The handle of each table, by table name."""
        tables = next(child for child in self.children() if isinstance(child, RemoteTables))
        return {name: table.weight for name, table in tables.items()}

    @property
    def device(self) -> torch.device:
        """Where the handles are; rows are on the shards, and outputs where the ids of a batch are."""
        return next((handle.device for handle in self.handles().values()), torch.device("cpu"))

    def reset_parameters(self) -> None:
        """Nothing, with a warning in the log: a row that no push has touched has its initial value, and
        trained rows stay as they are."""
        tables = ", ".join(repr(config.name) for config in self._configs)
        _log.warning("reset_parameters() leaves the rows of %s as the shards have them", tables)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        shown = [f"{c.name!r}: {list(c.feature_names)} (dim {c.embedding_dim})" for c in self._configs[:4]]
        return ", ".join([*shown, *([f"{more} more tables"] if (more := len(self._configs) - 4) > 0 else [])])

    def embedding_names(self) -> list[str]:
        """Names of the outputs, in their order."""
        return [name for names in self._names for name in names]

    def embedding_names_by_table(self) -> list[list[str]]:
        """Names of the outputs, table by table."""
        return self._names

    def _check_batch(self, features: object) -> None:
        needed = sorted({feature for config in self._configs for feature in config.feature_names})
        # Our own is taken beside torchrec's too, where that is installed.
        if not isinstance(features, KeyedJaggedTensor | own.KeyedJaggedTensor):
            has = f" with the keys {list(features)}" if isinstance(features, Mapping) else ""
            raise InvalidRequestError(
                f"the batch is {with_article(type(features).__name__)}{has}; it must be a "
                f"KeyedJaggedTensor with the features {needed}"
            )
        if missing := [feature for feature in needed if feature not in features.keys()]:  # noqa: SIM118
            raise InvalidRequestError(
                f"features {missing} are not among the batch's keys {list(features.keys())}"
            )

        if not isinstance(features, own.KeyedJaggedTensor):  # torchrec's is not checked when it is made
            for name in ("lengths", "offsets"):
                if (found := getattr(features, f"{name}_or_none")()) is not None:
                    check_integers(name, found)
            if features.variable_stride_per_key():
                own.check_sizes(features.stride_per_key_per_rank())

    def prefetch(self, features: KeyedJaggedTensor) -> None:
        """Start the pull of a later `forward`; the module's client must be a Pipeline or a Trainer.

        Parameters
        ----------
        features
            The batch as `forward` will have it, in the same mode (training or evaluation).
        """
        self._check_batch(features)
        prefetch(self, self._ids(features.to_dict()))

    def _ids(self, batch: Mapping[str, JaggedTensor]) -> dict[str, Tensor]:
        """The ids of each table, features one after the other."""
        return {c.name: torch.cat([batch[f].values() for f in c.feature_names]) for c in self._configs}

    def _look_up(self, batch: Mapping[str, JaggedTensor]) -> Step:
        """One lookup of every feature of a batch."""
        return look_up(self, self._ids(batch), gradient_scale=self.gradient_scale)

    def _in_own_dtype(self, outputs: list[Tensor]) -> list[Tensor]:
        """Outputs in the dtype of their tables' handles: float32 unless the module was moved to another."""
        handles = self.handles()
        tables = [config.name for config in self._configs for _ in config.feature_names]
        return [output.to(handles[name].dtype) for name, output in zip(tables, outputs, strict=True)]

    def _outputs(self, batch: Mapping[str, JaggedTensor]) -> list[tuple[TableConfig, JaggedTensor, int]]:
        """(config, the feature's batch, how many ids of the table are before it) of each output."""
        outputs = []
        for config in self._configs:
            first = 0
            for feature in config.feature_names:
                outputs.append((config, batch[feature], first))
                first += batch[feature].values().shape[0]
        return outputs


class EmbeddingBagCollection(_Collection):
    """Pooled rows of several tables, as torchrec's EmbeddingBagCollection; backward pushes.

    Parameters
    ----------
    client
        A connected client, its pipeline or its trainer; or any other StepProtocol.
    tables
        One EmbeddingBagConfig (ours or torchrec's) per table.
    device
        Where the handles of the tables are, as torchrec's `device` says for its tables.
    is_weighted
        Whether the batch has weights; they multiply the rows, with PoolingType.SUM only.
    gradient_scale
        Factor on the pushed gradients; see docs/client.md, "Several trainers".

    Raises
    ------
    ValueError
        A table twice, an unknown pooling, or weights together with PoolingType.MEAN.
    UnknownTableError, ConfigError
        The cluster has no such table, or its dim differs.
    """

    def __init__(
        self,
        client: StepProtocol,
        tables: Sequence[Any],
        *,
        device: torch.device | str | None = None,
        is_weighted: bool = False,
        gradient_scale: float = 1.0,
    ) -> None:
        super().__init__(client, tables, gradient_scale)
        self.embedding_bags = self._remote(device)
        self._is_weighted = is_weighted
        self._modes = {config.name: self._mode(config.name, config.pooling) for config in tables}

    def embedding_bag_configs(self) -> list[Any]:
        """The configs, as they were given."""
        return self._configs

    def is_weighted(self) -> bool:
        """Whether the batch's weights multiply the rows."""
        return self._is_weighted

    def _mode(self, table: str, pooling: Any) -> str:
        name = str(getattr(pooling, "value", pooling)).upper()
        if name not in ("SUM", "MEAN"):
            raise ValueError(f"table {table!r}: pooling is {pooling!r}; it must be PoolingType.SUM or MEAN")
        if self._is_weighted and name != "SUM":
            raise ValueError(f"table {table!r}: weights need PoolingType.SUM; pooling is {pooling!r}")
        return name.lower()

    @outside_graphs
    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Pool every feature of a batch.

        Parameters
        ----------
        features
            The batch; features that no table names are left alone. Where each feature has a batch of its own
            size, `inverse_indices` spreads the outputs over the whole batch.

        Returns
        -------
        KeyedTensor
            (B, sum of dims) in the module's dtype (float32), one block per output name.

        Raises
        ------
        InvalidRequestError
            Not a KeyedJaggedTensor, or one that lacks a feature of a table; or batches of different sizes
            with no or wrong `inverse_indices`.
        """
        self._check_batch(features)
        names = [feature for config in self._configs for feature in config.feature_names]
        places = examples_of(features, names)
        if self._is_weighted and features.weights_or_none() is None:
            raise ValueError("is_weighted is True, and the batch has no weights")
        batch = features.to_dict()
        bags = []
        for config, jagged, first in self._outputs(batch):
            weights = jagged.weights() if self._is_weighted else None
            offsets, last = jagged.offsets(), first + jagged.values().shape[0]
            mode = self._modes[config.name]
            bags.append(
                Bags(config.name, first, last, offsets - offsets[0], mode, weights, include_last=True)
            )
        blocks = self._in_own_dtype(pooled(self._look_up(batch), bags))
        if places:
            blocks = [block[places[name]] for name, block in zip(names, blocks, strict=True)]
        lengths = [block.shape[1] for block in blocks]
        return KeyedTensor(self.embedding_names(), lengths, torch.cat(blocks, dim=1))


class EmbeddingCollection(_Collection):
    """Rows of several tables, not pooled, as torchrec's EmbeddingCollection; backward pushes.

    Parameters
    ----------
    client
        A connected client, its pipeline or its trainer; or any other StepProtocol.
    tables
        One EmbeddingConfig (ours or torchrec's) per table; dims may differ.
    device
        Where the handles of the tables are, as torchrec's `device` says for its tables.
    need_indices
        Whether each output has its ids as weights.
    gradient_scale
        Factor on the pushed gradients; see docs/client.md, "Several trainers".

    Raises
    ------
    ValueError
        A table twice.
    UnknownTableError, ConfigError
        The cluster has no such table, or its dim differs.
    """

    def __init__(
        self,
        client: StepProtocol,
        tables: Sequence[Any],
        *,
        device: torch.device | str | None = None,
        need_indices: bool = False,
        gradient_scale: float = 1.0,
    ) -> None:
        super().__init__(client, tables, gradient_scale)
        self.embeddings = self._remote(device)
        self._need_indices = need_indices

    def embedding_configs(self) -> list[Any]:
        """The configs, as they were given."""
        return self._configs

    def need_indices(self) -> bool:
        """Whether each output has its ids as weights."""
        return self._need_indices

    def embedding_dim(self) -> int:
        """The dim of the tables; PreconditionError where they differ, or there are none."""
        dims = {config.embedding_dim for config in self._configs}
        if not dims:
            raise PreconditionError("the collection has no tables, and so no embedding_dim")
        if len(dims) > 1:
            raise PreconditionError(f"the tables have the dims {sorted(dims)}; ask each config for its own")
        return int(dims.pop())

    @outside_graphs
    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """The row of every id of a batch.

        Parameters
        ----------
        features
            The batch; features that no table names are left alone.

        Returns
        -------
        dict
            By output name, a JaggedTensor whose values are (L, dim) in the module's dtype (float32).

        Raises
        ------
        InvalidRequestError
            Not a KeyedJaggedTensor, or one that lacks a feature of a table.
        """
        self._check_batch(features)
        batch = features.to_dict()
        outputs = self._outputs(batch)
        bags = [Bags(c.name, first, first + jagged.values().shape[0]) for c, jagged, first in outputs]
        rows = self._in_own_dtype(pooled(self._look_up(batch), bags))
        return {
            name: JaggedTensor(
                values, jagged.values() if self._need_indices else None, lengths=jagged.lengths()
            )
            for name, values, (_, jagged, _) in zip(self.embedding_names(), rows, outputs, strict=True)
        }
