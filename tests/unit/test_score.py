# SPDX-License-Identifier: Apache-2.0
"""Show/click scores against Paddle's own test value and by hand."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from ps_server.table.score import ShowClick


def _column(*values: float) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    return np.array(values, np.float32)


def test_the_published_score() -> None:
    # Paddle's accessor tests: nonclk_coeff 0.2, click_coeff 1, 10 shows and 6 clicks give 6.8.
    score = ShowClick(nonclick_weight=0.2).score(_column(10), _column(6))
    assert score.dtype == np.float32 and score[0] == pytest.approx(6.8)
    assert ShowClick().score(_column(10, 3, 0), _column(6, 0, 0)) == pytest.approx([6.4, 0.3, 0.0])


def test_sums_decay_and_rows_fall_below_the_minimum() -> None:
    config = ShowClick(decay_rate=0.5, min_score=1.0)
    shows, clicks = _column(20, 2, 10), _column(0, 1, 0)
    assert config.evictable(shows, clicks).tolist() == [False, False, False]  # scores 2, 1.1 and 1
    periods = config.periods(np.array([86_399, 86_399, 86_399], np.uint32), 86_400)
    assert periods.tolist() == [1, 1, 1]  # whole periods since the epoch, not since the push
    shows, clicks = config.decayed(shows, periods), config.decayed(clicks, periods)
    assert shows.tolist() == [10, 1, 5] and clicks.tolist() == [0, 0.5, 0]
    assert config.evictable(shows, clicks).tolist() == [False, True, True]


@pytest.mark.parametrize(
    "wrong",
    [{"decay_rate": 0}, {"decay_rate": 1.1}, {"click_weight": -1}, {"min_score": math.inf}, {"clicks": 1}],
)
def test_wrong_configs_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ShowClick.model_validate(wrong)
