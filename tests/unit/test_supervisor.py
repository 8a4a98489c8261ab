# SPDX-License-Identifier: Apache-2.0
"""The supervisor's decisions, with fake processes and a fake clock."""

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rowhouse.error import ConfigError, DirectoryInUseError, StoreError, UnavailableError

from ps_server.config.cluster import ClusterConfig, load_config
from ps_server.config.endpoint import split_endpoint
from ps_server.disk.data_dir import claim_data_dir, note_made
from ps_server.serve.server import StopFlag
from ps_server.serve.supervisor import RestartPolicy, Supervisor, resolve_ports
from tests.conftest import MakeConfig


class FakeProcess:
    """A process that ends with `code` once `World` time reaches `dies_at_s`, or when it is told to."""

    def __init__(self, world: "World", pid: int, life_s: float | None, code: int) -> None:
        self.world, self.pid, self.code = world, pid, code
        self.dies_at_s = None if life_s is None else world.now_s + life_s
        self.terminated = False

    def poll(self) -> int | None:
        if self.terminated:
            return self.world.stop_code
        return self.code if self.dies_at_s is not None and self.world.now_s >= self.dies_at_s else None

    def terminate(self) -> None:
        self.terminated = True

    def wait(self, timeout: float) -> int:
        if self.world.slow_stops:
            self.world.slow_stops -= 1
            raise subprocess.TimeoutExpired("shard", timeout)
        code = self.poll()
        assert code is not None, "waits for a process that nobody told to end"
        return code


class World:
    """Clock, processes and health of one supervisor; `lives` are the (life_s, exit code) of each start."""

    def __init__(
        self, config: ClusterConfig, lives: list[tuple[float | None, int]], stop_at_s: float
    ) -> None:
        self.now_s, self.stop_at_s, self.lives = 0.0, stop_at_s, lives
        self.started: list[tuple[float, int]] = []
        self.processes: list[FakeProcess] = []
        self.announced: list[ClusterConfig] = []
        self.slow_stops, self.stop_code = 0, 0
        self.flag = StopFlag()
        self.supervisor = Supervisor(
            config, start_child=self.start, clock=lambda: self.now_s, sleep=self.sleep,
            policy=RestartPolicy(quick_life_s=10, quick_deaths_max=3, backoff_first_s=1, backoff_max_s=5),
            is_healthy=lambda _: True, on_healthy=self.announced.append,
        )  # fmt: skip

    def start(self, index: int, config_path: Path) -> Any:
        assert config_path.is_file()
        life_s, code = self.lives.pop(0) if self.lives else (None, 0)
        self.started.append((round(self.now_s, 1), index))
        self.processes.append(FakeProcess(self, 100 + len(self.started), life_s, code))
        return self.processes[-1]

    def sleep(self, wait_s: float) -> None:
        self.now_s += wait_s
        if self.now_s >= self.stop_at_s:
            self.flag.request()

    def run(self) -> None:
        self.supervisor.run(self.flag)

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.supervisor.config.data_dir / "endpoints.json").read_text())
        return found


@pytest.fixture
def config(make_config: MakeConfig) -> ClusterConfig:
    return load_config(make_config(shards=2))


def test_every_shard_is_started_announced_once_and_stopped(config: ClusterConfig) -> None:
    world = World(config, [], stop_at_s=5)
    world.run()
    assert world.started == [(0.0, 0), (0.0, 1)]
    assert [p.terminated for p in world.processes] == [True, True]
    (resolved,) = world.announced
    assert load_config(config.data_dir / "resolved.yaml") == resolved
    assert world.facts()["endpoints"] == list(resolved.endpoints)
    assert world.facts()["pids"] == [None, None]


def test_a_shard_that_dies_after_a_long_life_is_started_again_at_once(config: ClusterConfig) -> None:
    """Invariant 1: and at its old endpoint."""
    world = World(config, [(20, -9), (None, 0), (None, 0)], stop_at_s=40)
    world.run()
    (time_s, index) = world.started[2]
    assert index == 0 and 20 <= time_s <= 20.5
    assert len(world.announced) == 1
    assert world.facts()["endpoints"] == list(world.announced[0].endpoints)


def test_quick_deaths_back_off_and_then_end_the_cluster(config: ClusterConfig) -> None:
    """Invariant 4; the waits double: 1 s, 2 s."""
    world = World(config, [(0.5, 1), (None, 0), (0.5, 1), (0.5, -11)], stop_at_s=100)
    with pytest.raises(
        UnavailableError, match=r"shard 0 died 3 times in a row .* with signal SIGSEGV; giving up"
    ):
        world.run()
    waits = [round(b[0] - a[0], 1) for a, b in zip(world.started[1:], world.started[2:], strict=False)]
    assert waits == pytest.approx([1.5, 2.5], abs=0.3)
    assert world.processes[1].terminated, "the other shard was not stopped"


def test_a_long_life_forgets_quick_deaths(config: ClusterConfig) -> None:
    lives: list[tuple[float | None, int]] = [(1, 1), (None, 0), (1, 1), (15, 1), (1, 1), (1, 1), (None, 0)]
    world = World(config, lives, stop_at_s=60)
    world.run()
    assert [i for _, i in world.started] == [0, 1, 0, 0, 0, 0, 0]


def test_a_poisoned_shard_is_started_again_with_growing_waits_and_not_for_ever(config: ClusterConfig) -> None:
    """It lived long, and ended with a store error each time: the cause is still there."""
    poisoned = StoreError.exit_code
    lives: list[tuple[float | None, int]] = [(100, poisoned), (None, 0), *[(100, poisoned)] * 9]
    world = World(config, lives, stop_at_s=2000)
    with pytest.raises(UnavailableError, match="shard 0 died 3 times in a row"):
        world.run()
    assert [i for _, i in world.started] == [0, 1, 0, 0]


def test_a_config_error_of_a_shard_ends_the_cluster_at_once(config: ClusterConfig) -> None:
    world = World(config, [(0.5, ConfigError.exit_code)], stop_at_s=100)
    with pytest.raises(ConfigError, match="shard 0 ended with exit code 2"):
        world.run()
    assert len(world.started) == 2 and world.processes[1].terminated


def test_a_stop_waits_however_long_a_checkpoint_takes(config: ClusterConfig) -> None:
    """Invariant 3."""
    world = World(config, [], stop_at_s=1)
    world.slow_stops = 4
    world.run()
    assert world.slow_stops == 0


def test_an_unclean_stop_is_an_error(config: ClusterConfig) -> None:
    world = World(config, [], stop_at_s=1)
    world.stop_code = 74
    with pytest.raises(StoreError, match="shard 0 ended with code 74; shard 1 ended with code 74"):
        world.run()


def test_two_supervisors_on_one_directory(config: ClusterConfig) -> None:
    outer = World(config, [], stop_at_s=1)

    def run_inner(index: int, config_path: Path) -> Any:
        with pytest.raises(DirectoryInUseError, match="another `ps-server up` runs on it"):
            World(config, [], stop_at_s=1).run()
        return outer.start(index, config_path)

    outer.supervisor.start_child = run_inner
    outer.run()
    assert len(outer.started) == 2
    World(config, [], stop_at_s=1).run()  # the lock went with the first one


def test_a_data_dir_that_cannot_be_made(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    world = World(load_config(make_config(data_dir=str(tmp_path / "file" / "x"))), [], stop_at_s=1)
    with pytest.raises(StoreError, match="Not a directory"):
        world.run()
    assert world.started == []


def test_ports_are_chosen_once_and_never_twice(make_config: MakeConfig) -> None:
    config = load_config(make_config(shards=20))
    ports = [split_endpoint(e)[1] for e in resolve_ports(config).endpoints]
    assert 0 not in ports and len(set(ports)) == 20
    fixed = load_config(make_config(shards=[f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"]))
    assert resolve_ports(fixed).endpoints == fixed.endpoints


def test_a_taken_port_is_told_before_any_shard_is_started(make_config: MakeConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        world = World(load_config(make_config(shards=["127.0.0.1:0", f"127.0.0.1:{port}"])), [], stop_at_s=1)
        with pytest.raises(ConfigError, match=rf"shard 1 cannot listen on '127.0.0.1:{port}': .*in use"):
            world.run()
    assert world.started == []


def test_another_number_of_shards_is_refused_before_anything_changes(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    World(load_config(make_config(shards=2, data_dir=str(tmp_path / "data"))), [], stop_at_s=1).run()
    before = {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir() if p.is_file()}
    world = World(load_config(make_config(shards=3, data_dir=str(tmp_path / "data"))), [], stop_at_s=1)
    with pytest.raises(ConfigError, match=r"shards is 3; the data in .* is split over 2"):
        world.run()
    assert world.started == []
    assert {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir() if p.is_file()} == before


@pytest.mark.parametrize(
    ("quick_deaths", "wait_s"), [(0, 0), (1, 0.25), (2, 0.5), (5, 4), (6, 8), (9, 10), (99, 10)]
)
def test_back_off(quick_deaths: int, wait_s: float) -> None:
    assert RestartPolicy().wait_s(quick_deaths) == wait_s


def test_a_shard_whose_directory_is_gone_is_not_started_anew(config: ClusterConfig) -> None:
    """It would begin empty beside the others, and nobody would be told that its rows are lost."""
    claim_data_dir(config.data_dir, config.shard_count)
    (config.data_dir / "shard-0001" / "store").mkdir(parents=True)
    (config.data_dir / "shard-0001" / "store" / "CURRENT").touch()
    for index in range(2):
        note_made(config.data_dir, index)
    world = World(config, [], stop_at_s=5)
    with pytest.raises(StoreError, match="shard-0000 is missing, one of 2 shards"):
        world.run()
    assert world.started == []
