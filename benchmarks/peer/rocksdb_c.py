# SPDX-License-Identifier: Apache-2.0
"""Peer: RocksDB's own C API in the trainer's process, the limit of what a store of rows on it can do.

Debian's librocksdb, unpacked beside the other peers, and rocksdb_c.c compiled against it by gcc, so that a
batch is one call. A pull is one batched multi-get of ascending keys, everything cached; a step is that,
Adagrad in NumPy, and one write batch with the write-ahead log on.
"""

import ctypes
import os
import shutil
import subprocess
from ctypes import c_char_p, c_size_t, c_void_p
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.peer.driver import Ids, Rows, main
from benchmarks.peer.key_value import KeyValuePeer

SOURCE: Final = Path(__file__).with_name("rocksdb_c.c")
CACHE_BYTES: Final = 2 << 30
ERROR_BYTES: Final = 256


def compiled(folder: Path) -> Path:
    """The shared library of SOURCE, built once for each text of it."""
    target = folder / "rocksdb_c.so"
    if not target.exists() or target.stat().st_mtime < SOURCE.stat().st_mtime:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise FileNotFoundError("no C compiler (gcc or cc) is on PATH")
        headers = folder / "debian" / "usr" / "include"
        libraries = sorted((folder / "debian").rglob("librocksdb.so*"))
        flags = [
            "-O2",
            "-shared",
            "-fPIC",
            f"-I{headers}",
            str(SOURCE),
            str(libraries[-1]),
            "-o",
            str(target),
        ]
        flags += ["-Wl,--allow-shlib-undefined"]
        subprocess.run([compiler, *flags], check=True)
    return target


class RocksDb(KeyValuePeer):
    """The adapter.

    Parameters
    ----------
    work
        Folder for the database.
    optimizer
        "sgd" or "adagrad".
    """

    durability = "os: its write-ahead log, not synced"

    def __init__(self, work: Path, optimizer: str) -> None:
        self._library: Any = ctypes.CDLL(str(compiled(Path(os.environ["PEER_FOLDER"]))))
        super().__init__(optimizer)
        self._error = ctypes.create_string_buffer(ERROR_BYTES)
        self._table = c_void_p()
        self._settled = False
        place = str(work / f"rocksdb-{optimizer}").encode()
        self._call("table_open", c_char_p(place), c_size_t(CACHE_BYTES), ctypes.byref(self._table))
        self.server_pids = [os.getpid()]
        self.name = (
            "RocksDB 7.8.3 C API, batched multi-get of ascending keys, everything cached, no compression"
        )

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, name)(*arguments, self._error):
            raise RuntimeError(f"{name}: {self._error.value.decode(errors='replace')}")

    @staticmethod
    def _keys(ids: Ids) -> Any:
        return np.ascontiguousarray(ids.astype(">u8"))

    def _get(self, ids: Ids) -> Rows:
        keys, out = self._keys(ids), np.empty((ids.shape[0], self._floats), np.float32)
        arguments = (c_size_t(ids.shape[0]), c_void_p(keys.ctypes.data), c_size_t(4 * self._floats))
        self._call("table_get", self._table, *arguments, c_void_p(out.ctypes.data))
        return out

    def _put(self, ids: Ids, values: Rows) -> None:
        keys, values = self._keys(ids), np.ascontiguousarray(values, np.float32)
        arguments = (c_size_t(ids.shape[0]), c_void_p(keys.ctypes.data), c_size_t(4 * self._floats))
        self._call("table_put", self._table, *arguments, c_void_p(values.ctypes.data))

    def finish(self) -> None:
        """After the load: flush and compact, once. Every call has waited already."""
        if not self._settled:
            self._settled = True
            self._call("table_settle", self._table)

    def close(self) -> None:
        """Nothing to end."""


if __name__ == "__main__":
    main(RocksDb)
