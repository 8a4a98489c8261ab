# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random instants and named points, and power cuts: no push lost or doubled, bit for bit."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.client import TIMER, Host, KilledShard
from tests.workload import MEMORY


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="host"))
    with Host(folder) as started:
        yield started
    shutil.rmtree(folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="crash", dir=MEMORY if MEMORY.is_dir() else None))
    yield made
    shutil.rmtree(made)


def _run(host: Host, folder: Path, kills: int, durability: str, seed: int, power_cuts: bool) -> None:
    shard = KilledShard(host, folder, durability=durability, seed=seed, power_cuts=power_cuts)
    for _ in range(kills):
        shard.live_and_die()
    shard.finish()
    print(f"seed {seed}: {dict(shard.kills)}, {shard.acknowledged} pushes, {shard.retried} retries")
    assert sum(shard.kills.values()) == kills
    assert all(shard.kills[point] >= kills // 20 for point in [TIMER, *shard.points]), shard.kills
    assert shard.retried >= kills // 4, "the kills hardly ever met a request"


@pytest.mark.parametrize(("durability", "power_cuts"), [("os", False), ("fsync", True)])
def test_killed_at_any_time_and_equal_to_an_undisturbed_run(
    host: Host, folder: Path, durability: str, power_cuts: bool
) -> None:
    _run(host, folder, 110, durability, seed=1, power_cuts=power_cuts)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 22))
@pytest.mark.parametrize(("durability", "power_cuts"), [("os", False), ("fsync", False), ("fsync", True)])
def test_killed_for_long(host: Host, folder: Path, durability: str, power_cuts: bool, seed: int) -> None:
    _run(host, folder, 300, durability, seed, power_cuts)
