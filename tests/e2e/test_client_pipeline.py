# SPDX-License-Identifier: Apache-2.0
"""A pipeline over real shards: with staleness 0 the bits of a run without one, for every kind of table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ps_client import Client, StepClient, connect
from tests.process import ServerProcess

STEPS, VOCABULARY = 60, 400
TABLES: list[dict[str, Any]] = [
    {"name": "adagrad", "dim": 8, "optimizer": {"kind": "adagrad", "learning_rate": 0.05}},
    {"name": "adam", "dim": 4, "dtype": "fp16", "optimizer": {"kind": "adam", "learning_rate": 0.01}},
    {"name": "ftrl", "dim": 1, "optimizer": {"kind": "ftrl", "learning_rate": 0.1, "l1": 0.001}},
    {
        "name": "admitted",
        "dim": 4,
        "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        "admission": {"kind": "min_count", "min_count": 3, "width_bits": 16},
    },
]
POOL = np.random.default_rng(0).integers(0, 2**64, VOCABULARY, np.uint64)


def step_ids(number: int) -> dict[str, NDArray[np.uint64]]:
    rng = np.random.default_rng(number)
    return {table["name"]: POOL[rng.zipf(1.2, 80).astype(np.int64) % VOCABULARY] for table in TABLES}


def train(client: StepClient, prefetching: bool) -> None:
    steps = map(step_ids, range(STEPS))
    batches = client.ahead(steps, depth=2) if prefetching else steps  # type: ignore[attr-defined]
    for number, ids in enumerate(batches):
        rows = client.pull_many(ids)
        noise = np.random.default_rng(number + 10_000)
        client.push_many(
            {n: (ids[n], 0.3 * r + noise.normal(size=r.shape).astype(np.float32)) for n, r in rows.items()}
        )


def rows_of(client: Client) -> dict[str, NDArray[np.float32]]:
    return {table["name"]: client.pull(table["name"], POOL, read_only=True) for table in TABLES}


@pytest.mark.parametrize("shards", [1, 2])
def test_staleness_0_has_the_bits_of_no_pipeline(shards: int, make_config: Any, tmp_path: Path) -> None:
    with connect(f"embedded:{tmp_path}/plain", config={"tables": TABLES}) as client:
        start = rows_of(client)
        train(client, prefetching=False)
        expected = rows_of(client)
    with ServerProcess("up", make_config(tables=TABLES, shards=shards)) as server:
        with connect(server.endpoints()) as client:
            with client.pipeline() as pipeline:
                train(pipeline, prefetching=True)
            found = rows_of(client)
        assert server.stop() == 0
    for name, rows in expected.items():
        np.testing.assert_array_equal(found[name], rows, err_msg=name)
        assert (rows != start[name]).any(axis=1).mean() > 0.05
