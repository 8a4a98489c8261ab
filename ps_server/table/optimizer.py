# SPDX-License-Identifier: Apache-2.0
"""Optimizer configs: what a table's author writes, and what the kernels take.

`OptimizerConfig` is a union discriminated by `kind`. A config says how much state a row carries, how
that state begins, and with which hyperparameters it is stepped (by the kernel that kernel/step.py has for
`kind`); the kernels' docstrings (kernel/optimizer.py, kernel/optimizer_proximal.py) state each formula and
its paper.

Thread safety: configs are immutable.
"""

import math
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rowhouse.error import InvalidRequestError

from ps_server.kernel.gradient import clip

_LARGEST = float(np.float32(3e38))  # kernels compute in float32, and a push's rate travels as one
Positive = Annotated[float, Field(strict=True, ge=1e-30, le=_LARGEST, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, le=_LARGEST, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, lt=1)]


class Optimizer(BaseModel):
    """What all optimizers share.

    Attributes
    ----------
    learning_rate
        Used where a push brings no rate of its own.
    clip_value
        Bound of each gradient element, after duplicates were summed; None is off.
    clip_norm
        Bound of the L2 norm of each row's gradient, after clip_value; None is off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: Positive
    clip_value: Positive | None = None
    clip_norm: Positive | None = None

    zero_rate_allowed: ClassVar[bool] = True
    """Whether a push may bring learning rate 0 (the first step of a warm-up)."""

    def state_size(self, dim: int) -> int:
        """Number of float32 values of state beside a row of `dim` weights."""
        raise NotImplementedError

    def initial_state(self, dim: int) -> NDArray[np.float32]:
        """State of a row that no push has touched: a new (state_size(dim),) float32 array."""
        return np.zeros(self.state_size(dim), np.float32)

    def _hyper(self) -> tuple[float, ...]:
        """Hyperparameters after the learning rate, in the kernel's order."""
        raise NotImplementedError

    def hyper(self, learning_rate: float | None = None) -> NDArray[np.float64]:
        """Hyperparameters of one push.

        Parameters
        ----------
        learning_rate
            The push's own rate; None takes the config's.

        Returns
        -------
        NDArray
            (count,) float64, the learning rate first.

        Raises
        ------
        InvalidRequestError
            The rate is negative, not finite, past float32, or too small for this optimizer.
        """
        rate = self.learning_rate if learning_rate is None else learning_rate
        least = 0.0 if self.zero_rate_allowed else 1e-30
        if not (math.isfinite(rate) and least <= rate <= _LARGEST):
            name = type(self).__name__
            raise InvalidRequestError(f"learning rate is {rate}; {name} takes {least:g} to {_LARGEST:g}")
        return np.array([rate, *self._hyper()], np.float64)

    def clipped(self, gradients: NDArray[np.float32]) -> NDArray[np.float32]:
        """`gradients` (n, dim) clipped as configured: a new array, or the argument if nothing clips."""
        if self.clip_value is None and self.clip_norm is None:
            return gradients
        out = gradients.copy()
        clip(out, self.clip_value or 0.0, self.clip_norm or 0.0)
        return out


class DecayedOptimizer(Optimizer):
    """An optimizer with L2 weight decay, added to the gradient of touched rows (AdamW: see there)."""

    weight_decay: NotNegative = 0.0


class Sgd(DecayedOptimizer):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: Positive = 0.01

    def state_size(self, dim: int) -> int:
        """None."""
        return 0

    def _hyper(self) -> tuple[float, ...]:
        return (self.weight_decay,)


class Momentum(DecayedOptimizer):
    """SGD with momentum, dampening and Nesterov's variant, as torch.optim.SGD has them."""

    kind: Literal["momentum"] = "momentum"
    learning_rate: Positive = 0.01
    momentum: Fraction = 0.9
    dampening: Fraction = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_is_defined(self) -> Self:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"nesterov needs momentum > 0 and dampening = 0, not {self.momentum} and {self.dampening}"
            )
        return self

    def state_size(self, dim: int) -> int:
        """One velocity per weight."""
        return dim

    def _hyper(self) -> tuple[float, ...]:
        return (self.weight_decay, self.momentum, self.dampening, float(self.nesterov))


class Adagrad(DecayedOptimizer):
    """Adagrad with one accumulator per weight."""

    kind: Literal["adagrad"] = "adagrad"
    learning_rate: Positive = 0.01
    initial_accumulator_value: NotNegative = 0.0
    eps: Positive = 1e-10

    def state_size(self, dim: int) -> int:
        """One accumulator per weight."""
        return dim

    def initial_state(self, dim: int) -> NDArray[np.float32]:
        """initial_accumulator_value throughout."""
        return np.full(self.state_size(dim), self.initial_accumulator_value, np.float32)

    def _hyper(self) -> tuple[float, ...]:
        return (self.weight_decay, self.eps)


class RowwiseAdagrad(DecayedOptimizer):
    """Adagrad with one accumulator per row: 4 bytes of state whatever the dim."""

    kind: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    learning_rate: Positive = 0.01
    initial_accumulator_value: NotNegative = 0.0
    eps: Positive = 1e-8

    def state_size(self, dim: int) -> int:
        """One accumulator."""
        return 1

    def initial_state(self, dim: int) -> NDArray[np.float32]:
        """initial_accumulator_value."""
        return np.full(1, self.initial_accumulator_value, np.float32)

    def _hyper(self) -> tuple[float, ...]:
        return (self.weight_decay, self.eps)


class _AdamLike(DecayedOptimizer):
    learning_rate: Positive = 0.001
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Positive = 1e-8

    decoupled: ClassVar[bool]

    def state_size(self, dim: int) -> int:
        """Two moments per weight, and the row's step count."""
        return 2 * dim + 1

    def _hyper(self) -> tuple[float, ...]:
        return (self.weight_decay, self.beta1, self.beta2, self.eps, float(self.decoupled))


class Adam(_AdamLike):
    """Lazy Adam: bias correction by each row's own step count; weight decay in the gradient."""

    kind: Literal["adam"] = "adam"
    decoupled: ClassVar[bool] = False


class AdamW(_AdamLike):
    """Lazy AdamW: weight decay shrinks the touched row directly, by learning_rate x weight_decay."""

    kind: Literal["adamw"] = "adamw"
    weight_decay: NotNegative = 0.01
    decoupled: ClassVar[bool] = True


class _FtrlLike(Optimizer):
    learning_rate: Positive = 0.05
    convention: Literal["tensorflow", "plain"] = "tensorflow"
    beta: NotNegative = 0.0
    l1: NotNegative = 0.0
    l2: NotNegative = 0.0
    initial_accumulator_value: NotNegative = 0.1

    zero_rate_allowed: ClassVar[bool] = False  # the closed form divides by the rate

    @model_validator(mode="after")
    def _convention_is_kept(self) -> Self:
        if self.convention == "tensorflow" and self.beta != 0:
            raise ValueError(
                f"beta is {self.beta}; it must be 0 with convention tensorflow; convention plain has a beta"
            )
        return self

    def state_size(self, dim: int) -> int:
        """z and n per weight."""
        return 2 * dim

    def initial_state(self, dim: int) -> NDArray[np.float32]:
        """Zeros for z, then initial_accumulator_value for n."""
        state = np.zeros(2 * dim, np.float32)
        state[dim:] = self.initial_accumulator_value
        return state

    def _hyper(self) -> tuple[float, ...]:
        factor = 2.0 if self.convention == "tensorflow" else 1.0
        return (self.beta, self.l1, factor * self.l2)


class Ftrl(_FtrlLike):
    """FTRL-proximal. l1 gives exact zeros.

    `convention: tensorflow` adds 2·l2 to the denominator and has no beta; `plain` is the paper's: l2
    and beta as they are. The closed form forgets initial weights; zeros suit it best.
    """

    kind: Literal["ftrl"] = "ftrl"


class GroupFtrl(_FtrlLike):
    """FTRL whose l21 zeroes whole rows at once, and l1 single weights; conventions as Ftrl's."""

    kind: Literal["group_ftrl"] = "group_ftrl"
    l21: NotNegative = 0.0

    def _hyper(self) -> tuple[float, ...]:
        return (*super()._hyper(), self.l21)


class Fobos(Optimizer):
    """Forward-backward splitting at one rate, without state. l1 gives exact zeros."""

    kind: Literal["fobos"] = "fobos"
    learning_rate: Positive = 0.01
    l1: NotNegative = 0.0
    l2: NotNegative = 0.0

    def state_size(self, dim: int) -> int:
        """None."""
        return 0

    def _hyper(self) -> tuple[float, ...]:
        return (self.l1, self.l2)


class FobosAdagrad(Optimizer):
    """Forward-backward splitting at Adagrad's rates. l1 gives exact zeros."""

    kind: Literal["fobos_adagrad"] = "fobos_adagrad"
    learning_rate: Positive = 0.01
    l1: NotNegative = 0.0
    l2: NotNegative = 0.0
    initial_accumulator_value: NotNegative = 0.1
    eps: Positive = 1e-10

    def state_size(self, dim: int) -> int:
        """One accumulator per weight."""
        return dim

    def initial_state(self, dim: int) -> NDArray[np.float32]:
        """initial_accumulator_value throughout."""
        return np.full(dim, self.initial_accumulator_value, np.float32)

    def _hyper(self) -> tuple[float, ...]:
        return (self.l1, self.l2, self.eps)


OptimizerConfig = Annotated[
    Sgd | Momentum | Adagrad | RowwiseAdagrad | Adam | AdamW | Ftrl | GroupFtrl | Fobos | FobosAdagrad,
    Field(discriminator="kind"),
]
"""Any optimizer; `kind` tells which."""
