# SPDX-License-Identifier: Apache-2.0
"""Peer: redis-server as a poor man's parameter server, over a unix socket or TCP.

8-byte binary keys; the value is a row of float32, with Adagrad followed by its accumulators. A pull is one
MGET, a step is MGET, arithmetic in the client, MSET: read, modify, write, and a second trainer would lose
updates. Requests and replies are made and parsed by NumPy over a plain socket, which costs less than any
Redis client in Python, so what is measured is the server.
"""

import os
import shutil
import socket
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer.driver import Ids, Rows, free_port, listening, main, start_server, wait_for
from benchmarks.peer.key_value import KeyValuePeer

END: Final = b"\r\n"
LINE_MAX: Final = 64


def head(name: str, arguments: int) -> bytes:
    """Start of a command with so many arguments, in RESP."""
    return f"*{arguments + 1}\r\n${len(name)}\r\n{name}\r\n".encode()


class Redis(KeyValuePeer):
    """The adapter.

    Parameters
    ----------
    work
        Folder for its socket.
    optimizer
        "sgd" or "adagrad".
    """

    durability = "none: no snapshot, no append-only file"

    def __init__(self, work: Path, optimizer: str) -> None:
        super().__init__(optimizer)
        binary = shutil.which("redis-server")
        if binary is None:
            raise FileNotFoundError("redis-server is not on PATH")
        transport = os.environ["PEER_TRANSPORT"]
        port = free_port()
        path = work / f"redis-{os.getpid()}.sock"
        flags = {
            "--port": port, "--bind": "127.0.0.1", "--unixsocket": path, "--appendonly": "no", "--dir": work,
            "--daemonize": "no",
        }  # fmt: skip
        arguments = [str(part) for pair in flags.items() for part in pair]
        self._server = start_server([binary, *arguments, "--save", ""])
        self.server_pids = [self._server.pid]
        wait_for("redis-server", lambda: listening(port))
        self._socket = self._connect(transport, port, path)
        self.name = f"redis-server {self._version()}, {transport}, MGET and MSET, requests made by NumPy"

    @staticmethod
    def _connect(transport: str, port: int, path: Path) -> socket.socket:
        if transport == "tcp":
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        return connection

    def _version(self) -> str:
        self._socket.sendall(head("INFO", 1) + b"$6\r\nserver\r\n")
        text = b""
        while b"redis_version:" not in text or not text.endswith(END):
            text += self._socket.recv(1 << 16)
        return text.split(b"redis_version:")[1].split(END)[0].decode()

    def _get(self, keys: Ids) -> Rows:
        """(n, floats) of n known keys, by MGET; one reply of known length."""
        request = np.empty(keys.shape[0], [("head", "S4"), ("key", "<u8"), ("end", "S2")])
        request["head"], request["key"], request["end"] = b"$8\r\n", keys, END
        self._socket.sendall(head("MGET", keys.shape[0]) + request.tobytes())
        value_head = f"${4 * self._floats}\r\n".encode()
        start = len(f"*{keys.shape[0]}\r\n")
        record = np.dtype([("head", f"V{len(value_head)}"), ("row", "<f4", self._floats), ("end", "V2")])
        reply = bytearray(start + keys.shape[0] * record.itemsize)
        view, got = memoryview(reply), 0
        while got < len(reply):
            count = self._socket.recv_into(view[got:])
            if not count:
                raise EOFError("redis-server closed the connection")
            got += count
        records = np.frombuffer(reply, record, offset=start)
        if bytes(records["head"][-1]) != value_head:
            raise ValueError(f"redis-server answered {bytes(reply[:LINE_MAX])!r}")
        return np.ascontiguousarray(records["row"])

    def _put(self, keys: Ids, values: Rows) -> None:
        value_head = f"${4 * self._floats}\r\n".encode()
        fields = [
            ("head", "S4"), ("key", "<u8"), ("end", "S2"), ("value_head", f"S{len(value_head)}"),
            ("row", "<f4", self._floats), ("value_end", "S2"),
        ]  # fmt: skip
        request: NDArray[np.void] = np.empty(keys.shape[0], fields)
        request["head"], request["key"], request["end"] = b"$8\r\n", keys, END
        request["value_head"], request["row"], request["value_end"] = value_head, values, END
        self._socket.sendall(head("MSET", 2 * keys.shape[0]) + request.tobytes())
        reply = b""
        while not reply.endswith(END):
            reply += self._socket.recv(LINE_MAX)
        if reply != b"+OK\r\n":
            raise ValueError(f"redis-server answered {reply!r} to MSET")

    def finish(self) -> None:
        """Every call has waited already."""

    def close(self) -> None:
        """Kill the server."""
        self._socket.close()
        self._server.kill()
        self._server.wait()


if __name__ == "__main__":
    main(Redis)
