# SPDX-License-Identifier: Apache-2.0
"""Sorted files written by other processes beside this one, for large bulk loads.

rocksdict's SstFileWriter holds Python's global lock while it compresses, so threads do not help. A worker
says with a line that it is ready, reads jobs (sst_file.py) as lines of JSON from its standard input and
answers each with a line; it ends with its input, so it never outlives the load. Rows are not sent: it reads
them from the memory, or the scratch file, that the load put them into.

Jobs are taken by whoever is free, so a worker that starts late, or a core that is busy with something else,
keeps nobody waiting for longer than one job. Thread safety: none; one load at a time uses a pool.
"""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
from rowhouse.error import StoreError

from ps_server.bulk.sst_file import FileMaker, Job, Made, read_at, write_at

WORKERS_MAX: Final = 3
"""Rows come in on one core: with more than three processes beside it, these wait for it most of the time."""

READY: Final = "ready"


class _Worker:
    """One other process."""

    def __init__(self, memory_fd: int) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._keys = os.memfd_create("keys")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ps_server.bulk.sst_worker", str(memory_fd), str(self._keys)],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            pass_fds=[memory_fd, self._keys],
        )  # fmt: skip

    def wait_until_ready(self) -> None:
        """Return when it takes jobs; StoreError when it ends instead."""
        self._answer("ps_server.bulk.sst_worker")

    def make(self, job: Job) -> Made:
        """Have the process do a job; StoreError when it could not."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job.to_document()) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise StoreError(f"{job.stem}: {error.strerror or error}") from error
        answer = self._answer(job.stem)
        if problem := answer.get("problem"):
            raise StoreError(problem)
        files = [Path(name) for name in answer["files"]]
        keys = np.empty(answer["keys"], np.uint64)
        read_at(self._keys, keys.view(np.uint8).data, 0)
        return Made(files=files, rows=answer["rows"], twice=answer["twice"], keys=keys)

    def _answer(self, what: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StoreError(f"{what}: the process that wrote it ended with code {self._process.wait()}")
        return json.loads(line)

    def kill(self) -> None:
        """End the process: it holds nothing that is needed, a complete file was answered for."""
        self._process.kill()

    def close(self) -> None:
        """Give back what a process that was killed leaves."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.wait()
        self._process.stdout.close()
        with suppress(BrokenPipeError):  # part of a job was still to be sent
            self._process.stdin.close()
        os.close(self._keys)


class FileWriters:
    """Does jobs, in this process and in others.

    Parameters
    ----------
    count
        Other processes; none before `start`.
    memory_fd
        Descriptor of the memory that rows are in.
    """

    def __init__(self, count: int, memory_fd: int) -> None:
        self._count, self._memory_fd = count, memory_fd
        self._workers: list[_Worker] = []
        self._threads = ThreadPoolExecutor(max(1, count), thread_name_prefix="sst-worker")
        self._waiting: deque[Job] = deque()
        self._done: SimpleQueue[Made | StoreError] = SimpleQueue()

    def start(self) -> None:
        """Start the other processes, once: there will be enough to do."""
        while len(self._workers) < self._count:
            self._workers.append(_Worker(self._memory_fd))

    @property
    def processes(self) -> int:
        """Those that do jobs, this one among them."""
        return 1 + len(self._workers)

    def run(self, jobs: list[Job]) -> Iterator[Made]:
        """Do jobs, in any order; StoreError when one failed, OSError when one did in this process.

        The keys of what is yielded may be many: let them go before the next.
        """
        self._waiting.extend(jobs)
        for worker in self._workers:
            self._threads.submit(self._serve, worker)
        maker = FileMaker(self._memory_fd)
        missing = len(jobs)
        while missing:
            job = self._next() if self._done.empty() else None
            made = self._done.get() if job is None else maker.make(job)
            if isinstance(made, StoreError):
                raise made
            missing -= 1
            yield made

    def _next(self) -> Job | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def _serve(self, worker: _Worker) -> None:
        try:
            worker.wait_until_ready()
            while (job := self._next()) is not None:
                self._done.put(worker.make(job))
        except StoreError as error:
            self._done.put(error)

    def close(self) -> None:
        """End the workers."""
        self._waiting.clear()
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown()
        for worker in self._workers:
            worker.close()


def main(memory_fd: int, keys_fd: int) -> None:
    """A worker: one job per line of standard input."""
    maker = FileMaker(memory_fd)
    print(json.dumps(READY), flush=True)
    for line in sys.stdin:
        try:
            made = maker.make(Job.from_document(json.loads(line)))
            write_at(keys_fd, made.keys.view(np.uint8).data, 0)
            answer = {
                "files": [str(file) for file in made.files], "rows": made.rows, "twice": made.twice,
                "keys": made.keys.shape[0],
            }  # fmt: skip
        except (OSError, StoreError) as error:
            answer = {"problem": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
