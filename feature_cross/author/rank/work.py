# SPDX-License-Identifier: Apache-2.0
"""Runs independent tasks on threads, tells of each as it ends, and stops at Ctrl-C with what is done.

The kernels release the GIL, so threads use the cores. Even a lone task runs beside the main thread: an
interrupt that reaches the main thread inside a compiled kernel comes out of it as a SystemError, so there it
only waits. Thread safety: call it from the main thread.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

__all__ = ["Progress", "no_progress", "run_tasks"]

T = TypeVar("T")


class Progress(Protocol):
    """Is told how far a piece of work is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of `stage`; the stage begins with 0."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


def no_stop() -> None:
    """Let tasks that are under way come to their end."""


def run_tasks(
    stage: str,
    tasks: Sequence[Callable[[], T]],
    threads: int,
    progress: Progress,
    stop: Callable[[], None] = no_stop,
) -> tuple[dict[int, T], bool]:
    """Run all tasks.

    Parameters
    ----------
    stage
        Name of the work, for `progress`.
    tasks
        Independent of each other.
    threads
        At least 1.
    progress
        Called after each task, in this thread.
    stop
        Called at an interrupt, to hurry tasks that are under way; they may raise.

    Returns
    -------
    Results by the task's position, and whether an interrupt cut the work short; then results are missing.

    Raises
    ------
    Exception
        The first that a task raised; tasks that have not begun are then dropped.
    """
    results: dict[int, T] = {}
    progress(stage, 0, len(tasks))
    with ThreadPoolExecutor(threads, thread_name_prefix="feature-cross-rank") as pool:
        waiting: dict[Future[T], int] = {}
        try:
            waiting = {pool.submit(task): position for position, task in enumerate(tasks)}
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    results[waiting.pop(future)] = future.result()
                    progress(stage, len(results), len(tasks))
        except KeyboardInterrupt:
            stop()
            ended = [future for future in waiting if future.done() and not future.exception()]
            return results | {waiting[future]: future.result() for future in ended}, True
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return results, False
