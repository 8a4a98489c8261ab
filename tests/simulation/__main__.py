# SPDX-License-Identifier: Apache-2.0
"""Run a simulation, or replay one that failed: `python -m tests.simulation SEED OPERATIONS`."""

import argparse
import sys
import time

from tests.simulation.run import Failure, run, shrink


def main() -> int:
    """Run one seed; 1 when it failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, help="every draw follows from it")
    parser.add_argument("operations", type=int, nargs="?", default=20_000, help="how many (20,000)")
    parser.add_argument("--shrink", action="store_true", help="of a failure: leave out what it does not need")
    parser.add_argument("--without", default="", help="operations and fates to leave out, by commas")
    options = parser.parse_args()
    without = frozenset(filter(None, options.without.split(",")))
    started_s = time.monotonic()
    found = run(options.seed, options.operations, without)
    if isinstance(found, Failure):
        print(found.text())
        if options.shrink:
            print(shrink(found).text())
        return 1
    for name, count in sorted(found.items()):
        print(f"{count:9,} {name}")
    print(f"seed {options.seed}: {options.operations:,} operations in {time.monotonic() - started_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
