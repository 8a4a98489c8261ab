# SPDX-License-Identifier: Apache-2.0
"""From a target to a connected client: the one place that chooses a transport.

Thread safety: pure, beside the connections it makes.
"""

import re
from collections.abc import Mapping
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rowhouse.error import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ps_client.client import Client
    from ps_client.transport.embedded import Config
    from ps_client.transport.transport import Transport

EMBEDDED_PREFIX: Final = "embedded:"


def connect(
    target: str,
    *,
    config: Mapping[str, Any] | str | Path | None = None,
    timeout_s: float = 60.0,
    wire_dtype: str = "fp32",
) -> "Client":
    """Connect to a cluster, or open a shard in this process.

    Parameters
    ----------
    target
        "host:port,host:port" (one or more shards, in any order; "[IPv6]:port", or "unix:/path" for a
        socket file), or
        "embedded:DIR" for the directory of a shard that runs in this process.
    config
        Embedded only: a mapping, or the path of a YAML file, with `tables: [...]` as a server's config
        has them. None: the directory holds its config already.
    timeout_s
        Time that one call may take with all its retries, in seconds; a shard that restarts is waited
        for that long.
    wire_dtype
        Element type of rows and gradients on the wire: "fp32", or "fp16" or "bf16" for half the bytes
        (rounded to nearest even).

    Returns
    -------
    Client
        Connected to every shard of the cluster.

    Raises
    ------
    InvalidRequestError
        An endpoint of the target has a wrong form; found before anything is dialled.
    ConfigError
        The config or an embedded target is wrong, or embedded mode is not installed.
    UnavailableError
        A shard did not answer within `timeout_s`.
    DirectoryInUseError
        Another process holds the embedded directory.
    """
    if not (isinstance(timeout_s, int | float) and timeout_s > 0):
        raise ConfigError(f"timeout_s is {timeout_s!r}; it must be above 0")
    if not isinstance(target, str):
        raise ConfigError(f"target is {target!r}; it must be text: 'host:port,…' or '{EMBEDDED_PREFIX}DIR'")
    directory = target.removeprefix(EMBEDDED_PREFIX)
    embedded = directory != target
    if embedded and not directory:
        raise ConfigError(f"target is {target!r}; a directory must follow {EMBEDDED_PREFIX!r}")
    if config is not None and not embedded:
        raise ConfigError("config is for an embedded target; a running cluster has its own")
    endpoints = [directory] if embedded else _endpoints(target)
    # Imported here, the way to gRPC below: a program that has not connected needs neither kernels nor gRPC.
    from rowhouse.malloc import keep_large_blocks  # noqa: PLC0415

    from ps_client.client import Client  # noqa: PLC0415
    from ps_client.cluster import Cluster  # noqa: PLC0415
    from ps_client.retry import Retry  # noqa: PLC0415
    from ps_client.validation import wire_code  # noqa: PLC0415

    wire_code(wire_dtype)
    keep_large_blocks()
    retry = Retry(timeout_s=float(timeout_s))
    way = _embedded(directory, config) if embedded else dial
    return Client(Cluster.join(endpoints, way, retry.start()), retry, wire_dtype)


def _embedded(directory: str, config: "Config") -> "Callable[[str], Transport]":
    from ps_client.transport.embedded import EmbeddedTransport, open_shard  # noqa: PLC0415

    transport = EmbeddedTransport(open_shard(directory, config), directory)
    return lambda _: transport


def dial(endpoint: str) -> "Transport":
    """The transport to one endpoint."""
    from ps_client.transport.fallback import FallbackTransport  # noqa: PLC0415
    from ps_client.transport.grpc import GrpcTransport  # noqa: PLC0415

    return FallbackTransport(GrpcTransport(endpoint))


def _endpoints(target: str) -> list[str]:
    """The endpoints of a target; a form that gRPC would try in vain until the timeout is refused here."""
    endpoints = [part.strip() for part in target.split(",")]
    for endpoint in endpoints:
        if not (_is_socket_file(endpoint) or _is_host_and_port(endpoint)):
            raise InvalidRequestError(
                f"target is {target!r}: {endpoint!r} is not host:port or [IPv6]:port (port 1 to 65535, no "
                f"scheme such as http://) or unix:/path (absolute); {EMBEDDED_PREFIX}DIR opens a shard in "
                "this process"
            )
    return endpoints


def _is_socket_file(endpoint: str) -> bool:
    path = endpoint.removeprefix("unix:")
    absolute = path.startswith("/") and (not path.startswith("//") or path.startswith("///"))
    return path != endpoint and absolute and path.strip("/") != ""


def _is_host_and_port(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        return False
    if not (host.startswith("[") and host.endswith("]")):
        return re.fullmatch(r"[\w.-]+", host) is not None
    try:
        IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True
