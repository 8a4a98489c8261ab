# SPDX-License-Identifier: Apache-2.0
"""From measured runs to the constants of a plan.

plan.json beside this file holds the runs that the shipped constants come from (docs/plan.md has its keys);
`psctl plan --check --save FILE` writes another one. The fit is a line through the rows in plain blocks
(bytes on disk against bytes of the value), least squares of what packing saved, a line through the loads, and
means of the rest.

Thread safety: pure, but for reading the file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rowhouse.error import ConfigError

from ps_server.disk.row import RowLayout
from ps_server.plan.row_bytes import Constants, table_of

FORMAT: Final = 1
SHIPPED: Final = Path(__file__).with_name("plan.json")
PLAIN_BYTES_MIN: Final = 16
"""A row in a plain block has its key and RocksDB's sequence number beside its value, 8 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What decides a row's bytes: dtype, dim and the kind of optimizer."""

    dtype: str
    dim: int
    optimizer: str

    @property
    def layout(self) -> RowLayout:
        """Its row."""
        return table_of("t", dim=self.dim, dtype_name=self.dtype, optimizer=self.optimizer).layout

    def __str__(self) -> str:
        return f"{self.dtype}, dim {self.dim}, {self.optimizer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one kind of row was measured to take, over so many rows.

    Attributes
    ----------
    kind, rows
        Of what, and how many.
    memory_bytes
        Growth of the resident set per hot row.
    process_bytes
        Resident memory of the process before there were rows.
    disk_bytes
        Bytes of compacted row files per row.
    replay_row_s
        Seconds of recovery per row of the log, each read from the store.
    start_s
        Seconds of an open without a log.
    load_row_s
        Seconds of a bulk load per row; 0 where it was not measured.
    """

    kind: Kind
    rows: int
    memory_bytes: float
    process_bytes: float
    disk_bytes: float
    replay_row_s: float
    start_s: float
    load_row_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        numbers = {name: getattr(self, name) for name in self.__slots__ if name not in ("kind",)}
        kind = self.kind
        return {"dtype": kind.dtype, "dim": kind.dim, "optimizer": kind.optimizer, **numbers}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Run":
        """The run that `to_json` gave; KeyError or TypeError for another thing."""
        names = ("dtype", "dim", "optimizer")
        kind = Kind(**{name: value[name] for name in names})
        return Run(kind=kind, **{key: number for key, number in value.items() if key not in names})


def read_runs(path: Path) -> tuple[Run, ...]:
    """Runs of a file; ConfigError when it is not one."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ConfigError(f"{path}: format is {document['format']!r}; this program reads {FORMAT}")
        return tuple(Run.from_json(run) for run in document["runs"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} holds no measured runs: {type(error).__name__}: {error}") from None


def measured_on(path: Path) -> str:
    """The machine of a file that `read_runs` reads."""
    return str(json.loads(path.read_text(encoding="utf-8")).get("machine", ""))


def write_runs(path: Path, runs: Sequence[Run], head: Mapping[str, Any]) -> None:
    """Write runs, with what describes the machine above them."""
    document = {"format": FORMAT, **head, "runs": [run.to_json() for run in runs]}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def fit(runs: Sequence[Run]) -> Constants:
    """The constants that explain the runs best.

    Raises
    ------
    ConfigError
        Too few runs to tell the constants apart.
    """
    plain_row, plain_byte, saved = _disk(runs)
    load_row_s, load_byte_s = _load([run for run in runs if run.load_row_s])
    return Constants(
        index_bytes=float(np.mean([run.memory_bytes - run.kind.layout.stride for run in runs])),
        process_bytes=float(np.median([run.process_bytes for run in runs])),
        plain_row=plain_row, plain_byte=plain_byte,
        saved_row=saved[0], saved_weight_byte=saved[1],
        saved_bf16_byte=saved[2],
        load_row_s=load_row_s, load_byte_s=load_byte_s,
        replay_row_s=float(np.median([run.replay_row_s for run in runs])),
        start_s=float(np.median([run.start_s for run in runs])),
    )  # fmt: skip


def _disk(runs: Sequence[Run]) -> tuple[float, float, list[float]]:
    """Bytes of a row in a plain block (per row, per byte of its value), and what packing saves (per row, per
    byte of weights, and of bf16 weights besides)."""
    packed = [run for run in runs if run.disk_bytes < run.kind.layout.value_bytes + PLAIN_BYTES_MIN]
    plain = [run for run in runs if run not in packed]
    lengths = np.array([run.kind.layout.value_bytes for run in plain], float)
    packed = [run for run in packed if not run.kind.layout.state_size]  # state may repeat, or not
    matrix = np.array([_saving(run.kind) for run in packed], float).reshape(-1, 3)
    if np.unique(lengths).shape[0] < 2 or np.linalg.matrix_rank(matrix) < 3:
        raise ConfigError(
            f"{len(plain)} runs have rows that are not compressed and {len(packed)} have compressed rows; "
            "the constants need two lengths of the former, and of the latter rows without state, of several "
            "sizes and of bf16"
        )
    slope, start = np.polyfit(lengths, np.array([run.disk_bytes for run in plain]), 1)
    saved = [start + slope * run.kind.layout.value_bytes - run.disk_bytes for run in packed]
    found = np.linalg.lstsq(matrix, np.array(saved), rcond=None)[0]
    return float(start), float(slope), [float(value) for value in found]


def _saving(kind: Kind) -> tuple[int, int, int]:
    """What the saving of a row of this kind depends on."""
    weights = kind.dim * (4 if kind.dtype == "fp32" else 2)
    return 1, weights, weights if kind.dtype == "bf16" else 0


def _load(runs: Sequence[Run]) -> tuple[float, float]:
    """Seconds per row and per byte of a bulk load: a line through the runs, neither below zero."""
    if not runs:
        raise ConfigError("no run has load_row_s; a plan cannot tell how long a load takes")
    bytes_ = np.array([run.kind.layout.value_bytes for run in runs], float)
    seconds = np.array([run.load_row_s for run in runs])
    if np.unique(bytes_).shape[0] < 2:
        return 0.0, float((seconds / bytes_).mean())
    slope, start = np.polyfit(bytes_, seconds, 1)
    if slope < 0:
        return float(seconds.mean()), 0.0
    return (0.0, float((seconds / bytes_).mean())) if start < 0 else (float(start), float(slope))
