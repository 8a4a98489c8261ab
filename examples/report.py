# SPDX-License-Identifier: Apache-2.0
"""What a demo found: the figures of report.json, and the tables for people.

Thread safety: a Result belongs to the thread that fills it; the functions are pure.
"""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from examples.cluster import TableSize
from examples.recipe import ARMS, Arm, Recipe, Run

ID_BYTES: Final = 8
FP32_BYTES: Final = 4
FP16_BYTES: Final = 2


@dataclass
class Result:
    """What a demo measures, filled as it goes.

    Attributes
    ----------
    example
        Its name.
    recipe
        Its model.
    runs
        In the order of training.
    examples
        Number of examples by part, "train" and "test".
    curves
        Per run (step, AUC on the probe).
    train_examples, train_s
        Examples that a run's trainers took together, and seconds of its steps, per run.
    auc, auc_recovered
        Per run, on the whole test part, before kill -9 and after recovery.
    recovery_s
        From SIGKILL until all shards serve again.
    sizes
        By table of the cluster: in memory before the kill, on disk after recovery and a checkpoint.
    distinct
        Distinct ids of each feature in the training part.
    phases_s
        Seconds of each phase of the demo.
    """

    example: str
    recipe: Recipe
    runs: list[Run]
    examples: dict[str, int] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    train_examples: dict[str, int] = field(default_factory=dict)
    train_s: dict[str, float] = field(default_factory=dict)
    auc: dict[str, float] = field(default_factory=dict)
    auc_recovered: dict[str, float] = field(default_factory=dict)
    recovery_s: float = 0.0
    sizes: dict[str, TableSize] = field(default_factory=dict)
    distinct: dict[str, int] = field(default_factory=dict)
    phases_s: dict[str, float] = field(default_factory=dict)

    def by_seed(self, figures: dict[str, float], arm: Arm) -> list[float]:
        """The figures of one arm's runs, in the order of seeds."""
        return [figures[run.name] for run in self.runs if run.arm == arm]

    @property
    def gain(self) -> float:
        """Mean AUC with crosses less mean AUC without them."""
        with_, without = (statistics.fmean(self.by_seed(self.auc, arm)) for arm in ("with", "without"))
        return with_ - without

    @property
    def spread(self) -> float:
        """Largest less smallest AUC over the seeds of an arm, of the arm where that is larger."""
        return max(_range(self.by_seed(self.auc, arm)) for arm in ARMS)

    @property
    def recovered_exactly(self) -> bool:
        """Whether every run's AUC after recovery is the one before, to the last digit."""
        return self.auc == self.auc_recovered

    def copies(self, table: str) -> list[TableSize]:
        """Sizes of one recipe table's copies, by run."""
        return [self.sizes[run.table(table)] for run in self.runs if table in self.recipe.arm_tables(run.arm)]

    @property
    def deep_table(self) -> str:
        """The table of 16-dim rows."""
        return next(name for name, use in self.recipe.tables.items() if use.part == "deep")

    def facts(self) -> dict[str, Any]:
        """The content of report.json."""
        deep = per_row(self.copies(self.deep_table))
        return {
            "example": self.example,
            "seeds": [run.seed for run in self.runs if run.arm == "with"],
            "examples": self.examples,
            "auc_without_crosses": statistics.fmean(self.by_seed(self.auc, "without")),
            "auc_with_crosses": statistics.fmean(self.by_seed(self.auc, "with")),
            "auc_after_recovery": statistics.fmean(self.by_seed(self.auc_recovered, "with")),
            "auc_by_run": self.auc,
            "auc_after_recovery_by_run": self.auc_recovered,
            "recovered_exactly": self.recovered_exactly,
            "gain": self.gain,
            "spread": self.spread,
            "spread_by_arm": {arm: _range(self.by_seed(self.auc, arm)) for arm in ARMS},
            "gain_beats_spread": self.gain > self.spread,
            "rows": {name: size.rows for name, size in self.sizes.items()},
            "distinct_ids": self.distinct,
            "memory_bytes_per_row": deep["memory"],
            "disk_bytes_per_row": deep["disk"],
            "arithmetic_bytes_per_row": arithmetic(16),
            "bytes_per_row": {
                name: {**per_row(self.copies(name)), "arithmetic": arithmetic(self.dim(name))}
                for name in self.recipe.tables
            },
            "examples_per_s": sum(self.train_examples.values()) / sum(self.train_s.values()),
            "examples_per_s_by_run": {n: count / self.train_s[n] for n, count in self.train_examples.items()},
            "recovery_s": self.recovery_s,
            "phases_s": self.phases_s,
            "auc_by_step": self.curves,
        }

    def dim(self, table: str) -> int:
        """Weights per row of a recipe's table."""
        return 1 if self.recipe.tables[table].part == "wide" else 16


def _range(values: list[float]) -> float:
    return max(values) - min(values)


def arithmetic(dim: int) -> dict[str, int]:
    """Bytes of an id and `dim` weights, in fp32 and in fp16: 72 and 40 at dim 16."""
    return {"fp32": ID_BYTES + FP32_BYTES * dim, "fp16": ID_BYTES + FP16_BYTES * dim}


def per_row(sizes: list[TableSize]) -> dict[str, float]:
    """Bytes per row in memory (records and index of hot rows) and on disk, over copies of one table."""
    rows, hot = sum(s.rows for s in sizes), sum(s.hot_rows for s in sizes)
    memory = sum(s.record_bytes + s.index_bytes for s in sizes)
    return {"memory": memory / max(1, hot), "disk": sum(s.disk_bytes for s in sizes) / max(1, rows)}


def write_json(result: Result, path: Path) -> None:
    """Write report.json."""
    path.write_text(json.dumps(result.facts(), indent=2) + "\n", encoding="utf-8")


def show(result: Result, console: Console) -> None:
    """Print the tables for people."""
    console.print(_auc_table(result))
    console.print(_size_table(result))
    facts = result.facts()
    verdict = "more" if facts["gain_beats_spread"] else "NOT more"
    exact = "equal to the last digit" if facts["recovered_exactly"] else "DIFFERENT"
    console.print(
        f"Crosses add {facts['gain']:+.4f} AUC, {verdict} than the spread over seeds "
        f"({facts['spread']:.4f}).\n"
        f"After kill -9 of every shard, {facts['recovery_s']:.1f} s until they served again; AUC {exact}.\n"
        f"Trained {facts['examples_per_s']:,.0f} examples/s, two trainers and two shards on this machine.",
        highlight=False,
    )


def _auc_table(result: Result) -> Table:
    table = Table("seed", "without crosses", "with crosses", "gain", "recovered")
    table.title = f"{result.example}: AUC on {result.examples['test']:,} test examples"
    columns = [result.by_seed(result.auc, arm) for arm in ARMS]
    recovered = result.by_seed(result.auc_recovered, "with")
    seeds = [str(run.seed) for run in result.runs if run.arm == "with"]
    for seed, without, with_, after in zip(seeds, *columns, recovered, strict=True):
        table.add_row(seed, f"{without:.4f}", f"{with_:.4f}", f"{with_ - without:+.4f}", f"{after:.4f}")
    table.add_section()
    means = [f"{statistics.fmean(column):.4f}" for column in columns]
    table.add_row("mean", *means, f"{result.gain:+.4f}", f"{statistics.fmean(recovered):.4f}")
    table.add_row("spread", *(f"{_range(column):.4f}" for column in columns), "", f"{_range(recovered):.4f}")
    return table


def _size_table(result: Result) -> Table:
    table = Table("table", "dim", "rows", "memory", "disk", "fp32", "fp16")
    table.title = (
        "One run's rows, and bytes per row: in memory and on disk, with optimizer state,\n"
        "beside the arithmetic of id + weights in fp32 and fp16"
    )
    for name in result.recipe.tables:
        dim, copies = result.dim(name), result.copies(name)
        sizes, plain = per_row(copies), arithmetic(dim)
        table.add_row(
            name, str(dim), f"{copies[-1].rows:,}", f"{sizes['memory']:.1f}", f"{sizes['disk']:.1f}",
            str(plain["fp32"]), str(plain["fp16"]),
        )  # fmt: skip
    return table
