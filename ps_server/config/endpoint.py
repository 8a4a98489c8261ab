# SPDX-License-Identifier: Apache-2.0
"""Where a shard listens: "host:port", "[v6]:port", or "unix:/path" for a socket file.

Thread safety: pure functions.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from rowhouse.error import ConfigError

SOCKET_PREFIX: Final = "unix:"

SOCKET_PATH_BYTES_MAX: Final = 107
"""Linux's struct sockaddr_un has 108 bytes for the path, one of them for its end."""


def socket_path(endpoint: str) -> Path | None:
    """Path of "unix:/path", None for any other endpoint; ConfigError when it is not absolute or too long."""
    if not endpoint.startswith(SOCKET_PREFIX):
        return None
    path = endpoint.removeprefix(SOCKET_PREFIX)
    if not re.fullmatch(r"/[^\s,]*[^\s,/]", path) or path.startswith("//"):
        raise ConfigError(
            f"endpoint is {endpoint!r}; it must be unix:/path, absolute, without white space and commas"
        )
    if len(path.encode()) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"endpoint {endpoint!r}: the path has {len(path.encode())} bytes; at most {SOCKET_PATH_BYTES_MAX}"
        )
    return Path(path)


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port"; ConfigError when it is neither."""
    host, _, port = endpoint.rpartition(":")
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    bare_v6 = ":" in inner and inner == host
    if not inner or bare_v6 or re.search(r"[\s/,]", inner) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ConfigError(f"endpoint is {endpoint!r}; it must be host:port, [v6]:port or unix:/path")
    if not 0 <= int(port) <= 65535:
        raise ConfigError(f"endpoint {endpoint!r}: port is {port}; it must be 0 to 65535")
    return inner, int(port)


def check_endpoint(endpoint: str) -> None:
    """ConfigError unless it has one of the three forms."""
    if socket_path(endpoint) is None:
        split_endpoint(endpoint)


def has_open_port(endpoint: str) -> bool:
    """Whether its port is 0, for the system to pick one."""
    return socket_path(endpoint) is None and split_endpoint(endpoint)[1] == 0


def as_told(endpoint: str) -> str:
    """An endpoint as clients are told it: ":port" where it listens on every address of its machine, because
    0.0.0.0 is no address to reach it by; the client takes the host that it called."""
    if socket_path(endpoint) is not None:
        return endpoint
    host, port = split_endpoint(endpoint)
    with suppress(ValueError):  # a name
        if ip_address(host).is_unspecified:
            return f":{port}"
    return endpoint


def data_port_conflict(endpoints: Sequence[str], first: int) -> str | None:
    """Which shard's data port, `first` + its index, is another's endpoint; None when there is none."""
    places = [split_endpoint(e) for e in endpoints if socket_path(e) is None]
    ports = {(host, first + i): i for i, (host, _) in enumerate(places)}
    for index, place in enumerate(places):
        if place in ports:
            return (
                f"data_port {first} gives shard {ports[place]} port {place[1]}, the endpoint of shard "
                f"{index}; leave {len(endpoints)} ports free from data_port on"
            )
    return None
