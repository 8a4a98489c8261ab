# SPDX-License-Identifier: Apache-2.0
"""Where the time of one batch goes: `python -m benchmarks profile pull.zipf` and so on.

Every compiled kernel, and the few Python calls that do a layer's work (LEAVES), are timed on the thread that
calls them; what is left is Python between them and waiting. Kernels are found by their type in the modules
that use them, after a warm-up has compiled them, so the list follows the code.

Thread safety: a process's main thread; what it patches stays patched until the process ends.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.bar import Settings
from benchmarks.batch import BATCH_IDS, DIM, Batch, load_batches
from benchmarks.embedded import ADAGRAD, SGD, TABLE, create_rows, embedded, table_config
from benchmarks.table_disk import cold_batches, fill_compacted, read_files, small_budget
from benchmarks.table_load import shard_folder
from benchmarks.table_step import training_step

PACKAGES: Final = ("ps_server", "ps_client", "feature_cross", "rowhouse")
LEAVES: Final = (
    ("ps_server.disk.log", "PushLog", "append"), ("ps_server.disk.store", "RowFamily", "get"),
    ("ps_server.disk.store", "RowFamily", "put"),
)  # fmt: skip
"""Methods that do a layer's work outside of kernels: the push log, and RocksDB."""

COPY_BYTES: Final = 64 << 20
REST: Final = "Python between them, and waiting"

Work = Callable[[int], Any]
"""Does batch number i."""


@dataclass(slots=True)
class Clock:
    """Seconds and calls by part; nested parts are charged to the inner one."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    local: threading.local = field(default_factory=threading.local)

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed under `name`."""

        def timed(*arguments: Any, **named: Any) -> Any:
            stack: list[float] = self.local.__dict__.setdefault("stack", [])
            stack.append(0.0)
            began_s = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                took_s = time.perf_counter() - began_s
                inner_s = stack.pop()
                if stack:
                    stack[-1] += took_s
                self.seconds[name] = self.seconds.get(name, 0.0) + took_s - inner_s
                self.calls[name] = self.calls.get(name, 0) + 1

        return timed


@contextmanager
def patched(clock: Clock) -> Iterator[None]:
    """Every compiled kernel that Python code can call, and LEAVES, timed by `clock` inside the block."""
    dispatcher: Any = import_module("numba.core.registry").CPUDispatcher
    saved: list[tuple[Any, str, Any]] = []
    for module_name, module in sorted(sys.modules.items()):
        if module is None or module_name.split(".")[0] not in PACKAGES:
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, dispatcher):
                saved.append((module, name, value))
                setattr(module, name, clock.wrap(f"{value.py_func.__name__} (kernel)", value))
            elif isinstance(value, dict) and any(isinstance(v, dispatcher) for v in value.values()):
                saved.append((module, name, value))
                timed = {k: clock.wrap(f"{name} {k} (kernel)", v) for k, v in value.items()}
                setattr(module, name, timed)
    for module_name, class_name, method in LEAVES:
        owner = getattr(import_module(module_name), class_name)
        saved.append((owner, method, getattr(owner, method)))
        setattr(owner, method, clock.wrap(f"{class_name}.{method}", getattr(owner, method)))
    try:
        yield
    finally:
        for owner, name, value in saved:
            setattr(owner, name, value)


@contextmanager
def _pull(settings: Settings, distribution: str) -> Iterator[Work]:
    batches = load_batches(distribution, settings.cache, settings.ids)
    out = np.empty((BATCH_IDS, DIM), np.float32)
    with embedded(settings.scratch / "table", table_config(SGD)) as client:
        create_rows(client, settings.ids)
        yield lambda i: client.pull(TABLE, batches[i % len(batches)].requested, out)


@contextmanager
def _step(settings: Settings, distribution: str) -> Iterator[Work]:
    batches = load_batches(distribution, settings.cache, settings.ids)
    with embedded(settings.scratch / "table", table_config(ADAGRAD, durability="os")) as client:
        create_rows(client, settings.ids)
        step = training_step(client)
        yield lambda i: step(batches[i % len(batches)])


@contextmanager
def _cold(settings: Settings, _distribution: str) -> Iterator[Work]:
    folder = settings.scratch / "table"
    fill_compacted(folder, table_config(SGD, durability="none"), settings.rows)
    config = table_config(SGD, durability="none", memory_budget=small_budget(settings.rows)[0])
    read_files(shard_folder(folder, config) / "store")
    batches: list[Batch] = cold_batches(settings.rows)
    out = np.empty((BATCH_IDS, DIM), np.float32)
    with embedded(folder, config) as client:
        yield lambda i: client.pull(TABLE, batches[i % len(batches)].requested, out)


@contextmanager
def _cross(_settings: Settings, _distribution: str) -> Iterator[Work]:
    pyarrow: Any = import_module("pyarrow")
    from feature_cross import Engine, load  # noqa: PLC0415 # the other works need none of it

    random = np.random.default_rng(1)
    columns = {}
    for name, distinct in (("a", 1000), ("b", 50)):
        values = pyarrow.array([f"value_{name}_{i}" for i in range(distinct)])
        indices = pyarrow.array(random.integers(0, distinct, 1_000_000, np.int32))
        columns[name] = pyarrow.DictionaryArray.from_arrays(indices, values)
    attributes = {name: {"type": "string"} for name in columns}
    crossed = {"kind": "categorical", "of": [f"row.{name}" for name in columns]}
    engine = Engine(load({"entities": {"row": {"attributes": attributes}}, "features": {"cross": crossed}}))
    table = pyarrow.table(columns)

    def run(_i: int) -> None:
        for _ in engine.transform_stream(table):
            pass

    yield run


WORKS: Final[dict[str, tuple[Any, str]]] = {
    "pull.zipf": (_pull, "zipf"), "pull.uniform": (_pull, "uniform"), "step.zipf": (_step, "zipf"),
    "step.uniform": (_step, "uniform"), "cold_pull": (_cold, ""), "cross": (_cross, ""),
}  # fmt: skip
"""What `profile` takes: who sets it up, and the distribution."""


def memory_gigabytes_per_s() -> float:
    """A plain copy on this machine, bytes read and written: the limit of whatever moves rows."""
    source, target = np.zeros(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
    taken_s = []
    for _ in range(5):
        began_s = time.perf_counter()
        np.copyto(target, source)
        taken_s.append(time.perf_counter() - began_s)
    return 2 * COPY_BYTES / min(taken_s) / 1e9


def measure(name: str, settings: Settings) -> dict[str, Any]:
    """Milliseconds of each part per batch (the cross: per million rows).

    Parameters
    ----------
    name
        One of WORKS.
    settings
        Its runs, seconds, warm-up, ids, rows and folders.

    Returns
    -------
    dict
        `batch_ms` untouched, `parts` as (name, calls, ms) by falling time, and the memory bandwidth.
    """
    setup, distribution = WORKS[name]
    Path(settings.scratch).mkdir(parents=True, exist_ok=True)
    with setup(settings, distribution) as work:
        warmup = 2 if name == "cold_pull" else settings.warmup_batches  # a batch is cold once only
        for i in range(warmup):
            work(i)
        count, plain_s = _timed(work, warmup, settings.seconds)
        clock = Clock()
        with patched(clock):
            again, profiled_s = _timed(work, warmup + count, settings.seconds)
    parts = [
        (part, clock.calls[part] / again, seconds / again * 1e3) for part, seconds in clock.seconds.items()
    ]
    batch_ms = profiled_s / again * 1e3
    parts.append((REST, 1.0, batch_ms - sum(ms for _, _, ms in parts)))
    return {
        "work": name, "batches": again, "batch_ms": plain_s / count * 1e3, "profiled_ms": batch_ms,
        "parts": sorted(parts, key=lambda part: -part[2]), "copy_gigabytes_per_s": memory_gigabytes_per_s(),
    }  # fmt: skip


def _timed(work: Work, first: int, seconds: float) -> tuple[int, float]:
    count, began_s = 0, time.perf_counter()
    while time.perf_counter() - began_s < seconds or count < 3:
        work(first + count)
        count += 1
    return count, time.perf_counter() - began_s
