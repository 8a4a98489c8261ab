# SPDX-License-Identifier: Apache-2.0
"""A cross that no single column can replace, learnt in one process: python -m examples.quickstart [DIR]."""

import sys
import tempfile

import numpy as np
import pyarrow as pa

from feature_cross import Engine, load
from ps_client import connect

CROSSES = {
    "entities": {
        "user": {"attributes": {"age": {"type": "int"}}},
        "item": {"attributes": {"kind": {"type": "int"}}},
    },
    "features": {"age_x_kind": {"kind": "interaction", "of": ["user.age", "item.kind"]}},
}
TABLE = {"name": "wide", "dim": 1, "initializer": {"kind": "zeros"}, "optimizer": {"kind": "adagrad"}}


def main(folder: str) -> float:
    """Train one weight per cross on clicks that happen when age and kind are both odd or both even.

    Parameters
    ----------
    folder
        Where the table lives; a second run goes on from there.

    Returns
    -------
    float
        Share of 1000 events that the model then gets right.
    """
    rng = np.random.default_rng(0)
    age, kind = rng.integers(0, 10, (2, 1000))
    clicked = (age + kind) % 2 == 0
    ids, _ = Engine(load(CROSSES)).transform(pa.table({"age": age, "kind": kind}))["age_x_kind"]
    with connect(f"embedded:{folder}", config={"tables": [TABLE]}) as client:
        for _ in range(20):
            logit = client.pull("wide", ids)[:, 0]
            gradient = 1 / (1 + np.exp(-logit)) - clicked
            client.push("wide", ids, gradient[:, None])
        return float(((client.pull("wide", ids)[:, 0] > 0) == clicked).mean())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(f"right: {main(sys.argv[1]):.0%}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(f"right: {main(folder):.0%}")
