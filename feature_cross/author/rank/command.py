# SPDX-License-Identifier: Apache-2.0
"""What `rank`, `prune` and `suggest` do; feature_cross/author/rank/flag.py reads their flags.

Each takes the parsed flags and gives an exit code; 130 after an interrupt, when what is known was printed.
Thread safety: a process's main thread.
"""

import argparse
import json
import os
import time
from pathlib import Path

from feature_cross.author.flag import row_shape
from feature_cross.author.rank.edit import add_features, remove_features
from feature_cross.author.rank.pruning import Limits, prune
from feature_cross.author.rank.ranking import Judgement, rank
from feature_cross.author.rank.report import print_ranking, ranking_json, told
from feature_cross.author.rank.sample import Design
from feature_cross.author.rank.search_report import (
    figures,
    print_found,
    print_pruned,
    pruned_json,
    suggestions_json,
)
from feature_cross.author.rank.suggestion import Search, suggest
from feature_cross.config.loader import load
from feature_cross.data.output import check_out, write_text

__all__ = ["INTERRUPTED", "run_prune", "run_rank", "run_suggest"]

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
    shape = row_shape(flags)
    if flags.json:
        report = ranking_json(ranking, judgement, shape.row_bytes(flags.tier))
        row = shape.to_json(flags.tier)
        print(json.dumps({**report, "row": row, "over": flags.over, "seconds": _since(begin)}))
    else:
        print_ranking(ranking, judgement, flags.over, shape, flags.tier)
    return INTERRUPTED if ranking.interrupted else 0


def run_suggest(flags: argparse.Namespace) -> int:
    """`suggest`: crosses that the config lacks, as YAML."""
    config = load(flags.config)
    _check_out(flags)
    judgement = Judgement(flags.level, flags.correction)
    shape = row_shape(flags)
    search = Search(
        budget=flags.budget, bytes_per_row=shape.row_bytes(flags.tier), top=flags.top, beam=flags.beam,
        order=flags.order, columns=tuple(flags.column),
    )  # fmt: skip
    begin = time.perf_counter()
    with told(flags.json) as progress:
        found = suggest(
            config, flags.data, _design(flags), search, judgement=judgement, threads=flags.threads,
            progress=progress,
        )  # fmt: skip
    if flags.json:
        report = suggestions_json(found, judgement, os.fspath(flags.data))
        row = shape.to_json(flags.tier)
        print(json.dumps({**report, "row": row, "out": flags.out, "seconds": _since(begin)}))
    else:
        print_found(found, judgement, os.fspath(flags.data), shape.text(flags.tier))
    if found.interrupted:
        return INTERRUPTED
    if flags.out is not None:
        shown = [one for one in found.suggestions if one.body is not None]
        new = {one.name: one.body or {} for one in shown}
        comments = {one.name: figures(one, found.z) for one in shown}
        text = Path(flags.config).read_text(encoding="utf-8")
        write_text(flags.out, add_features(text, flags.config, new, comments) if new else text)
    return 0


def run_prune(flags: argparse.Namespace) -> int:
    """`prune`: a config without the features that are worth nothing."""
    config = load(flags.config)
    _check_out(flags)
    shape = row_shape(flags)
    limits = Limits(
        budget=flags.budget, tolerance=flags.tolerance, bytes_per_row=shape.row_bytes(flags.tier),
        keep=tuple(flags.keep), level=flags.level,
    )  # fmt: skip
    begin = time.perf_counter()
    with told(flags.json) as progress:
        pruned = prune(config, flags.data, _design(flags), limits, threads=flags.threads, progress=progress)
    renamed: dict[str, str] = {}
    if not pruned.interrupted:
        text = Path(flags.config).read_text(encoding="utf-8")
        if pruned.dropped:
            text, renamed = remove_features(text, flags.config, pruned.dropped)
        if flags.out is not None:
            write_text(flags.out, text)
    if flags.json:
        report = {**pruned_json(pruned, renamed, flags.out), "row": shape.to_json(flags.tier)}
        print(json.dumps({**report, "seconds": _since(begin)}))
    else:
        print_pruned(pruned, renamed, flags.out, shape.text(flags.tier))
    return INTERRUPTED if pruned.interrupted else 0


def _check_out(flags: argparse.Namespace) -> None:
    """Before hours of work: the config that was read is never the one that is written."""
    if flags.out is None:
        return
    check_out(flags.out, flags.config, flags.data)


def _since(begin: float) -> float:
    return round(time.perf_counter() - begin, 3)


def _design(flags: argparse.Namespace) -> Design:
    return Design(
        label=flags.label, time_column=flags.time_column, group_column=flags.group_column, seed=flags.seed,
        rows_max=flags.max_rows, shares=flags.split,
    )  # fmt: skip
