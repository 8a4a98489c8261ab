# SPDX-License-Identifier: Apache-2.0
"""Whoever waits for a shard is told so, once: whom it waits for, why, and until when. Real sockets."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def told(*command: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=1_200, check=False
    )
    return done.returncode, done.stderr


def connecting(endpoint: str) -> list[str]:
    return ["-c", f"import ps_client; ps_client.connect({endpoint!r}, timeout_s=4)"]


def test_a_dead_endpoint_is_named_while_a_client_waits_for_it(nobody: str) -> None:
    code, errors = told(*connecting(nobody))
    assert errors.count("waiting for") == 1 and "failed to connect to all addresses" not in errors
    assert f"waiting for shard at {nobody}: nobody listens there; until " in errors
    last = errors.strip().splitlines()[-1]
    assert code == 1 and f"UnavailableError: shard at {nobody}: nobody listens there; gave up after" in last


def test_so_is_one_that_does_not_answer(silent: str) -> None:
    code, errors = told(*connecting(silent))
    assert code == 1 and errors.count("waiting for") == 1
    assert f"waiting for shard at {silent}: no answer in time; until " in errors


@pytest.mark.parametrize("command", [["stats"], ["evict", "--table", "user"]])
def test_psctl_says_whom_it_waits_for(command: list[str], silent: str) -> None:
    code, errors = told("-m", "ps_server.psctl", *command, "--endpoints", silent, "--timeout-s", "4")
    assert code == 69 and f"psctl: waiting for shard at {silent}: no answer in time; until " in errors
    assert f"psctl: DeadlineExceededError: {silent}: no answer in time; gave up after" in errors


def test_psctl_does_not_wait_where_nobody_listens(nobody: str) -> None:
    code, errors = told("-m", "ps_server.psctl", "checkpoint", "--endpoints", nobody)
    assert (code, errors) == (69, f"psctl: UnavailableError: {nobody}: nobody listens there\n")
    missing = "unix:/tmp/no-such-folder/shard.sock"
    code, errors = told("-m", "ps_server.psctl", "stats", "--endpoints", missing)
    assert code == 69 and errors.endswith("there is no such socket file: nobody listens there\n")


def test_a_host_without_an_address() -> None:
    code, errors = told("-m", "ps_server.psctl", "stats", "--endpoints", "no-such-host.invalid:7470")
    assert code == 69 and "the host has no address: is its name right?" in errors
