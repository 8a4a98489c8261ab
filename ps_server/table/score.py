# SPDX-License-Identifier: Apache-2.0
"""Show/click scores: how much a row has mattered lately, as Paddle's parameter server weighs it.

Each row carries two decayed sums, of times shown and times clicked. A show without a click counts
little, a click much; rows below a score are not worth their memory. The sums stand in the row's
metadata and decay by whole periods when the row is pushed (kernel/record.py) or judged (eviction.py).

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
        Factor of both sums at each decay (Paddle: show_click_decay_rate).
    decay_period_s
        Seconds between decays, counted from the epoch; a day by default.
    min_score
        Rows below it may be evicted (Paddle: delete_threshold).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["show_click"] = "show_click"
    nonclick_weight: Weight = 0.1
    click_weight: Weight = 1.0
    decay_rate: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.98
    decay_period_s: Annotated[int, Field(strict=True, ge=1)] = 86_400
    min_score: Weight = 0.8

    def score(self, show: NDArray[np.float32], click: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score of each row; `show` and `click` are (n,) float32, the answer a new (n,) float32."""
        return (show - click) * np.float32(self.nonclick_weight) + click * np.float32(self.click_weight)

    def periods(self, since_s: NDArray[np.uint32], now_s: int) -> NDArray[np.int64]:
        """Decays between each time in `since_s` ((n,) uint32 seconds) and now; (n,) int64, not negative."""
        elapsed = now_s // self.decay_period_s - since_s.astype(np.int64) // self.decay_period_s
        return np.maximum(elapsed, 0)

    def decayed(self, sums: NDArray[np.float32], periods: NDArray[np.int64]) -> NDArray[np.float32]:
        """Shows or clicks, (n,) float32, after so many decays each, as a new array."""
        return (sums * np.power(float(self.decay_rate), periods)).astype(np.float32)

    def evictable(self, show: NDArray[np.float32], click: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which rows, (n,) bool, score below min_score."""
        below: NDArray[np.bool_] = self.score(show, click) < np.float32(self.min_score)
        return below
