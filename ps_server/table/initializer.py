# SPDX-License-Identifier: Apache-2.0
"""Initializer configs: the weights of a row that no push has touched.

A new row is a pure function of (table seed, id), so a pull never has to write, and neither pull order
nor recovery nor resharding can change a value. `InitializerConfig` is a union discriminated by `kind`;
the arithmetic is in kernel/initializer.py.

Thread safety: configs are immutable.
"""

import math
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ps_server.kernel.initializer import CONSTANT, NORMAL, TRUNCATED_NORMAL, UNIFORM, initialize

_LARGEST = 1e30
"""Ten deviations from the mean still fit into float32, whose largest value is 3.4e38."""

Value = Annotated[float, Field(strict=True, ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]
Deviation = Annotated[float, Field(strict=True, gt=0, le=_LARGEST, allow_inf_nan=False)]


class Initializer(BaseModel):
    """What all initializers share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def parameters(self, dim: int) -> tuple[int, float, float]:
        """Kernel kind and its two parameters for rows of `dim` weights."""
        raise NotImplementedError

    def fill(self, seed: int, ids: NDArray[np.uint64], dim: int) -> NDArray[np.float32]:
        """Initial weights.

        Parameters
        ----------
        seed
            The table's seed, 0 to 2^64 - 1.
        ids
            (n,) uint64; duplicates get equal rows.
        dim
            Weights per row.

        Returns
        -------
        NDArray
            A new (n, dim) float32 array.
        """
        kind, first, second = self.parameters(dim)
        out = np.empty((ids.shape[0], dim), np.float32)
        initialize(kind, np.uint64(seed), ids, np.array([first, second]), out)
        return out


class Zeros(Initializer):
    """All weights 0."""

    kind: Literal["zeros"] = "zeros"

    def parameters(self, dim: int) -> tuple[int, float, float]:
        """CONSTANT of 0."""
        return CONSTANT, 0.0, 0.0


class Constant(Initializer):
    """All weights `value`."""

    kind: Literal["constant"] = "constant"
    value: Value

    def parameters(self, dim: int) -> tuple[int, float, float]:
        """CONSTANT of `value`."""
        return CONSTANT, self.value, 0.0


class Uniform(Initializer):
    """Uniform between `low` and `high`."""

    kind: Literal["uniform"] = "uniform"
    low: Value = -0.05
    high: Value = 0.05

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}; it must be below high, which is {self.high}")
        return self

    def parameters(self, dim: int) -> tuple[int, float, float]:
        """UNIFORM between the bounds."""
        return UNIFORM, self.low, self.high


class Normal(Initializer):
    """Normal with `mean` and standard deviation `std`."""

    kind: Literal["normal"] = "normal"
    mean: Value = 0.0
    std: Deviation = 0.05

    def parameters(self, dim: int) -> tuple[int, float, float]:
        """NORMAL with the moments."""
        return NORMAL, self.mean, self.std


class TruncatedNormal(Initializer):
    """Normal without what lies more than two `std` from `mean`.

    `std` is that of the normal before the cut, as in TensorFlow and torch; after it the standard
    deviation is 0.880·std.
    """

    kind: Literal["truncated_normal"] = "truncated_normal"
    mean: Value = 0.0
    std: Deviation = 0.05

    def parameters(self, dim: int) -> tuple[int, float, float]:
        """TRUNCATED_NORMAL with the moments before the cut."""
        return TRUNCATED_NORMAL, self.mean, self.std


class XavierUniform(Initializer):
    """Uniform within ± gain·sqrt(6 / (fan_in + fan_out)), fan_in = fan_out = dim.

    A table has no fixed number of rows, so a row counts as a dim × dim layer: the bound is
    gain·sqrt(3 / dim) (Glorot, Bengio 2010, "Understanding the difficulty of training deep
    feedforward neural networks", equation 16).
    """

    kind: Literal["xavier_uniform"] = "xavier_uniform"
    gain: Deviation = 1.0

    def parameters(self, dim: int) -> tuple[int, float, float]:
        """UNIFORM between the bounds that follow from dim."""
        bound = self.gain * math.sqrt(3.0 / dim)
        return UNIFORM, -bound, bound


class XavierNormal(Initializer):
    """Normal with mean 0 and std gain·sqrt(2 / (fan_in + fan_out)), fan_in = fan_out = dim.

    That is gain / sqrt(dim); see XavierUniform for the fans and the paper (equation 12).
    """

    kind: Literal["xavier_normal"] = "xavier_normal"
    gain: Deviation = 1.0

    def parameters(self, dim: int) -> tuple[int, float, float]:
        """NORMAL with the std that follows from dim."""
        return NORMAL, 0.0, self.gain / math.sqrt(dim)


InitializerConfig = Annotated[
    Zeros | Constant | Uniform | Normal | TruncatedNormal | XavierUniform | XavierNormal,
    Field(discriminator="kind"),
]
"""Any initializer; `kind` tells which."""
