# SPDX-License-Identifier: Apache-2.0
"""Peer: OpenEmbedding 0.1.2 (4paradigm), a C++ parameter server with its own RPC, through its C API.

One server process that holds a hash variable in RAM; this process is its master and its one client. A push
is push_gradients and update_weights, the commit that applies the optimizer; both are waited for.
The library comes prebuilt in the source package (its TensorFlow bridge is not built).
"""

import ctypes
import os
import sys
from ctypes import c_char_p, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.peer.driver import (
    DIM,
    EPSILON,
    INITIAL_ACCUMULATOR,
    LEARNING_RATE,
    Ids,
    Rows,
    main,
    start_server,
    wait_for,
)

LIBRARY: Final = "openembedding-0.1.2/openembedding/libcexb_pack.so"
CONFIG: Final = b'{"rpc": {"bind_ip": "127.0.0.1", "io_thread_num": 2}, "server": {"server_concurrency": 2}}'
HASH_VARIABLE: Final = 2**64 - 1
"""A vocabulary of this size is what the library takes for "any 64-bit id"."""

_POINTERS: Final = (
    "connect", "master_start", "server_start", "context_initialize", "create_storage", "create_variable",
    "create_initializer", "create_optimizer", "pull_weights", "push_gradients", "update_weights",
)  # fmt: skip


def load_library() -> Any:
    """The C library, its return types declared; PEER_FOLDER names the folder of the source package."""
    library = ctypes.CDLL(str(Path(os.environ["PEER_FOLDER"]) / LIBRARY))
    for name in _POINTERS:
        getattr(library, f"exb_{name}").restype = c_void_p
    library.exb_last_error.restype = library.exb_version.restype = c_char_p
    library.exb_pull_wait.restype = library.exb_wait.restype = ctypes.c_bool
    return library


def _address(array: Any) -> c_void_p:
    return c_void_p(array.ctypes.data)


class OpenEmbedding:
    """The adapter.

    Parameters
    ----------
    optimizer
        "sgd" or "adagrad".
    """

    durability = "none: RAM only"
    formula = "adagrad"

    def __init__(self, optimizer: str) -> None:
        self._library = library = load_library()
        self._optimizer = optimizer
        self._version = 0
        self._out = np.zeros((0, DIM), np.float32)
        master = self._pointer(library.exb_master_start(b"127.0.0.1"))
        endpoint = ctypes.create_string_buffer(128)
        library.exb_master_endpoint(master, endpoint)
        module = [sys.executable, "-m", "benchmarks.peer.openembedding", "--serve", endpoint.value.decode()]
        self._server = start_server(module)
        self.server_pids = [self._server.pid]
        connection = self._pointer(library.exb_connect(CONFIG, endpoint.value, b"127.0.0.1"))
        wait_for("its server", lambda: int(library.exb_running_server_count(connection)) >= 1)
        context = self._pointer(library.exb_context_initialize(connection, c_int32(1), c_int32(1)))
        self._storage = self._pointer(library.exb_create_storage(context, c_int32(-1)))
        self._variable = self._pointer(
            library.exb_create_variable(self._storage, c_uint64(HASH_VARIABLE), c_size_t(DIM), b"float32")
        )
        zeros = self._pointer(library.exb_create_initializer(b"constant"))
        library.exb_set_initializer_property(zeros, b"value", b"0.0")
        library.exb_set_initializer(self._variable, zeros)
        self._set_optimizer(optimizer)
        version = library.exb_version().decode()
        self.name = f"OpenEmbedding {version}, C API, TCP, hash variable, 2 I/O and 2 server threads"

    def _set_optimizer(self, optimizer: str) -> None:
        made = self._pointer(self._library.exb_create_optimizer(optimizer.encode()))
        properties = {"learning_rate": LEARNING_RATE}
        if optimizer == "adagrad":
            properties |= {"initial_accumulator_value": INITIAL_ACCUMULATOR, "epsilon": EPSILON}
        for key, value in properties.items():
            self._library.exb_set_optimizer_property(made, key.encode(), str(value).encode())
        self._library.exb_set_optimizer(self._variable, made)

    def _pointer(self, value: int | None) -> c_void_p:
        if not value:
            raise RuntimeError(self._library.exb_last_error().decode())
        return c_void_p(value)

    def pull(self, ids: Ids) -> Rows:
        """Its client finds the distinct ids itself; the answer lies in one array that is used again."""
        if self._out.shape[0] < ids.shape[0]:
            self._out = np.zeros((ids.shape[0], DIM), np.float32)
        out = self._out[: ids.shape[0]]
        keys, count = _address(ids), c_size_t(ids.shape[0])
        library = self._library
        waiting = self._pointer(library.exb_pull_weights(self._variable, keys, count, c_int64(self._version)))
        if not library.exb_pull_wait(waiting, keys, count, _address(out)):
            raise RuntimeError(library.exb_last_error().decode())
        return out

    def _push(self, ids: Ids, gradients: Rows) -> None:
        library = self._library
        count = c_size_t(ids.shape[0])
        self._wait(library.exb_push_gradients(self._variable, _address(ids), count, _address(gradients)))
        self._wait(library.exb_update_weights(self._storage))
        self._version += 1

    def _wait(self, waiter: int | None) -> None:
        if not self._library.exb_wait(self._pointer(waiter)):
            raise RuntimeError(self._library.exb_last_error().decode())

    def load(self, ids: Ids, rows: Rows) -> None:
        """SGD: one push whose result is the rows. Adagrad: zero gradients, so that rows of zeros exist."""
        ids = np.ascontiguousarray(ids)
        self.pull(ids)
        scale = np.float32(-1 / LEARNING_RATE if self._optimizer == "sgd" else 0)
        self._push(ids, np.ascontiguousarray(rows * scale))

    def step(self, distinct: Ids, gradients: Rows) -> None:
        """Pull, push, commit."""
        self.pull(distinct)
        self._push(distinct, gradients)

    def finish(self) -> None:
        """Every call has waited already."""

    def close(self) -> None:
        """Kill the server."""
        self._server.kill()
        self._server.wait()


def serve(endpoint: str) -> None:
    """Be the server of the master at `endpoint` until killed."""
    library = load_library()
    connection = c_void_p(library.exb_connect(CONFIG, endpoint.encode(), b"127.0.0.1"))
    library.exb_server_join(c_void_p(library.exb_server_start(connection)))


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        main(lambda _work, optimizer: OpenEmbedding(optimizer))
