# SPDX-License-Identifier: Apache-2.0
"""Runs of the workload `scale` at several sizes side by side: a file, a table, plots, and the runs of a plan.

A cost that grows as rows^e has the exponent e: 1 for work on all rows, 0 for work that does not depend on
them. Thread safety: pure, but for the files that are written.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.figure import DOTS
from benchmarks.scale import record
from ps_server.plan.scale import this_machine

FORMAT: Final = 1
Found = Mapping[str, Any]

COSTS: Final[Mapping[str, tuple[str, Callable[[Found], float]]]] = {
    "bulk load": ("µs/row", lambda f: f["load"]["load_s"] / f["rows"] * 1e6),
    "disk after the load": ("B/row", lambda f: f["load"]["disk_bytes_per_row"]),
    "disk after training, compacted": ("B/row", lambda f: f["compact"]["disk_bytes_per_row"]),
    "index and filters": ("B/row", lambda f: f["open"]["index_filter_bytes"] / f["rows"]),
    "files of rows": ("files", lambda f: sum(f["open"]["levels"].values())),
    "memory after a start": ("MB", lambda f: f["open"]["memory_bytes"] / 1e6),
    "start after a stop": ("s", lambda f: f["open"]["reopen_s"]),
    "cold pull, files in the page cache": ("µs/row", lambda f: 1e6 / f["pull"]["cached_rows_per_s"]),
    "the same by rocksdict": ("µs/row", lambda f: 1e6 / float(np.median(f["pull"]["cached_peer_runs"]))),
    "cold pull from the disk": ("µs/row", lambda f: 1e6 / f["pull"]["disk_rows_per_s"]),
    "the same by rocksdict, direct reads": (
        "µs/row", lambda f: 1e6 / float(np.median(f["pull"]["disk_peer_runs"])),
    ),
    "Zipf step, p50": ("ms", lambda f: f["train"]["zipf_step_ms"]["p50"]),
    "Zipf step, p99": ("ms", lambda f: f["train"]["zipf_step_ms"]["p99"]),
    "Zipf step, longest": ("ms", lambda f: f["train"]["zipf_step_ms"]["longest"]),
    "uniform step, p50": ("ms", lambda f: f["train"]["uniform_step_ms"]["p50"]),
    "uniform step, p99": ("ms", lambda f: f["train"]["uniform_step_ms"]["p99"]),
    "uniform step, longest": ("ms", lambda f: f["train"]["uniform_step_ms"]["longest"]),
    "step at 95 % hits": ("ms", lambda f: 1e3 / f["train"]["plain_steps_per_s"]),
    "the same with prefetch": ("ms", lambda f: 1e3 / f["train"]["prefetch_steps_per_s"]),
    "push of 25,000 new and 25,000 known ids, p50": ("ms", lambda f: f["train"]["insert_ms"]["p50"]),
    "push of 25,000 new and 25,000 known ids, longest": ("ms", lambda f: f["train"]["insert_ms"]["longest"]),
    "checkpoint under load": (
        "µs/dirty row", lambda f: f["train"]["checkpoint_s"] / f["train"]["checkpoint_rows"] * 1e6,
    ),
    "step during a checkpoint, longest": ("ms", lambda f: f["train"]["checkpoint_step_ms"]["longest"]),
    "kill -9 under load to the first answer": ("s", lambda f: f["kill"]["first_answer_s"]),
    "kill -9 to an exact number of rows": ("s", lambda f: f["kill"]["rows_exact_s"]),
    "eviction by age": ("µs/row", lambda f: f["evict"]["evict_s"] / f["rows"] * 1e6),
    "compaction of everything": ("µs/row", lambda f: f["compact"]["compact_s"] / f["rows"] * 1e6),
    "verify": ("µs/row", lambda f: f["verify"]["verify_s"] / f["rows"] * 1e6),
    "export of 1 %": ("µs/row", lambda f: f["export"]["export_s"] / f["export"]["rows"] * 1e6),
}  # fmt: skip
"""What is reported: its unit, and how it is taken from what a run found."""

PLOTTED: Final = (
    "bulk load", "cold pull, files in the page cache", "cold pull from the disk", "Zipf step, p50",
    "uniform step, p50", "checkpoint under load", "start after a stop",
    "kill -9 under load to the first answer", "disk after the load",
)  # fmt: skip


def read_runs(folders: Sequence[Path]) -> list[Found]:
    """What runs found, by ascending rows; ValueError where one is not as far as its kill. What comes after
    that may be missing: it takes most of the time."""
    runs = []
    for folder in folders:
        path = folder / "scale.json" if folder.is_dir() else folder
        document = json.loads(path.read_text(encoding="utf-8"))
        for found in document.get("runs", [document]):
            if "kill" not in found:
                raise ValueError(f"{path}: this run is not finished; start it again with the same --dir")
            runs.append(found)
    return sorted(runs, key=lambda found: int(found["rows"]))


def _of(found: Found, cost: Callable[[Found], float]) -> float | None:
    """The cost, or None where the run has not come to it."""
    try:
        return cost(found)
    except KeyError:
        return None


def table(runs: Sequence[Found]) -> str:
    """Markdown: a line for each cost, a column for each size, and the exponent over all of them."""
    sizes = [f"{found['rows']:.0e}".replace("e+0", "e") for found in runs]
    lines = [f"| cost | unit | {' | '.join(sizes)} | exponent |", f"|---|---|{'---|' * (len(runs) + 1)}"]
    rows = np.log([found["rows"] for found in runs])
    for name, (unit, cost) in COSTS.items():
        costs = [_of(found, cost) for found in runs]
        known = [i for i, value in enumerate(costs) if value is not None]
        exponent = "–"
        if len(known) > 1:
            logs = np.log(np.array([costs[i] for i in known], np.float64))
            exponent = f"{np.polyfit(rows[known], logs, 1)[0]:+.2f}"
        cells = " | ".join("–" if value is None else f"{value:,.3g}" for value in costs)
        lines.append(f"| {name} | {unit} | {cells} | {exponent} |")
    return "\n".join(lines) + "\n"


def plot(runs: Sequence[Found], path: Path) -> None:
    """Each of PLOTTED against rows, on logarithmic axes."""
    from matplotlib.figure import Figure  # noqa: PLC0415 # optional, as in figure.py

    figure = Figure(figsize=(11, 8), layout="constrained")
    rows = [found["rows"] for found in runs]
    for axes, name in zip(figure.subplots(3, 3).flat, PLOTTED, strict=True):
        unit, cost = COSTS[name]
        axes.plot(rows, [cost(found) for found in runs], marker="o")
        axes.set(xscale="log", title=name, ylabel=unit, xlabel="rows")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DOTS)


def write(runs: Sequence[Found], head: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write all of it into a folder: scale.json (the runs), scale.md, scale.png, plan_scale.json."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = {
        "scale.json": {"format": FORMAT, **head, "runs": list(runs)},
        "plan_scale.json": {
            "format": FORMAT, "time": head["time"], "machine": this_machine(),
            "runs": [record(found) for found in runs],
        },
    }  # fmt: skip
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "scale.md").write_text(table(runs), encoding="utf-8")
    plot(runs, folder / "scale.png")
    return [folder / name for name in (*documents, "scale.md", "scale.png")]
