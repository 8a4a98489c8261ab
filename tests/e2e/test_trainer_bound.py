# SPDX-License-Identifier: Apache-2.0
"""Parts of a bsp step whose sum no shard could apply: refused before any shard applies the step."""

import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
from rowhouse.error import InvalidRequestError
from rowhouse.limit import GRADIENT_BOUND

from ps_client import Client, connect
from ps_server.config.cluster import load_config
from ps_server.serve.server import Server
from ps_server.shard.shard import Shard
from tests.conftest import MakeConfig
from tests.e2e.test_trainer_client import ONES, together, trainers_of

IDS = np.arange(40, dtype=np.uint64)
FLOAT32_MAX = float(np.finfo(np.float32).max)


@pytest.fixture(params=["frames", "grpc"])
def clients(make_config: MakeConfig, request: pytest.FixtureRequest) -> Iterator[list[Client]]:
    """Two clients of two shards, over the data port or gRPC; a table that sums squares, one that does not."""
    kinds = {
        "squares": {"kind": "adagrad", "learning_rate": 0.5},
        "plain": {"kind": "sgd", "learning_rate": 0.5},
    }
    tables = [{"name": name, "dim": 4, "optimizer": optimizer} for name, optimizer in kinds.items()]
    with tempfile.TemporaryDirectory(prefix="rw") as folder:  # short enough for a socket's path
        wire = {"data_port": "auto" if request.param == "frames" else "off"}
        config = load_config(make_config(shards=2, host=f"unix:{folder}", tables=tables, **wire))
        servers = [Server(config, index, Shard.open) for index in range(2)]
        for server in servers:
            server.start()
        target = ",".join(server.endpoint for server in servers)
        with connect(target, timeout_s=10) as one, connect(target, timeout_s=10) as other:
            yield [one, other]
        for server in servers:
            assert server._shard is not None and server._shard.poison is None
            server.stop()


@pytest.mark.parametrize(
    ("table", "legal", "bound"),
    [("squares", 0.75 * GRADIENT_BOUND, "2.2518e+15"), ("plain", 3e38, "3.40282e+38")],
)
def test_parts_whose_sum_is_past_the_bound_are_refused_on_every_shard(
    clients: list[Client], table: str, legal: float, bound: str
) -> None:
    """One id, of one shard, is too large: the other shard does not apply these trainers' gradients either."""
    one, other = trainers_of(clients)
    before = one.pull(table, IDS)
    gradients = ONES.copy()
    gradients[7, 2] = legal
    for trainer in (one, other):
        trainer.push(table, IDS, gradients)
    raised = together(one.step, other.step)
    text = f"step 1: table '{table}': the gradient of id 7 (column 2) is "
    for failure in raised:
        assert type(failure) is InvalidRequestError, failure
        assert text in str(failure) and f"so that their sum is below {bound}" in str(failure)
    assert one.steps == other.steps == 1
    np.testing.assert_array_equal(one.pull(table, IDS), before)
    for trainer in (one, other):
        trainer.push(table, IDS, ONES)
    assert together(one.step, other.step) == [None, None]
    assert (one.pull(table, IDS) < before).all()


def test_a_trainer_past_its_share_takes_part_without_gradients(clients: list[Client]) -> None:
    one, other = trainers_of(clients)
    before = one.pull("plain", IDS)
    one.push("plain", IDS, 2 * ONES)
    other.push("plain", IDS, np.full((40, 4), 3e38))
    raised = together(one.step, other.step)
    assert raised[0] is None and type(raised[1]) is InvalidRequestError
    np.testing.assert_array_equal(other.pull("plain", IDS), before - np.float32(1))


def test_the_largest_parts_that_are_legal_are_legal_together(clients: list[Client]) -> None:
    for table, bound in (("squares", GRADIENT_BOUND), ("plain", FLOAT32_MAX)):
        one, other = trainers_of(clients, group=table)
        largest = np.full((40, 4), np.nextafter(np.float32(bound / 4), np.float32(0)))
        for trainer in (one, other):
            trainer.push(table, IDS, largest)
        assert together(one.step, other.step) == [None, None]
        assert np.isfinite(one.pull(table, IDS)).all()


def test_a_single_trainer_has_the_whole_bound(clients: list[Client]) -> None:
    (alone,) = trainers_of(clients[:1])
    alone.push("squares", IDS, np.full((40, 4), 0.99 * GRADIENT_BOUND))
    alone.step()
    assert np.isfinite(alone.pull("squares", IDS)).all()
