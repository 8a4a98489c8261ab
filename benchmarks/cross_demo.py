# SPDX-License-Identifier: Apache-2.0
"""cross.demo_config and cross.row: the click demo's whole config, in bulk and as one serving request.

Polars gets the same features as expressions, in two forms: values joined as text and hashed, as most people
write it, and the fastest that we found. Each makes the same number of ids, which is checked; neither keeps
types or slots. Rates are per second of CPU, all threads of a
side together.
"""

import itertools
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.cross_peer import RemoteRun, Run, find_peers, peer_name
from benchmarks.cross_throughput import all_turns
from examples.click.generate import generate
from feature_cross import Engine, load

CONFIG: Final = Path(__file__).resolve().parents[1] / "examples" / "click" / "crosses.yaml"
ROWS: Final = 10_000_000
DISTINCT_ROWS: Final = 1_000_000
"""Rows that are generated; ours reads them ten times, polars once. Rates are compared, not times."""
CHECKED_ROWS: Final = 5_000
REQUEST_ROWS: Final = 2_000

SINGLE: Final = (
    "user_id", "age_band", "city", "top_category", "item_id", "category", "brand", "promotion",
)  # fmt: skip
CROSSES: Final = (
    ("city", "age_band"), ("age_band", "category"), ("city", "brand"), ("top_category", "promotion"),
)  # fmt: skip


def _polars_joined(frame: Any) -> Any:
    """Values joined as text and hashed, as most people write it; a column per feature, lists for many ids."""
    polars: Any = import_module("polars")
    col, element = polars.col, polars.element
    longest = _longest(frame, "basket")
    # list.sort() takes 33 times as long as this for the same lists
    picks = frame.with_columns(sorted=col("basket").list.eval(element().unique().sort()))
    places = list(itertools.combinations(range(longest), 2))
    part = [col("sorted").list.get(i, null_on_oob=True) for i in range(longest)]
    pairs = [polars.concat_str(part[i], part[j], separator="_").hash() for i, j in places]
    kept = [
        polars.when(col("sorted").list.len() > j).then(pair)
        for (_, j), pair in zip(places, pairs, strict=True)
    ]
    return picks.select(
        *(col(name).hash().alias(name) for name in SINGLE),
        *(polars.concat_str(pair, separator="_").hash().alias("_x_".join(pair)) for pair in CROSSES),
        col("basket").list.eval(element().hash()).alias("basket"),
        col("trail").list.eval(element().hash()).alias("trail"),
        polars.concat_list(kept).list.drop_nulls().alias("basket_pairs"),
        col("trail").list.join("_").hash().alias("trail_in_order"),
    )


def _polars_struct(frame: Any) -> Any:
    """The fastest form that we found: structs are hashed, no text is joined, and a pair's two element hashes
    are ordered by min and max, without a sort. It leans on a basket's elements being distinct.
    """
    polars: Any = import_module("polars")
    col, element = polars.col, polars.element
    hashed = frame.with_columns(
        b=col("basket").list.eval(element().hash()), t=col("trail").list.eval(element().hash())
    )
    part = [col("b").list.get(i, null_on_oob=True) for i in range(_longest(frame, "basket"))]
    pairs = []
    for i, j in itertools.combinations(range(len(part)), 2):
        low, high = polars.min_horizontal(part[i], part[j]), polars.max_horizontal(part[i], part[j])
        pair = polars.struct(low.alias("low"), high.alias("high")).hash()
        pairs.append(polars.when(col("b").list.len() > j).then(pair))
    steps = [col("t").list.get(i, null_on_oob=True).alias(str(i)) for i in range(_longest(frame, "trail"))]
    return hashed.select(
        *(col(name).hash().alias(name) for name in SINGLE),
        *(polars.struct(pair).hash().alias("_x_".join(pair)) for pair in CROSSES),
        col("b").alias("basket"),
        col("t").alias("trail"),
        polars.concat_list(pairs).list.drop_nulls().alias("basket_pairs"),
        polars.struct(steps).hash().alias("trail_in_order"),
    )


FORMS: Final = {"joined": _polars_joined, "struct": _polars_struct}


def _longest(frame: Any, name: str) -> int:
    polars: Any = import_module("polars")
    return int(frame.select(polars.col(name).list.len().max()).item() or 0)


def _ids(frame: Any) -> int:
    polars: Any = import_module("polars")
    total = 0
    for name, kind in frame.schema.items():
        total += int(frame[name].list.len().sum()) if kind == polars.List else len(frame[name])
    return total


def _polars_run(table: pa.Table, engine: Engine, form: str) -> Run:
    polars: Any = import_module("polars")
    few = table.slice(0, CHECKED_ROWS)
    ours = engine.transform(few)
    made = sum(len(ours[name][0]) for name in ours.features)
    theirs = _ids(FORMS[form](polars.from_arrow(few)))
    if made != theirs:
        raise AssertionError(
            f"polars ({form}) makes {theirs} ids of {CHECKED_ROWS} rows, and the config {made}"
        )
    frame = polars.from_arrow(table)
    return lambda: FORMS[form](frame)


def measure_config(settings: Settings, name: str, goal: Goal, rows: int = ROWS) -> list[Bar]:
    """Rows per second through every feature of examples/click/crosses.yaml, on one core."""
    engine = Engine(load(CONFIG))
    distinct = min(rows, DISTINCT_ROWS)
    table = generate(distinct, 0)

    def ours() -> None:
        for _ in range(max(1, rows // distinct)):
            for _ in engine.transform_stream(table):
                pass

    peers, why = find_peers(settings.peers)
    what = "the click demo's whole config"
    done = max(1, rows // distinct) * distinct
    few = engine.transform(table.slice(0, CHECKED_ROWS))
    per_row = sum(len(few[name][0]) for name in few.features) / len(few)
    forms = FORMS if "polars" in peers else {}
    sides: list[Run | RemoteRun] = [ours, *(_polars_run(table, engine, form) for form in forms)]
    rates, foreign = all_turns(settings, sides, [done, *(distinct for _ in forms)], passes=1)
    mine, *others = rates
    detail = {
        "rows": done, "foreign_cores": foreign, "features": len(few.features),
        "ids_per_row": round(per_row, 2),
    }  # fmt: skip
    if not forms:
        return [make_bar(name, what, "M rows/s", goal, mine, detail=detail, skipped=why)]
    bars = []
    for form, theirs in zip(forms, others, strict=True):
        peer = peer_name("polars").partition(",")[0] + f", the same features, {form}"
        bars.append(make_bar(f"{name}.{form}", what, "M rows/s", goal, mine, peer, theirs, detail))
    return bars


def measure_row(settings: Settings, name: str, goal: Goal) -> list[Bar]:
    """One row as a dict through the whole config: p99 of a request in ms, run by run."""
    engine = Engine(load(CONFIG))
    rows = generate(REQUEST_ROWS, 1).select(engine.columns).to_pylist()
    for row in rows[:200]:
        engine.transform(row)
    p50_ms, p99_ms, cpu_ms = [], [], []
    requests = itertools.cycle(rows)
    for _ in range(settings.runs):
        taken_s: list[tuple[float, float]] = []
        begin_s = time.perf_counter()
        while time.perf_counter() - begin_s < settings.seconds or len(taken_s) < REQUEST_ROWS:
            row = next(requests)
            before_s, before_cpu_s = time.perf_counter(), time.process_time()
            engine.transform(row)
            taken_s.append((time.perf_counter() - before_s, time.process_time() - before_cpu_s))
        wall, cpu = (np.array(column) * 1e3 for column in zip(*taken_s, strict=True))
        p50_ms.append(float(np.percentile(wall, 50)))
        p99_ms.append(float(np.percentile(wall, 99)))
        cpu_ms.append(float(np.percentile(cpu, 99)))
    detail = {
        "p50_ms": round(float(np.median(p50_ms)), 3), "cpu_p99_ms": round(float(np.median(cpu_ms)), 3),
        "features": len(engine.plan.outputs),
    }  # fmt: skip
    return [make_bar(name, "one row, whole config, p99", "ms", goal, p99_ms, detail=detail)]
