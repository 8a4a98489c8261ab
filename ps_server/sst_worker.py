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


def _rows_path(path: Path) -> Path:
    return path.with_suffix(".rows")


class FileWriters:
    """Writes SST files, in this process and in others.

    Parameters
    ----------
    workers
        Other processes, at most; they are started when the second file comes.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._files = 0
        self._processes: list[subprocess.Popen[str]] = []
        self._answers: list[Future[None]] = []
        self._threads = ThreadPoolExecutor(max(1, workers), thread_name_prefix="sst-worker")

    def write(self, path: Path, records: Records) -> None:
        """Write a file, or have it written; StoreError when this or an earlier one failed."""
        self._files += 1
        if self._files == 2:
            self._start()
        for i, answer in enumerate(self._answers):
            if answer.done():
                answer.result()
                self._answers[i] = self._threads.submit(self._ask, self._processes[i], path, records.copy())
                return
        write_file(path, records)

    def wait(self) -> None:
        """Return when all files are complete; StoreError when one failed."""
        for answer in self._answers:
            answer.result()

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for _ in range(self._workers):
            process = subprocess.Popen(
                [sys.executable, "-m", "ps_server.sst_worker"], env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            self._processes.append(process)
            ready: Future[None] = Future()
            ready.set_result(None)
            self._answers.append(ready)

    @staticmethod
    def _ask(process: "subprocess.Popen[str]", path: Path, records: Records) -> None:
        assert process.stdin is not None and process.stdout is not None
        try:
            with _rows_path(path).open("wb") as file:
                file.write(records.data)
            process.stdin.write(json.dumps({"path": str(path), "record_bytes": records.shape[1]}) + "\n")
            process.stdin.flush()
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from error
        answer = process.stdout.readline()
        if not answer:
            raise StoreError(f"{path}: the process that wrote it ended with code {process.wait()}")
        problem = json.loads(answer)
        if problem:
            raise StoreError(problem)

    def close(self) -> None:
        """End the workers."""
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            process.kill()  # it holds nothing that is needed: a complete file was answered for
            process.stdin.close()
            process.stdout.close()
            process.wait()
        self._threads.shutdown()


def main() -> None:
    """A worker: one job per line of standard input."""
    for line in sys.stdin:
        job = json.loads(line)
        path, problem = Path(job["path"]), ""
        try:
            records = np.fromfile(_rows_path(path), np.uint8).reshape(-1, job["record_bytes"])
            write_file(path, records)
            _rows_path(path).unlink()
        except (OSError, StoreError) as error:
            problem = str(error)
        print(json.dumps(problem), flush=True)


if __name__ == "__main__":
    main()
