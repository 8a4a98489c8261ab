# SPDX-License-Identifier: Apache-2.0
"""cross.*: ids per second of crosses on one core, strings hashed, and the time of one serving request.

Sides take turns within one process, as in benchmarks/contest.py, which counts ids of pulls and not rows of
tables. A rate is per second of CPU, all threads of a side together: it is the rate of a core, and other
processes on the machine do not count. Every input is made anew from a fixed seed.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import xxhash

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.contest import CpuMeter
from benchmarks.cross_peer import PEERS, available, peer_name
from feature_cross import Engine, load
from feature_cross.kernel.xxh64 import hash_strings

ROWS: Final = 1_000_000
PEER_ROWS: Final = 100_000
"""Peers that work row by row in Python get fewer rows; rates are compared, not times."""

Run = Callable[[], Any]


def _turns(settings: Settings, ours: Run, theirs: Run | None, counts: tuple[int, int]) -> Any:
    """Rates of both sides in M per CPU second, run by run, and the cores that others took meanwhile."""
    sides = [side for side in (ours, theirs) if side is not None]
    for side in sides:
        side()
    rates: list[list[float]] = [[] for _ in sides]
    foreign = []
    for _ in range(settings.runs):
        for number, side in enumerate(sides):
            meter, spent_s, done = CpuMeter(), 0.0, 0
            while spent_s < settings.seconds or done < 2:
                before_s = time.process_time()
                side()
                spent_s += time.process_time() - before_s
                done += 1
            rates[number].append(done * counts[number] / spent_s / 1e6)
            if number == 0:
                foreign.append(meter.foreign_cores())
    detail = {"rows": counts[0], "foreign_cores": round(float(np.median(foreign)), 2)}
    return rates[0], rates[1] if len(rates) > 1 else [], detail


def _engine(names: list[str], kind: str) -> Engine:
    attributes = {name: {"type": kind} for name in names}
    feature = {"kind": "categorical", "of": [f"row.{name}" for name in names]}
    return Engine(load({"entities": {"row": {"attributes": attributes}}, "features": {"cross": feature}}))


def _stream(engine: Engine, table: pa.Table) -> Run:
    def run() -> None:
        for _ in engine.transform_stream(table):
            pass

    return run


def _cross(settings: Settings, name: str, what: str, goal: Goal, table: pa.Table) -> list[Bar]:
    ours = _stream(_engine(table.schema.names, "string"), table)
    peers = available()
    if not peers:
        mine, _, detail = _turns(settings, ours, None, (ROWS, 0))
        skipped = f"none of {', '.join(PEERS)} is installed"
        return [make_bar(name, what, "M ids/s", goal, mine, detail=detail, skipped=skipped)]
    bars = []
    for peer in peers:
        rows = ROWS if peer == "polars" else PEER_ROWS
        run = PEERS[peer][1](table.slice(0, rows))
        mine, theirs, detail = _turns(settings, ours, run, (ROWS, rows))
        bars.append(make_bar(f"{name}.{peer}", what, "M ids/s", goal, mine, peer_name(peer), theirs, detail))
    return bars


def measure_encoded(settings: Settings, name: str, goal: Goal, ways: int) -> list[Bar]:
    """A cross of dictionary-encoded columns of 1,000 and 50 (and 50) distinct values."""
    random = np.random.default_rng(1)
    columns = {}
    for number, distinct in enumerate((1000, 50, 50)[:ways]):
        values = pa.array([f"value_{number}_{i}" for i in range(distinct)])
        indices = pa.array(random.integers(0, distinct, ROWS, np.int32))
        columns[f"c{number}"] = pa.DictionaryArray.from_arrays(indices, values)
    what = f"{ways}-way cross of dictionary-encoded columns"
    return _cross(settings, name, what, goal, pa.table(columns))


def measure_strings(settings: Settings, name: str, goal: Goal) -> list[Bar]:
    """A cross of two raw string columns of 1 M distinct values each."""
    random = np.random.default_rng(2)
    columns = {
        side: pa.array([f"{side}_{i:07d}" for i in random.permutation(ROWS)]) for side in ("user", "item")
    }
    return _cross(settings, name, "2-way cross of raw strings, 1 M distinct", goal, pa.table(columns))


def measure_hash(settings: Settings, name: str, goal: Goal, length: int) -> list[Bar]:
    """xxh64 of distinct strings of one length, beside the xxhash package called for each."""
    random = np.random.default_rng(3)
    data = random.integers(0, 256, ROWS * length, np.uint8)
    offsets = np.arange(ROWS + 1, dtype=np.int32) * length
    out = np.empty(ROWS, np.uint64)
    strings = [data[a:b].tobytes() for a, b in pairwise(offsets[: PEER_ROWS + 1].tolist())]
    digest = xxhash.xxh64_intdigest
    mine, theirs, detail = _turns(
        settings,
        lambda: hash_strings(data, offsets, 3, out),
        lambda: [digest(string) for string in strings],
        (ROWS, PEER_ROWS),
    )
    detail["gigabytes_per_s"] = round(float(np.median(mine)) * length / 1e3, 2)
    peer = f"xxhash {xxhash.VERSION} called per string"
    return [
        make_bar(name, f"strings of {length} bytes hashed", "M strings/s", goal, mine, peer, theirs, detail)
    ]


def measure_row(settings: Settings, name: str, goal: Goal) -> list[Bar]:
    """One row as a dict, ten features of all families: p99 of a request in ms, run by run."""
    attributes: dict[str, dict[str, dict[str, Any]]] = {
        "user": {"id": {"type": "int"}, "age": {"type": "string"}, "city": {"type": "string"}},
        "item": {"id": {"type": "int"}, "category": {"type": "string"}},
    }
    seen = {"type": "string", "list": True, "max_length": 20}
    features = {
        "user": {"kind": "attribute", "of": "user.id"},
        "item": {"kind": "attribute", "of": "item.id"},
        "city_x_age": {"kind": "categorical", "of": ["user.city", "user.age"]},
        "user_x_category": {"kind": "interaction", "of": ["user.id", "item.category"]},
        "age_x_item": {"kind": "interaction", "of": ["user.age", "item.id"]},
        "city_x_age_x_category": {"kind": "interaction", "of": ["city_x_age", "item.category"]},
        "seen": {"kind": "combination", "of": "history.seen"},
        "seen_x_category": {"kind": "weak", "of": ["history.seen", "item.category"]},
    }
    entities: dict[str, Any] = {entity: {"attributes": named} for entity, named in attributes.items()}
    for entity, named in attributes.items():
        for attribute, declared in named.items():
            declared["column"] = f"{entity}_{attribute}"
    entities["history"] = {"attributes": {"seen": seen}}
    engine = Engine(load({"entities": entities, "features": features}))
    row = {
        "user_id": 7, "user_age": "25-34", "user_city": "Oslo", "item_id": 9, "item_category": "shoes",
        "seen": [f"category {i}" for i in range(20)],
    }  # fmt: skip
    for _ in range(200):
        engine.transform(row)
    p99_ms: list[float] = []
    cpu_ms: list[float] = []
    for _ in range(settings.runs):
        taken_s: list[tuple[float, float]] = []
        begin_s = time.perf_counter()
        while time.perf_counter() - begin_s < settings.seconds or len(taken_s) < 1000:
            before_s, before_cpu_s = time.perf_counter(), time.process_time()
            engine.transform(row)
            taken_s.append((time.perf_counter() - before_s, time.process_time() - before_cpu_s))
        p99_ms.append(float(np.percentile([wall * 1e3 for wall, _ in taken_s], 99)))
        cpu_ms.append(float(np.percentile([cpu * 1e3 for _, cpu in taken_s], 99)))
    detail = {"cpu_p99_ms": round(float(np.median(cpu_ms)), 3), "features": len(engine.plan.outputs)}
    return [make_bar(name, "one row, p99", "ms/pull", goal, p99_ms, detail=detail)]
