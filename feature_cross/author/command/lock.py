# SPDX-License-Identifier: Apache-2.0
"""`feature-cross lock`: every feature's slot and seed into a file beside the config."""

import argparse
import json
from pathlib import Path

from feature_cross.author.guard.lock import check_against, lock_path, make_lock, read_previous
from feature_cross.author.progress import counted
from feature_cross.config.loader import load
from feature_cross.config.plan import build_plan
from feature_cross.data.sink import check_out, write_text


def run(flags: argparse.Namespace) -> int:
    """`lock`: exit code 1, and nothing written, where a slot or seed of the lock has changed."""
    config = load(flags.config)
    plan = build_plan(config)
    target = Path(flags.out) if flags.out else lock_path(flags.config)
    check_out(target, flags.config)
    previous = read_previous(target) if target.exists() else None
    problems = check_against(config, plan, previous) if previous is not None else []
    made = make_lock(plan, previous)
    written = flags.accept or not problems
    if written:
        write_text(target, json.dumps(made.to_json(), indent=1) + "\n")
    if flags.json:
        texts = [{"code": p.code, "line": p.line, "message": p.message} for p in problems]
        print(json.dumps({"out": str(target), "written": written, "problems": texts}))
        return 0 if written else 1
    for problem in problems:
        print(f"{problem.severity}: {problem.text(flags.config)} [{problem.code}]")
    if written:
        print(f"{counted(len(made.features), 'feature')}, {len(made.retired)} retired -> {target}")
    else:
        print(f"{target} is left as it was; --accept writes it all the same")
    return 0 if written else 1
