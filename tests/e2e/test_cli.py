# SPDX-License-Identifier: Apache-2.0
"""`ps-server serve` as a process: bad inputs are clear errors with an exit code, and nothing is lost."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse.error import PoisonedError, StoreError

from ps_client import Client, connect
from ps_server import psctl
from ps_server.serve.supervisor import check_health
from tests.conftest import MakeConfig
from tests.process import ServerProcess, wait_until

IDS = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
ZEROS = {
    "name": "user",
    "dim": 4,
    "optimizer": {"kind": "sgd", "learning_rate": 1.0},
    "initializer": {"kind": "zeros"},
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ps_server.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1_200, check=False, stdin=subprocess.DEVNULL
    )


@pytest.fixture
def trained(make_config: MakeConfig) -> Iterator[tuple[ServerProcess, str]]:
    """A running shard whose rows of IDS are all -3, under the weakest durability."""
    with ServerProcess("serve", make_config(tables=[ZEROS], durability="none"), "--shard", "0") as server:
        endpoint = server.endpoint()
        with connect(endpoint) as client:
            for _ in range(3):
                client.push("user", IDS, np.ones((4, 4)))
        yield server, endpoint


def assert_rows(endpoint: str, value: float = -3.0) -> None:
    with connect(endpoint) as client:
        np.testing.assert_array_equal(client.pull("user", IDS), np.full((4, 4), value, np.float32))


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help"), ("up", "--help")])
def test_help_shows_an_example(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    assert "ps-server up --config cluster.yaml" in done.stdout and "learning_rate" in done.stdout


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"memory_bugdet": 1}, "memory_bugdet: unknown key; did you mean 'memory_budget'?"),
        (
            {"tables": [{"name": "user", "dim": 5000}]},
            "tables[0].dim is 5000; it must be less than or equal to 1024",
        ),
        ({"tables": []}, "it has 0 tables; it must have 1 to 1024"),
        ({"durability": "disk"}, "durability is 'disk'; it must be 'none', 'os' or 'fsync'"),
    ],
)
def test_a_wrong_config(change: dict[str, Any], expected: str, make_config: MakeConfig) -> None:
    with ServerProcess("serve", make_config(**change), "--shard", "0") as server:
        assert server.finish() == 2
        assert "ps-server: ConfigError: " in server.text() and expected in server.text()
        assert "Traceback" not in server.text()


def test_a_start_that_fails_prints_its_reason_and_not_the_config(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    with ServerProcess("serve", make_config(), "--shard", "0") as server:
        server.endpoint()
        assert "# resolved config" in server.text()
    config = tmp_path / "other.yaml"
    config.write_text(json.dumps(make_config(tables=[{"name": "user", "dim": 5}])))
    text = "ConfigError: table 'user': dim is 5; this data directory was made with 4"
    again = run("serve", "--config", str(config), "--shard", "0")
    assert again.returncode == 2 and again.stdout == ""
    assert again.stderr.endswith(f"ps-server: {text}\n")
    many = run("up", "--config", str(config))
    assert many.returncode == 2 and many.stdout == ""
    assert f"ps-server: shard 0: {text}" in many.stderr


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    done = run("up", "--config", str(tmp_path / "no.yaml"))
    assert done.returncode == 2 and "cannot be read" in done.stderr


def test_a_flag_replaces_a_key_and_is_checked_like_one(make_config: MakeConfig) -> None:
    with ServerProcess("serve", make_config(), "--shard", "0", "--memory-budget", "1KiB") as server:
        assert server.finish() == 2
        assert "memory_budget is '1KiB'; it must be greater than or equal to" in server.text()
    with ServerProcess("serve", make_config(), "--shard", "0", "--durability", "fsync") as server:
        server.endpoint()
        assert "durability: fsync" in server.text()
        assert server.stop() == 0


def test_a_shard_past_the_last(make_config: MakeConfig) -> None:
    with ServerProcess("serve", make_config(), "--shard", "1") as server:
        assert server.finish() == 2
        assert "shard is 1; it must be 0 to 0" in server.text()


def test_a_port_in_use(make_config: MakeConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        with ServerProcess("serve", make_config(shards=[endpoint]), "--shard", "0") as server:
            assert server.finish() == 2
            assert f"cannot listen on '{endpoint}': port" in server.text()
            assert "in use by another process" in server.text()
            assert "Traceback" not in server.text()


def test_a_data_dir_that_another_process_holds(
    trained: tuple[ServerProcess, str], make_config: MakeConfig
) -> None:
    first, endpoint = trained
    with ServerProcess("serve", make_config(tables=[ZEROS], durability="none"), "--shard", "0") as second:
        assert second.finish() == 74
        assert "DirectoryInUseError" in second.text() and "Traceback" not in second.text()
    assert_rows(endpoint)
    assert first.stop() == 0


def test_another_number_of_shards_is_refused_and_makes_no_folder(
    trained: tuple[ServerProcess, str], make_config: MakeConfig, tmp_path: Path
) -> None:
    first, endpoint = trained
    before = sorted(path.name for path in tmp_path.rglob("shard-*"))
    config = make_config(tables=[ZEROS], durability="none", shards=3)
    with ServerProcess("serve", config, "--shard", "2") as second:
        assert second.finish() == 2
        assert "shards is 3" in second.text() and "is split over 1" in second.text()
    assert sorted(path.name for path in tmp_path.rglob("shard-*")) == before == ["shard-0000"]
    assert_rows(endpoint)
    assert first.stop() == 0


def test_a_stop_loses_nothing_even_without_a_log(
    trained: tuple[ServerProcess, str], make_config: MakeConfig
) -> None:
    """SIGTERM, then SIGINT on the next life; both print that the shard stopped."""
    server, _ = trained
    assert server.stop() == 0
    assert "shard 0 stopped" in server.text()
    with ServerProcess("serve", make_config(tables=[ZEROS], durability="none"), "--shard", "0") as again:
        assert_rows(again.endpoint())
        assert again.stop(2) == 0


def test_kill_9_loses_nothing_under_os(make_config: MakeConfig) -> None:
    config = make_config(tables=[ZEROS], durability="os")
    with ServerProcess("serve", config, "--shard", "0") as server, connect(server.endpoint()) as client:
        client.push("user", IDS, np.full((4, 4), 3.0))
        server.process.kill()
        server.process.wait()
    with ServerProcess("serve", config, "--shard", "0") as again:
        assert_rows(again.endpoint())


BAD_STEPS = {
    "unknown table": ("client.pull('usr', [1])", "UnknownTableError", "'user'"),
    "push to an unknown table": ("client.push('usr', [1], np.ones((1, 4)))", "UnknownTableError", "'user'"),
    "wrong dim": ("client.push('user', [0], np.ones((1, 5)))", "InvalidRequestError", "5"),
    "float id": ("client.push('user', [0.5], np.ones((1, 4)))", "InvalidRequestError", "float"),
    "negative id": ("client.push('user', [0, -1], np.ones((2, 4)))", "InvalidRequestError", "-1"),
    "NaN gradient": (
        "client.push('user', [0, 1], [[1] * 4, [1, 1, np.nan, 1]])",
        "InvalidRequestError",
        "nan",
    ),
    "infinite gradient": ("client.push('user', [0], [[np.inf] * 4])", "InvalidRequestError", "inf"),
}


def test_a_bad_step_ends_the_trainer_and_changes_nothing(trained: tuple[ServerProcess, str]) -> None:
    _, endpoint = trained
    head = f"import numpy as np\nfrom ps_client import connect\nclient = connect({endpoint!r})\n"
    trainers = {
        name: subprocess.Popen([sys.executable, "-c", head + step[0]], stderr=subprocess.PIPE, text=True)
        for name, step in BAD_STEPS.items()
    }
    for name, trainer in trainers.items():
        _, kind, hint = BAD_STEPS[name]
        last = trainer.communicate(timeout=1_200)[1].strip().splitlines()[-1]
        assert trainer.returncode != 0, name
        assert kind in last and hint in last.lower(), f"{name}: {last}"
    assert_rows(endpoint)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 48 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def push_until_refused(client: Client, ids: Any, gradients: Any) -> tuple[int, Exception]:
    """(pushes that were acknowledged, the error of the one that was not)."""
    for count in range(100):
        try:
            client.push("user", ids, gradients)
        except (PoisonedError, StoreError) as error:
            return count, error
    raise AssertionError("250 MB of pushes fitted on a disk of 48 MiB")


def test_a_full_disk_poisons_the_shard_and_loses_nothing_acknowledged(
    small_disk: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "x").mkdir()
    config = make_config(tables=[{**ZEROS, "dim": 64}], data_dir=str(small_disk / "x" / "data"))
    ids = np.arange(10_000, dtype=np.uint64)
    with ServerProcess("serve", config, "--shard", "0") as server:
        with connect(server.endpoint(), timeout_s=2) as client:
            acknowledged, error = push_until_refused(client, ids, np.ones((10_000, 64), np.float32))
        assert "No space left on device" in str(error)
        assert acknowledged > 5
        assert psctl.main(["stats", "--endpoints", server.endpoint(), "--json"]) == 0
        (facts,) = json.loads(capsys.readouterr().out)
        assert "No space left on device" in facts["poison"]
        server.wait_for("is poisoned: ")  # said when health has turned NOT_SERVING, or just before
        wait_until(lambda: not check_health(server.endpoint()))
        assert server.stop() == 74
        assert "No space left on device" in server.text()
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    with ServerProcess("serve", config, "--shard", "0") as again, connect(again.endpoint()) as client:
        rows = client.pull("user", ids)
    assert np.unique(rows).size == 1, "a push was applied in part"
    assert -rows[0, 0] in (acknowledged, acknowledged + 1)
