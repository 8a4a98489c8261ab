# SPDX-License-Identifier: Apache-2.0
"""Which crosses are worth their memory: ranked on held-out rows, pruned, suggested."""

from feature_cross.rank.ranking import CrossGain, Judgement, Ranking, rank
from feature_cross.rank.sample import Design

__all__ = ["CrossGain", "Design", "Judgement", "Ranking", "rank"]
