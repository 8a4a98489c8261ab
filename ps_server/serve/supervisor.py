# SPDX-License-Identifier: Apache-2.0
"""A whole local cluster as child processes: start, watch, restart, stop.

Each shard is `python -m ps_server.cli serve` in a session of its own, so that a Ctrl-C reaches only the
supervisor, which stops them in order. What a shard does is server.py's business.

Files in data_dir: `supervisor.lock` (one supervisor at a time), `resolved.yaml` (what the children run:
every port known), `endpoints.json` (endpoints, process ids; written anew at each change, atomically).

Invariants: 1. a shard keeps its endpoint through every restart; 2. when the supervisor ends, however it
ends, its children end (Linux: PR_SET_PDEATHSIG in the child); 3. a stop waits for each child, however
long its last checkpoint takes; 4. the same death again and again ends the cluster with an error.
Thread safety: one thread.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rowhouse.error import ConfigError, DirectoryInUseError, StoreError, UnavailableError
from rowhouse.file import write_synced

from ps_server.config.cluster import ClusterConfig
from ps_server.config.endpoint import socket_path, split_endpoint
from ps_server.disk.data_dir import claim_data_dir, missing_shards
from ps_server.serve.binding import clear_socket_file
from ps_server.serve.server import StopFlag

_POLL_S: Final = 0.1
_STDERR: Final = 2
_HEALTH_TIMEOUT_S: Final = 1.0
_CHANNEL_OPTIONS: Final = (("grpc.enable_http_proxy", 0),)  # a shard is never behind a web proxy
_STOP_NOTICE_S: Final = 10.0
"""How often a stop says what it still waits for."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """When and how often a dead shard is started again.

    Attributes
    ----------
    quick_life_s
        A life shorter than this counts as a quick death; a longer one forgets those before it.
    quick_deaths_max
        So many quick deaths in a row end the cluster.
    backoff_first_s
        Wait before the first restart after a quick death; each further one doubles it.
    backoff_max_s
        Longest such wait.
    poisoned_life_s
        A shorter life that ended with a store error, as that of a poisoned shard does, counts as a quick
        death: a disk that stays full poisons the shard again as soon as somebody pushes.
    """

    quick_life_s: float = 10.0
    quick_deaths_max: int = 5
    backoff_first_s: float = 0.25
    backoff_max_s: float = 10.0
    poisoned_life_s: float = 600.0

    def is_quick(self, life_s: float, code: int) -> bool:
        """Whether a life that ended with this exit code was a quick death."""
        return life_s < (self.poisoned_life_s if code == StoreError.exit_code else self.quick_life_s)

    def wait_s(self, quick_deaths: int) -> float:
        """Wait before the restart that follows `quick_deaths` quick deaths in a row; 0 after a long life."""
        if quick_deaths == 0:
            return 0.0
        return min(self.backoff_first_s * 2.0 ** (quick_deaths - 1), self.backoff_max_s)


@dataclass
class Child:
    """One shard's process and its history."""

    index: int
    endpoint: str
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    restart_at_s: float = 0.0
    quick_deaths: int = 0
    healthy: bool = False


StartChild = Callable[[int, Path], subprocess.Popen[bytes]]
"""Starts shard `index` of the config file given; passed in so that tests can start something else."""


def start_shard_process(index: int, config_path: Path) -> subprocess.Popen[bytes]:
    """Start `ps-server serve` for shard `index` of `config_path`; it ends when this process does."""
    command = [sys.executable, "-m", "ps_server.cli", "serve", "--config", str(config_path)]
    command += ["--shard", str(index), "--parent-pid", str(os.getpid()), "--quiet"]
    # Its stdout joins stderr: the supervisor's own stdout is for the endpoints, which scripts read.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=_STDERR, start_new_session=True)


def check_health(endpoint: str) -> bool:
    """True when the shard at `endpoint` answers SERVING within a second."""
    with grpc.insecure_channel(endpoint, options=_CHANNEL_OPTIONS) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_S
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def resolve_ports(config: ClusterConfig) -> ClusterConfig:
    """`config` with a list of endpoints in which every port 0 has become a free port; ConfigError, before
    any shard is started, when one of the ports or socket files is taken."""
    endpoints, held = [], []
    try:
        for endpoint in config.endpoints:
            if (path := socket_path(endpoint)) is not None:
                clear_socket_file(path)
                endpoints.append(endpoint)
                continue
            host, port = split_endpoint(endpoint)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            held.append(socket.socket(family, socket.SOCK_STREAM))
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is no listener
            held[-1].bind((host, port))
            held[-1].listen()
            port = held[-1].getsockname()[1]
            endpoints.append(f"{endpoint.rpartition(':')[0]}:{port}")
    except OSError as error:
        raise ConfigError(
            f"shard {len(endpoints)} cannot listen on {config.endpoints[len(endpoints)]!r}: {error.strerror}"
        ) from None
    finally:
        for one in held:  # held until all are chosen, so that no two are the same
            one.close()
    return config.model_copy(update={"shards": tuple(endpoints)})


@dataclass
class Supervisor:
    """Runs every shard of `config`.

    Attributes
    ----------
    config
        The cluster; ports 0 are resolved by `run`.
    policy
        When a dead shard is started again.
    start_child, clock, sleep, is_healthy
        The outside world, replaceable in tests.
    on_healthy
        Called once with the resolved config, when every shard serves for the first time.
    """

    config: ClusterConfig
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    start_child: StartChild = start_shard_process
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    is_healthy: Callable[[str], bool] = check_health
    on_healthy: Callable[[ClusterConfig], None] = lambda _: None
    children: list[Child] = field(default_factory=list, init=False)

    def run(self, flag: StopFlag) -> None:
        """Run the cluster until `flag` asks for a stop.

        Raises
        ------
        DirectoryInUseError
            Another supervisor runs on this data_dir.
        ConfigError
            A shard refused its config, or its port is in use; the others were stopped.
        UnavailableError
            A shard died too often; the others were stopped.
        """
        lock = _lock_directory(self.config.data_dir)
        try:
            claim_data_dir(self.config.data_dir, self.config.shard_count, self.config.cluster_id)
            self._check_shards()
            self.config = resolve_ports(self.config)
            write_synced(self._path("resolved.yaml"), self.config.to_yaml())
            self.children = [Child(i, e) for i, e in enumerate(self.config.endpoints)]
            try:
                for child in self.children:
                    self._start(child)
                self._watch(flag)
            finally:
                self._stop()
        finally:
            os.close(lock)

    def _path(self, name: str) -> Path:
        return self.config.data_dir / name

    def _check_shards(self) -> None:
        """A shard whose directory is gone would start anew, empty, beside the others."""
        missing = missing_shards(self.config.data_dir)
        if missing:
            raise StoreError(
                f"{self.config.data_dir}: {missing[0]} is missing, one of {self.config.shard_count} shards "
                "that the data is split over: put the folder back (or remove a data_dir that never had rows)"
            )

    def _start(self, child: Child) -> None:
        child.process = self.start_child(child.index, self._path("resolved.yaml"))
        child.started_s, child.healthy = self.clock(), False
        self._write_endpoints()

    def _write_endpoints(self) -> None:
        facts = {
            "endpoints": list(self.config.endpoints),
            "pids": [c.process.pid if c.process else None for c in self.children],
            "healthy": [c.healthy for c in self.children],
            "supervisor_pid": os.getpid(),
        }
        try:
            write_synced(self._path("endpoints.json"), json.dumps(facts, indent=2) + "\n")
        except StoreError as error:  # a full disk: shards that run are worth more than this file
            _log.warning("%s", error)

    def _watch(self, flag: StopFlag) -> None:
        announced = False
        while not flag.requested:
            for child in self.children:
                self._look_after(child)
            if not announced and all(c.healthy for c in self.children):
                announced = True
                self.on_healthy(self.config)
            self.sleep(_POLL_S)

    def _look_after(self, child: Child) -> None:
        if child.process is None:
            if self.clock() >= child.restart_at_s:
                self._start(child)
            return
        code = child.process.poll()
        if code is not None:
            self._bury(child, code)
        elif not child.healthy and self.is_healthy(child.endpoint):
            child.healthy = True
            self._write_endpoints()

    def _bury(self, child: Child, code: int) -> None:
        """Decide what follows a death: an error that ends the cluster, or a restart."""
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == ConfigError.exit_code:
            raise ConfigError(
                f"shard {child.index} ended with {how}: its config or endpoint is wrong (see above)"
            )
        life_s = self.clock() - child.started_s
        child.quick_deaths = child.quick_deaths + 1 if self.policy.is_quick(life_s, code) else 0
        if child.quick_deaths >= self.policy.quick_deaths_max:
            raise UnavailableError(
                f"shard {child.index} died {child.quick_deaths} times in a row soon after its start "
                f"(within {self.policy.quick_life_s:g} s, or {self.policy.poisoned_life_s:g} s where it was "
                f"a store error), last with {how}; giving up"
            )
        wait_s = self.policy.wait_s(child.quick_deaths)
        _log.warning("shard %d ended with %s; starting it again in %.2f s", child.index, how, wait_s)
        child.process, child.healthy = None, False
        child.restart_at_s = self.clock() + wait_s
        self._write_endpoints()

    def _stop(self) -> None:
        """Ask every child to end, and wait for all of them."""
        running = [(c, c.process) for c in self.children if c.process is not None]
        for _, process in running:
            if process.poll() is None:
                process.terminate()
        failed: list[str] = []
        for child, process in running:
            while True:
                try:
                    code = process.wait(timeout=_STOP_NOTICE_S)
                    break
                except subprocess.TimeoutExpired:
                    _log.warning("waiting for shard %d (process %d) to end", child.index, process.pid)
            if code != 0 and (child.healthy or code != -signal.SIGTERM):  # one that was opening ends at once
                failed.append(f"shard {child.index} ended with code {code}")
            child.process, child.healthy = None, False
        if self.children:
            self._write_endpoints()
        if failed and sys.exc_info()[0] is None:
            raise StoreError("; ".join(failed) + ": its stop was not clean (see above)")


def _lock_directory(data_dir: Path) -> int:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(data_dir / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"data_dir {str(data_dir)!r}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise DirectoryInUseError(f"data_dir {str(data_dir)!r}: another `ps-server up` runs on it") from None
    return lock
