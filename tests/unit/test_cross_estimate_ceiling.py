# SPDX-License-Identifier: Apache-2.0
"""No projection is past what a config allows, and none is made from too few rows."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from feature_cross.author.cli import main
from feature_cross.author.estimate.ceiling import ceiling, group_ceiling
from feature_cross.author.estimate.growth import ROWS_MIN
from feature_cross.config.loader import load_text
from feature_cross.config.node import Plan
from feature_cross.config.plan import build_plan

ENTITIES = """\
entities:
  user:
    attributes:
      id: {type: int}
      vip: {type: bool, missing: own_id}
      band: {type: int, column: age, buckets: {edges: [18, 30, 50]}}
      age: {type: int}
      country: {type: string, normalise: [lower]}
      colours: {type: bool, list: true, max_length: 3}
      bands: {type: int, list: true, buckets: {edges: [1, 2, 3, 4]}}
      bands3: {type: int, list: true, max_length: 3, column: bands, buckets: {edges: [1, 2, 3, 4]}}
  event:
    attributes:
      hour: {type: date, part: hour, column: time}
      weekday: {type: date, part: weekday, column: time}
      year: {type: date, part: year, column: time}
      seen: {type: date, column: time, age: {date: 2026-01-01, unit: day}, buckets: {edges: [0, 7]}}
features:
"""

CEILINGS: dict[str, float | None] = {
    "{kind: attribute, of: user.id}": None,
    "{kind: attribute, of: event.year}": None,
    "{kind: attribute, of: user.vip}": 3,
    "{kind: attribute, of: user.vip, missing: drop}": 2,
    "{kind: attribute, of: user.vip, when: {user.vip: {any_of: [true]}}}": 1,
    "{kind: attribute, of: user.vip, when: {user.vip: {present: false}}}": 1,
    "{kind: attribute, of: user.vip, when: {user.vip: {present: true}}}": 2,
    "{kind: attribute, of: user.band}": 4,
    "{kind: attribute, of: event.seen}": 3,
    "{kind: attribute, of: user.country, when: {user.country: {any_of: [NOR, SWE]}}}": 2,
    "{kind: attribute, of: user.id, when: {user.country: {any_of: [NOR, SWE]}}}": None,
    "{kind: attribute, of: user.age, when: {user.age: {at_least: 18, below: 65}}}": 47,
    "{kind: attribute, of: user.age, when: {user.age: {at_least: 18}}}": None,
    "{kind: categorical, of: [event.hour, event.weekday]}": 24 * 7,
    "{kind: categorical, of: [user.id, user.band]}": None,
    "{kind: interaction, of: [user.band, event.hour]}": 4 * 24,
    "{kind: interaction, of: [hour_weekday, user.band]}": 24 * 7 * 4,
    "{kind: categorical, of: [hour_weekday, event.hour]}": 24 * 7,
    "{kind: combination, form: single, of: user.bands}": 5,
    "{kind: combination, form: permutation, of: user.bands}": None,
    "{kind: combination, form: permutation, of: user.bands3}": 5 + 25 + 125,
    "{kind: combination, form: sorted, of: user.bands}": 31,
    "{kind: combination, form: sorted, of: user.bands3}": 5 + 10 + 10,
    "{kind: combination, form: sorted, size: [2, 4], of: user.bands}": 10 + 5,
    "{kind: combination, form: sorted, size: [2, 4], of: user.bands3}": 10,
    "{kind: combination, form: sorted, multiset: true, of: user.bands3}": 5 + 15 + 35,
    "{kind: combination, form: sorted, multiset: true, of: user.bands}": None,
    "{kind: weak, of: [user.bands, event.hour]}": 5 * 24,
}


def planned(declaration: str) -> Plan:
    text = ENTITIES + "  hour_weekday: {kind: categorical, emit: false, of: [event.hour, event.weekday]}\n"
    return build_plan(load_text(f"{text}  x: {declaration}\n"))


@pytest.mark.parametrize(("declaration", "most"), CEILINGS.items())
def test_the_config_bounds_a_feature(declaration: str, most: float | None) -> None:
    plan = planned(declaration)
    assert ceiling(plan, plan.node("x")) == (None if most is None else pytest.approx(most))


def test_a_part_that_is_known_bounds_a_cross() -> None:
    plan = planned("{kind: interaction, of: [user.id, event.hour]}")
    assert ceiling(plan, plan.node("x"), {("user.id", "drop"): 10.5}) == 10.5 * 24
    assert ceiling(plan, plan.node("x"), {("user.id", "own_id"): 10.5}) is None


def test_features_that_share_ids_are_one_set_only_where_they_read_alike() -> None:
    text = ENTITIES + (
        "  hour: {kind: attribute, of: event.hour}\n"
        "  again: {kind: attribute, share: hour, of: event.hour}\n"
        "  vip: {kind: attribute, of: user.vip, when: {user.vip: {any_of: [true]}}}\n"
        "  not: {kind: attribute, share: vip, of: user.vip, when: {user.vip: {any_of: [false]}}}\n"
    )
    plan = build_plan(load_text(text))
    assert group_ceiling(plan, ["hour", "again"]) == 24
    assert group_ceiling(plan, ["vip", "not"]) == 2


def test_a_ceiling_is_reached_and_never_passed() -> None:
    """Every subset and arrangement of five buckets, counted one by one."""
    rows = [list(c) for n in range(4) for c in itertools.product([0, 1, 2, 3, 4], repeat=n)]
    from feature_cross import Engine

    for declaration in CEILINGS:
        if "bands3" not in declaration:
            continue
        plan = planned(declaration)
        config = load_text(
            ENTITIES + f"  hour_weekday: {{kind: attribute, of: event.hour}}\n  x: {declaration}\n"
        )
        table = pa.table({"bands": rows, "time": pa.array([0] * len(rows), pa.timestamp("s"))})
        ids = Engine(config).transform(table)["x"][0]
        assert len(np.unique(ids)) == ceiling(plan, plan.node("x")), declaration


CONFIG = """\
entities:
  user: {attributes: {id: {type: int}, age: {type: int, buckets: {edges: [18, 30, 50]}}}}
  event:
    attributes:
      hour: {type: date, part: hour, column: time}
      weekday: {type: date, part: weekday, column: time}
features:
  age: {kind: attribute, of: user.age}
  hour_x_weekday: {kind: categorical, of: [event.hour, event.weekday]}
  user: {kind: attribute, of: user.id}
  user_x_hour: {kind: interaction, of: [user.id, event.hour]}
"""


def run(folder: Path, rows: int, *flags: str) -> int:
    (folder / "c.yaml").write_text(CONFIG)
    random = np.random.default_rng(1)
    table = {
        "id": random.integers(0, 3000, rows), "age": random.integers(0, 90, rows),
        "time": pa.array(random.integers(0, 10**9, rows), pa.timestamp("s")),
    }  # fmt: skip
    pa.parquet.write_table(pa.table(table), folder / "t.parquet")
    return main(["estimate", str(folder / "c.yaml"), str(folder / "t.parquet"), *flags])


@pytest.mark.parametrize("rows", [ROWS_MIN, 20_000])
def test_no_projection_is_past_its_ceiling(
    tmp_path: Path, rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, rows, "--rows", "1e9", "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    features = {one["name"]: one for one in found["features"]}
    assert {name: one["ceiling"] for name, one in features.items()} == {
        "age": 4, "hour_x_weekday": 168, "user": None, "user_x_hour": None,
    }  # fmt: skip
    for one in [*found["features"], *found["groups"]]:
        if one["ceiling"] is not None:
            ahead = one["projection"]
            assert ahead["low"] <= ahead["distinct"] <= ahead["high"] <= one["ceiling"]
    user, crossed = (features[name]["projection"] for name in ("user", "user_x_hour"))
    assert crossed["distinct"] <= user["distinct"] * 24 + 1 and crossed["high"] <= user["high"] * 24 + 1


def test_too_few_rows_are_not_projected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, ROWS_MIN - 1, "--rows", "1e9", "--budget", "1GB") == 1
    said = capsys.readouterr().err
    assert "--rows is 1,000,000,000, but only 4,095 rows were read" in said and "fewer than 4,096" in said
    assert run(tmp_path, ROWS_MIN - 1, "--budget", "1GB") == 0  # what is there may be counted
    assert run(tmp_path, 500, "--rows", "300") == 0  # fewer rows are looked up, not projected
