# SPDX-License-Identifier: Apache-2.0
"""Plots of a result: ratios beside their goals, cost against size, bytes of a plan, and its simulation.

Each function writes one PNG; those of FIGURES say whether there was anything to draw. matplotlib is imported
inside them: it is optional, and nothing else needs it. Thread safety: pure, but for the file that is written.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.result import Result

DOTS: Final = 120
MET: Final = "#4c9f70"
MISSED: Final = "#c44e52"
RAW_LINES: Final = {"fp32": 72, "fp16": 40}
ROWS: Final = (1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12)
TRAINERS: Final = (8, 64, 500, 2000)
SHARDS: Final = (1, 4, 16, 64, 256)
DIMS: Final = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # noqa: PLC0415 # see the module's docstring

    return Figure(figsize=(width, height), layout="constrained")


def plot_ratios(result: Result, path: Path) -> bool:
    """Each bar's ratio beside its goal."""
    shown = [
        b for b in result.bars if b.ratio is not None and b.ratio_low is not None and b.goal.endswith("×")
    ]
    if not shown:
        return False
    figure = _figure(9, 1 + 0.45 * len(shown))
    axes = figure.subplots()
    places = range(len(shown))
    ratios = [b.ratio or 0.0 for b in shown]
    spread = [
        [r - (b.ratio_low or 0) for r, b in zip(ratios, shown, strict=True)],
        [(b.ratio_high or 0) - r for r, b in zip(ratios, shown, strict=True)],
    ]
    colors = [MET if b.met else MISSED for b in shown]
    axes.barh(places, ratios, color=colors, xerr=spread, height=0.6)
    for place, bar in zip(places, shown, strict=True):
        bound = float(bar.goal.strip("≥≤ ×"))
        axes.plot([bound, bound], [place - 0.4, place + 0.4], color="black", linewidth=2)
    axes.set_yticks(places, [f"{b.id} ({b.goal})" for b in shown])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("ours to the peer's; the black line is the goal")
    figure.savefig(path, dpi=DOTS)
    return True


def plot_sizes(result: Result, path: Path) -> bool:
    """What a load, a reopen, a pull and a step cost against the rows of the table (table.size)."""
    found = [bar for bar in result.bars if bar.id.startswith("table.size.") and "sizes" in bar.detail]
    if not found:
        return False
    figure = _figure(9, 5)
    axes = figure.subplots()
    for bar in found:
        rows, seconds = bar.detail["sizes"], bar.detail["seconds"]
        label = f"{bar.id.rsplit('.', 1)[1]}, rows^{bar.figure:.2f}"
        axes.plot(rows, [second * 1e3 for second in seconds], marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="ms")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=DOTS)
    return True


def plot_bytes(_result: Result, path: Path) -> bool:
    """Bytes of a plan against rows, dim and dtype, with the constants that are shipped (psctl plan)."""
    from ps_server.plan.constant import SHIPPED, Kind, fit, read_runs  # noqa: PLC0415 # loads the kernels
    from ps_server.plan.row_bytes import disk_row, memory_row, raw_bytes  # noqa: PLC0415

    constants = fit(read_runs(SHIPPED))
    figure = _figure(13, 4.5)
    by_rows, by_dim, by_dtype = figure.subplots(1, 3)
    for dtype, color in (("fp32", "C0"), ("fp16", "C1")):
        layout = Kind(dtype=dtype, dim=16, optimizer="adagrad").layout
        for bytes_, style, what in (
            (raw_bytes(layout), ":", "id and weights"), (memory_row(layout, constants).total, "-", "memory"),
            (disk_row(layout, constants).total, "--", "disk"),
        ):  # fmt: skip
            label = f"{dtype}, {what}: {bytes_:.0f} B"
            by_rows.plot(ROWS, [rows * bytes_ / 1e9 for rows in ROWS], style, color=color, label=label)
        for optimizer, style in (("sgd", "-"), ("adagrad", "--"), ("adam", ":")):
            layouts = [Kind(dtype=dtype, dim=dim, optimizer=optimizer).layout for dim in DIMS]
            bytes_of = [disk_row(one, constants).total for one in layouts]
            by_dim.plot(DIMS, bytes_of, style, color=color, label=f"{dtype}, {optimizer}")
    by_rows.set(xscale="log", yscale="log", xlabel="rows", ylabel="GB", title="dim 16, Adagrad")
    by_dim.set(xlabel="dim", ylabel="bytes per row on disk", title="dim, dtype and optimizer")
    names = ("fp32", "bf16", "fp16")
    for shift, place in ((-0.2, memory_row), (0.2, disk_row)):
        heights = [place(Kind(dtype=n, dim=16, optimizer="sgd").layout, constants).total for n in names]
        name = "memory" if place is memory_row else "disk"
        by_dtype.bar([i + shift for i in range(len(names))], heights, width=0.4, label=name)
    for dtype, bytes_ in RAW_LINES.items():
        by_dtype.axhline(bytes_, color="black", linewidth=1, linestyle=":")
        by_dtype.annotate(f"{bytes_} B: id and {dtype} weights", (-0.45, bytes_ + 1), fontsize=8)
    by_dtype.set_xticks(range(len(names)), names)
    by_dtype.set(ylabel="bytes per row", title="dim 16, SGD")
    for axes in (by_rows, by_dim, by_dtype):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DOTS)
    return True


def plot_simulation(service_path: Path, path: Path) -> None:
    """Simulated steps/s against shards and trainers, with the services of a file (wire_queue.py), beside the
    real runs of one and two shards that are in it. It takes seconds, so it is no part of a report."""
    from ps_server.plan.simulation import Cluster, grid, read_service  # noqa: PLC0415 # as above

    service, document = read_service(service_path)
    cluster = Cluster(trainers=1, shards=1, step_ids=document["step_ids"])
    found = grid(service, cluster, list(TRAINERS), list(SHARDS))
    figure = _figure(13, 4.5)
    by_shards, by_trainers, beside = figure.subplots(1, 3)
    for trainers in TRAINERS:
        line = [outcome.steps_per_s for outcome in found if outcome.trainers == trainers]
        by_shards.plot(SHARDS, line, marker="o", label=f"{trainers:,} trainers")
    for shards in SHARDS:
        line = [outcome.steps_per_s for outcome in found if outcome.shards == shards]
        by_trainers.plot(TRAINERS, line, marker="o", label=f"{shards} shards")
    points = document["points"]
    for shift, what in ((-0.2, "measured"), (0.2, "simulated")):
        heights = [point[f"{what}_steps_per_s"] for point in points]
        beside.bar([place + shift for place in range(len(points))], heights, width=0.4, label=what)
    beside.set_xticks(range(len(points)), [f"{p['trainers']} on {p['shards']}" for p in points])
    by_shards.set(xscale="log", yscale="log", xlabel="shards", title="a core for each shard")
    by_trainers.set(xscale="log", yscale="log", xlabel="trainers", title="a core for each shard")
    beside.set(xlabel="trainers on shards", title=f"all on one machine: {document['machine']}")
    for axes in (by_shards, by_trainers, beside):
        axes.set(ylabel="steps/s of all trainers")
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DOTS)


FIGURES: Final[Mapping[str, tuple[Callable[[Result, Path], bool], str]]] = {
    "ratio.png": (plot_ratios, "ratios beside their goals"),
    "size.png": (plot_sizes, "cost against rows"),
    "bytes.png": (plot_bytes, "bytes against rows, dim and dtype"),
}
"""File of each plot, what draws it, and its caption."""
