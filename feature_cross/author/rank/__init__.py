# SPDX-License-Identifier: Apache-2.0
"""Which crosses are worth their memory: ranked on held-out rows, pruned, suggested."""

from feature_cross.author.rank.pruning import Limits, Pruned, prune
from feature_cross.author.rank.ranking import CrossGain, Judgement, Ranking, rank
from feature_cross.author.rank.sample import Design
from feature_cross.author.rank.suggestion import Found, Search, Suggestion, suggest

__all__ = [
    "CrossGain",
    "Design",
    "Found",
    "Judgement",
    "Limits",
    "Pruned",
    "Ranking",
    "Search",
    "Suggestion",
    "prune",
    "rank",
    "suggest",
]
