# SPDX-License-Identifier: Apache-2.0
"""cross.*: ids per second of crosses on one core, and strings hashed; benchmarks/cross_demo.py has the rest.

Sides take turns within one process, as in benchmarks/contest.py, which counts ids of pulls and not rows of
tables. A rate is per second of CPU, all threads of a side together: it is the rate of a core, and other
processes on the machine do not count. Every input is made anew from a fixed seed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import xxhash

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.contest import CpuMeter
from benchmarks.cross_peer import FEW, PEERS, RemoteRun, Run, find_peers, peer_name
from feature_cross import Engine, load
from feature_cross.id_format import TAG_STRING
from feature_cross.kernel.wide import AVAILABLE
from feature_cross.kernel.xxh64 import hash_strings

ROWS: Final = 1_000_000
CHUNKS: Final = 10
"""Of ROWS rows each, over one dictionary: rows of `measure_large`, as many as the demo config's."""


def take_turns(
    settings: Settings, ours: Run, theirs: Run | RemoteRun | None, counts: tuple[int, int], passes: int = 2
) -> tuple[list[float], list[float], dict[str, Any]]:
    """Rates of both sides in M per CPU second, run by run, and the cores that others took meanwhile.

    `counts` is what a pass of each side does; a turn lasts settings.seconds of CPU, and `passes` at least.
    """
    sides: list[Run | RemoteRun] = [ours] if theirs is None else [ours, theirs]
    rates, foreign = all_turns(settings, sides, counts, passes)
    return rates[0], rates[1] if len(rates) > 1 else [], {"rows": counts[0], "foreign_cores": foreign}


def all_turns(
    settings: Settings, sides: Sequence[Run | RemoteRun], counts: Sequence[int], passes: int
) -> tuple[list[list[float]], float]:
    """The same of any number of sides; the cores that others took are those beside the first."""
    for side in sides:
        _turn(side, 0.0, 1)
    rates: list[list[float]] = [[] for _ in sides]
    foreign = []
    for _ in range(settings.runs):
        for number, side in enumerate(sides):
            meter = CpuMeter()
            done, spent_s = _turn(side, settings.seconds, passes)
            rates[number].append(done * counts[number] / spent_s / 1e6)
            if number == 0:
                foreign.append(meter.foreign_cores())
    return rates, round(float(np.median(foreign)), 2)


def _turn(side: Run | RemoteRun, seconds: float, passes: int) -> tuple[int, float]:
    """Passes done and the CPU seconds that they took."""
    if isinstance(side, RemoteRun):
        return side.turn(seconds, passes)
    spent_s, done = 0.0, 0
    while spent_s < seconds or done < passes:
        before_s = time.process_time()
        side()
        spent_s += time.process_time() - before_s
        done += 1
    return done, spent_s


def _engine(names: list[str], kind: str) -> Engine:
    attributes = {name: {"type": kind} for name in names}
    feature = {"kind": "categorical", "of": [f"row.{name}" for name in names]}
    return Engine(load({"entities": {"row": {"attributes": attributes}}, "features": {"cross": feature}}))


def _stream(engine: Engine, table: pa.Table) -> Run:
    def run() -> None:
        for _ in engine.transform_stream(table):
            pass

    return run


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows to be crossed, and the bars that they are for."""

    name: str
    what: str
    peer_goal: Goal | None
    table: pa.Table


def _cross(settings: Settings, goal: Goal, *asked: _Rows) -> list[Bar]:
    """Bars of each `asked`, ours alone and beside each peer: all sides take turns in one contest, and a peer
    whose rows are the same for two of `asked` is one side.
    """
    peers, why = find_peers(settings.peers)
    sides: list[Run | RemoteRun] = [
        _stream(_engine(rows.table.schema.names, "string"), rows.table) for rows in asked
    ]
    counts = [len(rows.table) for rows in asked]
    places: dict[tuple[str, int], int] = {}
    remote = []
    try:
        for peer in peers:
            for rows in asked:
                part = rows.table.slice(0, PEERS[peer].rows)
                if (peer, len(part)) not in places:
                    places[peer, len(part)] = len(sides)
                    side = PEERS[peer].make(part)
                    remote += [side] if isinstance(side, RemoteRun) else []
                    sides.append(side)
                    counts.append(len(part))
        rates, foreign = all_turns(settings, sides, counts, passes=1)
    finally:
        for side in remote:
            side.close()
    bars = []
    for rows, mine in zip(asked, rates, strict=False):
        detail = {"rows": len(rows.table), "foreign_cores": foreign}
        bars.append(make_bar(rows.name, rows.what, "M ids/s", goal, mine, detail=detail, skipped=why))
        for peer in peers:
            count = min(len(rows.table), PEERS[peer].rows)
            theirs, about = rates[places[peer, count]], {**detail, "peer_rows": count}
            beside = rows.peer_goal if PEERS[peer].asked else None
            name = f"{rows.name}.{peer}"
            bars.append(make_bar(name, rows.what, "M ids/s", beside, mine, peer_name(peer), theirs, about))
    return bars


def _encoded(counts: tuple[int, ...], chunks: int = 1) -> pa.Table:
    """Columns with so many distinct values each; all chunks of a column share one dictionary."""
    random = np.random.default_rng(1)
    columns = {}
    for number, distinct in enumerate(counts):
        values = pa.array([f"value_{number}_{i}" for i in range(distinct)])
        columns[f"c{number}"] = pa.chunked_array([
            pa.DictionaryArray.from_arrays(pa.array(random.integers(0, distinct, ROWS, np.int32)), values)
            for _ in range(chunks)
        ])  # fmt: skip
    return pa.table(columns)


def _what(counts: tuple[int, ...]) -> str:
    return f"{len(counts)}-way cross of dictionary-encoded columns, {' × '.join(f'{n:,}' for n in counts)}"


def measure_encoded(
    settings: Settings, name: str, goal: Goal, peer_goal: Goal, counts: tuple[int, ...]
) -> list[Bar]:
    """A cross of dictionary-encoded columns with so many distinct values each."""
    return _cross(settings, goal, _Rows(name, _what(counts), peer_goal, _encoded(counts)))


def measure_large(
    settings: Settings, name: str, goal: Goal, peer_goal: Goal, counts: tuple[int, ...]
) -> list[Bar]:
    """The same with a large dictionary: over ten rows per distinct value, and over one.

    A dictionary is hashed once, however many rows use it. With as many values as rows, which hardly a column
    of a dictionary has, a string is hashed for every row: bars of their own, without the goal beside peers.
    """
    table, what = _encoded(counts, CHUNKS), _what(counts)
    return _cross(
        settings, goal,
        _Rows(name, f"{what}, {CHUNKS} rows per value", peer_goal, table),
        _Rows(f"{name}.one_row_per_value", f"{what}, one row per value", None, table.slice(0, ROWS)),
    )  # fmt: skip


def measure_strings(settings: Settings, name: str, goal: Goal) -> list[Bar]:
    """A cross of two raw string columns of 1 M distinct values each."""
    random = np.random.default_rng(2)
    columns = {
        side: pa.array([f"{side}_{i:07d}" for i in random.permutation(ROWS)]) for side in ("user", "item")
    }
    what = "2-way cross of raw strings, 1 M distinct"
    return _cross(settings, goal, _Rows(name, what, None, pa.table(columns)))


def measure_hash(
    settings: Settings, name: str, goal: Goal, length: int, bytes_goal: Goal | None = None
) -> list[Bar]:
    """xxh64 of distinct strings of one length, beside the xxhash package called for each."""
    random = np.random.default_rng(3)
    data = random.integers(0, 256, ROWS * length, np.uint8)
    offsets = np.arange(ROWS + 1, dtype=np.int32) * length
    out = np.empty(ROWS, np.uint64)
    strings = [data[a:b].tobytes() for a, b in pairwise(offsets[: FEW + 1].tolist())]
    tagged = [bytes([TAG_STRING]) + string for string in strings[:1000]]
    digest = xxhash.xxh64_intdigest
    hash_strings(data, offsets, TAG_STRING, out)
    if out[:1000].tolist() != [digest(string) for string in tagged]:
        raise AssertionError("the kernel differs from the xxhash package")
    mine, theirs, detail = take_turns(
        settings,
        lambda: hash_strings(data, offsets, TAG_STRING, out),
        lambda: [digest(string) for string in strings],
        (ROWS, FEW),
    )
    detail["vectors"] = AVAILABLE
    peer = f"xxhash {xxhash.VERSION} called per string"
    what = f"strings of {length} bytes hashed"
    bars = [make_bar(name, what, "M strings/s", goal, mine, peer, theirs, detail)]
    if bytes_goal is not None:
        rates = [rate * length / 1e3 for rate in mine]
        bars.append(make_bar(f"{name}.bytes", what, "GB/s", bytes_goal, rates, detail=detail))
    return bars
