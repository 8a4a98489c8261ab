# SPDX-License-Identifier: Apache-2.0
"""The config of one table: dim, dtype, optimizer, initializer, admission, eviction.

A config stands beside what it configures: optimizer.py, initializer.py, admission.py and score.py have the
others. `ps_server.config.cluster` reads all of them from YAML.

Invariants: 1. a TableConfig that exists is valid; 2. it never changes; 3. `None` is off, `0` never is.
Thread safety: immutable values and pure functions.
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from rowhouse import dtype
from rowhouse.limit import DIM_MAX, TABLE_NAME_BYTES_MAX, gradient_bound

from ps_server.disk.row import RowLayout
from ps_server.table.admission import AdmissionConfig
from ps_server.table.initializer import InitializerConfig
from ps_server.table.optimizer import OptimizerConfig
from ps_server.table.score import ShowClick


def _table_name(name: str) -> str:
    if not 0 < len(name.encode()) <= TABLE_NAME_BYTES_MAX:
        raise ValueError(f"it must have 1 to {TABLE_NAME_BYTES_MAX} bytes of UTF-8")
    if not name.isprintable() or name != name.strip():
        raise ValueError("it must be printable, with no white space at its ends")
    return name


TableName = Annotated[str, Field(strict=True), AfterValidator(_table_name)]


class ConfigModel(BaseModel):
    """What every config is: frozen, and without keys that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TtlEviction(ConfigModel):
    """Rows whose last push is older than `ttl_s` seconds are evicted."""

    kind: Literal["ttl"] = "ttl"
    ttl_s: Annotated[float, Field(strict=True, gt=0)]


class LeastFrequentEviction(ConfigModel):
    """Above `max_rows` rows in a shard, those pushed least often are evicted."""

    kind: Literal["least_frequent"] = "least_frequent"
    max_rows: Annotated[int, Field(strict=True, ge=1)]


class NormEviction(ConfigModel):
    """Rows whose weights have an L2 norm below `min_l2_norm` are evicted."""

    kind: Literal["l2_norm"] = "l2_norm"
    min_l2_norm: Annotated[float, Field(strict=True, gt=0)]


class ZeroEviction(ConfigModel):
    """Rows whose weights are all zero (FTRL, FOBOS and group lasso make them) are dropped; a pull gives
    zeros again, so the table's initializer must be zeros. Their state goes with them."""

    kind: Literal["zero"] = "zero"


EvictionConfig = Annotated[
    TtlEviction | LeastFrequentEviction | NormEviction | ZeroEviction | ShowClick, Field(discriminator="kind")
]
"""One eviction policy; a table may have one of each kind."""

_UNIFORM: Final[Any] = {"kind": "uniform"}
_ADAGRAD: Final[Any] = {"kind": "adagrad"}


class TableConfig(ConfigModel):
    """One table: rows that share dim, dtype, initializer, optimizer and policies.

    Attributes
    ----------
    name
        1 to TABLE_NAME_BYTES_MAX bytes of printable UTF-8, unique in the cluster.
    dim
        Weights per row, 1 to DIM_MAX.
    dtype
        Element type of the weights in memory and on disk: fp32, fp16 or bf16 (the narrow ones are
        updated in fp32 and rounded stochastically). Optimizer state is fp32 whatever this says.
    optimizer
        What a push does to a row; see optimizer.py. Default Adagrad, which suits ids of very different
        frequencies without tuning.
    initializer
        Weights of a row that was never pushed, as a function of (seed, id); see initializer.py. Default
        uniform.
    seed
        Seed of the initializer and of stochastic rounding, 0 to 2^64 - 1.
    admission
        Which ids may become rows; None admits all. See admission.py.
    eviction
        Policies that remove rows, at most one of each kind; none by default.
    freeze
        What a push does at start: off (applied), refuse (an error) or ignore (acknowledged, dropped).
    """

    name: TableName
    dim: Annotated[int, Field(strict=True, ge=1, le=DIM_MAX)]
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    optimizer: OptimizerConfig = Field(default=_ADAGRAD, validate_default=True)
    initializer: InitializerConfig = Field(default=_UNIFORM, validate_default=True)
    seed: Annotated[int, Field(strict=True, ge=0, lt=1 << 64)] = 0
    admission: AdmissionConfig | None = None
    eviction: tuple[EvictionConfig, ...] = ()
    freeze: Literal["off", "refuse", "ignore"] = "off"

    @field_validator("eviction")
    @classmethod
    def _one_of_each_kind(cls, policies: tuple[EvictionConfig, ...]) -> tuple[EvictionConfig, ...]:
        kinds = [p.kind for p in policies]
        twice = sorted({k for k in kinds if kinds.count(k) > 1})
        if twice:
            raise ValueError(f"policy {twice[0]!r} is there twice; at most one of each kind")
        return policies

    @model_validator(mode="after")
    def _zero_rows_come_back(self) -> Self:
        if any(p.kind == "zero" for p in self.eviction) and self.initializer.kind != "zeros":
            raise ValueError(
                f"eviction policy 'zero' with initializer {self.initializer.kind!r}: a dropped row would not "
                "come back as zeros; set initializer: {kind: zeros}"
            )
        return self

    @property
    def layout(self) -> RowLayout:
        """The layout of the table's rows."""
        kinds = {policy.kind for policy in self.eviction}
        return RowLayout(
            dim=self.dim,
            dtype=dtype.CODES[self.dtype],
            state_size=self.optimizer.state_size(self.dim),
            push_time="ttl" in kinds or "show_click" in kinds,
            push_count="least_frequent" in kinds,
            show_click="show_click" in kinds,
        )

    @property
    def gradient_bound(self) -> float:
        """What a gradient's elements, duplicates summed, must stay below in magnitude.

        Infinity where any finite gradient will do.
        """
        optimizer = self.optimizer
        return gradient_bound(optimizer.kind, optimizer.clip_value, optimizer.clip_norm)
