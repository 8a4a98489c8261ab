# SPDX-License-Identifier: Apache-2.0
"""Show/click scores: how much a row has mattered lately, as Paddle's parameter server weighs it.

Each row carries two decayed sums, of times shown and times clicked. A show without a click counts
little, a click much; rows below a score are not worth their memory. Pure functions over columns of
rows; who keeps the columns, and when they decay, is the table's business.

Thread safety: configs are immutable, functions pure.
"""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

_LARGEST = 1e30  # sums are float32

Weight = Annotated[float, Field(strict=True, ge=0, le=_LARGEST, allow_inf_nan=False)]


class ShowClick(BaseModel):
    """score = (show - click)·nonclick_weight + click·click_weight.

    Attributes
    ----------
    nonclick_weight
        Paddle's nonclk_coeff.
    click_weight
        Paddle's clk_coeff.
    decay_rate
        Factor of both sums at each decay (Paddle: show_click_decay_rate, once a day).
    min_score
        Rows below it may be evicted (Paddle: delete_threshold).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["show_click"] = "show_click"
    nonclick_weight: Weight = 0.1
    click_weight: Weight = 1.0
    decay_rate: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.98
    min_score: Weight = 0.8

    def score(self, show: NDArray[np.float32], click: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score of each row; `show` and `click` are (n,) float32, the answer a new (n,) float32."""
        return (show - click) * np.float32(self.nonclick_weight) + click * np.float32(self.click_weight)

    def decayed(self, sums: NDArray[np.float32]) -> NDArray[np.float32]:
        """One decay of shows or clicks, (n,) float32, as a new array."""
        return sums * np.float32(self.decay_rate)

    def evictable(self, show: NDArray[np.float32], click: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which rows, (n,) bool, score below min_score."""
        below: NDArray[np.bool_] = self.score(show, click) < np.float32(self.min_score)
        return below
