# SPDX-License-Identifier: Apache-2.0
"""`feature-cross suggest`: crosses that a config lacks, as YAML."""

import argparse
import json
import os
import time

from rowhouse.document import read_text
from rowhouse.program import INTERRUPTED

from feature_cross.author.command.rank import design, since
from feature_cross.author.flag import row_shape
from feature_cross.author.rank.edit import add_features
from feature_cross.author.rank.ranking import Judgement
from feature_cross.author.rank.report import figures, print_found, suggestions_json, told
from feature_cross.author.rank.suggestion import Search, suggest
from feature_cross.config.loader import load
from feature_cross.data.sink import check_out, write_text


def run(flags: argparse.Namespace) -> int:
    """`suggest`: crosses that the config lacks, as YAML."""
    config = load(flags.config)
    if flags.out is not None:  # before hours of work
        check_out(flags.out, flags.config, flags.data)
    judgement = Judgement(flags.level, flags.correction)
    shape = row_shape(flags)
    search = Search(
        budget=flags.budget, bytes_per_row=shape.row_bytes(flags.tier), top=flags.top, beam=flags.beam,
        order=flags.order, columns=tuple(flags.column),
    )  # fmt: skip
    begin = time.perf_counter()
    with told(flags.json) as progress:
        found = suggest(
            config, flags.data, design(flags), search, judgement=judgement, threads=flags.threads,
            progress=progress,
        )  # fmt: skip
    if flags.json:
        report = suggestions_json(found, judgement, os.fspath(flags.data))
        row = shape.to_json(flags.tier)
        print(json.dumps({**report, "row": row, "out": flags.out, "seconds": since(begin)}))
    else:
        print_found(found, judgement, os.fspath(flags.data), shape.text(flags.tier))
    if found.interrupted:
        return INTERRUPTED
    if flags.out is not None:
        shown = [one for one in found.suggestions if one.body is not None]
        new = {one.name: one.body or {} for one in shown}
        comments = {one.name: figures(one, found.z) for one in shown}
        text = read_text(flags.config)
        write_text(flags.out, add_features(text, flags.config, new, comments) if new else text)
    return 0
