# SPDX-License-Identifier: Apache-2.0
"""`feature-cross fit`: quantile edges into a config's own text."""

import argparse
import json
from pathlib import Path

from feature_cross.author.fit import fit
from feature_cross.data.sink import check_out, write_text


def run(flags: argparse.Namespace) -> int:
    """`fit`: edges into the config's own text; the file appears when it is whole."""
    if flags.out is not None:
        check_out(flags.out, None, flags.data)
    done = fit(flags.config, flags.data, flags.refit)
    target = Path(flags.out or flags.config)
    if done.edges or flags.out:
        write_text(target, done.text)
    if flags.json:
        print(json.dumps({"out": str(target), "edges": done.edges, "values": done.values}))
        return 0
    for label, edges in done.edges.items():
        print(f"{label}: {len(edges) + 1} buckets from {done.values[label]:,} values -> {target}")
    if not done.edges:
        print("no quantiles without edges; --refit moves those that are there")
    return 0
