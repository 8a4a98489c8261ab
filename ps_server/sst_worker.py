# SPDX-License-Identifier: Apache-2.0
"""Sorted files written by other processes, for large bulk loads.

rocksdict's SstFileWriter holds Python's global lock while it compresses, so threads do not help. A worker
reads jobs as lines of JSON from its standard input, and answers each with a line; it ends with its input,
so it never outlives the load. Thread safety: none; one load at a time uses a pool.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rowhouse.error import StoreError

from ps_server.store import KEY_BYTES, SortedFile

WORKERS_MAX: Final = 3
"""One process sorts; with more than three beside it, it is the one that the others wait for."""

Records = NDArray[np.uint8]


def write_file(path: Path, records: Records) -> None:
    """Write one SST file; `records` is (n, KEY_BYTES + value_bytes) uint8, keys ascending."""
    file = SortedFile(path, records.shape[1] - KEY_BYTES)
    file.append(records)
    file.finish()


class _Worker:
    """One other process, and the memory in which it gets its rows."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._shared = os.memfd_create("rows")  # not a file: its pages would have to reach the disk
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ps_server.sst_worker", str(self._shared)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[self._shared],
        )  # fmt: skip
        self.answer: Future[None] = Future()
        self.answer.set_result(None)

    def give(self, path: Path, records: Records) -> None:
        """Hand a file over; `records` may change after this. StoreError when there is no memory."""
        try:
            data = records.reshape(-1).data
            written = 0
            while written < len(data):
                written += os.pwrite(self._shared, data[written:], written)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from error
        self._job = json.dumps(
            {"path": str(path), "rows": records.shape[0], "record_bytes": records.shape[1]}
        )

    def write(self, path: Path) -> None:
        """Have the process write the file that was given; StoreError when it could not."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(self._job + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from error
        answer = self._process.stdout.readline()
        if not answer:
            raise StoreError(f"{path}: the process that wrote it ended with code {self._process.wait()}")
        problem = json.loads(answer)
        if problem:
            raise StoreError(problem)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()  # it holds nothing that is needed: a complete file was answered for
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        os.close(self._shared)


class FileWriters:
    """Writes SST files, in this process and in others.

    Parameters
    ----------
    count
        Other processes; none before `start`.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._workers: list[_Worker] = []
        self._threads = ThreadPoolExecutor(max(1, count), thread_name_prefix="sst-worker")

    def start(self) -> None:
        """Start the other processes, once: there will be more than one file."""
        while len(self._workers) < self._count:
            self._workers.append(_Worker())

    def write(self, path: Path, records: Records) -> None:
        """Write a file, or have it written; StoreError when this or an earlier one failed."""
        for worker in self._workers:
            if worker.answer.done():
                worker.answer.result()
                worker.give(path, records)
                worker.answer = self._threads.submit(worker.write, path)
                return
        write_file(path, records)

    def wait(self) -> None:
        """Return when all files are complete; StoreError when one failed."""
        for worker in self._workers:
            worker.answer.result()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()


def main(shared: int) -> None:
    """A worker: one job per line of standard input, its rows in the memory behind the descriptor."""
    for line in sys.stdin:
        job = json.loads(line)
        path, problem = Path(job["path"]), ""
        try:
            shape = (job["rows"], job["record_bytes"])
            write_file(path, np.memmap(f"/proc/self/fd/{shared}", np.uint8, "r", shape=shape))
        except (OSError, StoreError) as error:
            problem = str(error)
        print(json.dumps(problem), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
