# SPDX-License-Identifier: Apache-2.0
"""Binding the sockets of a shard, and the reason when one cannot be bound.

gRPC replaces a socket file that is there already, whoever listens on it, so a file that is in use must be
found before gRPC sees it. A file that nobody listens on was left by a killed shard and is removed.

Thread safety: pure functions, beside the sockets and files that they look at.
"""

import errno
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rowhouse.error import ConfigError

from ps_server.config.endpoint import socket_path, split_endpoint

DATA_SUFFIX: Final = ".data"
"""The data port of a shard on a socket file is the file of that name with this at its end."""


def clear_socket_file(path: Path) -> None:
    """Make room for a socket file at `path`: its folder exists, and what a killed shard left is gone.

    Raises
    ------
    ConfigError
        Somebody listens there, the file is no socket, or the system refuses; the message says which.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"socket file {str(path)!r}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"socket file {str(path)!r}: a file that is no socket is there; move it away")
    if _somebody_listens(path):
        raise ConfigError(
            f"socket file {str(path)!r} is in use by another process; stop it or choose another path"
        )
    path.unlink(missing_ok=True)


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True  # a listener whose queue is full
        except OSError as error:
            raise ConfigError(f"socket file {str(path)!r}: {error.strerror}") from None
    return True


def bind_data_port(endpoint: str, port: int, others: Sequence[str] = ()) -> socket.socket:
    """A bound socket for the data port of a shard that listens on `endpoint`: `port` (0: any) of the same
    address, or the socket file with DATA_SUFFIX.

    `others` are the cluster's endpoints, of which none is picked for 0: one may be that of a shard which
    only restarts.

    Raises
    ------
    ConfigError
        The port or file is taken, or the system refuses it.
    """
    family: int
    address: tuple[Any, ...] | str
    if socket_path(endpoint) is not None:
        beside = socket_path(f"{endpoint}{DATA_SUFFIX}")
        assert beside is not None
        clear_socket_file(beside)
        family, address = socket.AF_UNIX, str(beside)
    else:
        host, _ = split_endpoint(endpoint)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, address = found[0][0], found[0][4]
    if port == 0 and family != socket.AF_UNIX:
        return _bind_any(family, address, {split_endpoint(e)[1] for e in others if socket_path(e) is None})
    return _bind(family, address)


def _bind_any(family: int, address: tuple[Any, ...] | str, reserved: set[int]) -> socket.socket:
    passed_over: list[socket.socket] = []  # held until another is found, or the system may pick it again
    try:
        while True:
            made = _bind(family, address)
            if made.getsockname()[1] not in reserved:
                return made
            passed_over.append(made)
    finally:
        for one in passed_over:
            one.close()


def _bind(family: int, address: tuple[Any, ...] | str) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen()  # of two that bind one port with SO_REUSEADDR, the second one fails here
    except OSError as error:
        made.close()
        raise ConfigError(f"data_port: {address} cannot be bound: {error.strerror or error}") from None
    return made


def bind_problem(endpoint: str) -> str:
    """Why `endpoint` cannot be bound, in the system's words (gRPC does not tell)."""
    if (path := socket_path(endpoint)) is not None:
        return f"gRPC refused to make {str(path)!r}; see its message above"
    host, port = split_endpoint(endpoint)
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {port} is in use by another process; stop it or choose another port"
        return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return "gRPC refused it, though the system allows it now; try again"
