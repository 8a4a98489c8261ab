# SPDX-License-Identifier: Apache-2.0
"""`feature-cross rank`: what each cross gains."""

import argparse
import json
import time

from rowhouse.program import INTERRUPTED

from feature_cross.author.flag import row_shape
from feature_cross.author.rank.ranking import Judgement, rank
from feature_cross.author.rank.report import print_ranking, ranking_json, told
from feature_cross.author.rank.sample import Design
from feature_cross.config.loader import load


def run(flags: argparse.Namespace) -> int:
    """`rank`: what each cross gains."""
    config = load(flags.config)
    judgement = Judgement(flags.level, flags.correction)
    begin = time.perf_counter()
    with told(flags.json) as progress:
        ranking = rank(
            config, flags.data, design(flags), over=flags.over, features=flags.feature, judgement=judgement,
            threads=flags.threads, progress=progress,
        )  # fmt: skip
    shape = row_shape(flags)
    if flags.json:
        report = ranking_json(ranking, judgement, shape.row_bytes(flags.tier))
        row = shape.to_json(flags.tier)
        print(json.dumps({**report, "row": row, "over": flags.over, "seconds": since(begin)}))
    else:
        print_ranking(ranking, judgement, flags.over, shape, flags.tier)
    return INTERRUPTED if ranking.interrupted else 0


def since(begin: float) -> float:
    """Seconds since then, for a report."""
    return round(time.perf_counter() - begin, 3)


def design(flags: argparse.Namespace) -> Design:
    """What `add_rank_flags` took of the data and its division."""
    return Design(
        label=flags.label, time_column=flags.time_column, group_column=flags.group_column, seed=flags.seed,
        rows_max=flags.max_rows, shares=flags.split,
    )  # fmt: skip
