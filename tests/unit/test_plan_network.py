# SPDX-License-Identifier: Apache-2.0
"""Bytes and connections of training steps: the formula beside the codec, and beside counted ids."""

import numpy as np
import pytest
from rowhouse import dtype, frame
from rowhouse.codec import (
    encode_pull_request,
    encode_pull_response,
    encode_push_request,
    encode_push_response,
)
from rowhouse.error import ConfigError
from rowhouse.message import (
    PullRequest,
    PullResponse,
    PushRequest,
    PushResponse,
    TableGradients,
    TableIds,
    TableRows,
)

from ps_server.plan.network import EXACT_RANKS, Traffic, expected_distinct, make_network


@pytest.mark.parametrize(("rows", "alpha"), [(1000, 1.05), (300_000, 1.05), (300_000, 0.0), (50, 0.0)])
def test_expected_distinct_ids_are_the_sum_over_ids(rows: int, alpha: float) -> None:
    weight = np.arange(1, rows + 1, dtype=np.float64) ** -alpha
    share = weight / weight.sum()
    for draws in (1, 500, 26_624):
        wanted = (1 - (1 - share) ** draws).sum()
        assert expected_distinct(draws, rows, alpha) == pytest.approx(wanted, rel=1e-3)


def test_expected_distinct_ids_are_what_is_drawn() -> None:
    rng, rows = np.random.default_rng(3), 4 * EXACT_RANKS
    weight = np.arange(1, rows + 1, dtype=np.float64) ** -1.05
    drawn = [np.unique(rng.choice(rows, 5000, p=weight / weight.sum())).shape[0] for _ in range(20)]
    assert np.mean(drawn) == pytest.approx(expected_distinct(5000, rows), rel=0.02)
    assert expected_distinct(26_624, 25e9) < expected_distinct(26_624, 25e9, 0.0) <= 26_624
    assert expected_distinct(10, 1) == pytest.approx(1.0) and expected_distinct(10, 0) == 0.0


@pytest.mark.parametrize("shards", [1, 4])
def test_bytes_are_those_of_the_codec(shards: int) -> None:
    """Of one table: the messages of a step, split evenly, each in its frame."""
    dim, rows = 16, 1e6
    network = make_network(Traffic(trainers=8, batch_ids=4096), [(rows, dim)], shards)
    count = round(network.distinct_ids / shards)
    ids = np.arange(count, dtype=np.uint64) << np.uint64(40)
    values = np.ones((count, dim), np.float32)
    pull = PullRequest(2**60, dtype.FLOAT32, False, (TableIds("user", dim, ids),), None)
    answer = PullResponse(2**40, (TableRows("user", dtype.FLOAT32, values, None),))
    push = PushRequest(
        map_version=2**60, client_id=2**60, sequence=2**20,
        tables=(
            TableGradients(
                table="user", dtype=dtype.FLOAT32, ids=ids, gradients=values, learning_rate=None, shows=None,
                clicks=None,
            ),
        ),
    )  # fmt: skip
    head = frame.HEAD.size
    asked = head + len(encode_pull_request(pull))
    got = 2 * head + len(encode_pull_response(answer)) + len(encode_push_response(PushResponse(2**40, False)))
    pushed = head + len(encode_push_request(push))
    for planned, real in (
        (network.ids_bytes, asked),
        (network.rows_bytes, got),
        (network.push_bytes, pushed),
    ):
        assert planned == pytest.approx(real * shards, rel=0.01)
    assert network.client_bytes == network.ids_bytes + network.rows_bytes + network.push_bytes
    assert network.shard_in_bytes + network.shard_out_bytes == pytest.approx(
        8 * network.client_bytes / shards
    )


def test_two_tables_share_a_step_and_trainers_hold_connections() -> None:
    network = make_network(Traffic(trainers=2000), [(3e9, 16), (1e9, 8)], 64)
    assert network.distinct_ids == pytest.approx(
        expected_distinct(26_624 * 0.75, 3e9) + expected_distinct(26_624 * 0.25, 1e9)
    )
    assert (network.shard_connections, network.connections) == (4000, 256_000)


@pytest.mark.parametrize("change", [{"trainers": 0}, {"trainers": 1, "batch_ids": 0}])
def test_traffic_that_cannot_be(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="it must be 1 or more"):
        Traffic(**change)
