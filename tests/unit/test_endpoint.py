# SPDX-License-Identifier: Apache-2.0
"""endpoint.py: the three forms, and socket files that are stale, taken or no sockets."""

import socket
from pathlib import Path

import pytest
from rowhouse.error import ConfigError

from ps_server.config.cluster import load_config
from ps_server.config.endpoint import (
    SOCKET_PATH_BYTES_MAX,
    as_told,
    check_endpoint,
    has_open_port,
    socket_path,
)
from ps_server.serve.binding import bind_problem, clear_socket_file
from tests.conftest import MakeConfig


def leave_stale(path: Path) -> None:
    """What a killed listener leaves: a socket file that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        ("0.0.0.0:7470", ":7470"), ("[::]:7470", ":7470"), ("127.0.0.1:7470", "127.0.0.1:7470"),
        ("ps1.example:7470", "ps1.example:7470"), ("[::1]:7470", "[::1]:7470"), ("unix:/a/b", "unix:/a/b"),
    ],
)  # fmt: skip
def test_what_clients_are_told_is_an_address_or_a_port_alone(endpoint: str, told: str) -> None:
    assert as_told(endpoint) == told


def test_the_forms() -> None:
    assert socket_path("unix:/run/a.sock") == Path("/run/a.sock")
    assert socket_path("a:1") is None
    for endpoint in ("unix:/a", "a:1", "[::1]:0"):
        check_endpoint(endpoint)
    assert [has_open_port(e) for e in ("a:0", "a:1", "unix:/a:0")] == [True, False, False]


@pytest.mark.parametrize(
    "endpoint", ["unix:", "unix:/", "unix:a", "unix:./a", "unix://a", "unix:/a b", "unix:/a/", "unix:///a"]
)
def test_a_wrong_socket_file_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="it must be unix:/path, absolute"):
        check_endpoint(endpoint)


def test_a_path_past_the_systems_bound_is_refused() -> None:
    check_endpoint("unix:/" + "a" * (SOCKET_PATH_BYTES_MAX - 1))
    with pytest.raises(ConfigError, match=r"the path has 108 bytes; at most 107"):
        check_endpoint("unix:/" + "a" * SOCKET_PATH_BYTES_MAX)


def test_the_bound_is_the_systems(tmp_path: Path) -> None:
    longest = f"/tmp/{'a' * (SOCKET_PATH_BYTES_MAX - 5)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(longest)
        Path(longest).unlink()
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError, match="too long"):
        listener.bind(longest + "a")


def test_a_stale_file_is_removed_and_a_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.sock"
    clear_socket_file(path)
    leave_stale(path)
    assert path.exists()
    clear_socket_file(path)
    assert not path.exists()


def test_a_file_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(3):  # the listener accepts nobody, so its queue is full by then
            with pytest.raises(ConfigError, match=r"a\.sock' is in use by another process"):
                clear_socket_file(path)
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "link"
    path.write_text("mine")
    link.symlink_to(path)
    for one in (path, link):
        with pytest.raises(ConfigError, match="a file that is no socket is there"):
            clear_socket_file(one)
    with pytest.raises(ConfigError, match=r"socket file '.*/a/b': (Not a directory|File exists)"):
        clear_socket_file(path / "b")
    assert path.read_text() == "mine"


def test_why_a_port_cannot_be_bound() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert bind_problem(f"127.0.0.1:{port}").startswith(f"port {port} is in use")
    assert "try again" in bind_problem("127.0.0.1:0")
    assert "message above" in bind_problem("unix:/a")


def test_socket_files_in_a_config(make_config: MakeConfig) -> None:
    config = load_config(make_config(shards=2, host="unix:/run/rowhouse/"))
    assert config.endpoints == ("unix:/run/rowhouse/shard-0000.sock", "unix:/run/rowhouse/shard-0001.sock")
    mixed = ["unix:/run/a", "10.0.0.1:7470"]
    assert load_config(make_config(shards=mixed)).endpoints == tuple(mixed)
    for keys, text in (
        ({"shards": ["unix:/a", "unix:/a"]}, "endpoint 'unix:/a' is there twice"),
        ({"shards": ["unix:a"]}, "it must be unix:/path, absolute"),
        ({"shards": 1, "host": "unix:run"}, "it must be unix:/path, absolute"),
        ({"shards": 1, "host": "unix:/" + "a" * 100}, "at most 107"),
    ):
        with pytest.raises(ConfigError, match=text):
            load_config(make_config(**keys))
