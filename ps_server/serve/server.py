# SPDX-License-Identifier: Apache-2.0
"""One shard as a gRPC server: port or socket file, health, reflection, and the order of start and stop.

Start: listen (health NOT_SERVING), open the shard (recovery), attach it, health SERVING.
Stop: health NOT_SERVING, refuse new calls, let running ones end, close the shard (a checkpoint).
What a call does is service.py's business; several shards are supervisor.py's.

Invariants: 1. health is SERVING only while a recovered, unpoisoned shard is attached; 2. a port or socket
file that another process listens on is an error, never shared; 3. a clean stop closes the shard exactly
once.
Thread safety: start, run and stop belong to one thread; `stop` may be asked for from a signal handler
through StopFlag.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rowhouse.error import ConfigError, PoisonedError, StoreError
from rowhouse.limit import in_flight_bytes_max, message_bytes_max
from rowhouse.malloc import give_back, keep_usual_blocks

from ps_server.config.cluster import ClusterConfig, shard_directory
from ps_server.config.endpoint import has_open_port, socket_path
from ps_server.disk.open_file import files_of_tables, raise_file_limit
from ps_server.serve.binding import bind_data_port, bind_problem, clear_socket_file
from ps_server.serve.connection_limit import FILES_ENOUGH, connections_max
from ps_server.serve.data_port import DataPort
from ps_server.serve.grpc_port import GrpcPort
from ps_server.serve.service import ParameterService, ServedShard

STOP_GRACE_S: Final = 4.0
"""Running calls get this long to end at a stop; the longest push takes well under a second. Peers cannot make
it longer. The checkpoint that closes the shard comes after it, and takes what it takes."""

_POLL_S: Final = 0.1
"""How late a stop or a poisoning may be noticed; nobody waits for less."""

_GIVE_BACK_POLLS: Final = 10
"""Memory that calls no longer use goes back once a second at most: what is used again must be faulted in."""

OpenShard = Callable[[ClusterConfig, int, Path], ServedShard]
"""How a shard is opened: config, index, directory; may take as long as recovery does."""

_log = logging.getLogger(__name__)


class StopFlag:
    """Set by a signal, read by a loop; no lock, so a handler may set it at any instant.

    Attributes
    ----------
    requested
        True once a stop was asked for.
    """

    def __init__(self) -> None:
        self.requested = False

    def request(self, *_: Any) -> None:
        """Ask for a stop; asking again changes nothing, so an impatient Ctrl-C loses nothing."""
        self.requested = True

    @contextmanager
    def on_signals(self) -> Iterator["StopFlag"]:
        """Let SIGINT and SIGTERM ask for the stop while the block runs (main thread only)."""
        before = {number: signal.signal(number, self.request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Server:
    """The gRPC server of one shard.

    Parameters
    ----------
    config
        The cluster; port 0 in this shard's endpoint lets the system pick one.
    index
        Which shard, 0 to shard_count - 1.
    open_shard
        Opens the shard (`ps_server.shard.shard.Shard.open`, or a fake).

    Attributes
    ----------
    endpoint
        "host:port" or "unix:/path" that this server listens on, after `start`.
    """

    def __init__(self, config: ClusterConfig, index: int, open_shard: OpenShard) -> None:
        self._directory = shard_directory(config, index)
        self._config, self._index, self._open_shard = config, index, open_shard
        budget = config.memory_budget
        self._service = ParameterService(index, in_flight_bytes_max(budget), message_bytes_max(budget))
        self._shard: ServedShard | None = None
        self._serving = False
        self.endpoint = config.endpoints[index]
        ports = 1 if config.data_port == "off" else 2
        connections = connections_max(
            max(raise_file_limit(FILES_ENOUGH) - files_of_tables(len(config.tables)), 64), ports
        )
        self._grpc_port = GrpcPort(self._service, config.worker_threads, connections)
        self._data_port = DataPort(self._service, config.worker_threads, connections)

    def start(self) -> None:
        """Listen, recover the shard, serve.

        Raises
        ------
        ConfigError
            The endpoint cannot be bound (a port or socket file in use), or other shards' ports are not known.
        RowhouseError
            Whatever opening the shard raises; the port is free again then.
        """
        keep_usual_blocks()
        try:
            self._listen()
            self._start_data_port()
            self._grpc_port.start()
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"data directory {str(self._directory)!r}: {error.strerror}") from None
            self._shard = self._open_shard(self._config, self._index, self._directory)
        except BaseException:
            self._stop_ports()  # no call lasts: there is no shard yet
            raise
        self._service.attach(self._shard)
        self._set_serving(self._shard.poison is None)

    def run(self, flag: StopFlag, *, poison_ends: bool = False) -> None:
        """Watch the shard until a stop is asked for; health turns NOT_SERVING when it is poisoned, and with
        `poison_ends` the watch ends then, for somebody who starts it again."""
        assert self._shard is not None, "start comes before run"
        polls = 0
        while not flag.requested:
            polls += 1
            if polls % _GIVE_BACK_POLLS == 0 and self._service.was_used():
                give_back()
            if self._serving and self._shard.poison is not None:
                _log.error("shard %d is poisoned: %s", self._index, self._shard.poison)
                self._set_serving(False)
                if poison_ends:
                    return
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Drain, for STOP_GRACE_S at most, then close the shard.

        Raises
        ------
        PoisonedError
            The shard was poisoned; what it had acknowledged is in its log.
        RowhouseError
            Whatever the last checkpoint raises.
        """
        self._set_serving(False)
        self._stop_ports()
        shard, self._shard = self._shard, None
        self._service.attach(None)
        if shard is None:
            return
        poison = shard.poison
        shard.close()
        if poison is not None:
            raise PoisonedError(f"shard {self._index} was poisoned: {poison}")

    def _set_serving(self, serving: bool) -> None:
        self._serving = serving
        self._grpc_port.set_serving(serving)

    def _stop_ports(self) -> None:
        """Both at once, so that one grace is enough."""
        data_port = threading.Thread(target=self._data_port.stop, args=(STOP_GRACE_S,), name="stop-data-port")
        data_port.start()
        self._grpc_port.stop(STOP_GRACE_S)
        data_port.join()

    def _start_data_port(self) -> None:
        """Before recovery, so that a taken port is told at once and no client misses it; until the shard is
        attached, frames are answered with UnavailableError."""
        wanted = self._config.data_port
        if wanted == "off":
            return
        port = 0 if wanted == "auto" else wanted + self._index
        self._data_port.start(bind_data_port(self.endpoint, port, self._config.endpoints))
        self._service.tell_data_port(self._data_port.endpoint, self._data_port.token)

    def _listen(self) -> None:
        others = [e for i, e in enumerate(self._config.endpoints) if i != self._index]
        if unknown := [e for e in others if has_open_port(e)]:
            raise ConfigError(
                f"shards: endpoint {unknown[0]!r} has port 0, so clients of shard {self._index} could not "
                "be told where it is; give every port, or use `ps-server up`, which picks them"
            )
        if (path := socket_path(self.endpoint)) is not None:
            clear_socket_file(path)
        bound = self._grpc_port.listen(self.endpoint)
        if bound == 0:
            reason = bind_problem(self.endpoint)
            raise ConfigError(f"shard {self._index} cannot listen on {self.endpoint!r}: {reason}")
        if has_open_port(self.endpoint):
            self.endpoint = f"{self.endpoint.rpartition(':')[0]}:{bound}"
            resolved = tuple(
                self.endpoint if i == self._index else e for i, e in enumerate(self._config.endpoints)
            )
            self._config = self._config.model_copy(update={"shards": resolved})
