# SPDX-License-Identifier: Apache-2.0
"""`feature-cross prune`: a config without the features that are worth nothing."""

import argparse
import json
import time

from rowhouse.document import read_text
from rowhouse.program import INTERRUPTED

from feature_cross.author.command.rank import design, since
from feature_cross.author.flag import row_shape
from feature_cross.author.rank.edit import remove_features
from feature_cross.author.rank.pruning import Limits, prune
from feature_cross.author.rank.report import print_pruned, pruned_json, told
from feature_cross.config.loader import load
from feature_cross.data.sink import check_out, write_text


def run(flags: argparse.Namespace) -> int:
    """`prune`: a config without the features that are worth nothing."""
    config = load(flags.config)
    if flags.out is not None:  # before hours of work
        check_out(flags.out, flags.config, flags.data)
    shape = row_shape(flags)
    limits = Limits(
        budget=flags.budget, tolerance=flags.tolerance, bytes_per_row=shape.row_bytes(flags.tier),
        keep=tuple(flags.keep), level=flags.level,
    )  # fmt: skip
    begin = time.perf_counter()
    with told(flags.json) as progress:
        pruned = prune(config, flags.data, design(flags), limits, threads=flags.threads, progress=progress)
    renamed: dict[str, str] = {}
    if not pruned.interrupted:
        text = read_text(flags.config)
        if pruned.dropped:
            text, renamed = remove_features(text, flags.config, pruned.dropped)
        if flags.out is not None:
            write_text(flags.out, text)
    if flags.json:
        report = {**pruned_json(pruned, renamed, flags.out), "row": shape.to_json(flags.tier)}
        print(json.dumps({**report, "seconds": since(begin)}))
    else:
        print_pruned(pruned, renamed, flags.out, shape.text(flags.tier))
    return INTERRUPTED if pruned.interrupted else 0
