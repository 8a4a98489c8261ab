# SPDX-License-Identifier: Apache-2.0
"""What `rank`, `prune` and `suggest` do; feature_cross/rank/flag.py reads their flags.

Each takes the parsed flags and gives an exit code; 130 after an interrupt, when what is known was printed.
Thread safety: a process's main thread.
"""

import argparse
import json
import time

from feature_cross.loader import load
from feature_cross.rank.budget import row_bytes
from feature_cross.rank.ranking import Judgement, rank
from feature_cross.rank.report import print_ranking, ranking_json, told
from feature_cross.rank.sample import Design

__all__ = ["INTERRUPTED", "run_rank"]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""


def run_rank(flags: argparse.Namespace) -> int:
    """`rank`: what each cross gains."""
    config = load(flags.config)
    judgement = Judgement(flags.level, flags.correction)
    begin = time.perf_counter()
    with told(flags.json) as progress:
        ranking = rank(
            config, flags.data, _design(flags), over=flags.over, features=flags.feature, judgement=judgement,
            threads=flags.threads, progress=progress,
        )  # fmt: skip
    size = row_bytes(flags.dim, flags.dtype)
    if flags.json:
        seconds = round(time.perf_counter() - begin, 3)
        print(json.dumps({**ranking_json(ranking, judgement, size), "over": flags.over, "seconds": seconds}))
    else:
        print_ranking(ranking, judgement, flags.over, size)
    return INTERRUPTED if ranking.interrupted else 0


def _design(flags: argparse.Namespace) -> Design:
    return Design(
        label=flags.label, time_column=flags.time_column, group_column=flags.group_column, seed=flags.seed,
        rows_max=flags.max_rows, shares=flags.split,
    )  # fmt: skip
