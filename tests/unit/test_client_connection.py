# SPDX-License-Identifier: Apache-2.0
"""connect(): targets, transports over real gRPC, and errors that keep their class across the wire."""

import os
import subprocess
import sys
import threading
import time
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse import error
from rowhouse.error import (
    ConfigError,
    InternalError,
    PreconditionError,
    RowhouseError,
    UnavailableError,
)
from rowhouse.placement import PartitionMap

from ps_client import Client, connect, connection
from ps_client.cluster import Cluster
from ps_client.retry import Retry
from ps_client.transport import embedded
from ps_client.transport.embedded import EmbeddedTransport
from ps_server.serve.grpc_port import GrpcPort

from .fake_shard import FakeShard, make_shards, raising, serve, start

IDS = np.arange(40)
ID = "0f" * 16
ONES = np.ones((40, 4), np.float32)


@pytest.mark.parametrize("shard_count", [1, 2])
@pytest.mark.parametrize("wire", ["fp32", "fp16", "bf16"])
def test_steps_over_grpc_equal_steps_in_process(shard_count: int, wire: str) -> None:
    remote, local = make_shards(shard_count), make_shards(shard_count)
    names = [str(i) for i in range(shard_count)]
    retry = Retry(timeout_s=5)
    cluster = Cluster.join(names, lambda n: EmbeddedTransport(local[int(n)], n), retry.start())
    with serve(remote) as endpoints, connect(",".join(endpoints), wire_dtype=wire, timeout_s=10) as far:
        near = Client(cluster, retry, wire)
        rng = np.random.default_rng(5)
        for _ in range(5):
            ids = rng.integers(0, 50, 100)
            np.testing.assert_array_equal(far.pull("user", ids), near.pull("user", ids))
            step: dict[str, Any] = {
                "user": (ids, rng.normal(size=(100, 4))),
                "item": (ids, np.ones((100, 3))),
            }
            far.push_many(step)
            near.push_many(step)
        assert far.tables == near.tables
        assert [s.applied_lsn for s in far.stats()] == [5] * shard_count
        assert sum(c.rows_written for c in far.checkpoint()) == sum(len(s.rows) for s in local)
        assert far.evict("item") == near.evict("item") > 0
    for here, there in zip(local, remote, strict=True):
        assert here.rows.keys() == there.rows.keys()
        for key, row in here.rows.items():
            np.testing.assert_array_equal(there.rows[key], row)


@pytest.mark.parametrize("name", sorted(error.error_class_names()))
def test_every_error_keeps_its_class_and_text_across_the_wire(name: str) -> None:
    kind = error.error_class_names()[name]
    (shard,) = make_shards(1)
    with serve([shard]) as endpoints, connect(endpoints[0], timeout_s=1) as client:
        shard.before["pull"] = [raising(kind, "the reason")] * 50
        with pytest.raises(RowhouseError, match=f"shard at {endpoints[0]}: the reason") as caught:
            client.pull("user", IDS)
    assert type(caught.value) is kind
    assert kind.retryable == ("gave up after" in str(caught.value))


def test_targets_in_any_order_or_one_target_reach_every_shard() -> None:
    shards = make_shards(3)
    with serve(shards) as endpoints:
        for target in (",".join(reversed(endpoints)), endpoints[1], f" {endpoints[2]} , {endpoints[0]}"):
            with connect(target, timeout_s=5) as client:
                assert client.shard_count == 3
                client.pull("user", IDS)  # the fake shards refuse an id of another shard


def test_a_unix_socket_is_a_target(tmp_path: Path) -> None:
    (shard,) = make_shards(1)
    server, endpoint = start(shard, f"unix:{tmp_path}/shard.sock")
    with connect(endpoint, timeout_s=5) as client:
        client.push("user", IDS, ONES)
    server.stop(0)
    assert shard.applied == 1


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("", "'' is not host:port"),
        ("localhost", "'localhost' is not host:port"),
        ("localhost:0", "'localhost:0' is not"),
        ("a:1,,b:2", "'' is not host:port"),
        (":7470", "':7470' is not"),
        ("a:65536", "'a:65536' is not"),
        ("http://127.0.0.1:7470", r"'http://127\.0\.0\.1:7470' is not host:port .*no scheme such as http://"),
        ("a:1,grpc://b:2", "'grpc://b:2' is not host:port"),
        ("::1:7470", "'::1:7470' is not host:port or .IPv6.:port"),
        ("[::g]:7470", r"'\[::g\]:7470' is not"),
        ("a b:1", "'a b:1' is not"),
        ("unix:", "'unix:' is not"),
        ("unix://path", "'unix://path' is not"),
        ("unix:a", "'unix:a' is not .*unix:/path .absolute.;"),
        ("unix:run/shard.sock", "'unix:run/shard.sock' is not"),
    ],
)
def test_a_wrong_endpoint_is_refused_before_it_is_dialled(target: str, text: str) -> None:
    began_s = time.monotonic()
    with pytest.raises(error.InvalidRequestError, match=text):
        connect(target)
    assert time.monotonic() - began_s < 5  # dialling would go on for timeout_s, 60 s


@pytest.mark.parametrize("target", ["a_b-1.example:7470", "[::1]:7470", "unix:/a", "unix:///a"])
def test_each_form_of_an_endpoint_is_dialled(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def dial(endpoint: str) -> Any:
        raise ConfigError(f"dialled {endpoint}")

    monkeypatch.setattr(connection, "dial", dial)
    with pytest.raises(ConfigError) as caught:
        connect(target)
    assert str(caught.value) == f"dialled {target}"


def test_an_embedded_target_needs_a_directory() -> None:
    with pytest.raises(ConfigError, match="a directory must follow 'embedded:'"):
        connect("embedded:")


def test_wrong_options_are_errors() -> None:
    with pytest.raises(ConfigError, match="timeout_s is 0"):
        connect("a:1", timeout_s=0)
    with pytest.raises(ConfigError, match="target is 7470; it must be text"):
        connect(7470)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="config is for an embedded target"):
        connect("a:1", config={})
    with pytest.raises(error.InvalidRequestError, match="wire_dtype is 'int8'"):
        connect("a:1", wire_dtype="int8")


def test_a_shard_named_twice_and_a_shard_without_an_address() -> None:
    shards = make_shards(2)
    with serve(shards) as endpoints:
        port = endpoints[0].rpartition(":")[2]
        with pytest.raises(ConfigError, match="are one shard, number 0"):
            connect(f"{endpoints[0]},localhost:{port}", timeout_s=5)
        shards[0].endpoints = ["", ""]
        with pytest.raises(ConfigError, match="shard 1 is not among the targets"):
            connect(endpoints[0], timeout_s=5)


def with_ids(*cluster_ids: str) -> list[FakeShard]:
    shards = make_shards(len(cluster_ids))
    for shard, cluster_id in zip(shards, cluster_ids, strict=True):
        shard.map = PartitionMap.even(len(shards), cluster_id)
    return shards


@pytest.mark.parametrize("cluster_ids", [(ID, "1f" * 16), (ID, ""), ("", ID)])
def test_shards_whose_maps_agree_are_told_apart_by_the_clusters_id(cluster_ids: tuple[str, str]) -> None:
    with (
        serve(with_ids(*cluster_ids)) as endpoints,
        pytest.raises(PreconditionError, match="give all of them the same cluster_id in their config"),
    ):
        connect(",".join(endpoints), timeout_s=5)


@pytest.mark.parametrize("cluster_id", [ID, ""])
def test_requests_carry_the_cluster_where_it_is_known(cluster_id: str) -> None:
    (shard,) = with_ids(cluster_id)
    with serve([shard]) as endpoints, connect(endpoints[0], timeout_s=20) as client:
        client.pull("user", [1])
        client.push("user", [1], [[1.0] * 4])
        assert [r.map_version for r in shard.pulls] == [shard.map.stamp]
        assert [r.map_version for r in shard.pushes] == [shard.map.stamp]
        assert (shard.map.stamp == shard.map.version) is (cluster_id == "")


def test_another_cluster_at_the_address_gets_nothing() -> None:
    """Neither a pull nor a push, nor the push that waits for its answer, reaches the shard that took over."""
    (shard,) = with_ids(ID)
    with serve([shard]) as endpoints, connect(endpoints[0], timeout_s=20) as client:
        client.pull("user", [1])
        pulls = len(shard.pulls)
        shard.map = PartitionMap.even(1, "1f" * 16)
        with pytest.raises(PreconditionError, match=f"is of cluster {'1f' * 16}, this client joined one"):
            client.pull("user", [1])
        for _ in range(2):
            with pytest.raises(PreconditionError, match=f"is of cluster {'1f' * 16}, this client joined one"):
                client.push("user", [1], [[1.0] * 4])
        for act in (client.checkpoint, lambda: client.freeze("user", "refuse"), lambda: client.evict("item")):
            with pytest.raises(PreconditionError, match="this client joined one"):
                act()
        assert shard.applied == 0 and len(shard.pulls) == pulls + 1 and not shard.frozen
        shard.map = PartitionMap.even(1, ID)
        client.push("user", [1], [[1.0] * 4])
        assert shard.applied >= 1


def test_a_shard_on_every_address_is_found_on_the_one_that_was_called() -> None:
    shards = make_shards(2)
    with serve(shards) as endpoints:
        shards[0].endpoints = [":" + endpoint.rpartition(":")[2] for endpoint in endpoints]
        with connect(endpoints[0], timeout_s=20) as client:
            assert client.pull("user", list(range(20))).shape == (20, 4)


def test_shards_of_two_clusters_are_told_apart() -> None:
    mixed = [make_shards(2)[0], make_shards(3)[1]]
    with serve(mixed) as endpoints, pytest.raises(PreconditionError, match="they are not one cluster"):
        connect(",".join(endpoints), timeout_s=5)


def test_a_map_whose_version_does_not_fit_is_an_internal_error() -> None:
    (shard,) = make_shards(1)
    object.__setattr__(shard.map, "version", 7)
    with serve([shard]) as endpoints, pytest.raises(InternalError, match="names partition map 0x7"):
        connect(endpoints[0], timeout_s=5)


def test_no_shard_at_the_target_is_unavailable_within_the_timeout() -> None:
    (shard,) = make_shards(1)
    server, endpoint = start(shard)
    server.stop(0)
    began_s = time.monotonic()
    with pytest.raises(UnavailableError, match=f"shard at {endpoint}: nobody listens there; gave up after"):
        connect(endpoint, timeout_s=1)
    assert time.monotonic() - began_s < 3


def test_a_shard_that_restarts_is_waited_for_and_nothing_is_lost_or_doubled() -> None:
    (shard,) = make_shards(1)
    server, endpoint = start(shard)
    with connect(endpoint, timeout_s=20) as client:
        client.push("user", IDS, ONES)
        first = client.pull("user", IDS)
        server.stop(0)
        reopened: list[GrpcPort] = []
        timer = threading.Timer(0.7, lambda: reopened.append(start(shard, endpoint)[0]))
        timer.start()
        client.push("user", IDS, ONES)
        np.testing.assert_array_equal(client.pull("user", IDS), first - np.float32(0.5))
        timer.join()
        reopened[0].stop(0)
    assert shard.applied == 2


def test_closing_ends_the_calls_of_other_threads() -> None:
    """So that Ctrl-C in a `with` does not wait for a shard that is away."""
    shards = make_shards(2)
    with serve(shards) as endpoints:
        client = connect(",".join(endpoints), timeout_s=60)
        entered, leave = threading.Event(), threading.Event()

        def hold() -> None:
            entered.set()
            leave.wait(30)

        shards[0].before["push"] = [hold]
        failures: list[BaseException] = []

        def push() -> None:
            try:
                client.push("user", IDS, ONES)
            except RowhouseError as failure:
                failures.append(failure)

        worker = threading.Thread(target=push)
        worker.start()
        entered.wait(30)
        began_s = time.monotonic()
        client.close()
        worker.join(30)
        waited_s = time.monotonic() - began_s
        leave.set()
    assert waited_s < 10 and type(failures[0]) is PreconditionError
    assert "the client was closed during the call" in str(failures[0])


def test_freezing_over_grpc_and_a_fork_of_a_connected_process() -> None:
    shards = make_shards(2)
    with serve(shards) as endpoints, connect(",".join(endpoints), timeout_s=10) as client:
        client.freeze("user", "refuse")
        with pytest.raises(error.TableFrozenError, match=r"shard at .*'user' is frozen"):
            client.push("user", IDS, ONES)
        client.freeze("user", "off")
        child = os.fork()
        if child == 0:
            try:
                client.pull("user", IDS)
            except PreconditionError as failure:
                os._exit(0 if "fork" in str(failure) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.push("user", IDS, ONES)
    assert [shard.applied for shard in shards] == [1, 1]


class Opener:
    """Stands in for the server's entry point and remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.shard = FakeShard({"user": 4})

    def __call__(self, directory: str, config: Any) -> FakeShard:
        self.calls.append((directory, config))
        if config == "broken.yaml":
            raise ConfigError("tables: missing")
        return self.shard


def declare(monkeypatch: pytest.MonkeyPatch, opener: Opener | None) -> None:
    """Make `opener` the only entry point of the group."""

    class Declared(EntryPoint):
        def load(self) -> Any:
            return opener

    point = Declared(name="open", group=embedded.ENTRY_POINT_GROUP, value="fake:open")
    found = EntryPoints([point] if opener else [])
    monkeypatch.setattr(embedded, "entry_points", found.select)


def test_embedded_mode_goes_through_the_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    opener = Opener()
    declare(monkeypatch, opener)
    with connect("embedded:/some/dir", config={"tables": []}) as client:
        client.push("user", IDS, ONES)
        assert client.pull("user", IDS).shape == (40, 4)
    assert opener.calls == [("/some/dir", {"tables": []})]
    assert opener.shard.closed
    with pytest.raises(ConfigError, match="tables: missing"):
        connect("embedded:/some/dir", config="broken.yaml")


def test_a_shard_that_cannot_be_joined_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    opener = Opener()
    declare(monkeypatch, opener)
    object.__setattr__(opener.shard.map, "version", 7)
    with pytest.raises(InternalError):
        connect("embedded:/some/dir")
    assert opener.shard.closed


def test_without_a_server_package_embedded_mode_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, None)
    with pytest.raises(ConfigError, match=r"embedded mode needs .*'rowhouse.embedded'.* none is installed"):
        connect("embedded:/some/dir")


def test_the_base_package_needs_no_torch_and_no_server() -> None:
    program = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "ps_server", "rocksdict"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import ps_client
try:
    import ps_client.torch
except ImportError as failure:
    print(sorted(ps_client.__all__), failure)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.startswith("['AsyncClient', 'BusyError', 'Checkpoint', ")
    assert "ps_client.torch needs PyTorch" in done.stdout
