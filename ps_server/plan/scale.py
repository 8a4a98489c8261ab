# SPDX-License-Identifier: Apache-2.0
"""Runs of one shard with many rows, from a million to a billion: what a plan of many rows rests on.

The runs of plan.json have a million rows each. Files, memory and times of a shard do not grow exactly as its
rows do, so a plan takes these figures at the rows that a shard will have: between two runs on the straight
line of the logarithms, beyond them on the line of the two nearest. `python -m benchmarks run scale` makes
such runs; scale.json beside this file is what is shipped (docs/plan.md has its keys).

Invariants: 1. the runs of a Scale ascend by rows, and no two have the same. Thread safety: immutable values;
reading and writing a file belong to the caller.
"""

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from rowhouse.error import ConfigError

from ps_server.plan.row_bytes import Constants

FORMAT: Final = 1
CPU_INFO: Final = Path("/proc/cpuinfo")
SHIPPED: Final = Path(__file__).with_name("scale.json")
GROWS: Final = frozenset({"load_s", "index_filter_bytes", "open_files", "checkpoint_s"})
"""What is taken to grow as the rows do where a single run cannot tell; the rest is taken to stay."""

VALUE_BYTES: Final = 42
"""Of a row of the benchmark: 16 fp16 weights, the LSN, the time of its last push."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRun:
    """One shard of so many rows; None is what a run did not measure.

    Attributes
    ----------
    rows, value_bytes
        How many, and bytes of a row beside its key.
    load_s
        Seconds of the bulk load into a stopped shard.
    disk_bytes_per_row, disk_bytes_per_row_compacted
        Bytes of row files per row, as the load left them and compacted.
    memory_bytes
        Resident memory of the process after its start, before the first pull.
    index_filter_bytes
        Filters and index blocks in the row files.
    open_files
        Files that the process has open.
    reopen_clean_s, reopen_crash_s
        Seconds to the first answer, after a stop and after a kill.
    replayed_rows
        Rows of the log that the start after the kill replayed.
    pull_uniform_rows_per_s, pull_zipf_rows_per_s, pull_disk_rows_per_s
        Rows pulled per second: cold ones from files in the page cache, Zipf distributed ones, cold ones from
        the disk.
    step_uniform_ms, step_zipf_ms
        Training steps: `p50`, `p99`, `p999`.
    checkpoint_s
        Seconds of a checkpoint.
    """

    rows: int
    value_bytes: float = VALUE_BYTES
    load_s: float | None = None
    disk_bytes_per_row: float | None = None
    disk_bytes_per_row_compacted: float | None = None
    memory_bytes: float | None = None
    index_filter_bytes: float | None = None
    open_files: float | None = None
    reopen_clean_s: float | None = None
    reopen_crash_s: float | None = None
    replayed_rows: float | None = None
    pull_uniform_rows_per_s: float | None = None
    pull_zipf_rows_per_s: float | None = None
    pull_disk_rows_per_s: float | None = None
    step_uniform_ms: Mapping[str, float] | None = None
    step_zipf_ms: Mapping[str, float] | None = None
    checkpoint_s: float | None = None

    @property
    def replay_row_s(self) -> float | None:
        """Seconds of a start after a kill per row of its log."""
        if not self.replayed_rows or self.reopen_crash_s is None:
            return None
        return max(self.reopen_crash_s - (self.reopen_clean_s or 0.0), 0.0) / self.replayed_rows

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; what was not measured is left out."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "ScaleRun":
        """The run of such an object; further keys are the benchmark's own. KeyError, TypeError or ValueError
        for another thing."""
        found: dict[str, Any] = {}
        for name in {field.name for field in fields(ScaleRun)} & value.keys():
            if name.startswith("step_") and value[name] is not None:
                found[name] = {key: _number(f"{name}.{key}", n) for key, n in value[name].items()}
            elif value[name] is not None:
                found[name] = _number(name, value[name])
        if value["rows"] is None or found["rows"] < 1:
            raise ValueError(f"rows is {value['rows']}; it must be 1 or more")
        return ScaleRun(**{**found, "rows": int(found["rows"])})


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}; it must be a number of 0 or more")
    return float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Runs of several sizes on one machine; none at all is legal.

    Attributes
    ----------
    runs
        Ascending by rows.
    machine, time
        Where and when.
    """

    runs: tuple[ScaleRun, ...] = ()
    machine: str = ""
    time: str = ""

    def __post_init__(self) -> None:
        sizes = [run.rows for run in self.runs]
        if sizes != sorted(set(sizes)):
            raise ConfigError(f"runs have {sizes} rows; they must ascend")

    def without(self, rows: float) -> "Scale":
        """The runs of other sizes."""
        return replace(self, runs=tuple(run for run in self.runs if run.rows != rows))

    def nearest(self, name: str, rows: float) -> ScaleRun | None:
        """The run that measured `name`, of the size that is nearest."""
        known = [run for run in self.runs if getattr(run, name)]
        return min(known, key=lambda run: abs(math.log(run.rows / rows)), default=None)

    def at(self, name: str, rows: float) -> float | None:
        """The figure `name` of a shard with so many rows; None where no run has it."""
        known = [(run.rows, float(getattr(run, name))) for run in self.runs if getattr(run, name)]
        if len(known) < 2:
            grows = 1 if name in GROWS else 0
            return known[0][1] * (rows / known[0][0]) ** grows if known else None
        above = next((i for i, (size, _) in enumerate(known) if size >= rows), len(known) - 1)
        (size, value), (next_size, next_value) = known[max(above, 1) - 1 :][:2]
        slope = math.log(next_value / value) / math.log(next_size / size)
        return float(value * (rows / size) ** slope)


def read_scale(path: Path | None) -> Scale:
    """Runs of a file: a JSON object with `runs`, or the list alone. None: those shipped, if there are any.

    Raises
    ------
    ConfigError
        The file holds something else.
    """
    if path is None and not SHIPPED.exists():
        return Scale()
    path = path or SHIPPED
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        head = {} if isinstance(document, list) else document
        if head.get("format", FORMAT) != FORMAT:
            raise ConfigError(f"{path}: format is {head['format']!r}; this program reads {FORMAT}")
        runs = [ScaleRun.from_json(run) for run in (head["runs"] if head else document)]
        ordered = tuple(sorted(runs, key=lambda run: run.rows))
        return Scale(runs=ordered, machine=str(head.get("machine", "")), time=str(head.get("time", "")))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}".replace(f"{path}: {path}", f"{path}")) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} holds no runs of scale: {type(error).__name__}: {error}") from None


def write_scale(path: Path, scale: Scale) -> None:
    """Write the runs, so that `read_scale` gives them again."""
    head = {"format": FORMAT, "time": scale.time, "machine": scale.machine}
    document = {**head, "runs": [run.to_json() for run in scale.runs]}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def at_scale(constants: Constants, scale: Scale, rows: float, fitted_rows: float) -> Constants:
    """The constants of a shard with so many rows.

    The runs are of one kind of row, and what they show is carried over to every kind: of bytes on disk what
    they differ by between the two sizes (rows share more of their keys where there are more of them), in
    bytes per row; of the load its seconds per row, as a factor; the rest as it is.

    Parameters
    ----------
    constants
        Fitted to the runs of plan.json.
    scale
        Runs of many rows.
    rows
        Rows of a shard, above 0.
    fitted_rows
        Rows of the runs that the constants were fitted to.
    """
    changes: dict[str, float] = {}
    if scale.runs and rows > 0:
        bytes_, before = (scale.at("disk_bytes_per_row", size) for size in (rows, fitted_rows))
        if bytes_ is not None and before is not None:
            changes["plain_row"] = constants.plain_row + bytes_ - before
        if (load_s := scale.at("load_s", rows)) is not None:
            planned_s = constants.load_row_s + constants.load_byte_s * scale.runs[0].value_bytes
            factor = load_s / rows / planned_s
            changes["load_row_s"] = constants.load_row_s * factor
            changes["load_byte_s"] = constants.load_byte_s * factor
        for name, of in (("start_s", "reopen_clean_s"), ("replay_row_s", "replay_row_s"),
                         ("process_bytes", "memory_bytes")):  # fmt: skip
            if (value := scale.at(of, rows)) is not None:
                changes[name] = value
    return replace(constants, **changes)


def this_machine() -> str:
    """This machine in words: times are those of one."""
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}, {platform.system()}"
