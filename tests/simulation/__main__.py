# SPDX-License-Identifier: Apache-2.0
"""Run a simulation, or replay one that failed: `python -m tests.simulation SEED OPERATIONS`.

Many seeds, one after the other: `python -m tests.simulation FIRST:COUNT OPERATIONS`, one line for each.
"""

import argparse
import json
import sys
import time

from tests.simulation.run import Failure, run, shrink


def seeds_of(text: str) -> range:
    """`SEED`, or `FIRST:COUNT`."""
    first, _, count = text.partition(":")
    return range(int(first), int(first) + int(count or 1))


def main() -> int:
    """Run the seeds; 1 when one failed."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, formatter_class=form
    )
    parser.add_argument("seeds", type=seeds_of, help="SEED, or FIRST:COUNT; every draw follows from it")
    parser.add_argument("operations", type=int, nargs="?", default=20_000, help="of each seed (20,000)")
    parser.add_argument("--shrink", action="store_true", help="of a failure: leave out what it does not need")
    parser.add_argument("--without", default="", help="operations and fates to leave out, by commas")
    options = parser.parse_args()
    without = frozenset(filter(None, options.without.split(",")))
    failures = 0
    for seed in options.seeds:
        started_s = time.monotonic()
        found = run(seed, options.operations, without)
        told = f"seed {seed}: {options.operations:,} operations in {time.monotonic() - started_s:.1f} s"
        if isinstance(found, Failure):
            failures += 1
            print(found.text())
            if options.shrink:
                print(shrink(found).text())
        elif len(options.seeds) > 1:
            print(f"{told} {json.dumps(found, sort_keys=True)}", flush=True)
        else:
            for name, count in sorted(found.items()):
                print(f"{count:9,} {name}")
            print(told)
    if len(options.seeds) > 1:
        print(f"{len(options.seeds) - failures} seeds ran clean, {failures} failed", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
