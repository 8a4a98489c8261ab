# SPDX-License-Identifier: Apache-2.0
"""scale: the life of a shard with very many rows, few of them in memory: `run scale --rows 1e9 --dir DIR`.

The stages below run one after another on one data directory: load, open, pull, train, kill, evict, compact,
export, verify. Each writes what it found to DIR/scale.json, so a run that was broken off goes on with the
stage that it was in. The hot set is HOT_SHARE of the rows at each size, so sizes can be compared.

The server is a real `ps-server serve`, asked over TCP; the peer reads the same files in this process.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import scale_stage
from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.batch import BATCH_IDS
from benchmarks.embedded import embedded
from benchmarks.scale_table import RECORD_BYTES, config
from benchmarks.server import Server, shard_arguments
from benchmarks.table_load import shard_folder
from benchmarks.worker import PROGRESS
from ps_client import connect
from ps_client.client import Client
from ps_server.config.cluster import load_config
from ps_server.table.budget import least_budget

SHORT_ROWS: Final = 10_000_000
"""Rows at least where no --dir is given, as in `make bench`: fewer are all in memory soon."""

HOT_SHARE: Final = 1 / 16
HOT_ROWS_MIN: Final = 6 * BATCH_IDS
"""A push may have as many distinct ids as a quarter of the budget holds."""

DISK_FACTOR: Final = 1.3
"""Most of the disk that a load takes, for the bytes of its records; a compaction takes less."""

DISK_REST: Final = 6 << 30
"""Two push logs of 2 GiB, an export, files of a compaction."""

MEMORY_REST: Final = 3 << 30
"""This process, and what the operating system caches at least."""


@dataclass(kw_only=True)
class Run:
    """One run.

    Attributes
    ----------
    folder
        What is kept lies here.
    rows, hot_rows
        Rows of the table, and how many of them are to be hot.
    seconds
        Of each measured kind of work.
    found
        What each stage has found so far.
    """

    folder: Path
    rows: int
    hot_rows: int
    seconds: float
    found: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """Of the cluster."""
        first = config(1 << 30)
        row_bytes = load_config(first, {"data_dir": str(self.data)}).tables[0].layout.cost_bytes
        return config(least_budget(int(self.hot_rows * row_bytes)))

    @property
    def data(self) -> Path:
        """The cluster's data_dir."""
        return self.folder / "data"

    @property
    def shard(self) -> Path:
        """Directory of the shard."""
        return shard_folder(self.data, self.config)

    @contextmanager
    def embedded(self) -> Iterator[Client]:
        """The shard in this process."""
        with embedded(self.data, self.config) as client:
            yield client

    @contextmanager
    def served(self) -> Iterator[tuple[Server, Client]]:
        """A server that is stopped in order at the end, unless it is dead already, and a client."""
        server = self.start()
        try:
            with connect(server.endpoint(), timeout_s=600.0) as client:
                yield server, client
        finally:
            server.stop()

    def start(self) -> Server:
        """Start the server."""
        arguments = shard_arguments(self.folder / "server", {**self.config, "data_dir": str(self.data)})
        return Server(arguments, self.folder / "server.txt")

    def say(self, text: str) -> None:
        """Tell the terminal how far the run is."""
        print(f"{PROGRESS}{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


STAGES: Final[dict[str, Callable[[Run], dict[str, Any]]]] = {
    "load": scale_stage.load, "open": scale_stage.reopen, "pull": scale_stage.pull,
    "train": scale_stage.train, "kill": scale_stage.kill, "evict": scale_stage.evict,
    "compact": scale_stage.compact, "export": scale_stage.export, "verify": scale_stage.verify,
}  # fmt: skip


def measure(settings: Settings, name: str, goal: Goal | None) -> list[Bar]:
    """Run every stage that is not done, and make the bars of what all of them found."""
    rows = settings.rows if settings.folder else max(SHORT_ROWS, settings.rows)
    folder = settings.folder or settings.scratch
    state = folder / "scale.json"
    found = json.loads(state.read_text()) if state.exists() else {"rows": rows}
    if found["rows"] != rows:
        raise ValueError(f"{folder} holds a run of {found['rows']} rows, not {rows}: name another --dir")
    hot_rows = max(int(rows * HOT_SHARE), HOT_ROWS_MIN)
    run = Run(folder=folder, rows=rows, hot_rows=hot_rows, seconds=settings.seconds * 10, found=found)
    require_room(run)
    for stage, work in STAGES.items():
        if stage in found:
            run.say(f"{stage}: done before")
            continue
        run.say(f"{stage}: begins")
        began_s = time.perf_counter()
        foreign = _Foreign()
        facts = work(run)
        took_s = time.perf_counter() - began_s
        found[stage] = {**facts, "stage_s": round(took_s, 1), "foreign_cores": foreign.cores()}
        temporary = state.with_suffix(".new")
        temporary.write_text(json.dumps(found, indent=1) + "\n")
        temporary.replace(state)
        run.say(f"{stage}: {took_s:.0f} s: {json.dumps(facts)}")
    return _bars(name, found)


def require_room(run: Run) -> None:
    """ValueError that says what the run needs, where the disk or the memory has less."""
    budget = int(run.config["memory_budget"])
    memory = psutil.virtual_memory().available
    if memory < budget + MEMORY_REST:
        raise ValueError(
            f"{run.rows:,} rows need {(budget + MEMORY_REST) / 1e9:.1f} GB of memory that is available; "
            f"there are {memory / 1e9:.1f}"
        )
    needed = DISK_REST + (0 if "load" in run.found else int(run.rows * RECORD_BYTES * DISK_FACTOR))
    free = shutil.disk_usage(run.folder).free
    left = run.shard.exists() and "load" not in run.found
    if left:  # a load that was broken off begins anew: its scratch files go first
        shutil.rmtree(run.data)
        free = shutil.disk_usage(run.folder).free
    if free < needed:
        raise ValueError(
            f"{run.rows:,} rows need {needed / 1e9:.1f} GB of free disk in {run.folder.name}; "
            f"there are {free / 1e9:.1f}"
        )


class _Foreign:
    """Cores that processes other than this one and its children have used since it was made."""

    def __init__(self) -> None:
        self._began = self._busy()

    def _busy(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        own = psutil.Process().cpu_times()
        alive = sum(sum(c.cpu_times()[:2]) for c in psutil.Process().children(recursive=True))
        mine = own.user + own.system + own.children_user + own.children_system + alive
        return time.perf_counter(), times.user + times.nice + times.system, mine

    def cores(self) -> float:
        """So many, on average."""
        now = self._busy()
        passed, busy, mine = (b - a for a, b in zip(self._began, now, strict=True))
        return round(max(0.0, busy - mine) / passed, 2)


def record(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `psctl plan` reads of a run."""
    load, opened, pull, train, kill = (found[name] for name in ("load", "open", "pull", "train", "kill"))
    return {
        "rows": found["rows"], "load_s": load["load_s"],
        "disk_bytes_per_row": load["disk_bytes_per_row"],
        "disk_bytes_per_row_compacted": found.get("compact", {}).get("disk_bytes_per_row"),
        "memory_bytes": opened["memory_bytes"], "index_filter_bytes": opened["index_filter_bytes"],
        "reopen_clean_s": opened["reopen_s"],
        "reopen_crash_s": kill["first_answer_s"], "replayed_rows": kill.get("pushed_rows"),
        "pull_uniform_rows_per_s": pull["cached_rows_per_s"],
        "pull_zipf_rows_per_s": train["zipf_pull_rows_per_s"],
        "pull_disk_rows_per_s": pull["disk_rows_per_s"],
        "step_uniform_ms": train["uniform_step_ms"], "step_zipf_ms": train["zipf_step_ms"],
        "checkpoint_s": train["checkpoint_s"],
    }  # fmt: skip


def _bars(name: str, found: dict[str, Any]) -> list[Bar]:
    rows = found["rows"]
    pull, train, load, kill = found["pull"], found["train"], found["load"], found["kill"]
    at = f"{rows / 1e6:g} M rows"
    peer = "rocksdict multi_get on the same files, keys ascending"
    ratio, figure = Goal("ratio", "at least", 1.5), Goal("figure", "at least", 0.2)
    millions = [rate / 1e6 for rate in pull["cached_runs"]]
    theirs = [rate / 1e6 for rate in pull["cached_peer_runs"]]
    cold = [rate / 1e6 for rate in pull["disk_runs"]]
    cold_theirs = [rate / 1e6 for rate in pull["disk_peer_runs"]]
    what = f"uniform pull of cold rows, files in the page cache, {at}"
    direct = f"{peer}, direct reads"
    facts: dict[str, Any] = {"record": record(found), "found": found}
    bars = [
        make_bar(
            f"{name}.load", f"bulk load, {at}", "M rows/s", None, [rows / load["load_s"] / 1e6], detail=facts
        ),
        make_bar(f"{name}.pull", what, "M rows/s", ratio, millions, peer, theirs),
        make_bar(f"{name}.pull.rate", what, "M rows/s", figure, millions),
        make_bar(
            f"{name}.pull.disk",
            f"the same from the disk, {at}",
            "M rows/s",
            Goal("ratio", "at least", 1.0),
            cold,
            direct,
            cold_theirs,
        ),
        make_bar(
            f"{name}.prefetch",
            f"steps/s at 95 % hits with prefetch, {at}",
            "steps/s",
            Goal("ratio", "at least", 3.0),
            [train["prefetch_steps_per_s"]],
            "the same without",
            [train["plain_steps_per_s"]],
        ),
        make_bar(
            f"{name}.step",
            f"longest step of a training, {at}",
            "s",
            Goal("figure", "at most", 1.0),
            [train["longest_step_s"]],
        ),
        make_bar(
            f"{name}.reopen",
            f"kill -9 under load to the first answer, {at}",
            "s",
            None,
            [kill["first_answer_s"]],
        ),
        make_bar(
            f"{name}.exact", f"kill -9 to an exact count of rows, {at}", "s", None, [kill["rows_exact_s"]]
        ),
        make_bar(
            f"{name}.disk", f"disk per row after the load, {at}", "B/row", None, [load["disk_bytes_per_row"]]
        ),
    ]
    return bars
