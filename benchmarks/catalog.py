# SPDX-License-Identifier: Apache-2.0
"""Every workload by name, with its goal; nothing heavy is imported until one is run.

Goals are those of the issues that ask for the work. A workload runs in a process of its own, so that no
workload finds another one's memory, threads or compiled kernels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, Final

from benchmarks.bar import Bar, Goal, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One named workload.

    Attributes
    ----------
    name
        What `run` takes.
    summary, peer
        What is done, and what stands beside it.
    function
        "module:function" that measures it.
    goal
        None: reported only.
    arguments
        Further arguments of the function.
    short
        Whether a pattern finds it in a quick run too; by its name it is always found.
    """

    name: str
    summary: str
    peer: str
    function: str
    goal: Goal | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    short: bool = True

    def measure(self, settings: Settings) -> list[Bar]:
        """Run it in this process."""
        module, _, name = self.function.partition(":")
        measure: Callable[..., list[Bar]] = getattr(import_module(module), name)
        return measure(settings, self.name, goal=self.goal, **self.arguments)


def _at_least(bound: float, of: Any = "ratio") -> Goal:
    return Goal(of, "at least", bound)


def _at_most(bound: float, of: Any = "ratio") -> Goal:
    return Goal(of, "at most", bound)


def _pair(
    name: str,
    summary: str,
    peer: str,
    function: str,
    goals: tuple[Goal, Goal],
    arguments: Sequence[Mapping[str, Any]] = ({}, {}),
) -> tuple[Workload, ...]:
    """A workload for each distribution."""
    return tuple(
        Workload(
            name=f"{name}.{distribution}", summary=f"{summary}, {distribution}", peer=peer,
            function=function, goal=goal, arguments={"distribution": distribution, **further},
        )
        for distribution, goal, further in zip(("zipf", "uniform"), goals, arguments, strict=True)
    )  # fmt: skip


WORKLOADS: Final[tuple[Workload, ...]] = (
    *_pair(
        "table.adagrad", "Adagrad step, embedded", "torch EmbeddingBag(sparse) + Adagrad in process",
        "benchmarks.table_step:measure_adagrad", (_at_least(2.0), _at_least(3.0)),
    ),
    *(
        Workload(
            name=f"table.{kind}", summary=f"{title} step, embedded, Zipf and uniform",
            peer=f"torch EmbeddingBag(sparse) + {peer} in process",
            function="benchmarks.table_step:measure_optimizer", goal=None, arguments={"kind": kind},
            short=False,
        )
        for kind, title, peer in (("sgd", "SGD", "SGD"), ("adam", "Adam", "SparseAdam"))
    ),
    *_pair(
        "table.pull", "pull into the caller's array, embedded", "rocksdict multi_get, all cached",
        "benchmarks.table_pull:measure", (_at_least(15.0), _at_least(15.0)),
    ),
    *_pair(
        "table.log", "Adagrad step with the push log (os)", "the same with durability none",
        "benchmarks.table_step:measure_log", (_at_most(1.25), _at_most(1.25)),
    ),
    Workload(
        name="table.cold_pull", summary="pull of rows that are not in memory (--rows)",
        peer="rocksdict multi_get on the same files, same cache",
        function="benchmarks.table_disk:measure_cold", goal=_at_least(0.9),
    ),
    *(
        Workload(
            name=f"table.memory_per_row.{dtype}", summary=f"memory per hot row, {dtype} SGD",
            peer=f"the id and the {dtype} weights alone", function="benchmarks.table_memory:measure",
            goal=_at_most(1.35), arguments={"dtype": dtype},
        )
        for dtype in ("fp16", "fp32")
    ),
    *(
        Workload(
            name=f"table.disk_per_row.{dtype}", summary=f"disk per compacted row, {dtype} SGD (--rows)",
            peer=f"the id and the {dtype} weights alone", function="benchmarks.table_disk:measure_size",
            goal=_at_most(1.15), arguments={"dtype": dtype},
        )
        for dtype in ("fp16", "fp32")
    ),
    Workload(
        name="table.bulk_load", summary="bulk load of unsorted rows (--rows)",
        peer="rocksdict SstFileWriter loop", function="benchmarks.table_load:measure", goal=_at_least(1.0),
    ),
    *_pair(
        "table.reopen", "kill -9 to the first answer (--rows, --log-bytes)", "",
        "benchmarks.table_reopen:measure", (_at_most(30.0, "figure"), _at_most(30.0, "figure")),
    ),
    Workload(
        name="table.size", summary="load, reopen, pull, step at 1e5 to 5e7 rows (sizes up to 2 × --rows)",
        peer="", function="benchmarks.table_size:measure", goal=_at_most(1.1, "figure"),
    ),
    Workload(
        name="scale", summary="very many rows, few in memory: load, pull, train, kill (--rows, --dir)",
        peer="rocksdict multi_get on the same files", function="benchmarks.scale:measure", goal=None,
    ),
    *_pair(
        "wire.pull", "pull over TCP", "the best remote server",
        "benchmarks.wire:measure_pull", (_at_least(1.25), _at_least(1.6)),
    ),
    *_pair(
        "wire.overhead", "wire time of a pull: remote less embedded", "bare gRPC, the same bytes",
        "benchmarks.wire:measure_overhead", (_at_most(1.5), _at_most(1.5)),
    ),
    *_pair(
        "wire.adagrad", "Adagrad step over TCP", "torch EmbeddingBag(sparse) + Adagrad in process",
        "benchmarks.wire:measure_adagrad", (_at_least(1.2), _at_least(2.0)),
        [{"server_goal": _at_least(1.9)}, {"server_goal": _at_least(2.5)}],
    ),
    Workload(
        name="wire.mixed", summary="p50 and p99 under 4 client processes, two step, two pull", peer="",
        function="benchmarks.wire_mixed:measure", goal=None,
    ),
    *_pair(
        "wire.shards", "pushes to two shards", "one shard", "benchmarks.wire_shards:measure",
        (_at_least(1.5), _at_least(1.5)),
    ),
    *_pair(
        "wire.click", "click model's examples/s, prefetching", "the same model on nn.EmbeddingBag(sparse)",
        "benchmarks.wire_click:measure", (_at_least(1.0), _at_least(1.0)),
    ),
    *(
        Workload(
            name=f"cross.{name}",
            summary=f"{ways}-way cross of dictionary-encoded columns, {counts[0]:,} values{rows}, one core",
            peer="polars, pandas, scikit-learn, Keras",
            function=f"benchmarks.cross_throughput:{function}",
            goal=_at_least(rate, "figure"), arguments={"counts": counts, "peer_goal": _at_least(20.0)},
        )
        for name, ways, rate, counts, function, rows in (
            ("two_way", 2, 60.0, (1000, 50), "measure_encoded", ""),
            ("three_way", 3, 40.0, (1000, 50, 50), "measure_encoded", ""),
            ("two_way_million", 2, 60.0, (1_000_000, 1000), "measure_large", " in 10 M and 1 M rows"),
            ("three_way_million", 3, 40.0, (1_000_000, 1000, 50), "measure_large", " in 10 M and 1 M rows"),
        )
    ),
    Workload(
        name="cross.strings", summary="2-way cross of raw strings, 1 M distinct, one core",
        peer="polars, pandas, scikit-learn, Keras", function="benchmarks.cross_throughput:measure_strings",
        goal=_at_least(10.0, "figure"),
    ),
    *(
        Workload(
            name=f"cross.hash.{length}", summary=f"distinct strings of {length} bytes hashed, one core",
            peer="xxhash called per string", function="benchmarks.cross_throughput:measure_hash",
            goal=_at_least(8.0), arguments={"length": length, **further},
        )
        for length, further in ((12, {}), (40, {"bytes_goal": _at_least(1.0, "figure")}))
    ),
    Workload(
        name="cross.demo_config", summary="the click demo's whole config, 10 M rows, one core",
        peer="the same features in polars", function="benchmarks.cross_demo:measure_config",
        goal=_at_least(5.0),
    ),
    Workload(
        name="cross.row", summary="one row as a request, the click demo's whole config, p99", peer="",
        function="benchmarks.cross_demo:measure_row", goal=_at_most(1.0, "figure"),
    ),
)  # fmt: skip


def select(patterns: list[str], quick: bool = False) -> list[Workload]:
    """Workloads of the given names, prefixes ("table") or patterns ("*.zipf"), in catalog order.

    Under `quick` a prefix or pattern finds short ones only.

    Raises
    ------
    KeyError
        A pattern that matches nothing.
    """
    chosen = set()
    for pattern in patterns:
        found = {
            w.name
            for w in WORKLOADS
            if w.name == pattern
            or ((w.short or not quick) and (w.name.startswith(f"{pattern}.") or fnmatchcase(w.name, pattern)))
        }
        if not found:
            raise KeyError(pattern)
        chosen |= found
    return [w for w in WORKLOADS if w.name in chosen]
