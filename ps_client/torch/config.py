# SPDX-License-Identifier: Apache-2.0
"""What a collection is told about its tables.

The names are torchrec's, and a torchrec config object does as well. The shards declare a table, in the
cluster's config; so what a config says of rows is compared with that (`check_declared`), and what no shard
could do is refused. Nothing is ignored that would change a model. Thread safety: immutable.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol

from rowhouse.error import ConfigError, InvalidRequestError
from torch.nn import init

from ps_client.table import Table


class PoolingType(Enum):
    """How the rows of a bag become one vector."""

    SUM = "SUM"
    MEAN = "MEAN"


class TableConfig(Protocol):
    """What a collection needs of a config: one of this file's, or torchrec's."""

    @property
    def name(self) -> str:
        """Name of the table."""

    @property
    def embedding_dim(self) -> int:
        """Its dim."""

    @property
    def feature_names(self) -> Sequence[str]:
        """Features looked up in it."""


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
        Features that are looked up in it; none: one of the table's name.
    num_embeddings
        How many rows are expected, for the reader; a table has room for every id.
    data_type
        "FP32", "FP16" or "BF16", or torchrec's DataType: must be the table's dtype.
    weight_init_min, weight_init_max, init_fn
        Must say what the table's initializer does: the two bounds of a uniform one, or a function of
        torch.nn.init, or functools.partial of one.
    num_embeddings_post_pruning, virtual_table_eviction_policy
        Must be None: what removes rows is the table's `eviction`.
    need_pos, input_dim, total_num_buckets, use_virtual_table, enable_embedding_update, stash_weights
        Taken for torchrec's sake: they tell its sharding what shards do by themselves.
    """

    num_embeddings: int | None = None
    embedding_dim: int
    name: str
    data_type: Any = None
    feature_names: Sequence[str] = ()
    weight_init_max: float | None = None
    weight_init_min: float | None = None
    num_embeddings_post_pruning: int | None = None
    init_fn: Callable[..., Any] | None = None
    need_pos: bool = False
    input_dim: int | None = None
    total_num_buckets: int | None = None
    use_virtual_table: bool = False
    virtual_table_eviction_policy: Any = None
    enable_embedding_update: bool = False
    stash_weights: bool = False

    def __post_init__(self) -> None:
        if not self.feature_names:
            object.__setattr__(self, "feature_names", [self.name])
        count = self.num_embeddings
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise InvalidRequestError(
                f"table {self.name!r}: num_embeddings is {count!r}; it must be an integer from 1"
            )


@dataclass(frozen=True, kw_only=True)
class EmbeddingBagConfig(EmbeddingConfig):
    """One table of an EmbeddingBagCollection.

    Attributes
    ----------
    pooling
        PoolingType.SUM or PoolingType.MEAN.
    """

    pooling: PoolingType = PoolingType.SUM


_MEANINGS: Final[Mapping[Callable[..., Any], tuple[str, Mapping[str, tuple[str, float]]]]] = {
    init.uniform_: ("uniform", {"a": ("low", 0.0), "b": ("high", 1.0)}),
    init.normal_: ("normal", {"mean": ("mean", 0.0), "std": ("std", 1.0)}),
    init.constant_: ("constant", {"val": ("value", math.nan)}),
    init.zeros_: ("zeros", {}),
    init.ones_: ("ones", {}),
}
"""Kind of initializer and its keys for a function of torch.nn.init, with torch's defaults."""


def check_declared(config: TableConfig, table: Table) -> None:
    """Refuse a config that says of rows what the shards do not do.

    Parameters
    ----------
    config
        Ours or torchrec's. Of torchrec's, the defaults FP32 and uniform say nothing, as they are there
        whether somebody wrote them or not.
    table
        The table as the shards declare it.

    Raises
    ------
    ConfigError
        It says another dtype or other initial rows, or asks for what has another place here.
    """
    label = f"table {config.name!r}: "
    for key in ("num_embeddings_post_pruning", "virtual_table_eviction_policy"):
        asked = getattr(config, key, None)
        if asked is not None and type(asked).__name__ != "NoEvictionPolicy":
            raise ConfigError(
                f"{label}{key} is {asked!r}, which a collection cannot do; set the table's `eviction` in the "
                "cluster's config"
            )
    said = getattr(config, "data_type", None)
    name = str(getattr(said, "value", said)).lower()
    if said is not None and name != table.dtype and (isinstance(config, EmbeddingConfig) or name != "fp32"):
        raise ConfigError(f"{label}data_type is {name.upper()}; the shards say dtype {table.dtype}")
    wanted, declared = _initializer(config, label), table.config.get("initializer")
    if wanted is not None and declared is not None and not _same(wanted, declared):
        written = ", ".join(f"{key}: {value}" for key, value in wanted.items())
        raise ConfigError(
            f"{label}the config's initial rows are {{{written}}}; the shards say {dict(declared)}: set the "
            "table's `initializer` in the cluster's config"
        )


def _initializer(config: TableConfig, label: str) -> dict[str, Any] | None:
    """The initializer that a config asks for, in the words of a cluster's config; None: it asks for none."""
    low, high = getattr(config, "weight_init_min", None), getattr(config, "weight_init_max", None)
    made = getattr(config, "init_fn", None)
    function, given, named = made, (), {}
    if isinstance(made, partial):
        function, given, named = made.func, made.args, made.keywords
    bounds = [getattr(config, f"get_weight_init_{end}", None) for end in ("min", "max")]
    if function is init.uniform_ and all(bounds):  # torchrec's, maybe its default
        default = tuple(bound() for bound in bounds if bound is not None)
        if not given and (named.get("a"), named.get("b")) == default:
            function = None
    if function is None:
        if low is None and high is None:
            return None
        if low is None or high is None:
            raise ConfigError(
                f"{label}weight_init_min is {low} and weight_init_max {high}; give both, or none"
            )
        return {"kind": "uniform", "low": low, "high": high}
    kind, keys = _MEANINGS.get(function, ("", {}))
    if not kind or len(given) > len(keys) or set(named) - set(keys) - {"generator"}:
        raise ConfigError(
            f"{label}init_fn is {made!r}; the shards make the initial rows, and know only functions of "
            "torch.nn.init (uniform_, normal_, constant_, zeros_, ones_): set the table's `initializer` in "
            "the cluster's config"
        )
    values = dict(zip(keys, given, strict=False)) | named
    return {"kind": kind} | {ours: values.get(theirs, usual) for theirs, (ours, usual) in keys.items()}


def _same(wanted: Mapping[str, Any], declared: Mapping[str, Any]) -> bool:
    """Whether two initializers give the same rows."""
    constants = [{"zeros": 0.0, "ones": 1.0}.get(one["kind"], one.get("value")) for one in (wanted, declared)]
    if constants[0] is not None and constants[1] is not None:
        return bool(constants[0] == constants[1])
    return wanted["kind"] == declared["kind"] and all(
        math.isclose(wanted[key], declared[key], rel_tol=1e-6) for key in wanted if key != "kind"
    )
