# SPDX-License-Identifier: Apache-2.0
"""`psctl plan`: the arithmetic of rows, and a plan for a cluster. `--check` (check.py) measures rows here,
`--simulate` (simulate.py) lets trainers and shards queue.

Exit codes: 0 done, and with --check every error within its bar; 1 an error beyond its bar; 2 a wrong flag
or file. Thread safety: a process's main thread.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rowhouse.error import ConfigError

from ps_server.command import check, simulate
from ps_server.config.cluster import load_config, parse_bytes
from ps_server.plan.constant import SHIPPED, Run, fit, read_runs
from ps_server.plan.figure import Basis, Figure, figures
from ps_server.plan.network import BATCH_IDS, Network, Traffic, make_network
from ps_server.plan.plan import Demand, Plan, Site, make_plan
from ps_server.plan.row_bytes import RowBytes, arithmetic, table_of
from ps_server.plan.scale import at_scale, read_scale

TERABYTE: Final = 1e12
ESTIMATE_FORMAT: Final = "feature-cross-estimate"
_SCALES: Final = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Carry out `psctl plan` as parsed; returns the exit code."""
    runs = read_runs(arguments.constants or SHIPPED)
    if arguments.check:
        return check.run(arguments, runs, console)
    return _plan(arguments, runs, console)


def parse_rows(text: str) -> float:
    """14e9, 14B, 500M or 20000 rows; ConfigError for anything else."""
    scale = _SCALES.get(text[-1:].lower(), 1.0)
    digits = text[:-1] if scale != 1.0 else text
    try:
        rows = float(digits) * scale
    except ValueError:
        rows = -1.0
    if not 0 <= rows < float("inf"):
        raise ConfigError(f"rows is {text!r}; it must be a number such as 14e9, 14B or 500M")
    return rows


def demands_of(arguments: argparse.Namespace) -> list[Demand]:
    """Tables and rows that the flags ask for; none at all when no rows were given."""
    given = [name for name in ("estimate", "config") if getattr(arguments, name)]
    if len(given) > 1:
        raise ConfigError("--estimate and --config both name tables; give one")
    if arguments.estimate:
        if arguments.rows:
            raise ConfigError("--rows and --estimate both name rows; give one")
        return _estimated(arguments)
    if arguments.config:
        return _configured(arguments)
    if arguments.rows is None:
        return []
    return [Demand(table=_table(arguments, "table", None, {}), rows=parse_rows(arguments.rows))]


def _table(arguments: argparse.Namespace, name: str, dim: int | None, row: dict[str, Any]) -> Any:
    """A table by the flags; what they leave open is the estimate's."""
    return table_of(
        name, dim=arguments.dim or dim or 16, dtype_name=arguments.dtype or row.get("dtype") or "fp32",
        optimizer=arguments.optimizer or row.get("optimizer") or "adagrad",
        eviction=tuple(kind for kind in arguments.eviction.split(",") if kind),
        admission_bits=arguments.admission_bits,
    )  # fmt: skip


def _configured(arguments: argparse.Namespace) -> list[Demand]:
    config = load_config(arguments.config)
    demands = []
    for part in (arguments.rows or "").split(","):
        name, equals, rows = part.partition("=")
        table = config.table(name)
        if not equals or table is None:
            known = ", ".join(t.name for t in config.tables)
            raise ConfigError(f"--rows has {part!r}; with --config it must be NAME=ROWS, the names {known}")
        demands.append(Demand(table=table, rows=parse_rows(rows)))
    return demands


def _estimated(arguments: argparse.Namespace) -> list[Demand]:
    path: Path = arguments.estimate
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != ESTIMATE_FORMAT:
            raise ConfigError(f"{path}: format is {document['format']!r}; it must be {ESTIMATE_FORMAT!r}")
        row = document["row"]
        return [
            Demand(
                table=_table(arguments, str(group["name"]), int(group["dim"]), row), rows=float(group["rows"])
            )
            for group in document["groups"]
        ]
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} is not what `feature-cross estimate --json` prints: {what}") from None


def _site(arguments: argparse.Namespace) -> Site:
    config = load_config(arguments.config) if arguments.config else None
    log = parse_bytes(arguments.log) if arguments.log else None
    return Site(
        shards=arguments.shards or (config.shard_count if config else 1), share=arguments.share,
        memory_budget=config.memory_budget if config else None,
        machine_memory_bytes=parse_bytes(arguments.machine_memory),
        machine_disk_bytes=parse_bytes(arguments.machine_disk),
        log_bytes=log or (config.checkpoint_log_bytes if config else 512 << 20),
    )  # fmt: skip


def _plan(arguments: argparse.Namespace, runs: Sequence[Run], console: Console) -> int:
    constants, scale = fit(runs), read_scale(arguments.scale)
    lines = arithmetic(constants)
    demands, site = demands_of(arguments), _site(arguments)
    rows = sum(demand.rows for demand in demands) / site.shards
    constants = at_scale(constants, scale, rows, runs[0].rows)
    plan = make_plan(demands, site, constants) if demands else None
    network = _network(arguments, demands, site)
    shown: list[Figure] = []
    simulation = None
    if network is not None and arguments.simulate:
        simulation = simulate.simulated(network, site.shards, arguments.model_s)
    if plan is not None:
        kinds = [_kind(demand) for demand in demands]
        basis = Basis(
            shards=site.shards, kinds=kinds, constants=constants, runs=runs, scale=scale, network=network
        )
        shown = figures(plan, basis)
    if arguments.json:
        document = {
            "constants": asdict(constants), "arithmetic": [asdict(line) for line in lines],
            "plan": None if plan is None else {**asdict(plan), "machines": plan.machines},
            "figures": [asdict(figure) for figure in shown],
            "simulation": None if simulation is None else asdict(simulation),
        }  # fmt: skip
        print(json.dumps(document, indent=1))
        return 0
    first = Table(
        "row", "id + weights", "1 TB", "in memory", "1 TB", "on disk", "1 TB",
        title="bytes per row, and billions of rows in 1 TB (10¹² bytes)",
    )  # fmt: skip
    for line in lines:
        cells = [line.what]
        for place in ("raw", "memory", "disk"):
            cells += [
                f"{getattr(line, f'{place}_bytes'):.0f} B",
                f"{line.rows_in(TERABYTE, place) / 1e9:.1f} B rows",
            ]
        first.add_row(*cells)
    console.print(first)
    if plan is not None:
        _show(plan, console)
        _show_figures(shown, console)
    if simulation is not None:
        simulate.show(simulation, console)
    return 0


def _network(arguments: argparse.Namespace, demands: Sequence[Demand], site: Site) -> Network | None:
    """What the trainers send; None where nobody said how many there are, or of which rows."""
    asked = arguments.simulate or arguments.batch_ids is not None or arguments.trainers is not None
    if asked and (arguments.trainers is None or not demands):
        raise ConfigError(
            "--batch-ids and --simulate need --trainers, and all three need rows: --rows or --estimate"
        )
    if arguments.trainers is None:
        return None
    traffic = Traffic(
        trainers=arguments.trainers,
        batch_ids=BATCH_IDS if arguments.batch_ids is None else arguments.batch_ids,
    )
    return make_network(traffic, [(d.rows, d.table.dim) for d in demands], site.shards)


def _kind(demand: Demand) -> str:
    """As a run's kind prints, where there may be a run of it."""
    table = demand.table
    return f"{table.dtype}, dim {table.dim}, {table.optimizer.kind}"


def _show_figures(shown: Sequence[Figure], console: Console) -> None:
    table = Table("figure", "measured", "in a run of", "reckoned", "by", title="measured, and reckoned here")
    for figure in shown:
        measured = "–" if figure.measured is None else _figure(figure.measured, figure.unit)
        reckoned = _figure(figure.reckoned, figure.unit)
        table.add_row(figure.name, measured, figure.run or "–", reckoned, figure.formula)
    console.print(table)


def _figure(value: float, unit: str) -> str:
    if unit == "B":
        return f"{value:.1f} B" if value < 1000 else _amount(value)
    if unit == "s":
        return f"{value:.2g} s" if value < 1 else _time(value)
    return f"{value:,.0f} {unit}".rstrip()


def _show(plan: Plan, console: Console) -> None:
    for table in plan.tables:
        purposes = list(dict.fromkeys([*table.memory.parts, *table.disk.parts]))
        shown = Table(
            "", *purposes, "sum", title=f"table {table.name}: {table.rows:,.0f} rows, bytes per row"
        )
        for place, row in (("memory", table.memory), ("disk", table.disk)):
            shown.add_row(place, *(_part(row, purpose) for purpose in purposes), f"{row.total:.1f}")
        console.print(shown)
    totals = Table("purpose", "memory", "disk", title="all machines together")
    for purpose in dict.fromkeys([*plan.memory, *plan.disk]):
        totals.add_row(purpose, _amount(plan.memory.get(purpose)), _amount(plan.disk.get(purpose)))
    totals.add_section()
    totals.add_row("sum", _amount(plan.memory_bytes), _amount(plan.disk_bytes))
    console.print(totals)
    console.print(
        f"machines: {plan.machines} ({plan.machines_by_memory} by memory, {plan.machines_by_disk} by disk); "
        f"memory_budget of each shard: {_amount(plan.memory_budget_bytes)}; "
        f"share of the rows in memory: {plan.share:.3g}\n"
        f"bulk load: {_time(plan.load_s)}; recovery after a kill with a full log: {_time(plan.recover_s)}; "
        f"memory to leave to the operating system for filters: {_amount(plan.page_cache_bytes)}",
        highlight=False,
    )
    for note in plan.notes:
        console.print(note, highlight=False)


def _part(row: RowBytes, purpose: str) -> str:
    value = row.parts.get(purpose)
    return "–" if value is None else f"{value:.1f}".removesuffix(".0")


def _amount(bytes_: float | None) -> str:
    if bytes_ is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(bytes_) < 999.5:
            return f"{bytes_:.3g} {unit}"
        bytes_ /= 1000
    return f"{bytes_:,.3g} TB" if bytes_ < 999.5 else f"{bytes_:,.0f} TB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
