# SPDX-License-Identifier: Apache-2.0
"""`feature-cross schema`: the JSON Schema of the config language."""

import argparse
import json

from feature_cross.config.config import CrossConfig


def run(flags: argparse.Namespace) -> int:
    """`schema`: the JSON Schema of the config language."""
    print(json.dumps(CrossConfig.model_json_schema(), indent=None if flags.json else 2))
    return 0
